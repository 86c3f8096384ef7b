"""The cluster's benchmark: its own arithmetic, and small runs of what it measures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from jobs.benches.cluster import BusyTimes, ClusterRun, _at, bench_reflection
from jobs.benches.coordinator_speed import bench_memory_of_rows
from jobs.cli import main
from miga.cost import count_calls
from miga.profiles import resolve_config
from tests.actors.hosts import SPEC, embeddings, settings, task

pytestmark = pytest.mark.ray


def test_a_figure_between_two_moments_lies_between_theirs() -> None:
    series = [(10.0, 0.0), (12.0, 1.0), (20.0, 9.0)]
    assert [_at(series, when) for when in (10.0, 11.0, 12.0, 16.0, 20.0)] == [0.0, 0.5, 1.0, 5.0, 9.0]
    assert (_at(series, 5.0), _at(series, 30.0)) == (0.0, 9.0)


def test_busy_time_is_that_of_all_gpus_in_a_span() -> None:
    busy = BusyTimes.__new__(BusyTimes)
    busy.series = {"a": [(0.0, 0.0), (10.0, 10.0)], "b": [(0.0, 0.0), (10.0, 5.0)]}
    assert busy.busy_s(2.0, 6.0) == pytest.approx(4.0 + 2.0)


@pytest.mark.slow
def test_memory_is_looked_at_as_rows_go_by() -> None:
    table = bench_memory_of_rows(1000, 3)
    assert [row["rows"] for row in table] == [*range(1, 1000, 100), 1000]
    assert all(row["resident, MiB"] > 0 for row in table)
    assert table[0]["growth, MiB"] == 0


@pytest.mark.slow  # tests/actors/test_worker.py shares a video out without Ray
def test_one_video_runs_on_several_gpus_to_the_same_file(tmp_path: Path) -> None:
    """Real actors: the host is helped, and the video is that of a worker alone."""
    run = ClusterRun([{"prompt": "a cat", "num_frames": 161, "seed": 3}], "paper:self_reflection=false", 3, 0.01)
    (row,) = run.rows
    assert row.helper_calls is not None
    assert row.helper_calls > 50
    assert 0.0 < run.busy_share(until_tail=False) <= 1.0
    from actors.worker.backbone import BackboneWorker
    from tests.actors.hosts import make

    alone = BackboneWorker(settings(tmp_path, sampler={"self_reflection": False, "num_steps": 54}))
    alone.load()
    assert embeddings("a cat")
    assert make(alone, task(161)).result.sha256 == row.sha256
    assert row.network_calls == run.num_calls
    assert row.num_latents == SPEC.num_latents(161)


class PretendedRun:
    """A `ClusterRun` that takes the seconds of its calls over its GPUs, and has two searches where it may."""

    seen: ClassVar[list[tuple[str, int, str, int]]] = []

    def __init__(self, rows: Any, profile: str, num_gpus: int, call_s: float, share: str, cells: int) -> None:
        type(self).seen.append((profile, num_gpus, share, cells))
        reflects = profile.endswith("self_reflection=true")
        config = resolve_config("paper", SPEC, {"self_reflection": reflects})
        count = count_calls(config, SPEC.num_latents(rows[0]["num_frames"]))
        self.num_calls = count.total + 2 * count.per_search
        self.wall_s = self.num_calls * call_s / num_gpus
        self.rows = [
            SimpleNamespace(
                network_calls=self.num_calls,
                helper_calls=self.num_calls / 2,
                num_evaluations=count.num_evaluations,
                num_searches=2 * reflects,
            )
        ]


@pytest.mark.slow
def test_reflection_is_compared_with_the_same_gpus_and_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two searches are 192 calls of 946 + 192. Virtual time knows the calls of the same video on as many GPUs."""
    monkeypatch.setattr("jobs.benches.cluster.ClusterRun", PretendedRun)
    monkeypatch.setattr(PretendedRun, "seen", [])
    table = bench_reflection(((1, "nothing"), (4, "windows"), (4, "candidates")), 161, 0.5, "paper", 28)
    cases = [(1, "nothing"), (4, "windows"), (4, "candidates")]
    assert PretendedRun.seen == [
        (f"paper:self_reflection={reflects}", gpus, share, 28)
        for gpus, share in cases
        for reflects in ("false", "true")
    ]
    assert [row["searches"] for row in table] == [0, 2] * 3
    ratio = (946 + 192) / 946
    assert [row["times without"] for row in table] == pytest.approx([1, ratio] * 3)
    assert [row["times without, one GPU"] for row in table] == pytest.approx(
        [1, ratio, 1 / 4, ratio / 4, 1 / 4, ratio / 4]
    )
    virtual_s = [row["virtual time, s"] for row in table]
    assert virtual_s[:2] == [946 * 0.5, (946 + 192) * 0.5]
    assert virtual_s[4] == 946 * 0.5, "nobody helps without searches"
    assert 1 <= table[5]["times without, virtual"] <= 1.05 < table[3]["times without, virtual"]
    assert {row["by helpers"] for row in table} == {"50%"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--call-s", "0"], "--call-s 0"),
        (["--call-s", "nan"], "--call-s nan"),
        (["--call-s", "-1"], "--call-s -1"),
        (["--reflection-frames", "160"], "157 or 161"),
        (["--cells", "200"], "from 1 to 128"),
        (["--cells", "0"], "--cells 0"),
    ],
)
def test_bad_values_are_refused_before_anything_is_started(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.benches.cluster.ClusterRun", None)
    assert main(["bench", "cluster", "--parts", "reflection", *arguments]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_the_tables_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--parts", "memory", "--memory-rows", "200", "--gpus", "2", "--json"]
    assert main(["bench", "cluster", *options]) == 0
    (title,) = tables = json.loads(capsys.readouterr().out)
    assert "Memory" in title
    assert tables[title][-1]["rows"] == 200
    assert main(["bench", "cluster", "--gpus", "0"]) == 2
