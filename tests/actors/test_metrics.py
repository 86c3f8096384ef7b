"""What a run tells Prometheus: scraped from the endpoint of a local Ray, and read by the dashboard and the alerts."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from actors.driver.metrics import MAX_ERROR_TYPES, METRICS, WORKER_STATES, RunMetrics, exported_names
from tests import processes
from tests.pace import paced

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "infra/grafana/miga-dashboard.json").read_text())
ALERTS = yaml.safe_load((ROOT / "infra/prometheus/alerts.yml").read_text())
NOT_OURS = {"instance", "job", "le"}

Sample = tuple[str, dict[str, str], float]


# ---- the endpoint ----


@pytest.fixture(scope="module")
def scrape() -> Iterator[Callable[[], list[Sample]]]:
    """Reads what Prometheus would of a local Ray that reports twice a second."""
    import ray

    with pytest.MonkeyPatch.context() as env:
        env.setenv("RAY_metrics_report_interval_ms", "500")
        env.setenv("RAY_AUTH_MODE", "disabled")
        env.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
            logging_level="warning",
        )
        port = ray.nodes()[0]["MetricsExportPort"]

        def read() -> list[Sample]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=paced(5)) as answer:
                families = text_string_to_metric_families(answer.read().decode())
                return [
                    (sample.name, sample.labels, sample.value)
                    for family in families
                    for sample in family.samples
                    if sample.name.startswith("ray_miga_")
                ]

        yield read
        ray.shutdown()


def wait_for(scrape: Callable[[], list[Sample]], settled: Callable[[list[Sample]], bool]) -> list[Sample]:
    def found() -> list[Sample]:
        samples = scrape()
        return samples if settled(samples) else []

    return processes.wait_for(found, 60, what="the figures", every_s=0.2)


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum over all series that have these labels, as a query has it; None of them is an error."""
    found = [number for key, has, number in samples if key == name and labels.items() <= has.items()]
    assert found, f"no series {name} {labels}"
    return sum(found)


