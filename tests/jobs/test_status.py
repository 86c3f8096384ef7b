"""`miga status` and `miga failures`: a run looked at from outside, through what its lease and its manifest say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jobs.commands.status as command
from jobs.run.status import RunStatus
from pipeline.records.lease import Lease, Owner
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.actors.test_progress import on_a_terminal
from tests.cli import run
from tests.made_run import MadeRun, make_run
from tests.pace import paced
from tests.processes import wait_for

ROOT = Path(__file__).parents[2]
ELSEWHERE = Owner(host="gpu-7", boot_id="another", pid_space="4026531836", pid=4242, process_start=1)
FIGURES = {
    "command": "generate", "rows": 8, "settled": 5, "calls_done": 1300, "calls": 2040, "videos_per_hour": 36.5,
    "gpus": 4, "gpus_busy": 3, "left_s": 335.0, "doing": [],
}  # fmt: skip


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An OUT: a folder, or a prefix of a bucket."""
    if request.param == "folder":
        return open_storage(tmp_path / "out")
    return open_storage(f"{request.getfixturevalue('s3_root')}/out")


@pytest.fixture
def made(storage: Storage, tmp_path: Path) -> MadeRun:
    """Eight rows: five made, one given up, two not settled."""
    return make_run(storage, tmp_path, 8, failed=[4], unsettled=[6, 7])


def take(storage: Storage, figures: dict[str, Any] | None = None, owner: Owner = ELSEWHERE) -> Lease:
    return Lease.acquire(storage, owner, 30.0, lambda s: None, about=lambda: FIGURES if figures is None else figures)


def everything(storage: Storage) -> list[tuple[str, float, bytes]]:
    return [(info.path, info.modified_s, storage.read_bytes(info.path)) for info in storage.files()]


def test_a_running_run(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    take(made.storage)
    before = everything(made.storage)
    status, out, message = run(capsys, "status", made.storage.root)
    assert (status, message) == (0, "")
    said = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines())
    assert said["state"].startswith("running (process 4242 on gpu-7, miga generate since ")
    assert re.search(r"last beat \d+(\.\d)? s ago", said["state"])
    assert said["videos"] == "6 of 8 videos (75 %): 5 made, 1 quarantined"
    assert said["calls"] == "1,300 of 2,040 (63 %)"
    assert said["speed"] == "36.5 videos/h, 3 of 4 GPUs busy"
    assert said["time left"] == "5 min 35 s"
    assert said["quarantined"].startswith("1 NonFiniteError; ")
    found = json.loads(run(capsys, "status", made.storage.root, "--json")[1])
    assert (found["state"], found["host"], found["pid"]) == ("running", "gpu-7", 4242)
    assert (found["settled"], found["rows"], found["percent"], found["left"]) == (6, 8, 75.0, 2)
    assert (found["ok"], found["failed"], found["failed_by_reason"]) == (5, 1, {"NonFiniteError": 1})
    assert (found["left_s"], found["videos_per_hour"], found["calls"]) == (335.0, 36.5, 2040)
    assert found["last_beat_s"] < 60
    assert everything(made.storage) == before, "looking changes nothing"


