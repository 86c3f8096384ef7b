"""Writes what is settled: sidecars, sealed shards, and the removal of checkpoints that nobody needs any more.

In threads, since each takes milliseconds (on S3 tens of them) and a coordinator may settle a thousand rows a second. A
shard is sealed once its last sidecar is there, and every write is fenced by the lease.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pipeline.records.lease import Lease
from pipeline.records.manifest import Manifest
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage

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
        self._threads = Threads(NUM_THREADS)
        self._room = threading.Semaphore(MAX_WAITING)
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

    def note(self, path: str, data: bytes, noted: Callable[[], None]) -> None:
        """Writes a file of a row that is not settled; one that is there stays.

        Args:
            path: in OUT.
            data: its content.
            noted: called in the coordinator's thread once it is there.
        """
        self._submit(partial(self._note, path, data), lambda _: noted())

    def seal(self, shard: int) -> None:
        """Writes a shard's file once all its rows are written."""
        self._to_seal.add(shard)
        self._seal_if_written(shard)

    def close(self) -> None:
        """Waits for what is being written."""
        self._threads.close()

    # ---- in the coordinator's thread ----

    def _submit(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._room.acquire()
        self._num_writing += 1
        self._threads.submit(partial(self._run, work, then))

    def _done(self, then: Callable[[Any], None], result: Any) -> None:
        self._num_writing -= 1
        then(result)

    def _failed(self, error: BaseException) -> None:
        self._num_writing -= 1
        raise error

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

    def _run(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            result = work()
        except BaseException as error:
            self._tell(partial(self._failed, error))
        else:
            self._tell(partial(self._done, then, result))
        self._room.release()

    def _write(self, row: ManifestRow) -> bool:
        """Whether this is what stands there now: a row that was settled before stays as it was."""
        if self._lease is not None:
            self._lease.check()
        return self._manifest.record(row)

    def _note(self, path: str, data: bytes) -> None:
        if self._lease is not None:
            self._lease.check()
        self._storage.write_bytes(path, data, if_absent=True)

    def _seal(self, shard: int, known: dict[int, ManifestRow]) -> None:
        if self._lease is not None:
            self._lease.check_now()
        self._manifest.seal(shard, known)

    def _remove(self, folder: str) -> None:
        self._storage.delete_many(f"{folder}/{name}" for name in self._storage.children(folder))


class Threads:
    """A few threads that do what they are brought, in order of arrival.

    One more is woken only where more waits than threads are at work. Where a write takes no longer than waking a
    thread does, one of them does it all; where it takes long, what waits soon has all of them at work.

    Args:
        most: threads at the same time.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._num_awake = 0
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"miga-record-{number}", daemon=True) for number in range(most)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """Has it done soon; it is not to raise."""
        with self._lock:
            self._waiting.append(work)
            is_short = self._num_awake < min(len(self._waiting), len(self._threads))
            self._num_awake += is_short
        if is_short:
            self._calls.put(True)

    def close(self) -> None:
        """Returns once all is done."""
        for _ in self._threads:
            self._calls.put(False)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while self._calls.get():
            while work := self._next():
                work()

    def _next(self) -> Callable[[], None] | None:
        """What has waited longest; None: nothing, and the thread goes to sleep."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._num_awake -= 1
            return None


def _nothing(_: Any) -> None:
    """What follows on a removal, or a sealed shard."""
