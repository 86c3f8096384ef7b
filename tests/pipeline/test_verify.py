"""`verify` on whole runs, and on every way to break one."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from miga.checkpoint import save_checkpoint
from miga.errors import OutputError
from pipeline.records.manifest import to_parquet
from pipeline.records.run_folder import checkpoint_folder, latents_path, open_state_path
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.upkeep.verify import Verification, verify
from tests.made_run import MadeRun, make_run, video_bytes
from tests.miga.test_checkpoint import CONFIG, make_checkpoint


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out" if request.param == "local" else request.getfixturevalue("s3_root"))


def kinds(found: Verification) -> list[str]:
    return [fault.kind for fault in found.faults]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_run_is_sound(storage: Storage, tmp_path: Path, quick: bool) -> None:
    run = make_run(storage, tmp_path, 8, failed=(4,))
    found = verify(storage, quick=quick)
    assert found.faults == []
    assert found.is_sound
    sizes = sum(run.row(index).bytes or 0 for index in range(8) if index != 4)
    expected = {"rows": 8, "ok": 7, "failed": 1, "videos": 7, "bytes": sizes, "sealed_shards": 3}
    report = found.to_dict()
    assert {name: report[name] for name in expected} == expected
    assert report["orphan_videos"] == report["leftovers"] == report["foreign_files"] == 0


def test_an_unfinished_run_is_told_what_it_lacks(tmp_path: Path) -> None:
    make_run(LocalStorage(tmp_path / "out"), tmp_path, 9, unsettled=(4, 6, 7, 8))
    found = verify(LocalStorage(tmp_path / "out"))
    assert [(fault.kind, fault.where) for fault in found.faults] == [("missing", "row 4"), ("missing", "rows 6 to 8")]
    assert all("generate" in fault.remedy for fault in found.faults)


def test_a_limit_is_not_a_lack_and_a_larger_one_later_is_seen(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    run = make_run(storage, tmp_path, 9, limit=2)
    assert verify(storage).is_sound
    run.settle(5)
    assert [fault.where for fault in verify(storage).faults] == ["row 2", "rows 3 to 4"]
    for index in (2, 3, 4):
        run.settle(index)
    assert kinds(verify(storage)) == ["unsealed", "unsealed"]
    run.manifest.seal(0)
    run.manifest.seal(1)
    assert verify(storage).is_sound


def test_a_run_that_was_moved_is_sound(tmp_path: Path) -> None:
    make_run(LocalStorage(tmp_path / "out"), tmp_path)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert verify(LocalStorage(tmp_path / "moved")).is_sound


def sealed_file(run: MadeRun, shard: int) -> Path:
    return Path(run.storage.uri(f"manifest/shard-{shard:05d}.parquet"))


def rewrite(run: MadeRun, change: Callable[[list[object]], list[object]]) -> None:
    sealed_file(run, 0).write_bytes(to_parquet(change(run.manifest.read_shard(0))))  # type: ignore[arg-type]


def drop_column(run: MadeRun) -> None:
    pq.write_table(pq.read_table(sealed_file(run, 0)).drop_columns(["device"]), sealed_file(run, 0))


def other_type(run: MadeRun) -> None:
    table = pq.read_table(sealed_file(run, 0))
    position = table.schema.get_field_index("fps")
    pq.write_table(table.set_column(position, "fps", table["fps"].cast(pa.float32())), sealed_file(run, 0))


def break_video(run: MadeRun, data: bytes) -> None:
    run.storage.write_bytes(run.video(1), data)


def cut_and_recorded(run: MadeRun) -> None:
    """A short, valid video that was recorded as it is: only its frames tell."""
    from pipeline.config import VideoConfig
    from pipeline.video import read_frames, write_video

    whole = Path(run.storage.uri(run.video(1)))
    frames = list(read_frames(whole))[:-1]
    made = write_video([frame[None] for frame in frames], whole, fps=8, settings=VideoConfig(), num_frames=len(frames))
    data = Path(made.path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    rewrite(run, lambda rows: [rows[0], replace(rows[1], sha256=digest, bytes=len(data)), rows[2]])  # type: ignore[type-var]


def latents_bytes(folder: Path) -> bytes:
    save_checkpoint(make_checkpoint(0, 2), folder / "latents", config=CONFIG, seed=1)
    return (folder / "latents").read_bytes()


def flipped(data: bytes) -> bytes:
    """One bit, inside of the latents."""
    return data[:-50] + bytes([data[-50] ^ 8]) + data[-49:]


def keep_latents(run: MadeRun, change: Callable[[bytes], bytes], change_open: Callable[[bytes], bytes] = bytes) -> str:
    """Notes that latents of row 1 were kept, and puts what is made of them, and of the open state, there."""
    path = latents_path(0, 1, run.row(1).key, 1, 1)
    rewrite(run, lambda rows: [rows[0], replace(rows[1], latents_uri=run.storage.uri(path)), *rows[2:]])  # type: ignore[type-var]
    with tempfile.TemporaryDirectory() as folder:
        data = latents_bytes(Path(folder))
    run.storage.write_bytes(path, change(data))
    run.storage.write_bytes(open_state_path(path), change_open(data))
    return path


BREAKS: dict[str, tuple[Callable[[MadeRun], object], list[str], list[str]]] = {
    "video gone": (lambda run: run.storage.delete(run.video(1)), ["video"], ["video"]),
    "video shorter": (lambda run: break_video(run, video_bytes(1)[:-1]), ["size"], ["size"]),
    "video flipped": (lambda run: break_video(run, video_bytes(1)[:-1] + b"\xff"), [], ["sha256"]),
    "video emptied": (lambda run: break_video(run, b""), ["size"], ["size"]),
    "frames lost": (cut_and_recorded, [], ["frames"]),
    "latents gone": (
        lambda run: run.storage.delete(keep_latents(run, bytes)),
        ["latents"],
        ["latents"],
    ),
    "latents cut": (lambda run: keep_latents(run, lambda data: data[:-1]), [], ["latents"]),
    "latents flipped": (lambda run: keep_latents(run, flipped), [], ["latents"]),
    "open state flipped": (lambda run: keep_latents(run, bytes, flipped), [], ["latents"]),
    "latents of something else": (
        lambda run: keep_latents(run, lambda _: save({"x": torch.zeros(3)})),
        [],
        ["latents"],
    ),
    "row lost": (lambda run: rewrite(run, lambda rows: rows[:1] + rows[2:]), ["unsealed"], ["unsealed"]),
    "row twice": (lambda run: rewrite(run, lambda rows: [*rows, rows[1]]), ["manifest"], ["manifest"]),
    "rows unsorted": (lambda run: rewrite(run, lambda rows: rows[::-1]), ["manifest"], ["manifest"]),
    "not parquet": (lambda run: sealed_file(run, 0).write_bytes(b"PAR1"), ["manifest"], ["manifest"]),
    "other prompt": (
        lambda run: rewrite(run, lambda rows: [replace(rows[0], prompts=("x",)), *rows[1:]]),  # type: ignore[type-var]
        ["row", "row"],
        ["row", "row"],
    ),
    "other seed": (
        lambda run: rewrite(run, lambda rows: [replace(rows[0], seed=99), *rows[1:]]),  # type: ignore[type-var]
        ["row", "row"],
        ["row", "row"],
    ),
    "other model": (
        lambda run: rewrite(run, lambda rows: [replace(rows[0], model_revision="x"), *rows[1:]]),  # type: ignore[type-var]
        ["row"],
        ["row"],
    ),
    "unsealed": (lambda run: sealed_file(run, 1).unlink(), ["unsealed"], ["unsealed"]),
    "other prompt file": (lambda run: run.prompts.write_text("x\n"), ["prompts"], ["prompts"]),
    "no prompt file": (lambda run: run.prompts.unlink(), ["prompts"], ["prompts"]),
    "second sidecar": (
        lambda run: run.storage.write_bytes("done/00000/00000001-0000000000000000.json", b"{}"),
        ["row"],
        ["row"],
    ),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.sampled(9)
def test_every_break_is_found_and_nothing_else(tmp_path: Path, name: str) -> None:
    change, shallow, whole = BREAKS[name]
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 8)
    change(run)
    found = verify(run.storage, quick=True)
    assert kinds(found) == shallow
    assert kinds(verify(run.storage)) == whole
    assert all(fault.where and fault.what and fault.remedy for fault in found.faults)


def test_kept_latents_that_are_whole_are_no_fault(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path)
    keep_latents(run, bytes)
    found = verify(run.storage)
    assert (found.faults, found.counts["latents"], found.counts["orphan_latents"]) == ([], 1, 0)


def test_a_row_lost_from_a_sealed_file_is_missing_once_its_sidecar_is_gone(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 8)
    rewrite(run, lambda rows: rows[:1] + rows[2:])
    (sidecar,) = [path for path in run.storage.list("done") if "/00000001-" in path]
    run.storage.delete(sidecar)
    found = verify(run.storage)
    assert [(fault.kind, fault.where) for fault in found.faults] == [("missing", "row 1")]
    assert found.counts["orphan_videos"] == 0, "it is what the row can be rebuilt from"
    assert "miga repair" in found.faults[0].remedy


def test_missing_columns_and_other_types(tmp_path: Path) -> None:
    for number, change in enumerate((drop_column, other_type)):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = make_run(LocalStorage(folder / "out"), folder, 8)
        change(run)
        assert kinds(verify(run.storage)) == ["manifest"]


def test_a_prompt_file_that_was_moved_can_be_named(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path)
    moved = run.prompts.rename(tmp_path / "moved.jsonl")
    assert kinds(verify(run.storage)) == ["prompts"]
    assert verify(run.storage, prompts=str(moved)).is_sound


def test_orphans_and_leftovers_are_counted_and_no_fault(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path)
    run.storage.write_bytes(run.video(0, attempt=2), b"12345")
    run.storage.write_bytes(f"{checkpoint_folder(0, 0, run.row(0).key)}/e1a1-0001.safetensors", b"1")
    run.storage.write_bytes(latents_path(0, 0, run.row(0).key, 1, 2), b"1")
    run.storage.write_bytes("video/00000/notes.txt", b"1")
    run.storage.write_bytes(".probe-1", b"")
    found = verify(run.storage)
    assert found.is_sound
    counts = found.to_dict()
    assert [counts[f"orphan_{kind}"] for kind in ("videos", "checkpoints", "latents", "bytes")] == [1, 1, 1, 7]
    assert (counts["foreign_files"], counts["leftovers"]) == (1, 1)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no run"):
        verify(LocalStorage(tmp_path))
