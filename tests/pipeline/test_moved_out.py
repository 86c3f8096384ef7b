"""An OUT that is moved, or copied to another prefix of a bucket: nothing in it says where it was."""

from __future__ import annotations

import gzip
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from miga.outside_data import OutsideDataError
from pipeline.records.manifest import Manifest, portable
from pipeline.records.run_folder import manifest_path
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import verify
from tests.made_run import PER_SHARD, MadeRun, make_run


def check_moved(run: MadeRun, there: Storage) -> None:
    """All that was read of the run is read there, and nothing has to be written anew."""
    before = list(run.manifest.read_rows())
    manifest = Manifest(there, PER_SHARD)
    after = list(manifest.read_rows())
    assert [replace(row, uri=None) for row in after] == [replace(row, uri=None) for row in before]
    for row, earlier in zip(after, before, strict=True):
        if earlier.uri is not None:
            assert row.uri == there.uri(earlier.uri.removeprefix(f"{run.storage.root}/"))
    assert manifest.settled(0)[1], "the next run need not seal it again"
    found = verify(there)
    assert found.is_sound, found.faults
    assert found.counts["shards_of_another_place"] == 0
    assert repair(there).steps == []
    for shard in manifest.sealed_shards():
        for row in pq.read_table(io.BytesIO(there.read_bytes(manifest_path(shard)))).to_pylist():
            assert row["status"] == "failed" or there.stat(row["uri"]).bytes == row["bytes"]


def test_a_folder_is_moved(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(4,))
    there = Path(shutil.copytree(tmp_path / "out", tmp_path / "there"))
    check_moved(run, LocalStorage(there))
    files = [file for folder in ("done", "dead", "manifest") for file in (there / folder).rglob("*.*")]
    said = b"".join(file.read_bytes() for file in files)
    assert str(tmp_path).encode() not in said
    assert b"video/00000/" in said


def test_a_pack_says_no_place_either(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6)
    collect_garbage(run.storage, sidecars=True)
    (pack,) = run.manifest.packs(0)
    assert str(tmp_path).encode() not in gzip.decompress(run.storage.read_bytes(pack))
    (run.storage.root / Path(manifest_path(0))).unlink()
    shutil.move(tmp_path / "out", tmp_path / "there")
    rows = Manifest(LocalStorage(tmp_path / "there"), PER_SHARD).read_shard(0)
    assert [Path(row.uri or "").is_file() for row in rows] == [True] * PER_SHARD


@pytest.mark.slow
@pytest.mark.s3
def test_a_prefix_is_copied(s3_root: str, tmp_path: Path) -> None:
    run = make_run(open_storage(f"{s3_root}/out"), tmp_path, 4, failed=(1,))
    there = open_storage(f"{s3_root}/deep/er/there")
    for path in run.storage.list():
        there.write_bytes(path, run.storage.read_bytes(path))
    check_moved(run, there)


def test_what_is_no_file_of_a_run_is_not_written(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 3)
    row = run.row(0)
    assert portable(portable(row)) == portable(row)
    assert portable(replace(row, uri=None)).uri is None
    with pytest.raises(OutsideDataError):
        portable(replace(row, uri="/etc/passwd"))
