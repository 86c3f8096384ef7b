"""Writes what is settled: sidecars, sealed shards, and the removal of checkpoints that nobody needs any more.

In threads, since each takes milliseconds (on S3 tens of them) and a coordinator may settle a thousand rows a second. A
shard is sealed once its last sidecar is there, and every write is fenced by the lease.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from pipeline.lease import Lease
from pipeline.manifest import Manifest
from pipeline.rows import ManifestRow
from pipeline.storage import Storage

NUM_THREADS: Final = 8
MAX_WAITING: Final = 256
"""Writes that may wait; who brings more waits for them: results that are not written down are not to pile up."""
MAX_KNOWN: Final = 20_000
"""Rows kept in memory until their shard is sealed. Those of others are read again then."""


class Recorder:
    """The manifest's writer. All methods are for one thread, the coordinator's.

    Args:
        storage: of OUT.
        manifest: the run's.
        lease: asked before every write.
        tell: called in another thread with what is to be done in the coordinator's, such as raising an error.
    """

    def __init__(
        self, storage: Storage, manifest: Manifest, lease: Lease | None, tell: Callable[[Callable[[], None]], None]
    ) -> None:
        self._storage, self._manifest, self._lease, self._tell = storage, manifest, lease, tell
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="miga-record")
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        self._num_open: dict[int, int] = defaultdict(int)
        self._to_seal: set[int] = set()
        self._known: dict[int, dict[int, ManifestRow]] = defaultdict(dict)
        self._num_known = 0
        self._num_writing = 0

    @property
    def is_idle(self) -> bool:
        """Whether all that was brought is written."""
        return not self._num_writing

    def record(self, row: ManifestRow, recorded: Callable[[], None], checkpoints: str | None = None) -> None:
        """Settles a row, for good.

        Args:
            row: the row.
            recorded: called in the coordinator's thread once it is written.
            checkpoints: folder of its checkpoints, which are then removed.
        """
        self._num_open[row.shard] += 1
        self._submit(partial(self._write, row), partial(self._written, row, recorded, checkpoints))

    def seal(self, shard: int) -> None:
        """Writes a shard's file once all its rows are written."""
        self._to_seal.add(shard)
        self._seal_if_written(shard)

    def close(self) -> None:
        """Waits for what is being written."""
        self._threads.shutdown(wait=True)

    # ---- in the coordinator's thread ----

    def _submit(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._room.acquire()
        self._num_writing += 1
        self._threads.submit(work).add_done_callback(partial(self._done, then))

    def _done(self, then: Callable[[Any], None], future: Future[Any]) -> None:
        self._room.release()

        def act() -> None:
            self._num_writing -= 1
            then(future.result())

        self._tell(act)

    def _written(self, row: ManifestRow, recorded: Callable[[], None], checkpoints: str | None, is_mine: bool) -> None:
        self._num_open[row.shard] -= 1
        if is_mine and self._num_known < MAX_KNOWN:
            self._known[row.shard][row.row] = row
            self._num_known += 1
        if checkpoints is not None:
            self._submit(partial(self._remove, checkpoints), _nothing)
        recorded()
        self._seal_if_written(row.shard)

    def _seal_if_written(self, shard: int) -> None:
        if shard not in self._to_seal or self._num_open.get(shard):
            return
        self._to_seal.remove(shard)
        self._num_open.pop(shard, None)
        known = self._known.pop(shard, {})
        self._num_known -= len(known)
        self._submit(partial(self._seal, shard, known), _nothing)

    # ---- in threads ----

    def _write(self, row: ManifestRow) -> bool:
        """Whether this is what stands there now: a row that was settled before stays as it was."""
        if self._lease is not None:
            self._lease.check()
        return self._manifest.record(row)

    def _seal(self, shard: int, known: dict[int, ManifestRow]) -> None:
        if self._lease is not None:
            self._lease.check_now()
        self._manifest.seal(shard, known)

    def _remove(self, folder: str) -> None:
        self._storage.delete_many(f"{folder}/{name}" for name in self._storage.children(folder))


def _nothing(_: Any) -> None:
    """What follows on a removal, or a sealed shard."""
