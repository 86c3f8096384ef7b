"""The commands for a run that is there: what they print, their exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.storage import LocalStorage
from tests.cli import run
from tests.made_run import MadeRun, make_run
from tests.pace import paced

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(4,))


def test_verify_says_sound(capsys: pytest.CaptureFixture[str], made: MadeRun) -> None:
    status, out, err = run(capsys, "verify", made.storage.root)
    assert (status, out.splitlines()[-1]) == (0, "sound")
    assert "8 rows" in out
    assert "shard 2" in err
    assert run(capsys, "verify", made.storage.root, "--quiet")[2] == ""


def test_verify_names_every_fault_and_what_to_do(capsys: pytest.CaptureFixture[str], made: MadeRun) -> None:
    made.storage.delete(made.video(1))
    status, out, _ = run(capsys, "verify", made.storage.root)
    assert status == 1
    assert made.video(1) in out
    assert "to do: " in out
    status, out, err = run(capsys, "verify", made.storage.root, "--json")
    assert (status, err) == (1, "")
    values = json.loads(out)
    assert (values["sound"], values["rows"]) == (False, 8)
    assert [(fault["kind"], fault["where"]) for fault in values["faults"]] == [("video", made.video(1))]


@pytest.mark.parametrize("command", [["verify"], ["gc"], ["retry-failed"], ["export", "DEST"]])
def test_no_run_is_a_wrong_argument(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]) -> None:
    arguments = [tmp_path / "none", *(tmp_path / name for name in command[1:])]
    status, _, err = run(capsys, command[0], *arguments)
    assert status == 2
    assert "holds no run" in err
    assert list(tmp_path.iterdir()) == []


def test_gc_says_what_goes(capsys: pytest.CaptureFixture[str], made: MadeRun) -> None:
    orphan = made.video(0, attempt=2)
    made.storage.write_bytes(orphan, b"1234")
    status, out, _ = run(capsys, "gc", made.storage.root, "--dry-run", "--verbose")
    assert (status, out.splitlines()) == (0, [orphan, "would go: 1 video (4 bytes)"])
    assert json.loads(run(capsys, "gc", made.storage.root, "--json")[1]) == {
        "removed": True,
        "files": 1,
        "bytes": 4,
        "video": 1,
    }
    assert run(capsys, "gc", made.storage.root)[1] == "removed: nothing (0 bytes)\n"
    assert not made.storage.exists(orphan)


def test_gc_beside_a_run_is_refused(capsys: pytest.CaptureFixture[str], made: MadeRun) -> None:
    from pipeline.lease import Lease

    with Lease.held(made.storage, ttl_s=paced(2.0)):
        status, _, err = run(capsys, "gc", made.storage.root)
    assert status == 2
    assert "another run is writing" in err


def test_export(capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path) -> None:
    status, out, _ = run(capsys, "export", made.storage.root, tmp_path / "dest", "--format", "hf", "--quiet")
    assert status == 0
    assert out.splitlines()[1] == "left out: 1 failed"
    assert pq.read_table(tmp_path / "dest" / "train" / "metadata.parquet").num_rows == 7
    summary = json.loads(
        run(capsys, "export", made.storage.root, tmp_path / "d2", "--min-consistency", "0.655", "--json")[1]
    )
    assert (summary["rows"], summary["left_out_consistency"]) == (2, 5)
    status, _, err = run(capsys, "export", made.storage.root, made.storage.root + "/x")
    assert (status, "overlap" in err) == (2, True)


def test_retry_failed_without_a_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = make_run(LocalStorage(tmp_path / "out"), tmp_path)
    status, _, err = run(capsys, "retry-failed", made.storage.root)
    assert status == 2
    assert "no row was given up (8 were made)" in err


def test_retry_failed_of_changed_prompts(capsys: pytest.CaptureFixture[str], made: MadeRun) -> None:
    made.prompts.write_text('{"prompt": "another"}\n')
    status, _, err = run(capsys, "retry-failed", made.storage.root)
    assert status == 2
    assert "has changed since the run was started" in err
    made.prompts.unlink()
    status, _, err = run(capsys, "retry-failed", made.storage.root)
    assert status == 2
    assert "--prompts PATH" in err
