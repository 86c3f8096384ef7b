"""`miga export`: the dataset in a form that training code and dataset libraries take.

    parquet       DEST/dataset.parquet   the manifest's columns in one file, and `file_name`; videos in DEST/videos/
    csv           DEST/dataset.csv       the same; lists are JSON; no text is a formula
    hf            DEST/train/metadata.parquet, videos beside it: Hugging Face's "videofolder"
    webdataset    DEST/shard-00000.tar   of each video NNNNNNNN.mp4, .txt (its prompts) and .json (its row)

DEST/README.md is the data set's card (`dataset_card.py`). Addresses in an export lead from it: `uri` is the video seen
from DEST, `file_name` seen from the table, `latents_uri` the path of kept latents in OUT.

The same rows give the same bytes. It may be stopped and started again: a file that is there is whole, and is not made
again; what belongs to the table is written last. Nothing in OUT is changed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from miga.errors import OutputError, UsageError
from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.records.manifest import SCHEMA, Manifest, arrow_values
from pipeline.records.references import video_name
from pipeline.records.run_folder import RunRecord, path_in_out, read_run
from pipeline.rows import ManifestRow, canonical_json, content_hash
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.dataset_card import UNKNOWN_LICENCE, Figures, checked_licence, dataset_card

Format = Literal["parquet", "csv", "hf", "webdataset"]
Videos = Literal["copy", "link", "reference"]
Chosen = Literal["ok", "failed", "all"]

EXPORT_FILE: Final = "export.json"
"""What DEST is an export of; written first."""
CARD_FILE: Final = "README.md"
"""Written last."""

_LEFT_OUT: Final = ("shard",)  # the name of the video says it
_TEXT: Final = "prompts joined by line breaks"
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""With the signs' wide forms, which spreadsheets of East Asia take, too."""
_VIDEO_NAME: Final = re.compile(r"\d{8,}-[^/\0]{1,16}-e\d+a\d+\.mp4", re.ASCII)
_VERIFY: Final = "see what `miga verify OUT` says"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        format: see this file's first lines.
        videos: copy them, link them (hard links: same disk, no space), or leave them where they are and refer to them
            (parquet and csv only): relative to DEST between folders of this machine, by their full address
            otherwise. A WebDataset holds copies.
        status: which rows; only those that are ok have a video.
        min_consistency: the least mean of a row's `final_consistency` (of `consistency` where there is none); rows
            without any score then stay out.
    """

    format: Format
    videos: Videos = "copy"
    status: Chosen = "ok"
    min_consistency: float | None = None

    def __post_init__(self) -> None:
        if self.format in ("hf", "webdataset") and self.status != "ok":
            raise UsageError(
                f"--format {self.format} is of videos, and rows that failed have none", "leave --status out"
            )
        if self.format == "hf" and self.videos == "reference":
            raise UsageError("--format hf needs the videos beside its table", "use --videos copy or link")
        if self.format == "webdataset" and self.videos != "copy":
            raise UsageError("--format webdataset holds copies of the videos", "leave --videos out")
        if self.min_consistency is not None and not math.isfinite(self.min_consistency):
            raise UsageError("--min-consistency must be a number", "such as 0.5")


def export(
    storage: Storage,
    dest: Storage,
    options: ExportOptions,
    say: Callable[[str], None] = lambda text: None,
    *,
    licence: str = UNKNOWN_LICENCE,
) -> dict[str, Any]:
    """Exports the settled rows of the run in `storage` to `dest`, a shard in memory at a time.

    Args:
        storage: of the run.
        dest: where to.
        options: what, and how.
        say: is told of progress.
        licence: of the data set, as its card states it.

    Returns:
        The summary: rows and bytes exported, rows left out by reason, and the files to begin with.

    Raises:
        UsageError: if the places do not go together.
        OutputError: if there is no run, a video is missing or broken, or `dest` is not empty or cannot be written.
    """
    record = read_run(storage)
    _check_places(storage, dest, options)
    _open_dest(dest, record, options)
    maker = _Export(storage, dest, options, record, checked_licence(licence))
    manifest = Manifest(storage, record.settings.run.prompts_per_shard)
    for shard in manifest.shards():
        rows = [row for row in manifest.read_shard(shard) if maker.chooses(row)]
        if rows:
            maker.shard(shard, rows)
            say(f"shard {shard}: {maker.counts['rows']} rows so far")
    files = maker.finish()
    return {
        "out": dest.root,
        "format": options.format,
        "rows": maker.counts["rows"],
        "bytes": maker.counts["bytes"],
        "left_out_failed": maker.counts["failed"],
        "left_out_ok": maker.counts["ok"],
        "left_out_consistency": maker.counts["consistency"],
        "files": [dest.uri(file) for file in files],
    }


def mean_consistency(row: ManifestRow) -> float | None:
    """The mean of a row's scores, higher is better: of the finished video if it was scored, else during sampling."""
    scores = [score for score in (row.final_consistency or row.consistency) if math.isfinite(score)]
    return sum(scores) / len(scores) if scores else None


