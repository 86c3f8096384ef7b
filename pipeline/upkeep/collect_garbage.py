"""`miga gc`: removes what no row refers to, and never anything that one does.

It holds the run's lease, so no run is alive meanwhile, and asks for it again before every removal. What goes:

- what killed processes left half written: partial files, uploads in parts, probes (first: a full disk has room then);
- videos and kept latents of attempts that were not the ones recorded, and checkpoints of rows that are settled or have
  a newer checkpoint. Of a row that has no record, or one that cannot be read, videos and latents stay: the row is
  rebuilt from them;
- with `sidecars`, those of rows that a full shard's sealed file has as made. Its rows are packed into one file first,
  a second copy that stays (see `records/manifest.py`). Sidecars of rows that failed stay, and the success of a row
  beside its failure.

A shard with a file of the manifest that is broken is left as it is, and named once the others are done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from miga.errors import OutputError
from miga.outside_data import OutsideDataError
from pipeline.records.lease import TTL_S, Lease
from pipeline.records.manifest import BrokenRecordError, Manifest
from pipeline.records.references import shard_files, shards_of
from pipeline.records.run_folder import read_run
from pipeline.rows import ManifestRow
from pipeline.storage.base import FileInfo, Storage


@dataclass
class Garbage:
    """What was removed, or would be.

    Attributes:
        files: kind → how many.
        bytes: of all files together; leftovers are not counted.
    """

    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    def to_dict(self, dry_run: bool) -> dict[str, Any]:
        """For people and machines."""
        return {"removed": not dry_run, "files": sum(self.files.values()), "bytes": self.bytes, **self.files}


def collect_garbage(
    storage: Storage,
    *,
    dry_run: bool = False,
    sidecars: bool = False,
    note: Callable[[str], None] = lambda path: None,
    ttl_s: float = TTL_S,
    wait: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] | None = None,
) -> Garbage:
    """Removes what no row of the run in `storage` refers to.

    Args:
        storage: of OUT.
        dry_run: remove nothing, and take no lease; what a living run is making just now then counts too.
        sidecars: whether sidecars that nothing reads any more go as well.
        note: told the path of everything that goes.
        ttl_s: as of the run.
        wait: as of `Lease.held`.
        say: as of `Lease.held`.

    Raises:
        LeaseHeldError: if a run is alive there.
        LeaseLostError: if one has taken over meanwhile.
        OutputError: if there is no run, or a file of its manifest is broken; nothing is removed from that shard, and
            all that goes has gone from the others.
    """
    manifest = Manifest(storage, read_run(storage).settings.run.prompts_per_shard)
    with nullcontext() if dry_run else Lease.held(storage, ttl_s=ttl_s, wait=wait, say=say, room_needed=False) as lease:
        return _Collector(storage, manifest, lease, note).run(sidecars)


class _Collector:
    def __init__(self, storage: Storage, manifest: Manifest, lease: Lease | None, note: Callable[[str], None]) -> None:
        self._storage, self._manifest, self._lease, self._note = storage, manifest, lease, note
        self._garbage = Garbage()

    def run(self, sidecars: bool) -> Garbage:
        self._remove_leftovers()
        broken: list[OutputError] = []
        for shard in shards_of(self._storage, self._manifest):
            try:
                self._remove(list(self._orphans(shard)))
                if sidecars and self._manifest.is_sealed(shard):
                    self._remove(self._packed_sidecars(shard))
            except BrokenRecordError as error:
                broken.append(error)
        if broken:
            more = f"; and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise OutputError(f"{broken[0].message}{more} (what such a shard has is left as it is)", broken[0].hint)
        return self._garbage

    def _remove_leftovers(self) -> None:
        if self._lease is not None:
            self._lease.check_now()
        for leftover in list(self._storage.leftovers()):
            self._garbage.files[leftover.kind] += 1
            self._note(leftover.path)
            if self._lease is not None:
                self._storage.remove_leftover(leftover)

    def _orphans(self, shard: int) -> Iterator[tuple[str, FileInfo]]:
        for kind, files in shard_files(self._storage, self._manifest.read_shard(shard), shard).orphans.items():
            yield from ((kind, file) for file in files)

    def _remove(self, doomed: list[tuple[str, FileInfo]]) -> None:
        for kind, file in doomed:
            self._garbage.files[kind] += 1
            self._garbage.bytes += file.bytes
            self._note(file.path)
        if doomed and self._lease is not None:
            self._lease.check_now()
            self._storage.delete_many(file.path for _, file in doomed)

    def _packed_sidecars(self, shard: int) -> list[tuple[str, FileInfo]]:
        """The sidecars of a full shard that nothing reads any more: what they say is in its file, and in a pack."""
        rows = {row.row: row for row in self._manifest.read_shard(shard) if row.status == "ok"}
        there = {file.path: file for file in self._storage.files(f"done/{shard:05d}")}
        doomed: list[tuple[str, FileInfo]] = []
        sidecars = self._manifest.sidecars(shard)
        for index in rows.keys() & sidecars.keys():
            paths = sidecars[index]
            if there.keys() >= set(paths):  # and none in dead/
                doomed += [("sidecar", there[path]) for path in paths if self._says(path, rows[index])]
        if self._lease is not None and (doomed or rows.keys() - sidecars.keys()) and not self._is_packed(shard, rows):
            self._manifest.pack(shard, self._lease.epoch, rows.values())
        return doomed

    def _is_packed(self, shard: int, rows: dict[int, ManifestRow]) -> bool:
        try:
            packs = map(self._manifest.read_pack, reversed(self._manifest.packs(shard)))
            packed = {row.row: row for rows_of_pack in packs for row in rows_of_pack}
        except OutsideDataError:
            return False
        return all(index in packed and packed[index].to_json() == row.to_json() for index, row in rows.items())

    def _says(self, path: str, row: ManifestRow) -> bool:
        """Whether a sidecar says just what the shard's file does."""
        try:
            return self._manifest.read_sidecar(path).to_json() == row.to_json()
        except (OutsideDataError, FileNotFoundError):
            return False