def test_what_happens_before_the_first_call(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    take(made.storage, {"rows": 8, "doing": ["loading the model", "encoding\x1b[2J prompts"]})
    out = run(capsys, "status", made.storage.root)[1]
    assert "running: loading the model, encoding\\x1b[2J prompts (process 4242" in out
    assert "time left" not in out


@pytest.mark.sampled(2)
def test_stopped_and_finished(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> tuple[str, str]:
        return (
            json.loads(run(capsys, "status", made.storage.root, "--json")[1])["state"],
            run(capsys, "status", made.storage.root)[1],
        )

    assert state()[0] == "not started"
    take(made.storage).release()
    found, shown = state()
    assert found == "stopped"
    assert "the same command goes on" in shown
    assert "time left" not in shown
    for index in (6, 7):
        made.settle(index)
    made.manifest.seal(2)
    found, shown = state()
    assert found == "finished"
    assert "8 of 8 videos (100 %): 7 made, 1 quarantined" in shown


def test_a_later_command_does_not_hide_how_many_rows_there_are(made: MadeRun) -> None:
    take(made.storage).release()
    take(made.storage, {"command": "retry-failed", "settled": 1}).release()
    found = RunStatus(made.storage.root).look()
    assert (found["state"], found["rows"], found["command"]) == ("stopped", 8, "retry-failed")


def test_a_process_that_is_gone_has_stopped(made: MadeRun) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=paced(20))
    here = Owner.this_process()
    values = {name: getattr(here, name) for name in ("host", "boot_id", "pid_space")}
    take(made.storage, owner=Owner(**values, pid=ended.pid, process_start=1))
    assert RunStatus(made.storage.root).look()["state"] == "stopped"


def test_a_beat_that_stands_still(made: MadeRun) -> None:
    """By the times of day, and, for one who watches, by a beat that changes whatever the times are."""
    take(made.storage)
    beat = made.storage.stat("lease/000001.beat").modified_s
    clock = [0.0]

    def look_at(age_s: float) -> RunStatus:
        return RunStatus(made.storage.root, now_s=lambda: beat + age_s, clock=lambda: clock[0])

    assert look_at(20.0).look()["state"] == "running"
    late = look_at(3600.0)
    assert late.look()["state"] == "silent"
    made.storage.write_bytes("lease/000001.beat", b"1")
    assert late.look()["state"] == "running", "it beats: the clocks differ"
    clock[0] = 100.0
    assert late.look()["state"] == "silent"


def test_a_run_of_a_version_that_said_nothing(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    lease = Lease.acquire(made.storage, ELSEWHERE, 30.0, lambda s: None)
    found = RunStatus(made.storage.root).look()
    assert (found["state"], found["rows"], found["settled"], found["left_s"]) == ("running", None, 6, None)
    assert "6 videos: 5 made, 1 quarantined" in run(capsys, "status", made.storage.root)[1]
    lease.release()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("note", [b'1\n{"rows": "many", "doing": 3, "left_s": -1, "calls": true}', b"1\n{", b"1\n[]"])
def test_a_beat_that_holds_something_else(made: MadeRun, note: bytes) -> None:
    take(made.storage)
    made.storage.write_bytes("lease/000001.beat", note)
    found = RunStatus(made.storage.root).look()
    assert (found["state"], found["rows"], found["doing"]) == ("running", None, [])
    assert (found["left_s"], found["calls"]) == (None, None)


def test_the_lease_carries_figures_with_every_beat(storage: Storage) -> None:
    figures = {"settled": 0}
    with Lease.held(storage, ttl_s=paced(0.4), about=lambda: dict(figures)):
        assert json.loads(storage.read_bytes("lease/000001.beat").split(b"\n")[1]) == {"settled": 0}
        figures["settled"] = 7
        wait_for(lambda: b'"settled": 7' in storage.read_bytes("lease/000001.beat"), what="the next beat")


def test_figures_that_are_too_long_or_no_numbers_are_left_out(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    for number, figures in enumerate(({"doing": ["x" * 5000]}, {"left_s": float("nan")}), 1):
        lease = Lease.acquire(storage, ELSEWHERE, 30.0, lambda s: None, about=lambda figures=figures: figures)  # type: ignore[misc]
        assert storage.read_bytes(f"lease/{number:06d}.beat") == b"0"
        lease.release()


# ---- over and over ----


def test_watching_reads_again_only_what_may_have_changed(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = RunStatus(made.storage.root)
    asked: list[str] = []
    kind = type(looks._storage)
    read_bytes = kind.read_bytes

    def noted(self: Any, path: str, *arguments: Any) -> bytes:
        asked.append(path)
        return read_bytes(self, path, *arguments)

    first = looks.look()
    monkeypatch.setattr(kind, "read_bytes", noted)
    assert looks.look() == first
    assert "manifest/shard-00000.parquet" not in asked, "its three rows are made"
    assert "manifest/shard-00001.parquet" in asked, "one of its rows may be retried"
    made.settle(6)
    asked.clear()
    assert looks.look()["settled"] == 7
    assert sum(path.startswith("done/00002/") for path in asked) == 1
    asked.clear()
    assert looks.look()["settled"] == 7
    assert not [path for path in asked if path.startswith("done/00002/")], "a sidecar is read once"


class _Run:
    def __init__(self, states: list[str]) -> None:
        self._states = iter(states)

    def look(self) -> dict[str, Any]:
        about = dict.fromkeys(("calls", "calls_done", "videos_per_hour", "gpus", "gpus_busy", "left_s"))
        return {"state": next(self._states), "settled": 1, "rows": 2, "ok": 1, "failed": 0, **about}


def test_watching_in_a_pipe_prints_changes_and_ends_with_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(command.time, "sleep", waited.append)
    command._watch(_Run(["silent", "running", "running", "stopped", "never asked for"]), 7.0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"^[-0-9]{10} [:0-9]{8} ", "", line) for line in lines] == [
        f"{state}, 1 of 2 videos (50 %)" for state in ("silent", "running", "stopped")
    ]
    assert waited == [7.0] * 3


@pytest.mark.slow
def test_watching_on_a_terminal_draws_over_what_was_there(tmp_path: Path) -> None:
    made = make_run(open_storage(tmp_path / "out"), tmp_path, 8, failed=[4], unsettled=[6, 7])
    lease = take(made.storage)
    threading.Timer(paced(4.0), lease.release).start()
    written = on_a_terminal(
        f"from jobs.cli import main; raise SystemExit(main(['status', {str(tmp_path / 'out')!r}, '--watch', '0.5']))"
    )
    assert "\x1b[J" in written
    assert written.count("6 of 8 videos (75 %)") >= 2
    assert "running (process 4242 on gpu-7" in written
    assert "stopped (process 4242 on gpu-7" in written


def test_watching_for_machines_is_a_document_a_look(made: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    take(made.storage).release()
    out = run(capsys, "status", made.storage.root, "--watch", "--json")[1]
    (document,) = map(json.loads, out.splitlines())
    assert document["state"] == "stopped"


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, message = run(capsys, "status", tmp_path)
    assert status == 2
    assert "holds no run" in message
    make_run(open_storage(tmp_path / "out"), tmp_path, 1)
    status, _, message = run(capsys, "status", tmp_path / "out", "--watch", "0")
    assert status == 2
    assert "hint: " in message
    assert sorted(os.listdir(tmp_path / "out")) == ["done", "manifest", "run.json", "video"]


# ---- failures ----


@pytest.fixture
def failing(storage: Storage, tmp_path: Path) -> MadeRun:
    """Eight rows: four given up, for three reasons."""
    made = make_run(storage, tmp_path, 8, unsettled=range(8))

    def give_up(index: int, kind: str, error: str) -> None:
        row = replace(made.row(index, "failed"), error_type=kind, error=error)
        assert made.manifest.record(row)

    give_up(1, "BadRowError", "prompts.jsonl:2: prompt is blank (' ' shows nothing); write what the video shows")
    give_up(2, "NonFiniteError", "latent 7 of the video is NaN or infinite, at level 3\n  hint: try float32")
    give_up(5, "BadRowError", "prompts.jsonl:6: prompt is blank ('\\t' shows nothing); write what the video shows")
    give_up(7, "WorkerLostError", "given up after 3 attempts; the last: \x1b[2Jit died")
    for index in (0, 3, 4, 6):
        made.settle(index)
    made.manifest.seal(0)
    return made


def test_failures_are_grouped_by_reason_with_what_to_do(failing: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(failing.storage)
    out = failing.storage.root
    status, shown, _ = run(capsys, "failures", out)
    assert status == 0
    lines = shown.splitlines()
    assert lines[0] == "4 rows were given up, for 3 kinds of reason"
    first = lines.index("2 x BadRowError: prompt is blank (… shows nothing); write what the video shows")
    assert "another OUT" in lines[first + 1]
    assert lines[first + 2].startswith("  row 1 (id-1): prompts.jsonl:2: prompt is blank")
    assert lines[first + 3].startswith("  row 5 (id-5): prompts.jsonl:6: prompt is blank")
    assert "1 x NonFiniteError: latent 7 of the video is NaN or infinite, at level 3" in lines
    assert any(f"try float32; `miga retry-failed {out}` makes it again" in line for line in lines)
    assert "\x1b" not in shown
    assert everything(failing.storage) == before

    found = json.loads(run(capsys, "failures", out, "--json")[1])
    assert found["failed"] == 4
    assert [(reason["error_type"], reason["count"]) for reason in found["reasons"]] == [
        ("BadRowError", 2), ("NonFiniteError", 1), ("WorkerLostError", 1),
    ]  # fmt: skip
    (row,) = found["reasons"][1]["rows"]
    assert (row["row"], row["id"], row["hint"][:11]) == (2, "id-2", "try float32")
    assert row["prompt"].startswith("a cat")


def test_many_of_one_reason_are_cut(storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_run(storage, tmp_path, 8, failed=range(8))
    shown = run(capsys, "failures", made.storage.root, "--rows", 3)[1]
    assert shown.count("  row ") == 3
    assert "and 5 more" in shown
    assert run(capsys, "failures", made.storage.root, "--rows", 0)[1].count("  row ") == 8


def test_no_failures(storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_run(storage, tmp_path, 3)
    assert run(capsys, "failures", made.storage.root)[:2] == (0, "no row was given up\n")
    assert json.loads(run(capsys, "failures", made.storage.root, "--json")[1]) == {"failed": 0, "reasons": []}
    status, _, message = run(capsys, "failures", made.storage.root, "--rows", -1)
    assert status == 2
    assert "hint: " in message