def _check_places(storage: Storage, dest: Storage, options: ExportOptions) -> None:
    here, there = f"{storage.root.rstrip('/')}/", f"{dest.root.rstrip('/')}/"
    if here.startswith(there) or there.startswith(here):
        raise UsageError(f"DEST {dest.root} and OUT {storage.root} overlap", "name a new folder outside of OUT")
    if options.videos == "link" and not (isinstance(storage, LocalStorage) and isinstance(dest, LocalStorage)):
        raise UsageError("videos can be linked between folders of this machine only", "use --videos copy or reference")


def _open_dest(dest: Storage, record: RunRecord, options: ExportOptions) -> None:
    about = {
        "options": asdict(options),
        "config_hash": record.config_hash,
        "model_revision": record.model_revision,
        "prompts": record.prompts.sha256,
        "seed": record.config.get("seed"),
    }
    text = json.dumps(about, indent=2, sort_keys=True).encode() + b"\n"
    if not dest.exists(EXPORT_FILE) and (others := dest.children()):
        raise OutputError(
            f"{dest.root} is not empty and holds no export ({', '.join(others[:5])})", "name a new or an empty folder"
        )
    if not dest.write_bytes(EXPORT_FILE, text, if_absent=True):
        raise OutputError(
            f"{dest.root} holds an export of another run or with other options ({EXPORT_FILE} says which)",
            "repeat those options to go on with it, or name another folder",
        )


