"""The cluster's benchmark: its own arithmetic, and small runs of what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench.cluster import BusyTimes, ClusterRun, _at
from jobs.bench.coordinator_speed import bench_memory_of_rows
from jobs.cli import main
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


def test_memory_is_looked_at_as_rows_go_by() -> None:
    table = bench_memory_of_rows(1000, 3)
    assert [row["rows"] for row in table] == [*range(1, 1000, 100), 1000]
    assert all(row["resident, MiB"] > 0 for row in table)
    assert table[0]["growth, MiB"] == 0


def test_one_video_runs_on_several_gpus_to_the_same_file(tmp_path: Path) -> None:
    """Real actors: the host is helped, and the video is that of a worker alone."""
    run = ClusterRun([{"prompt": "a cat", "num_frames": 161, "seed": 3}], "paper:self_reflection=false", 3, 0.01)
    (row,) = run.rows
    assert row.helper_calls is not None
    assert row.helper_calls > 50
    assert 0.0 < run.busy_share(until_tail=False) <= 1.0
    from actors.backbone import BackboneWorker
    from tests.actors.hosts import make

    alone = BackboneWorker(settings(tmp_path, sampler={"self_reflection": False}))
    alone.load()
    assert embeddings("a cat")
    assert make(alone, task(161)).result.sha256 == row.sha256
    assert row.network_calls == run.num_calls
    assert row.num_latents == SPEC.num_latents(161)


def test_the_command_prints_the_tables_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--parts", "memory", "--memory-rows", "200", "--gpus", "2", "--json"]
    assert main(["bench", "cluster", *options]) == 0
    (title,) = tables = json.loads(capsys.readouterr().out)
    assert "Memory" in title
    assert tables[title][-1]["rows"] == 200
    assert main(["bench", "cluster", "--gpus", "0"]) == 2
