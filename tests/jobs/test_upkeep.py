"""The commands for a run that is there: what they print, their exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.records.manifest import to_parquet
from pipeline.records.run_folder import manifest_path
from pipeline.storage.local import LocalStorage
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
    from pipeline.records.lease import Lease

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


@pytest.mark.slow
def test_repair_says_what_it_would_do_and_does_it_when_told(
    capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path
) -> None:
    assert run(capsys, "repair", made.storage.root, "--quiet")[:2] == (0, "there is nothing to do\n")
    sealed = Path(made.storage.uri("manifest/shard-00000.parquet"))
    sealed.write_bytes(b"\x1b[31mPAR1")
    status, out, _ = run(capsys, "verify", made.storage.root)
    assert (status, "miga repair" in out) == (1, True)
    for command in (("generate",), ("export", tmp_path / "dest"), ("gc",), ("status",), ("report",)):
        if command != ("generate",):
            status, _, err = run(capsys, command[0], made.storage.root, *command[1:])
            assert (status, "miga repair" in err) == (2, True), command
    status, out, _ = run(capsys, "repair", made.storage.root)
    assert (status, out.splitlines()[-1]) == (1, "nothing was changed: --yes does it")
    assert "manifest/shard-00000.parquet: it is written anew with 3 rows" in out
    assert sealed.read_bytes() == b"\x1b[31mPAR1"
    said = json.loads(run(capsys, "repair", made.storage.root, "--dry-run", "--json")[1])
    assert (said["done"], len(said["steps"]), said["left"], said["to_make"]) == (False, 1, [], [])
    status, out, _ = run(capsys, "repair", made.storage.root, "--yes")
    assert (status, out.splitlines()[-1]) == (0, "done; a copy of what was replaced is in aside/")
    assert run(capsys, "verify", made.storage.root)[0] == 0


def test_repair_asks_where_somebody_can_be_asked(
    capsys: pytest.CaptureFixture[str], made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.storage.delete("manifest/shard-00000.parquet")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, status in (("no", 1), ("", 1), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert run(capsys, "repair", made.storage.root)[0] == status
        assert made.storage.exists("manifest/shard-00000.parquet") == (status == 0)


def test_repair_names_what_is_to_be_made_anew(capsys: pytest.CaptureFixture[str], made: MadeRun) -> None:
    made.storage.delete(made.video(1))
    status, out, _ = run(capsys, "repair", made.storage.root, "--yes")
    assert (status, "1 rows are to be made anew" in out) == (0, True)


def test_an_out_of_an_earlier_version_that_was_moved_is_said(
    capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path
) -> None:
    for shard in made.manifest.sealed_shards():
        file = Path(made.storage.root) / manifest_path(shard)
        file.write_bytes(to_parquet(made.manifest.read_shard(shard)))  # with addresses, as they were written once
    moved = Path(made.storage.root).rename(tmp_path / "there")
    status, out, _ = run(capsys, "verify", moved)
    assert (status, "miga repair" in out, out.splitlines()[-1]) == (0, True, "sound")
    assert run(capsys, "export", moved, tmp_path / "dest", "--videos", "reference", "--quiet")[0] == 0
    names = pq.read_table(tmp_path / "dest" / "dataset.parquet")["file_name"].to_pylist()
    assert all((tmp_path / "dest" / name).is_file() for name in names)
    assert run(capsys, "repair", moved, "--yes")[0] == 0
    uris = pq.read_table(moved / "manifest")["uri"].to_pylist()
    assert all((moved / uri).is_file() for uri in uris if uri)