class _Export:
    """An export being made."""

    def __init__(
        self, storage: Storage, dest: Storage, options: ExportOptions, record: RunRecord, licence: str
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._figures = Figures.none()
        self._licence = licence
        self._storage = storage
        self._dest = dest
        self._options = options
        self._record = record
        self._tars: list[dict[str, Any]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="miga-export-")
        self._table: _Table | None = None
        table = Path(self._folder.name) / "table"
        if options.format == "csv":
            self._table = _CsvTable(table)
        elif options.format != "webdataset":
            self._table = _ParquetTable(table, with_text=options.format == "hf")

    def chooses(self, row: ManifestRow) -> bool:
        """Whether the row is to be exported; counts what is not."""
        if self._options.status not in ("all", row.status):
            self.counts[row.status] += 1
            return False
        least = self._options.min_consistency
        if least is not None and ((mean := mean_consistency(row)) is None or mean < least):
            self.counts["consistency"] += 1
            return False
        return True

    def shard(self, shard: int, rows: Sequence[ManifestRow]) -> None:
        """Exports these rows of a shard."""
        self.counts["rows"] += len(rows)
        self.counts["bytes"] += sum(row.bytes or 0 for row in rows)
        if self._table is None:
            for row in rows:
                self._figures.add(row, f"{_tar_name(shard)}, {row.row:08d}.mp4")
            self._tars.append(self._tar(shard, rows))
            return
        where = "train" if self._options.format == "hf" else "videos"
        there = {file.path: file.bytes for file in self._dest.files(f"{where}/{shard:05d}")}
        uris: list[str | None] = []
        for row in rows:
            name = self._source(row).removeprefix("video/") if row.status == "ok" else ""
            if row.status != "ok":
                uris.append(None)
            elif self._options.videos == "reference":
                uris.append(self._referred(f"video/{name}"))
            else:
                if there.get(f"{where}/{name}") != row.bytes:
                    self._put_video(row, f"{where}/{name}")
                uris.append(f"{where}/{name}")
            self._figures.add(row, uris[-1])
        placed = [_placed(row, uri) for row, uri in zip(rows, uris, strict=True)]
        self._table.add(placed, [uri and uri.removeprefix("train/") for uri in uris])

    def _referred(self, path: str) -> str:
        """The address of a video that stays where it is: relative, where DEST and OUT can be moved together."""
        address = self._storage.uri(path)
        if isinstance(self._storage, LocalStorage) and isinstance(self._dest, LocalStorage):
            return Path(os.path.relpath(address, self._dest.root)).as_posix()
        return address

    def finish(self) -> list[str]:
        """Writes what is written last; returns the files to begin with."""
        try:
            if self._table is None:
                about = {"shards": self._tars, "rows": self.counts["rows"]}
                self._dest.write_bytes("index.json", json.dumps(about, indent=2, sort_keys=True).encode() + b"\n")
                return [*(tar["name"] for tar in self._tars), self._put_card()]
            name = {"hf": "train/metadata.parquet", "csv": "dataset.csv"}.get(self._options.format, "dataset.parquet")
            self._dest.put_file(self._table.close(), name)
            return [name, self._put_card()]
        finally:
            self._folder.cleanup()

    def _put_card(self) -> str:
        text = dataset_card(self._options.format, self._record, self._figures, self._licence)
        self._dest.write_bytes(CARD_FILE, text.encode())
        return CARD_FILE

    # ---- videos ----

    def _put_video(self, row: ManifestRow, path: str) -> None:
        if self._options.videos == "link":
            self._link(row, path)
            return
        with self._video(row) as local:
            self._dest.put_file(local, path)

    def _link(self, row: ManifestRow, path: str) -> None:
        source, place = self._source(row), Path(self._dest.uri(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.unlink(missing_ok=True)  # of another size
            os.link(self._storage.uri(source), place)
        except FileNotFoundError as error:
            raise OutputError(f"{self._storage.uri(source)} of row {row.row} is not there", _VERIFY) from error
        except OSError as error:
            raise OutputError(f"{place} cannot be linked: {error.strerror}", "use --videos copy") from error

    @contextmanager
    def _video(self, row: ManifestRow) -> Iterator[Path]:
        """The row's video as a local file, its SHA-256 checked."""
        source = self._source(row)
        if isinstance(self._storage, LocalStorage):
            local, fetched = Path(self._storage.uri(source)), None
        else:
            local = fetched = Path(self._folder.name) / "video.mp4"
        try:
            try:
                if fetched is not None:
                    self._storage.get_file(source, fetched)
                with open(local, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError as error:
                raise OutputError(f"{self._storage.uri(source)} of row {row.row} is not there", _VERIFY) from error
            if digest != row.sha256:
                raise OutputError(f"{self._storage.uri(source)} is not the video of row {row.row} any more", _VERIFY)
            yield local
        finally:
            if fetched is not None:
                fetched.unlink(missing_ok=True)

    def _source(self, row: ManifestRow) -> str:
        name = video_name(row)
        if not _VIDEO_NAME.fullmatch(name):
            raise OutputError(f"row {row.row}: {row.uri!r} is no video of a run", _VERIFY)
        return f"video/{row.shard:05d}/{name}"

    # ---- WebDataset ----

    def _tar(self, shard: int, rows: Sequence[ManifestRow]) -> dict[str, Any]:
        """Puts the shard's tar file, if it is not there yet with these rows; what is said of it in the index."""
        name, index = _tar_name(shard), f"index/shard-{shard:05d}.json"
        of_rows = hashlib.sha256("\n".join(row.to_json() for row in rows).encode()).hexdigest()
        if (known := self._known_tar(name, index)) and known["rows_sha256"] == of_rows:
            return known
        made = Path(self._folder.name) / name
        with tarfile.open(made, "w", format=tarfile.GNU_FORMAT) as tar:
            for row in rows:
                with self._video(row) as local:
                    _add(tar, f"{row.row:08d}.mp4", local.read_bytes())
                _add(tar, f"{row.row:08d}.txt", "\n".join(row.prompts).encode())
                row = _placed(row, f"{row.row:08d}.mp4")
                _add(tar, f"{row.row:08d}.json", json.dumps(_plain(row), ensure_ascii=False).encode())
        with open(made, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = {
            "name": name,
            "rows": len(rows),
            "bytes": made.stat().st_size,
            "sha256": digest,
            "rows_sha256": of_rows,
        }
        self._dest.put_file(made, name)
        self._dest.write_bytes(index, canonical_json({**about, "check": content_hash(about)}).encode())
        made.unlink()
        return about

    def _known_tar(self, name: str, index: str) -> dict[str, Any] | None:
        """What an earlier start noted of a tar file that is still there; None where it has to be made."""
        try:
            known = parse_json_object(self._dest.read_bytes(index), max_bytes=_MAX_INDEX_BYTES)
            is_whole = known.pop("check", None) == content_hash(known) and known["name"] == name
            return known if is_whole and self._dest.stat(name).bytes == known["bytes"] else None
        except (FileNotFoundError, OutsideDataError):
            return None


_MAX_INDEX_BYTES: Final = 10_000
"""Of what is noted of a tar file."""


class _ParquetTable:
    """The table as one Parquet file, a row group a shard."""

    def __init__(self, path: Path, with_text: bool) -> None:
        kept = [field for field in SCHEMA if field.name not in _LEFT_OUT]
        name = pa.field("file_name", pa.string(), metadata={"description": "the video, seen from this file"})
        text = [pa.field("text", pa.string(), metadata={"description": _TEXT})] if with_text else []
        self._schema = pa.schema([name, *text, *kept], metadata=SCHEMA.metadata)
        self._path = path
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def add(self, rows: Sequence[ManifestRow], names: Sequence[str | None]) -> None:
        columns = [column.name for column in fields(ManifestRow)]
        values = [
            {"file_name": name, "text": "\n".join(row.prompts), **arrow_values(row, columns)}
            for row, name in zip(rows, names, strict=True)
        ]
        self._writer.write_table(pa.Table.from_pylist(values, schema=self._schema))

    def close(self) -> Path:
        self._writer.close()
        return self._path


class _CsvTable:
    """The table as one CSV file (RFC 4180, UTF-8); lists are JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns = [field.name for field in SCHEMA if field.name not in _LEFT_OUT]
        self._file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed by `close`)
        self._writer = csv.writer(self._file)
        self._writer.writerow(["file_name", *self._columns])

    def add(self, rows: Sequence[ManifestRow], names: Sequence[str | None]) -> None:
        for row, name in zip(rows, names, strict=True):
            values = _plain(row)
            self._writer.writerow([_harmless(name), *(self._cell(column, values[column]) for column in self._columns)])

    def _cell(self, column: str, value: Any) -> Any:
        if isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        return _harmless(value) if pa.types.is_string(SCHEMA.field(column).type) else value

    def close(self) -> Path:
        self._file.close()
        return self._path


_Table = _ParquetTable | _CsvTable


def _harmless(text: str | None) -> str | None:
    """A cell's text that no spreadsheet takes for a formula."""
    return f"'{text}" if text is not None and _FORMULA.match(text) else text


def _plain(row: ManifestRow) -> dict[str, Any]:
    """The row as JSON says it, without what only OUT knows."""
    values: dict[str, Any] = json.loads(row.to_json())
    return {name: value for name, value in values.items() if name not in _LEFT_OUT}


def _tar_name(shard: int) -> str:
    return f"shard-{shard:05d}.tar"


def _placed(row: ManifestRow, uri: str | None) -> ManifestRow:
    """The row, with addresses that lead from the export: the machine that made it is none of its reader's business."""
    return replace(row, uri=uri, latents_uri=row.latents_uri and path_in_out(row.latents_uri))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)  # of no user, and of 1970
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))
