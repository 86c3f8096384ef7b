"""What OUT holds, read by every command that looks at a run; see `tests/fuzz/reader.py`."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.extension.files import find_row
from jobs.run.report import make_report
from jobs.run.retry import recorded_config
from jobs.run.status import status
from miga.errors import OutputError, UsageError
from miga.outside_data import OutsideDataError
from pipeline.records.manifest import Manifest, portable, to_parquet
from pipeline.records.run_folder import (
    RUN_FILE,
    RunRecord,
    manifest_path,
    newest_checkpoint,
    pack_path,
    path_in_out,
    read_run,
)
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.export import ExportOptions, export
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import verify
from tests.fuzz.reader import Reader
from tests.made_run import PER_SHARD, MadeRun, make_run

NUM_ROWS = PER_SHARD + 1


def _made(folder: Path) -> MadeRun:
    storage = LocalStorage(folder / "out")
    run = make_run(storage, folder, NUM_ROWS, failed=(1,))
    run.manifest.pack(1, 1, run.manifest.read_shard(1))
    return run


def _a_command(folder: Path, data: bytes) -> None:
    """One of the commands that read OUT and change nothing there; which one, the data decides."""
    out, storage = str(folder / "out"), LocalStorage(folder / "out")
    record = read_run(storage)
    recorded_config(record)
    commands: list[Callable[[], object]] = [
        lambda: status(out),
        lambda: make_report(storage, str(folder / "page")),
        lambda: export(
            storage, LocalStorage(folder / "export" / str(len(data))), ExportOptions(format="csv", videos="reference")
        ),
        lambda: collect_garbage(storage, dry_run=True, sidecars=True),
        lambda: _find(storage, record),
        lambda: verify(storage, quick=True).to_dict(),
        lambda: repair(storage, quick=True, dry_run=True).to_dict(),
        lambda: Manifest(storage, PER_SHARD).settled(0),
    ]
    found = commands[zlib.crc32(data) % len(commands)]()
    if isinstance(found, dict):
        json.dumps(found, allow_nan=False).encode()


def _find(storage: LocalStorage, record: RunRecord) -> None:
    """Reads all rows for a key that none has."""
    with suppress(UsageError):
        find_row(storage, record, "0000000000")


def _run_json(folder: Path) -> list[bytes]:
    return [_made(folder).storage.read_bytes(RUN_FILE)]


def _read_run_json(folder: Path, data: bytes) -> None:
    (folder / "out" / RUN_FILE).write_bytes(data)
    _a_command(folder, data)


def _sidecar_of(folder: Path) -> Path:
    (path,) = (folder / "out" / "done" / "00001").iterdir()
    return path


def _sidecar(folder: Path) -> list[bytes]:
    run = _made(folder)
    run.storage.delete(manifest_path(1))
    run.storage.delete(run.video(PER_SHARD))  # decoding it takes the time of many readings
    run.storage.delete(pack_path(1, 1))
    data = _sidecar_of(folder).read_bytes()
    content = json.loads(data)
    del content["checksum"]
    return [json.dumps(content).encode(), data]


def _read_sidecar(folder: Path, data: bytes) -> None:
    _sidecar_of(folder).write_bytes(data)
    _a_command(folder, data)


def _shard_file(folder: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    run = _made(folder)
    run.storage.delete_many([*run.storage.list("video")])
    data = run.storage.read_bytes(manifest_path(0))
    earlier = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)), earlier)  # without a checksum
    assert data == to_parquet(map(portable, run.manifest.read_shard(0)))
    return [earlier.getvalue(), data]


def _read_shard_file(folder: Path, data: bytes) -> None:
    (folder / "out" / manifest_path(0)).write_bytes(data)
    _a_command(folder, data)


def _pack(folder: Path) -> list[bytes]:
    run = _made(folder)
    run.storage.delete(manifest_path(1))
    run.storage.delete(run.video(PER_SHARD))  # decoding it takes the time of many readings
    return [run.storage.read_bytes(pack_path(1, 1))]


def _read_pack(folder: Path, data: bytes) -> None:
    (folder / "out" / pack_path(1, 1)).write_bytes(data)
    Manifest(LocalStorage(folder / "out"), PER_SHARD).read_shard(1)


def _names(_: Path) -> list[bytes]:
    return [
        b"e1a1-0001.safetensors",
        b"video/00000/00000017-0123456789abcdef-e1a1.mp4",
        b"s3://b/x/latents/00000/y-e1a1.safetensors",
    ]


def _read_name(_: Path, data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    newest_checkpoint([text])
    try:
        path_in_out(text)
    except OutsideDataError as error:
        if text != "e1a1-0001.safetensors":
            raise OutputError(str(error)) from error


READERS = [
    Reader("run.json", _run_json, _read_run_json),
    Reader("sidecar", _sidecar, _read_sidecar),
    Reader("shard file", _shard_file, _read_shard_file),
    Reader("pack", _pack, _read_pack),
    Reader("names in OUT", _names, _read_name),
]
