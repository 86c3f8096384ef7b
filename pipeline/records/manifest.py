"""The manifest: one row a video, first as a sidecar each, then one Parquet file a shard.

A row counts once its sidecar is there, written by one conditional put. When every row of a shard is done or dead, the
shard is sealed: its rows, sorted, in one file, the same whoever writes it. What the file says of a row counts from then
on, with two exceptions: a row that failed may be retried, so a success beside it counts over the failure, and the
shard is sealed again; and one that was sealed short gets the rows that a larger `limit` adds.

A shard's file may be overwritten by an older one: of a coordinator that was taken for dead between its look at the
lease and its write. So the file alone is never all there is of a row. Where sidecars are removed, to have fewer files,
their rows are packed first into `records/SHARD/eEPOCH.jsonl.gz`, which is made once and never changed. A file that
lacks rows, or has failures, is completed from packs and sidecars by whoever reads it, and sealed again by the next run.

Nothing that is read is believed: columns have types and ranges, a sidecar is of the row that its name says, a shard's
file has each of its rows once. Records and files carry a checksum; those of versions before have none. A sidecar that
is broken stays where it is, and a record of the same row is written beside it, with a number behind its name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from miga.errors import OutputError
from miga.outside_data import OutsideDataError
from pipeline.records.run_folder import (
    file_stem,
    manifest_path,
    pack_folder,
    pack_path,
    path_in_out,
    shard_of,
    sidecar_path,
)
from pipeline.rows import ManifestRow, Status
from pipeline.storage.base import Storage

_TIME: Final = pa.timestamp("us", tz="UTC")


def _list_of(kind: Any) -> Any:
    """A list type as Parquet gives it back: its items are called "element" there."""
    return pa.list_(pa.field("element", kind))


_COLUMNS: Final[tuple[tuple[str, Any, str], ...]] = (
    ("key", pa.string(), "SHA-256 of what the video is made from: prompts, seed, length, sampler config, model"),
    ("id", pa.string(), "the user's, or the row's position"),
    ("row", pa.int64(), "0-based position in the prompt file"),
    ("shard", pa.int32(), "manifest file the row belongs to"),
    ("status", pa.string(), "ok, or failed (see error)"),
    ("prompts", _list_of(pa.string()), "one prompt, or several in turn"),
    ("negative_prompt", pa.string(), "null means the model's own"),
    ("image", pa.string(), "picture that the video begins with, as the row names it; null without one"),
    ("image_sha256", pa.string(), "of its file, hex"),
    ("last_image", pa.string(), "picture that the video ends with; null without one"),
    ("last_image_sha256", pa.string(), "of its file, hex"),
    ("prompt_frames", _list_of(pa.int64()), "frame at which each prompt begins, as the row says; empty: not said so"),
    ("prompt_times", _list_of(pa.float64()), "the same in seconds; both empty: even shares"),
    ("seed", pa.uint64(), "null if the row's could not be read"),
    ("profile", pa.string(), "named sampler settings"),
    ("model", pa.string(), "name or folder"),
    ("model_revision", pa.string(), "commit, or a digest of the files"),
    ("config", pa.string(), "resolved sampler config, JSON"),
    ("config_hash", pa.string(), "SHA-256 of it"),
    ("num_frames", pa.int64(), "frames in the file"),
    ("num_latents", pa.int64(), "latents that they were decoded from"),
    ("fps", pa.float64(), "frames per second"),
    ("height", pa.int32(), "pixels"),
    ("width", pa.int32(), "pixels"),
    ("uri", pa.string(), "the video's path in OUT, so that OUT may be moved (earlier versions wrote where it was)"),
    ("bytes", pa.int64(), "size of the file"),
    ("sha256", pa.string(), "of the file, hex"),
    ("duration_s", pa.float64(), "length of the video"),
    ("network_calls", pa.int64(), "windows; a guided call counts once"),
    ("encode_text_s", pa.float64(), "time to encode the prompts; 0 where the embeddings were there already"),
    ("denoise_s", pa.float64(), "time in the sampler"),
    ("decode_s", pa.float64(), "time in the VAE"),
    ("encode_video_s", pa.float64(), "time to write the file"),
    ("upload_s", pa.float64(), "time to put it in place"),
    ("queue_wait_s", pa.float64(), "time from being read to being started"),
    ("peak_memory_bytes", pa.int64(), "of the device, or of the process where it is a CPU"),
    ("device", pa.string(), "what it was made on"),
    ("node", pa.string(), "machine it was made on"),
    ("attempt", pa.int32(), "1 for the first; 0 if it was never tried"),
    ("gpu_s", pa.float64(), "time of its network calls, on all GPUs together"),
    ("helper_calls", pa.float64(), "network calls that other workers than the host made"),
    ("latents_uri", pa.string(), "the same of its finished latents; null if they were not kept"),
    ("consistency", _list_of(pa.float64()), "score of every evaluation during sampling"),
    ("consistency_latents", _list_of(pa.int32()), "first latent judged by each"),
    ("searched_at", _list_of(pa.int32()), "positions in consistency where a search ran"),
    ("corrected_at", _list_of(pa.int32()), "positions in consistency where its result was taken"),
    ("final_consistency", _list_of(pa.float64()), "the score on finished latents, chunk by chunk"),
    ("num_evaluations", pa.int64(), "evaluations made"),
    ("num_searches", pa.int64(), "searches run"),
    ("num_corrections", pa.int64(), "searches whose result was taken"),
    ("error_type", pa.string(), "class of the error; null if ok"),
    ("error", pa.string(), "what was wrong, where, and what to do"),
    ("created_at", _TIME, "when the row was settled"),
    ("version", pa.string(), "of the program"),
    ("metadata", pa.string(), "the prompt file's other columns, JSON"),
    (
        "quality",
        pa.string(),
        "whether it is good enough by [quality], every try, which was kept and why, JSON; null if not asked",
    ),
)
SCHEMA: Final = pa.schema(
    [pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS],
    metadata={"title": "MIGA on Ray: one row a video"},
)
"""The columns, the same in every file of every run, each with its `description`."""

LATER_COLUMNS: Final = frozenset(
    {"quality", "image", "image_sha256", "last_image", "last_image_sha256", "prompt_frames", "prompt_times"}
)
"""Those that files of earlier versions lack; they are null there."""

SIDECAR_NAME: Final = re.compile(r"(\d{8,18})-([0-9a-f]{16})(?:-(\d{1,3}))?\.json", re.ASCII)
"""Row, beginning of its key, and a number where a broken one was there before."""
REPAIR: Final = "`miga repair OUT` puts it right, and makes nothing again that is there"

_SHARD_FILE: Final = re.compile(r"shard-(\d{5,9})\.parquet", re.ASCII)
_PACK: Final = re.compile(r"e(\d{6,9})\.jsonl\.gz", re.ASCII)
ADDRESSES: Final = ("uri", "latents_uri")
"""Columns that name files of OUT."""
_MAX_LINE_BYTES: Final = 16 << 20
_MAX_BESIDE: Final = 99
"""Sidecars of one row and key that may be broken."""
_THREADS: Final = 8
_NUM_LOOKS: Final = 5
"""How often a shard is looked at anew whose files go while it is read."""


@dataclass(frozen=True)
class BrokenFile:
    """A file of the manifest that cannot be read, or is not what its name says.

    Attributes:
        path: in OUT.
        why: what is wrong with it.
        row: whose it is, by its name; None: a shard's.
    """

    path: str
    why: str
    row: int | None = None


@dataclass(frozen=True)
class ShardRecords:
    """What is known of a shard.

    Attributes:
        rows: row → how it was settled.
        broken: what else would say something.
        is_sealed: whether its file has just these rows, with their addresses as they are here.
    """

    rows: dict[int, ManifestRow]
    broken: list[BrokenFile]
    is_sealed: bool

    @property
    def broken_rows(self) -> dict[int, BrokenFile]:
        """Rows that were settled, and what of their record cannot be read."""
        return {file.row: file for file in self.broken if file.row is not None}


class BrokenRecordError(OutputError):
    """A file of the manifest is broken."""


class _GoneMeanwhileError(Exception):
    """A file that was listed is not there any more."""


class Manifest:
    """The rows of a run that are settled."""

    def __init__(self, storage: Storage, prompts_per_shard: int) -> None:
        self._storage = storage
        self._prompts_per_shard = prompts_per_shard

    # ---- writing ----

    def record(self, row: ManifestRow) -> bool:
        """Settles a row, for good.

        Returns:
            False if that row has been settled otherwise before, which then stays; its sidecar is left as it is.

        Raises:
            OutputError: if it cannot be written.
            ValueError: if the row is said to be in a shard that it is not in.
        """
        if row.shard != shard_of(row.row, self._prompts_per_shard):
            raise ValueError(f"row {row.row} is not in shard {row.shard}")
        data = portable(row).to_record()
        for number in range(_MAX_BESIDE):
            path = sidecar_path(row.status, row.shard, row.row, row.key, number)
            if self._storage.write_bytes(path, data, if_absent=True):
                return True
            try:
                self.read_sidecar(path)
            except OutsideDataError:
                continue
            except FileNotFoundError:  # packed and removed since
                pass
            return False
        raise OutputError(f"{self._storage.uri(path)}: so many records of that row are broken", "check the disk")

    def seal(self, shard: int, known: Mapping[int, ManifestRow] | None = None) -> int:
        """Writes the shard's file, or writes it again with the rows added since.

        Args:
            shard: its number.
            known: rows whose sidecars this run has written itself, which need not be read again.

        Returns:
            How many rows it holds.

        Raises:
            OutputError: if a row cannot be read, or the file not be written.
        """
        rows = self.read_shard(shard, known)
        self.write_shard(shard, rows)
        return len(rows)

    def write_shard(self, shard: int, rows: Iterable[ManifestRow]) -> None:
        """Writes the shard's file with these rows, sorted."""
        self._storage.write_bytes(manifest_path(shard), to_parquet(map(portable, rows)))

    def pack(self, shard: int, epoch: int, rows: Iterable[ManifestRow]) -> None:
        """Writes rows of a shard as one file that is never changed: a second copy of them.

        Args:
            shard: its number.
            epoch: of the lease that is held.
            rows: sorted.

        Raises:
            OutputError: if it cannot be written, or not be read again.
        """
        lines = b"".join(portable(row).to_record() + b"\n" for row in rows)
        path, data = pack_path(shard, epoch), gzip.compress(lines, mtime=0)
        if not self._storage.write_bytes(path, data, if_absent=True) or self._storage.read_bytes(path) != data:
            raise OutputError(f"{self._storage.uri(path)} is not what was written there", "check the disk")

    # ---- reading ----

    def shards(self) -> list[int]:
        """Shards that have a settled row."""
        found = set(self.sealed_shards())
        for folder in ("done", "dead", pack_folder()):
            found |= {int(name) for name in self._storage.children(folder) if is_shard(name)}
        return sorted(found)

    def sealed_shards(self) -> list[int]:
        """Shards that have a file, short ones included."""
        names = map(_SHARD_FILE.fullmatch, self._storage.children("manifest"))
        return sorted(int(match[1]) for match in names if match)

    def statuses(self, shard: int) -> dict[int, Status]:
        """Row → status of the shard's settled rows, sidecars by their names alone."""
        statuses = self.sealed_statuses(shard)
        if self._may_add_to(statuses):
            packed = [(row.row, row.status) for row in self._packed(shard)]
            named = ((row, _status_of(path)) for row, paths in self.sidecars(shard).items() for path in paths[:1])
            for row, status in itertools.chain(packed, named):
                if status == "ok":
                    statuses[row] = "ok"
                else:
                    statuses.setdefault(row, "failed")
        return statuses

    def sealed_statuses(self, shard: int) -> dict[int, Status]:
        """Row → status as the shard's file alone has them; none if there is no file.

        Raises:
            OutputError: if the file is broken.
        """
        return {row: status for row, (status, _) in self._sealed_columns(shard).items()}

    def is_sealed(self, shard: int, num_rows: int | None = None) -> bool:
        """Whether the shard's file is there, with `num_rows` rows (by default all), and none was retried since."""
        sealed = self.sealed_statuses(shard)
        return len(sealed) == (num_rows or self._prompts_per_shard) and sealed == self.statuses(shard)

    def is_of_this_place(self, shard: int) -> bool:
        """Whether the shard's file names its videos by paths in OUT, or, of an earlier version, where OUT is now."""
        return all(is_here for _, is_here in self._sealed_columns(shard).values())

    def is_as_written_here(self, shard: int) -> bool:
        """Whether the shard's file has columns of this version or an earlier one, and this place's addresses."""
        table = read_manifest(self._storage.read_bytes(manifest_path(shard)))
        return table.schema.equals(columns_of(table.schema.names), check_metadata=False) and self.is_of_this_place(
            shard
        )

    def settled(self, shard: int) -> tuple[dict[int, Status], bool, dict[int, BrokenFile]]:
        """What a resumed run need not do again.

        Returns:
            Row → status; whether the shard's file has all that, with addresses of this place; and the rows that were
            settled, but whose record is broken, which are not among the first.

        Raises:
            OutputError: if a file of the shard is broken that more hangs on than one row.
        """
        sealed = self._sealed_columns(shard)
        statuses = {row: status for row, (status, _) in sealed.items()}
        if not self._may_add_to(statuses):
            return statuses, all(is_here for _, is_here in sealed.values()), {}
        found = self.look(shard)
        self._check_shard_files(found)
        return {row: made.status for row, made in found.rows.items()}, found.is_sealed, found.broken_rows

    def read_shard(self, shard: int, known: Mapping[int, ManifestRow] | None = None) -> list[ManifestRow]:
        """The shard's settled rows, sorted by row, each once, with their addresses as they are here.

        Args:
            shard: its number.
            known: as in `seal`.

        Raises:
            OutputError: if a file of the manifest is broken.
        """
        found = self.look(shard, known)
        for file in found.broken:
            raise self._error(file)
        return list(found.rows.values())

    def read_rows(self) -> Iterator[ManifestRow]:
        """Every settled row of the run in order, a shard in memory at a time."""
        for shard in self.shards():
            yield from self.read_shard(shard)

    def look(self, shard: int, known: Mapping[int, ManifestRow] | None = None) -> ShardRecords:
        """All that can be read of a shard, and what cannot.

        Args:
            shard: its number.
            known: as in `seal`.

        Raises:
            OutputError: if the storage cannot be read.
        """
        for _ in range(_NUM_LOOKS):
            try:
                return self._look(shard, known or {})
            except _GoneMeanwhileError:  # `gc` has packed them
                continue
        raise OutputError(f"{self._storage.root}: files of shard {shard} go while it is read", "try it again")

    def _look(self, shard: int, known: Mapping[int, ManifestRow]) -> ShardRecords:
        rows: dict[int, ManifestRow] = {}
        broken: list[BrokenFile] = []
        path, sealed = manifest_path(shard), dict[int, ManifestRow]()
        try:
            sealed, is_here = self._read_sealed(shard)
        except OutsideDataError as error:
            broken.append(BrokenFile(path, str(error)))
            is_here = False
        rows |= sealed
        if broken or self._may_add_to({row: made.status for row, made in sealed.items()}):
            for pack in self.packs(shard):
                _take(rows, self._rows_of(broken, pack, self.read_pack))
            self._add_sidecars(shard, rows, broken, known)
        rows = {row: rows[row] for row in sorted(rows)}
        statuses = [{row: made.status for row, made in each.items()} for each in (rows, sealed)]
        return ShardRecords(rows, broken, bool(sealed) and is_here and not broken and statuses[0] == statuses[1])

    def _rows_of(
        self, broken: list[BrokenFile], path: str, read: Callable[[str], list[ManifestRow]]
    ) -> list[ManifestRow]:
        try:
            return read(path)
        except OutsideDataError as error:
            broken.append(BrokenFile(path, str(error)))
            return []
        except FileNotFoundError as error:
            raise _GoneMeanwhileError from error

    def _add_sidecars(
        self,
        shard: int,
        rows: dict[int, ManifestRow],
        broken: list[BrokenFile],
        known: Mapping[int, ManifestRow],
    ) -> None:
        """Adds what sidecars say of rows that are not made; takes rows away whose success cannot be read."""
        wanted = {row: paths for row, paths in self.sidecars(shard).items() if not _is_made(rows.get(row))}
        read = [row for row, paths in wanted.items() if not _is_mine(known.get(row), shard, paths)]
        with ThreadPoolExecutor(_THREADS) as threads:
            read_rows = threads.map(self._first_sound, [(row, wanted[row], row in rows) for row in read])
            results = dict(zip(read, read_rows, strict=True))
        for row in wanted:
            made, faults = results.get(row) or (known[row], [])
            if made is not None and (made.status == "ok" or row not in rows):
                rows[row] = made
            if faults and not _is_made(made):
                rows.pop(row, None)
                broken += faults

    def _first_sound(self, asked: tuple[int, list[str], bool]) -> tuple[ManifestRow | None, list[BrokenFile]]:
        """The first of a row's sidecars that can be read, and those before it; a failure known already is not read."""
        row, paths, has_failure = asked
        faults: list[BrokenFile] = []
        for path in paths:
            if has_failure and _status_of(path) == "failed":
                break
            try:
                made = self.read_sidecar(path)
            except OutsideDataError as error:
                faults.append(BrokenFile(path, str(error), row))
                continue
            except FileNotFoundError as error:
                raise _GoneMeanwhileError from error
            lost = [fault for fault in faults if _status_of(fault.path) == "ok"]  # of a row that was made in the end
            return made, faults if made.status == "failed" and lost else []
        return None, faults

    def sidecars(self, shard: int) -> dict[int, list[str]]:
        """Row → its sidecars, in the order in which they count: a success before a failure, then by name."""
        found: dict[int, list[tuple[bool, str, int, str]]] = {}
        for folder in ("done", "dead"):
            for name in self._storage.children(f"{folder}/{shard:05d}"):
                if match := SIDECAR_NAME.fullmatch(name):
                    order = (folder == "dead", match[2], int(match[3] or 0), f"{folder}/{shard:05d}/{name}")
                    found.setdefault(int(match[1]), []).append(order)
        return {row: [path for *_, path in sorted(orders)] for row, orders in found.items()}

    def packs(self, shard: int) -> list[str]:
        """The shard's packs, the newest first."""
        names = self._storage.children(pack_folder(shard))
        epochs = sorted((int(match[1]) for match in map(_PACK.fullmatch, names) if match), reverse=True)
        return [pack_path(shard, epoch) for epoch in epochs]

    def read_pack(self, path: str) -> list[ManifestRow]:
        """The rows of a pack.

        Raises:
            OutsideDataError: if it is broken.
            FileNotFoundError: if there is none.
        """
        shard, rows = int(path.split("/")[1]), dict[int, ManifestRow]()
        try:
            with gzip.open(io.BytesIO(self._storage.read_bytes(path))) as lines:
                while line := lines.readline(_MAX_LINE_BYTES):
                    row = self._placed(ManifestRow.from_json(line), shard)
                    if row.row in rows:
                        raise OutsideDataError(f"row {row.row} stands in it twice")
                    rows[row.row] = row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise OutsideDataError(f"it cannot be unpacked: {error}") from error
        return list(rows.values())

    def read_sealed(self, shard: int) -> list[ManifestRow]:
        """The rows of the shard's file; none if there is no file.

        Raises:
            OutsideDataError: if it is broken.
        """
        return list(self._read_sealed(shard)[0].values())

    def read_sidecar(self, path: str) -> ManifestRow:
        """The row that a sidecar settles.

        Raises:
            OutsideDataError: if it is broken, or of another row than its name says.
            FileNotFoundError: if there is none.
        """
        row = ManifestRow.from_json(self._storage.read_bytes(path))
        _, shard, name = path.split("/")
        match = SIDECAR_NAME.fullmatch(name)
        number = int(match[3] or 0) if match else 0
        if path != (of_it := sidecar_path(row.status, row.shard, row.row, row.key, number)):
            raise OutsideDataError(f"it holds what belongs into {of_it}")
        return self._placed(row, int(shard))

    def salvage(self, shard: int) -> list[ManifestRow]:
        """Of a shard's file that can be read, the rows that are of this shard and sound in themselves, in its order.

        Raises:
            OutsideDataError: if it cannot be read.
            FileNotFoundError: if there is no file.
        """
        rows: list[ManifestRow] = []
        for values in _values(read_manifest(self._storage.read_bytes(manifest_path(shard)))):
            with suppress(OutsideDataError):
                rows.append(self._placed(ManifestRow.from_values(values), shard))
        return rows

    # ---- in files ----

    def _may_add_to(self, sealed: Mapping[int, str]) -> bool:
        """Whether packs and sidecars may say more than a shard's file with these rows."""
        return len(sealed) < self._prompts_per_shard or "failed" in sealed.values()

    def _check_shard_files(self, found: ShardRecords) -> None:
        for file in found.broken:
            if file.row is None:
                raise self._error(file)

    def _error(self, file: BrokenFile) -> BrokenRecordError:
        return BrokenRecordError(f"{self._storage.uri(file.path)} is broken: {file.why}", REPAIR)

    def _packed(self, shard: int) -> Iterator[ManifestRow]:
        for path in self.packs(shard):
            try:
                yield from self.read_pack(path)
            except OutsideDataError as error:
                raise self._error(BrokenFile(path, str(error))) from error

    def _read_sealed(self, shard: int) -> tuple[dict[int, ManifestRow], bool]:
        """The rows of the shard's file, and whether their addresses are of this place."""
        try:
            data = self._storage.read_bytes(manifest_path(shard))
        except FileNotFoundError:
            return {}, True
        rows: dict[int, ManifestRow] = {}
        is_here = True
        for values in _values(read_manifest(data)):
            row = ManifestRow.from_values(values)
            placed = self._placed(row, shard)
            if row.row in rows:
                raise OutsideDataError(f"row {row.row} stands in it twice")
            rows[row.row] = placed
            is_here &= _addresses(row) in (_addresses(portable(placed)), _addresses(placed))
        return rows, is_here

    def _sealed_columns(self, shard: int) -> dict[int, tuple[Status, bool]]:
        """Row → its status, and whether its address is of this place, as the shard's file has them."""
        path = manifest_path(shard)
        try:
            table = read_manifest(self._storage.read_bytes(path), ["row", "status", "uri"])
            found: dict[int, tuple[Status, bool]] = {}
            for values in _values(table):
                row, status, uri = (values[name] for name in ("row", "status", "uri"))
                if type(row) is not int or status not in ("ok", "failed") or not isinstance(uri, str | None):
                    raise OutsideDataError(f"it holds a row {row!r} whose status is {status!r}")
                if row in found or row < 0 or shard_of(row, self._prompts_per_shard) != shard:
                    raise OutsideDataError(
                        f"row {row} " + ("stands in it twice" if row in found else "belongs elsewhere")
                    )
                path_there = path_in_out(uri) if uri else ""
                found[row] = (status, not uri or uri in (path_there, self._storage.uri(path_there)))
        except FileNotFoundError:
            return {}
        except OutsideDataError as error:
            raise self._error(BrokenFile(path, str(error))) from error
        return found

    def _placed(self, row: ManifestRow, shard: int) -> ManifestRow:
        """A row that was read, with its files' addresses as they are now: OUT may have been moved.

        Raises:
            OutsideDataError: if it is of another shard, or names files that are not its own.
        """
        if (row.shard, shard_of(row.row, self._prompts_per_shard)) != (shard, shard):
            raise OutsideDataError(f"row {row.row} of shard {row.shard} does not belong there")
        places: dict[str, str] = {}
        for column, folder in (("uri", "video"), ("latents_uri", "latents")):
            if not (uri := getattr(row, column)):
                continue
            path = path_in_out(uri)
            if not path.startswith(f"{folder}/{shard:05d}/{file_stem(row.row, row.key)}-"):
                raise OutsideDataError(f"the {column} of row {row.row} is not of a file of that row")
            places[column] = self._storage.uri(path)
        return row if all(getattr(row, column) == uri for column, uri in places.items()) else replace(row, **places)  # type: ignore[arg-type]


