"""The quality gate in a run: rows are made again under other seeds, whatever is killed on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.messages import VideoFailed, VideoFinished, VideoMade, VideoTask
from jobs.benches.coordinator_speed import RESULT
from pipeline.config import QualityConfig
from pipeline.records.quality import Try, try_seed
from pipeline.records.references import shard_files
from pipeline.rows import ManifestRow
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.verify import verify
from tests.actors.test_coordinator import FakeActor, FakeCluster

GATE = QualityConfig(least={"final_consistency": 0.8}, retries=2)
ROWS = 5
SCORES = {0: [0.9], 1: [0.1, 0.85], 2: [0.5, 0.7, 0.6], 3: [0.2, 0.3, 0.95], 4: [0.8]}
"""Row → final consistency of its tries; row 2 is never good enough, and its second try is the best."""
KEPT = {0: 0, 1: 1, 2: 1, 3: 2, 4: 0}


def number_of(task: VideoTask) -> int:
    return [try_seed(task.row, number) for number in range(4)].index(task.seed)


class Gated:
    """A script whose videos have those scores; it counts how often each try was made."""

    def __init__(self) -> None:
        self.cluster: FakeCluster | None = None
        self.made: list[tuple[int, int]] = []

    def __call__(self, actor: FakeActor, task: VideoTask) -> None:
        assert self.cluster is not None
        number = number_of(task)
        self.made.append((task.row, number))
        self.cluster.storage.write_bytes(task.path, b"a video")
        result = replace(
            RESULT,
            uri=self.cluster.storage.uri(task.path),
            bytes=7,
            num_frames=task.num_frames,
            final_consistency=(SCORES[task.row][number],),
        )
        row, attempt = task.row, task.attempt
        actor.say(VideoMade(row=row, attempt=attempt), VideoFinished(row=row, attempt=attempt, result=result))


def cluster_of(out: Path, script: Any, epoch: int = 7, **config: Any) -> FakeCluster:
    cluster = FakeCluster(out, ROWS, script, **({"quality": GATE} | config))
    cluster.coordinator._parts = replace(cluster.coordinator._parts, epoch=epoch)
    if isinstance(script, Gated):
        script.cluster = cluster
    return cluster


def check(cluster: FakeCluster) -> list[ManifestRow]:
    rows = list(cluster.manifest.read_rows())
    assert [row.row for row in rows] == list(range(ROWS))
    for row in rows:
        values = json.loads(row.quality or "")
        assert row.status == "ok"
        assert values["kept"] == KEPT[row.row]
        assert row.seed == try_seed(row.row, KEPT[row.row])
        assert row.final_consistency == (SCORES[row.row][KEPT[row.row]],)
        assert [each["number"] for each in values["tries"]] == list(range(len(SCORES[row.row])))
        assert [each["scores"]["final_consistency"] for each in values["tries"]] == SCORES[row.row]
        assert len({each["video"] for each in values["tries"]}) == len(values["tries"])
        assert values["good"] == (row.row != 2)
        assert row.uri == cluster.storage.uri(values["tries"][KEPT[row.row]]["video"])
        for each in values["tries"]:
            assert cluster.storage.exists(each["video"])
    assert verify(cluster.storage, prompts=str(cluster.plan.prompts.path), quick=True).faults == []
    return rows


def test_rows_are_made_again_until_they_are_good(tmp_path: Path) -> None:
    script = Gated()
    cluster = cluster_of(tmp_path / "out", script)
    cluster.run()
    check(cluster)
    assert not list(cluster.storage.list("checkpoint"))
    assert sorted(script.made) == [(row, number) for row, scores in SCORES.items() for number in range(len(scores))]
    assert any("row 2 (2): try 2 is kept: the best of 3 tries" in line for line in cluster.lines)
    again = cluster_of(tmp_path / "out", Gated())
    again.run()
    assert again.actors == []


def test_without_retries_rows_are_marked(tmp_path: Path) -> None:
    script = Gated()
    cluster = cluster_of(tmp_path / "out", script, quality=replace(GATE, retries=0))
    cluster.run()
    rows = list(cluster.manifest.read_rows())
    assert [json.loads(row.quality or "")["good"] for row in rows] == [True, False, False, False, True]
    assert [row.seed for row in rows] == list(range(ROWS))
    assert len(script.made) == ROWS


def test_without_a_gate_nothing_is_said(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path / "out", Gated(), quality=QualityConfig())
    cluster.run()
    assert {row.quality for row in cluster.manifest.read_rows()} == {None}


def test_garbage_is_what_was_not_kept(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path / "out", Gated())
    cluster.run()
    rows = check(cluster)
    files = shard_files(cluster.storage, rows[:4], 0)
    assert files.foreign == []
    assert len(files.orphans["video"]) == 1 + 2 + 2
    collect_garbage(cluster.storage, wait=lambda seconds: None)
    left = {file.path.rpartition("/")[2] for file in cluster.storage.files("video")}
    assert left == {(row.uri or "").rpartition("/")[2] for row in rows}


class Killed(BaseException):
    """The process is gone."""


def killed_at(cluster: FakeCluster, place: int) -> bool:
    """Runs until so many writes to OUT were done, and the next is not (or is done, and nobody hears of it)."""
    left = [place]
    storage = cluster.storage
    write, put_off = storage.write_bytes, place % 2

    def dying(path: str, data: bytes, if_absent: bool = False) -> bool:
        left[0] -= 1
        if left[0] < 0:
            if left[0] == -1 and put_off:
                write(path, data, if_absent)
            raise Killed
        return write(path, data, if_absent)

    storage.write_bytes = dying  # type: ignore[method-assign]
    try:
        cluster.run()
    except Killed:
        return True
    finally:
        del storage.write_bytes  # type: ignore[attr-defined]
    return False


@pytest.mark.parametrize("place", [6, 9, *(pytest.param(place, marks=pytest.mark.slow) for place in range(28))])
def test_a_kill_at_any_write_loses_and_doubles_nothing(tmp_path: Path, place: int) -> None:
    """Every write of the run in turn is the last one, twice in a row; then it goes on to the same end."""
    made: list[tuple[int, int]] = []
    for epoch, kill_at in ((1, place), (2, place // 2), (3, None)):
        script = Gated()
        cluster = cluster_of(tmp_path / "out", script, epoch)
        if kill_at is None:
            cluster.run()
        else:
            killed_at(cluster, kill_at)
        made += script.made
    rows = check(cluster)
    left = [path for path in cluster.storage.list("checkpoint") if cluster.manifest.is_sealed(0)]
    orphans = [
        file.path
        for shard in (0, 1)
        for file in shard_files(cluster.storage, [row for row in rows if row.shard == shard], shard).orphans[
            "checkpoint"
        ]
    ]
    assert sorted(left) == sorted(orphans)  # of a kill between a row's record and the removal: for `miga gc`
    wanted = {(row, number) for row, scores in SCORES.items() for number in range(len(scores))}
    assert set(made) == wanted
    assert len(made) <= len(wanted) + 2 * 2 * 2  # what two workers had in hand when it was killed, twice


def test_a_try_that_fails_leaves_the_best_before_it(tmp_path: Path) -> None:
    script = Gated()

    def failing(actor: FakeActor, task: VideoTask) -> None:
        if (task.row, number_of(task)) == (2, 1):
            error = {"error_type": "NonFiniteError", "error": "NaN", "scope": "row", "retryable": False}
            actor.say(VideoFailed(row=task.row, attempt=task.attempt, **error))
        else:
            script(actor, task)

    cluster = script.cluster = cluster_of(tmp_path / "out", failing)
    cluster.run()
    row = list(cluster.manifest.read_rows())[2]
    values = json.loads(row.quality or "")
    assert (row.status, row.seed, values["kept"], values["good"]) == ("ok", 2, 0, False)
    assert values["tries"][1]["error"] == "NonFiniteError: NaN"
    assert verify(cluster.storage, prompts=str(cluster.plan.prompts.path), quick=True).faults == []


def test_a_first_try_that_fails_is_quarantined(tmp_path: Path) -> None:
    script = Gated()

    def failing(actor: FakeActor, task: VideoTask) -> None:
        if task.row == 1:
            error = {"error_type": "NonFiniteError", "error": "NaN", "scope": "row", "retryable": False}
            actor.say(VideoFailed(row=task.row, attempt=task.attempt, **error))
        else:
            script(actor, task)

    cluster = script.cluster = cluster_of(tmp_path / "out", failing)
    cluster.run()
    row = list(cluster.manifest.read_rows())[1]
    assert (row.status, row.quality) == ("failed", None)


def test_a_dead_worker_costs_no_try(tmp_path: Path) -> None:
    """Its row is made again under the same seed, from the newest checkpoint of that try, not of one before."""
    script = Gated()
    died: list[VideoTask] = []

    def dying(actor: FakeActor, task: VideoTask) -> None:
        assert script.cluster is not None
        if task.row == 3 and number_of(task) == 1 and not died:
            died.append(task)
            actor.die()
        else:
            script(actor, task)

    cluster = script.cluster = cluster_of(tmp_path / "out", dying)
    cluster.run()
    check(cluster)
    assert len(died) == 1


def test_checkpoints_of_a_try_that_is_over_are_not_gone_on_with(tmp_path: Path) -> None:
    script = Gated()
    first = cluster_of(tmp_path / "out", script, epoch=1)
    row = next(iter(first.plan.rows()))
    folder = f"checkpoint/00000/00000001-{first.maker.key(list(first.plan.rows())[1])[:16]}"  # type: ignore[arg-type]
    del row
    made = first.maker.finished(list(first.plan.rows())[1], "0" * 64, 1, 0.0, RESULT)  # type: ignore[arg-type]
    uri = first.storage.uri(f"video/00000/00000001-{'0' * 16}-e1a1.mp4")
    this = Try(number=0, seed=1, row=replace(made, uri=uri), scores={"final_consistency": 0.1})
    first.storage.write_bytes(f"{folder}/try-00.json", this.to_json())
    for name in ("e1a1-0001", "e1a1-0002", "e1a2-0001"):
        first.storage.write_bytes(f"{folder}/{name}.safetensors", b"part")
    cluster = cluster_of(tmp_path / "out", script, epoch=2)
    cluster.run()
    [task] = [task for task in cluster.tasks() if task.row == 1]
    assert (number_of(task), task.resume_from) == (1, f"{folder}/e1a2-0001.safetensors")


def test_a_record_of_a_try_that_is_broken_is_made_again(tmp_path: Path) -> None:
    script = Gated()
    cluster = cluster_of(tmp_path / "out", script)
    folder = f"checkpoint/00000/00000003-{cluster.maker.key(list(cluster.plan.rows())[3])[:16]}"
    cluster.storage.write_bytes(f"{folder}/try-00.json", b'{"number": 0')
    cluster.run()
    rows = {row.row: json.loads(row.quality or "") for row in cluster.manifest.read_rows()}
    assert [each["number"] for each in rows[3]["tries"]] == [0, 1, 2]
    assert any("that try is made again" in line for line in cluster.lines)
