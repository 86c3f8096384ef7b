"""`miga gc`: removes what no row refers to, and never anything that one does.

It holds the run's lease, so no run is alive meanwhile, and asks for it again before every removal. What goes:

- videos and kept latents of attempts that were not the ones recorded, and checkpoints of rows that are settled or have
  a newer checkpoint;
- what killed processes left half written: partial files, uploads in parts, probes;
- with `sidecars`, those of rows that a full shard's sealed file has as made. Nothing reads them any more (see
  `pipeline/manifest.py`). Sidecars of rows that failed stay, and the success of a row beside its failure: should a
  coordinator that was taken for dead write its older file of that shard after all, they put it right.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from pipeline.lease import TTL_S, Lease
from pipeline.manifest import Manifest
from pipeline.references import shard_files, shards_of
from pipeline.run_folder import read_run
from pipeline.storage import FileInfo, Storage


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
        OutputError: if there is no run, or a file of its manifest is broken; nothing is removed from that shard.
    """
    record = read_run(storage)
    manifest = Manifest(storage, int(record.config["run"]["prompts_per_shard"]))
    garbage = Garbage()
    with nullcontext() if dry_run else Lease.held(storage, ttl_s=ttl_s, wait=wait, say=say) as lease:
        for shard in shards_of(storage, manifest):
            doomed = list(_orphans(storage, manifest, shard))
            if sidecars:
                doomed += [("sidecar", file) for file in _unread_sidecars(storage, manifest, shard)]
            for kind, file in doomed:
                garbage.files[kind] += 1
                garbage.bytes += file.bytes
                note(file.path)
            if doomed and lease is not None:
                lease.check_now()
                storage.delete_many(file.path for _, file in doomed)
        if lease is not None:
            lease.check_now()
        for leftover in list(storage.leftovers()):
            garbage.files[leftover.kind] += 1
            note(leftover.path)
            if lease is not None:
                storage.remove_leftover(leftover)
    return garbage


def _orphans(storage: Storage, manifest: Manifest, shard: int) -> Iterator[tuple[str, FileInfo]]:
    for kind, files in shard_files(storage, manifest.read_shard(shard), shard).orphans.items():
        yield from ((kind, file) for file in files)


def _unread_sidecars(storage: Storage, manifest: Manifest, shard: int) -> Iterator[FileInfo]:
    if not manifest.is_sealed(shard):
        return
    made = {row for row, status in manifest.sealed_statuses(shard).items() if status == "ok"}
    failed_before = set(storage.children(f"dead/{shard:05d}"))
    read = {path for row, path in manifest.sidecars(shard).items() if row in made}
    for file in storage.files(f"done/{shard:05d}"):
        if file.path in read and file.path.rpartition("/")[2] not in failed_before:
            yield file