def portable(row: ManifestRow) -> ManifestRow:
    """The row as files of OUT have it: its video and latents by their paths in OUT, wherever that is or will be.

    Raises:
        OutsideDataError: if it names other files than a run's.
    """
    paths: dict[str, str] = {name: path_in_out(uri) for name in ADDRESSES if (uri := getattr(row, name))}
    return replace(row, **paths) if paths else row  # type: ignore[arg-type]


def _addresses(row: ManifestRow) -> tuple[str | None, str | None]:
    return row.uri, row.latents_uri


def columns_of(names: Iterable[str]) -> Any:
    """The columns of a file as this version or an earlier one writes it.

    Args:
        names: of its columns, by which it is seen which of the later ones it has.
    """
    there = set(names)
    return pa.schema([field for field in SCHEMA if field.name in there or field.name not in LATER_COLUMNS])


def is_shard(folder: str) -> bool:
    """Whether a folder is named as one of a shard."""
    return folder.isascii() and folder.isdigit() and 5 <= len(folder) <= 9


def _take(rows: dict[int, ManifestRow], more: Iterable[ManifestRow]) -> None:
    """Adds rows that are new, or made where they had failed."""
    for row in more:
        if row.row not in rows or (row.status == "ok" and not _is_made(rows[row.row])):
            rows[row.row] = row


