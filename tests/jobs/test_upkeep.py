"""The commands for a run that is there: what they print, their exit status, and retry-failed with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.manifest import Manifest
from pipeline.run_folder import manifest_path
from pipeline.storage import LocalStorage
from pipeline.verify import verify
from tests.made_run import MadeRun, make_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(4,))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


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

    with Lease.held(made.storage, ttl_s=2.0):
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


@pytest.mark.ray
def test_retry_failed_makes_those_rows_and_no_others(tmp_path: Path) -> None:
    """Of an unfinished run: row 1 was given up, row 4 was not come to; the prompt file was moved."""

    def miga(*arguments: object) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *map(str, arguments), "--json", "--quiet"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr}

    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("".join(f"prompt {index}\n" for index in range(5)))
    config = tmp_path / "run.toml"
    config.write_text("[run]\nprompts_per_shard = 3\n")
    model = "simulated:wan?call_s=0&decode_s=0&load_s=0"
    options = ("--config", config, "--model", model, "--num-actors", 1)
    status, summary = miga("generate", prompts, out, *options)
    assert status == 0, summary
    storage = LocalStorage(out)
    manifest = Manifest(storage, 3)
    before = list(manifest.read_rows())

    def give_up(index: int, settled: bool) -> None:
        row = before[index]
        storage.delete(next(path for path in storage.list("done") if f"/{index:08d}-" in path))
        storage.delete("video" + (row.uri or "").partition("/video")[2])
        if settled:
            lost = replace(row, status="failed", error_type="NonFiniteError", error="NaN", uri=None, sha256=None)
            manifest.record(lost)

    for shard in (0, 1):
        storage.delete(manifest_path(shard))
    give_up(1, settled=True)
    give_up(4, settled=False)
    assert manifest.seal(0) == 3
    moved = prompts.rename(tmp_path / "moved.txt")
    status, summary = miga("retry-failed", out, "--prompts", moved)
    assert status == 0, summary
    assert (summary["ok"], summary["failed"], summary["already_done"]) == (4, 0, 3)
    after = {row.row: row for row in manifest.read_rows()}
    assert sorted(after) == [0, 1, 2, 3]
    assert [after[index] for index in (0, 2, 3)] == [before[index] for index in (0, 2, 3)]
    assert (after[1].sha256, after[1].key) == (before[1].sha256, before[1].key)
    assert after[1].uri != before[1].uri
    assert manifest.sealed_statuses(0) == dict.fromkeys(range(3), "ok")
    found = verify(storage, prompts=str(moved))
    assert [(fault.kind, fault.where) for fault in found.faults] == [("missing", "row 4")]
