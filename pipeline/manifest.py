"""The manifest: one row a video, first as a sidecar each, then one Parquet file a shard.

A row counts once its sidecar is there, written by one conditional put. When every row of a shard is done or dead, the
shard is sealed: its rows, sorted, in one file, the same whoever writes it. What the file says of a row counts from then
on, with two exceptions: a row that failed may be retried, so a success beside it counts over the failure, and the
shard is sealed again; and one that was sealed short gets the rows that a larger `limit` adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from miga.errors import OutputError
from pipeline.rows import ManifestRow, Status
from pipeline.run_folder import manifest_path, shard_of, sidecar_path
from pipeline.storage import Storage

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
    ("uri", pa.string(), "where the video is"),
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
    ("latents_uri", pa.string(), "where its finished latents are; null if they were not kept"),
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
)
SCHEMA: Final = pa.schema(
    [pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS],
    metadata={"title": "MIGA on Ray: one row a video"},
)
"""The columns, the same in every file of every run, each with its `description`."""

SIDECAR_NAME: Final = re.compile(r"(\d{8,})-[0-9a-f]{16}\.json")
_SHARD_FILE: Final = re.compile(r"shard-(\d{5,})\.parquet")


class Manifest:
    """The rows of a run that are settled."""

    def __init__(self, storage: Storage, prompts_per_shard: int) -> None:
        self._storage = storage
        self._prompts_per_shard = prompts_per_shard

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
        path = sidecar_path(row.status, row.shard, row.row, row.key)
        return self._storage.write_bytes(path, row.to_json().encode(), if_absent=True)

    def shards(self) -> list[int]:
        """Shards that have a settled row."""
        found = set(self.sealed_shards())
        for folder in ("done", "dead"):
            found |= {int(name) for name in self._storage.children(folder) if name.isdigit()}
        return sorted(found)

    def sealed_shards(self) -> list[int]:
        """Shards that have a file, short ones included."""
        names = map(_SHARD_FILE.fullmatch, self._storage.children("manifest"))
        return sorted(int(match[1]) for match in names if match)

    def statuses(self, shard: int) -> dict[int, Status]:
        """Row → status of the shard's settled rows: what a resumed run need not do again."""
        statuses = self.sealed_statuses(shard)
        if self._may_add_to(statuses):
            for row, sidecar in self.sidecars(shard).items():
                if sidecar.startswith("done/"):
                    statuses[row] = "ok"
                else:
                    statuses.setdefault(row, "failed")
        return statuses

    def sealed_statuses(self, shard: int) -> dict[int, Status]:
        """Row → status as the shard's file alone has them; none if there is no file.

        Raises:
            OutputError: if the file is broken.
        """
        path = manifest_path(shard)
        if not self._storage.exists(path):
            return {}
        table = self._read_table(path, ["row", "status"])
        return dict(zip(table["row"].to_pylist(), table["status"].to_pylist(), strict=True))

    def _may_add_to(self, sealed: Mapping[int, str]) -> bool:
        """Whether sidecars may say more than a shard's file with these rows."""
        return len(sealed) < self._prompts_per_shard or "failed" in sealed.values()

    def is_sealed(self, shard: int, num_rows: int | None = None) -> bool:
        """Whether the shard's file is there, with `num_rows` rows (by default all), and none was retried since."""
        sealed = self.sealed_statuses(shard)
        return len(sealed) == (num_rows or self._prompts_per_shard) and sealed == self.statuses(shard)

    def read_shard(self, shard: int, known: Mapping[int, ManifestRow] | None = None) -> list[ManifestRow]:
        """The shard's settled rows, sorted by row, each once.

        Args:
            shard: its number.
            known: rows whose sidecars this run has written itself, which need not be read again.

        Raises:
            OutputError: if a file of the manifest is broken.
        """
        path = manifest_path(shard)
        rows: dict[int, ManifestRow] = {}
        if self._storage.exists(path):
            try:
                rows = {row.row: row for row in map(ManifestRow.from_values, self._read_table(path).to_pylist())}
            except ValueError as error:
                raise OutputError(f"{self._storage.uri(path)} is not of this program: {error}") from error
        if self._may_add_to({row.row: row.status for row in rows.values()}):
            for row, sidecar in self.sidecars(shard).items():
                if row not in rows or (rows[row].status == "failed" and sidecar.startswith("done/")):
                    mine = (known or {}).get(row)
                    is_mine = mine is not None and sidecar == sidecar_path(mine.status, shard, row, mine.key)
                    rows[row] = mine if mine is not None and is_mine else self._read_sidecar(sidecar)
        return [rows[row] for row in sorted(rows)]

    def read_rows(self) -> Iterator[ManifestRow]:
        """Every settled row of the run in order, a shard in memory at a time."""
        for shard in self.shards():
            yield from self.read_shard(shard)

    def seal(self, shard: int, known: Mapping[int, ManifestRow] | None = None) -> int:
        """Writes the shard's file, or writes it again with the rows added since.

        Args:
            shard: its number.
            known: as in `read_shard`.

        Returns:
            How many rows it holds.

        Raises:
            OutputError: if a row cannot be read, or the file not be written.
        """
        rows = self.read_shard(shard, known)
        self._storage.write_bytes(manifest_path(shard), to_parquet(rows))
        return len(rows)

    def sidecars(self, shard: int) -> dict[int, str]:
        """Row → its sidecar; a success counts over a failure, otherwise the first by name."""
        found: dict[int, str] = {}
        for folder in ("done", "dead"):
            for name in self._storage.children(f"{folder}/{shard:05d}"):
                if match := SIDECAR_NAME.fullmatch(name):
                    found.setdefault(int(match[1]), f"{folder}/{shard:05d}/{name}")
        return found

    def _read_sidecar(self, path: str) -> ManifestRow:
        try:
            return ManifestRow.from_json(self._storage.read_bytes(path).decode())
        except ValueError as error:
            raise OutputError(
                f"{self._storage.uri(path)} is broken: {error}", "delete it and run the same command again"
            ) from error

    def _read_table(self, path: str, columns: list[str] | None = None) -> Any:
        try:
            return read_parquet(self._storage.read_bytes(path), columns)
        except (pa.ArrowException, OSError) as error:
            raise OutputError(
                f"{self._storage.uri(path)} is no Parquet file of this program: {error}",
                "delete it and run the same command again: it is written anew",
            ) from error


def read_parquet(data: bytes, columns: list[str] | None = None) -> Any:
    """A small Parquet file as a table.

    Without Arrow's threads: `pq.read_table` leaves its reader to one of them, which needs the interpreter to let go of
    `data`, and aborts a process that ends just then.
    """
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
        return file.read(columns, use_threads=False)


def to_parquet(rows: Iterable[ManifestRow]) -> bytes:
    """The rows as a Parquet file; the same rows give the same bytes."""
    names = [column.name for column in fields(ManifestRow)]
    table = pa.Table.from_pylist([arrow_values(row, names) for row in rows], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def arrow_values(row: ManifestRow, names: Iterable[str]) -> Mapping[str, Any]:
    """Columns of a row as Arrow takes them."""
    values = {name: getattr(row, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
