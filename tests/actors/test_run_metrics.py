"""The figures of a whole run at Ray's metrics endpoint, against its manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.pace import paced

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time, urllib.request
import ray

prompts, out, model = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
port = ray.nodes()[0]["MetricsExportPort"]

from jobs.run.make import generate
from jobs.run.plan import make_plan
from pipeline.config import load_config, override
from tests.pace import Limit, paced

config = override(load_config(None), model=model, profile="paper", workers={"num_actors": 1})
summary = generate(make_plan(prompts, out, config), quiet=True)
limit = Limit(60)
while not limit.is_over:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=paced(5)) as answer:
        text = answer.read().decode()
    settled = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("ray_miga_rows_total{")]
    if sum(settled) == summary["videos"]:
        break
    time.sleep(0.2)
print(text)
"""


@pytest.mark.slow  # test_metrics.py looks at the same figures without a run
def test_the_figures_of_a_run_are_those_of_its_manifest(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    rows = [
        {"prompt": "a red circle"},
        {"prompt": " "},
        {"prompt": "a blue ring", "num_frames": 101},
        {"prompt": "x" * 9999},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = os.environ | {
        "RAY_metrics_report_interval_ms": "500", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(prompts), str(out), "simulated:wan?call_s=0.002&decode_s=0&load_s=0"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=paced(200),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples = [
        sample
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
        if sample.name.startswith("ray_miga_")
    ]

    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    manifest = [row for file in (out / "manifest").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    made = [row for row in manifest if row["status"] == "ok"]
    failed = [row for row in manifest if row["status"] == "failed"]
    assert (len(made), len(failed)) == (2, 2)
    assert total("ray_miga_rows_total", status="ok") == len(made)
    assert total("ray_miga_rows_total", status="failed") == len(failed)
    for kind in {row["error_type"] for row in failed}:
        expected = sum(row["error_type"] == kind for row in failed)
        assert total("ray_miga_quarantined_rows_total", error_type=kind) == expected
    assert total("ray_miga_frames_total") == sum(row["num_frames"] for row in made)
    assert total("ray_miga_video_bytes_total") == sum(row["bytes"] for row in made)
    assert total("ray_miga_searches_total") > 0
    assert total("ray_miga_searches_total") == sum(row["num_searches"] for row in made)
    assert total("ray_miga_corrections_total") == sum(row["num_corrections"] for row in made)
    assert total("ray_miga_upload_lag_seconds_count") == len(made)
    assert total("ray_miga_retries_total") == 0
    assert total("ray_miga_lost_work_seconds_total") == 0
    # The worker's speed is measured by a few calls that belong to no video.
    calls = sum(row["network_calls"] for row in made)
    assert calls <= total("ray_miga_calls_total") <= calls + 10
    assert int(total("ray_miga_calls_total")) == total("ray_miga_call_seconds_count")
    denoise_s = sum(row["denoise_s"] for row in made)
    assert 0 < total("ray_miga_worker_busy_seconds_total", worker="worker-0") < denoise_s + 10
    record = json.loads((out / "run.json").read_text())
    assert {(sample.labels["model"], sample.labels["profile"]) for sample in samples} == {(record["model"], "paper")}