@pytest.mark.ray
def test_every_metric_arrives_at_the_endpoint_with_its_figures(
    scrape: Callable[[], list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr("actors.driver.metrics.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    metrics = RunMetrics("swift", "sprites", num_rows=100)
    for _ in range(4):
        metrics.row_settled("skipped")
    metrics.gpu("worker-0", "node-a", 8, 11.2)  # 1.4 s each
    metrics.gpu("worker-0", "node-a", 8, 11.2)  # nothing since
    metrics.gpu("worker-0", "node-a", 9.5, 15.7)  # 3 s each, half a guided call among them
    metrics.gpu("worker-1", "node-b", 4, 2.4)
    metrics.gpu("worker-0", "node-c", 1.5, 1.5)  # another process of that name: 1 s each
    metrics.gpu("worker-0", "node-c", 2, 2.0)

    for row in range(5):
        metrics.began(row, 1)
    clock.now_s += 10.0
    metrics.saved(0, 1)
    metrics.saved(1, 1)
    clock.now_s += 3.0
    metrics.given_back(0, 1)  # lost: 3 s since its checkpoint
    metrics.erred(2, 1)
    metrics.given_back(2, 1)  # an error: 13 s, it had none
    metrics.suspended(1, 1)
    metrics.given_back(1, 1)  # drained: nothing is lost
    metrics.made(3, 1)
    clock.now_s += 0.2
    metrics.committed(3, 1, num_frames=161, num_bytes=5_000_000, num_searches=5, num_corrections=2)
    metrics.began(0, 2)
    metrics.made(0, 2)
    clock.now_s += 45.0
    metrics.committed(0, 2, num_frames=81, num_bytes=2_500_000, num_searches=1, num_corrections=0)
    metrics.quarantined(4, 1, "Error0")
    metrics.given_back(4, 1)  # it is over: nothing is counted
    for number in range(MAX_ERROR_TYPES + 5):
        metrics.quarantined(10 + number, 0, f"Error{number}")

    metrics.refresh({"idle": 2, "hosting": 1}, waiting=7, in_flight=1, uploading=1)
    assert not metrics.is_due
    clock.now_s += 2.0
    assert metrics.is_due
    metrics.refresh({"idle": 2, "hosting": 3}, waiting=6, in_flight=3, uploading=0)

    expected = {name for metric in METRICS for name in exported_names(metric)}
    samples = wait_for(scrape, lambda found: expected <= {name for name, _, _ in found})
    assert {name for name, _, _ in samples} - expected <= {f"{name}_created" for name in expected}
    assert all(labels["profile"] == "swift" and labels["model"] == "sprites" for _, labels, _ in samples)

    for status, count in (("ok", 2), ("failed", MAX_ERROR_TYPES + 6), ("skipped", 4)):
        assert value(samples, "ray_miga_rows_total", status=status) == count
        assert value(samples, "ray_miga_rows_settled", status=status) == count
    assert value(samples, "ray_miga_rows_expected") == 100
    assert value(samples, "ray_miga_frames_total") == 242
    assert value(samples, "ray_miga_video_bytes_total") == 7_500_000
    assert value(samples, "ray_miga_calls_total") == pytest.approx(8 + 1.5 + 4 + 2)
    assert value(samples, "ray_miga_call_seconds_count") == 8 + 1 + 4 + 2
    assert value(samples, "ray_miga_call_seconds_bucket", le="0.5") == 0
    assert value(samples, "ray_miga_call_seconds_bucket", le="0.7") == 4
    assert value(samples, "ray_miga_call_seconds_bucket", le="1.0") == 6
    assert value(samples, "ray_miga_call_seconds_bucket", le="2.0") == 14
    assert value(samples, "ray_miga_call_seconds_bucket", le="4.0") == 15
    assert value(samples, "ray_miga_worker_busy_seconds_total", worker="worker-0", node="node-a") == pytest.approx(15.7)
    assert value(samples, "ray_miga_worker_busy_seconds_total", worker="worker-0", node="node-c") == pytest.approx(2)
    assert value(samples, "ray_miga_worker_busy_seconds_total") == pytest.approx(20.1)
    assert value(samples, "ray_miga_searches_total") == 6
    assert value(samples, "ray_miga_corrections_total") == 2
    assert value(samples, "ray_miga_upload_lag_seconds_count") == 2
    assert value(samples, "ray_miga_upload_lag_seconds_bucket", le="30.0") == 1
    for reason in ("worker lost", "worker drained", "error"):
        assert value(samples, "ray_miga_retries_total", reason=reason) == 1
    assert value(samples, "ray_miga_quarantined_rows_total", error_type="Error0") == 2
    assert value(samples, "ray_miga_quarantined_rows_total", error_type="other") == 5
    assert value(samples, "ray_miga_quarantined_rows_total") == MAX_ERROR_TYPES + 6
    assert value(samples, "ray_miga_workers", state="hosting") == 3
    assert value(samples, "ray_miga_workers", state="helping") == 0
    assert value(samples, "ray_miga_workers") == 5
    assert value(samples, "ray_miga_rows_waiting") == 6
    assert value(samples, "ray_miga_videos_in_flight") == 3
    assert value(samples, "ray_miga_uploads_in_flight") == 0
    assert value(samples, "ray_miga_checkpoints_total") == 2
    assert value(samples, "ray_miga_lost_work_seconds_total") == pytest.approx(3 + 13)


@pytest.mark.ray
def test_a_gauge_that_does_not_change_stays(scrape: Callable[[], list[Sample]]) -> None:
    """Ray forgets one that is not set again: a figure told once would be gone when Prometheus comes the second time."""
    metrics = RunMetrics("paper", "steady", num_rows=42)
    seen = []
    for _ in range(5):
        for _ in range(5):
            if metrics.is_due:
                metrics.refresh({"idle": 1}, waiting=0, in_flight=0, uploading=0)
            time.sleep(0.2)
        found = {name for name, labels, _ in scrape() if labels["model"] == "steady"}
        seen.append({"ray_miga_rows_expected", "ray_miga_workers"} <= found)
    assert all(seen[2:]), seen


# ---- the dashboard and the alerts ----


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every query of the dashboard, its variables filled in, and of the alerts."""
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    filled = [
        text.replace("$__rate_interval", "1m")
        .replace("$__range", "3h")
        .replace("$profile", ".*")
        .replace("$model", ".*")
        for text in of_panels
    ]
    return filled + [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Metric and the labels that it is selected by, of each selector."""
    found = re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)", labels))) for name, labels in found]


def test_every_query_is_promql() -> None:
    for expression in expressions():
        assert "$" not in expression
        promql_parser.parse(expression)
    with pytest.raises(ValueError, match="parenthesis"):
        promql_parser.parse("sum(rate(ray_miga_rows_total[5m])")


def test_dashboard_and_program_know_the_same_metrics() -> None:
    exported = {name for metric in METRICS for name in exported_names(metric)}
    used = {name for expression in expressions() for name, _ in selectors(expression)}
    assert used <= exported - {name for name in exported if name.endswith("_sum")}  # those are guesses of Ray's
    for metric in METRICS:
        assert used & set(exported_names(metric)), f"{metric} is on no panel"


def test_every_query_selects_and_groups_by_tags_that_its_metric_has() -> None:
    tags_of = {name: set(spec.tags) for metric, spec in METRICS.items() for name in exported_names(metric)}
    for expression in expressions():
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        for name, labels in selectors(expression):
            assert labels | grouped <= tags_of[name] | NOT_OURS | {"profile", "model"}, expression
    states = {state for text in expressions() for state in re.findall(r'state[!=]~?"([^"]*)"', text)}
    assert {part for state in states for part in state.split("|")} <= set(WORKER_STATES)


def test_every_series_is_summed_and_every_counter_of_the_alerts_is_a_rate() -> None:
    for expression in expressions():
        for match in re.finditer(r"\bray_miga_\w+", expression):
            before = expression[: match.start()]
            assert re.search(r"sum(?: by \([^)]*\))? ?\((?:rate\(|increase\()?$", before), expression
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            for match in re.finditer(r"\bray_miga_\w+_(total|bucket|sum|count)\b", rule["expr"]):
                assert re.search(r"(rate|increase)\($", rule["expr"][: match.start()]), rule["alert"]
            assert rule["annotations"]["summary"]


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("miga-run", "MIGA on Ray")
    assert "id" not in DASHBOARD  # it is Grafana's to give
    (source,) = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource"]
    assert source["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # fmt: skip
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen and target["expr"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.slow
def test_names_have_units_and_every_metric_says_what_it_is() -> None:
    for name, spec in METRICS.items():
        assert re.fullmatch(r"miga_[a-z_]+", name)
        assert spec.help[0].isupper()
        assert name.endswith("_seconds") == ("Seconds" in spec.help)
        assert (spec.kind == "histogram") == bool(spec.buckets)
        assert list(spec.buckets) == sorted(set(spec.buckets))