def _is_made(row: ManifestRow | None) -> bool:
    return row is not None and row.status == "ok"


def _is_mine(row: ManifestRow | None, shard: int, paths: Sequence[str]) -> bool:
    """Whether the sidecar that counts is the one that was written of `row`."""
    return row is not None and paths[0] == sidecar_path(row.status, shard, row.row, row.key)


def _status_of(sidecar: str) -> Status:
    return "ok" if sidecar.startswith("done/") else "failed"


_CHECKSUM: Final = b"checksum"
_NO_DIGEST: Final = b"0" * 64


def read_manifest(data: bytes, columns: list[str] | None = None) -> Any:
    """A shard's file as a table, its checksum compared.

    Without Arrow's threads: `pq.read_table` leaves its reader to one of them, which needs the interpreter to let go of
    `data`, and aborts a process that ends just then.

    Raises:
        OutsideDataError: if it is no Parquet file, not whole, or has other columns than a manifest.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True) as file:
            noted = (file.metadata.metadata or {}).get(_CHECKSUM)
            if noted is not None and noted != _digest(data, noted):
                raise OutsideDataError("its content is not what its checksum is of")
            if lacking := sorted(set(columns or ()) - set(file.schema_arrow.names)):
                raise OutsideDataError(f"it has no column {', '.join(lacking)}")
            size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            if file.metadata.num_rows > _MAX_ROWS or size > _MAX_UNPACKED_BYTES:
                raise OutsideDataError(f"it says that it has {file.metadata.num_rows:,} rows of {size:,} bytes")
            return file.read(columns, use_threads=False)
    except OutsideDataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise OutsideDataError(f"it is no Parquet file of a manifest: {text}") from error


def _values(table: Any) -> list[dict[str, Any]]:
    """The rows of a table as plain values.

    Raises:
        OutsideDataError: if one is none, such as text that is not UTF-8 or a time beyond the calendar.
    """
    try:
        values: list[dict[str, Any]] = table.to_pylist()
        return values
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise OutsideDataError(f"it holds a value that cannot be read: {error}") from error


_MAX_ROWS: Final = 100_000
_MAX_UNPACKED_BYTES: Final = 4 << 30


def to_parquet(rows: Iterable[ManifestRow]) -> bytes:
    """The rows as a Parquet file, which holds the SHA-256 of itself; the same rows give the same bytes."""
    names = [column.name for column in fields(ManifestRow)]
    table = pa.Table.from_pylist([arrow_values(row, names) for row in rows], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_CHECKSUM.decode(): _NO_DIGEST.decode()})
    data = bytes(sink.getvalue().to_pybytes())
    at = data.rindex(_NO_DIGEST)
    return data[:at] + _digest(data, _NO_DIGEST) + data[at + len(_NO_DIGEST) :]


def _digest(data: bytes, noted: bytes) -> bytes:
    """SHA-256 in hex of a file, taken as if zeros stood where it is noted."""
    at = data.rfind(noted)
    return hashlib.sha256(data[:at] + _NO_DIGEST + data[at + len(noted) :]).hexdigest().encode()


def arrow_values(row: ManifestRow, names: Iterable[str]) -> Mapping[str, Any]:
    """Columns of a row as Arrow takes them."""
    values = {name: getattr(row, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
