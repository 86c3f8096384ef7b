"""Where every row of a run is: the coordinator's whole state, and every decision it takes.

Pure: no I/O, no Ray, no clock. Each event is one method; it changes the state and returns what is to be done, in order.
The coordinator does these things and reports what came of them as further events.

    row_read, row_skipped, rows_exhausted     from the prompt file
    worker_ready, worker_lost                 from the workers
    progress, finished, failed                from an attempt, named by row, number and worker

A row is waiting → assigned → settled (done or dead), and assigned → waiting when its worker is lost. What arrives from
an attempt that is not the row's current one is ignored: a worker that was declared lost may still be running.

Memory does not grow with the run: a settled row leaves a count per open shard and nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from miga.errors import Scope
from pipeline.rows import BadRow, PromptRow, Status

LOST: Final = "WorkerLostError"
"""`error_type` of a row given up because its workers were lost."""


@dataclass(frozen=True)
class ReadRows:
    """Read so many more rows and report each, or that there are none left."""

    count: int


@dataclass(frozen=True)
class Assign:
    """Have `worker` make `row`.

    Attributes:
        attempt: counts from 1 for each row; to be handed back with all that comes of it.
        waited_s: time since the row was read, or last given back.
    """

    row: PromptRow
    attempt: int
    worker: str
    waited_s: float


@dataclass(frozen=True)
class Commit:
    """Record the result of this attempt as the row's: it was the current one."""

    row: PromptRow
    attempt: int
    worker: str


@dataclass(frozen=True)
class Quarantine:
    """Record the row as failed."""

    row: PromptRow | BadRow
    attempt: int
    error_type: str
    error: str


@dataclass(frozen=True)
class Requeued:
    """The row waits again, before all new ones; for the log."""

    row: PromptRow
    attempt: int
    reason: str


@dataclass(frozen=True)
class Ignore:
    """What arrived is of no current attempt; its file, if any, is to be left to garbage collection."""

    index: int
    attempt: int
    worker: str


@dataclass(frozen=True)
class Seal:
    """All rows of the shard are settled: write its file."""

    shard: int


@dataclass(frozen=True)
class Abort:
    """Stop the run. Results that still arrive are recorded; nothing new is started."""

    reason: str


Decision: TypeAlias = ReadRows | Assign | Commit | Quarantine | Requeued | Ignore | Seal | Abort


@dataclass
class _Entry:
    """A row between being read and being settled."""

    row: PromptRow
    waiting_since_s: float
    attempt: int = 0
    num_losses: int = 0
    worker: str | None = None
    lost_workers: set[str] = field(default_factory=set)
    last_progress_s: float = 0.0


@dataclass
class _Shard:
    """Counts of a shard that is not sealed."""

    num_read: int = 0
    num_settled: int = 0
    has_news: bool = False


class Ledger:
    """The state of a run.

    Args:
        prompts_per_shard: rows of a shard.
        max_attempts: workers that a row may lose before it is given up.
        max_failed_share: the run is aborted once more than this share of the rows tried in it has failed. Rows that the
            prompt file has wrong, and rows settled by an earlier run, were not tried.
        min_finished_rows: rows tried before that share is looked at.
        lookahead: rows to have waiting beyond one for every idle worker.
    """

    def __init__(
        self,
        *,
        prompts_per_shard: int,
        max_attempts: int = 3,
        max_failed_share: float = 0.5,
        min_finished_rows: int = 20,
        lookahead: int = 0,
    ) -> None:
        self._prompts_per_shard = prompts_per_shard
        self._max_attempts = max_attempts
        self._max_failed_share = max_failed_share
        self._min_finished_rows = min_finished_rows
        self._lookahead = lookahead
        self._entries: dict[int, _Entry] = {}
        self._waiting: deque[int] = deque()
        self._idle: dict[str, None] = {}
        self._busy: dict[str, int] = {}
        self._shards: dict[int, _Shard] = {}
        self._num_asked = 0
        self._is_exhausted = False
        self._is_stopped = False
        self.abort_reason: str | None = None
        self.num_read = 0
        self.num_done = 0
        self.num_dead = 0
        self.num_skipped = 0
        self._num_tried = 0
        self._num_tried_dead = 0

    # ---- the prompt file ----

    def row_read(self, row: PromptRow | BadRow, now_s: float) -> list[Decision]:
        """A row was read that no earlier run has settled. Rows come in the order of their positions."""
        self._note_read(row.index)
        if isinstance(row, BadRow):
            self.num_dead += 1
            bad = Quarantine(row, 0, row.error_type, row.error)
            return [bad, *self._settled(row.index), *self._work(now_s)]
        self._entries[row.index] = _Entry(row, waiting_since_s=now_s)
        self._waiting.append(row.index)
        return self._work(now_s)

    def row_skipped(self, index: int, status: Status, now_s: float, *, is_sealed: bool) -> list[Decision]:
        """A row was read that an earlier run has settled.

        Args:
            index: its position.
            status: how it was settled.
            now_s: the time.
            is_sealed: whether its shard's file has it already.
        """
        self._note_read(index)
        self.num_skipped += 1
        if status == "ok":
            self.num_done += 1
        else:
            self.num_dead += 1
        return [*self._settled(index, is_news=not is_sealed), *self._work(now_s)]

    def rows_exhausted(self, now_s: float) -> list[Decision]:
        """The last row has been read."""
        self._is_exhausted = True
        self._num_asked = 0
        decisions: list[Decision] = []
        for shard in sorted(self._shards):
            decisions += self._sealed_if_full(shard)
        return decisions + self._work(now_s)

    # ---- the workers ----

    def worker_ready(self, worker: str, now_s: float) -> list[Decision]:
        """A worker is there, or free again. One that was at work has lost its row: it was started anew."""
        decisions = self._lose(worker, "the worker was started anew", now_s, is_free=False)
        self._idle[worker] = None
        return decisions + self._work(now_s)

    def worker_lost(self, worker: str, reason: str, now_s: float, *, is_free: bool = False) -> list[Decision]:
        """A worker is gone.

        Args:
            worker: its name.
            reason: how.
            now_s: the time.
            is_free: whether the row is not to blame, as on a node that is being drained: it costs no attempt.
        """
        self._idle.pop(worker, None)
        return self._lose(worker, reason, now_s, is_free) + self._work(now_s)

    # ---- an attempt ----

    def progress(self, index: int, attempt: int, worker: str, now_s: float) -> list[Decision]:
        """An attempt is alive."""
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        entry.last_progress_s = now_s
        return []

    def finished(self, index: int, attempt: int, worker: str, now_s: float) -> list[Decision]:
        """An attempt has made its video. The worker is at rest until `worker_ready`."""
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        self._close(entry)
        self.num_done += 1
        self._num_tried += 1
        commit = Commit(entry.row, attempt, worker)
        return [commit, *self._settled(index), *self._abort_if_hopeless(), *self._work(now_s)]

    def failed(
        self,
        index: int,
        attempt: int,
        worker: str,
        now_s: float,
        *,
        error_type: str,
        error: str,
        scope: Scope,
        retryable: bool,
    ) -> list[Decision]:
        """An attempt ended in an error; scope and retryable decide. The worker is at rest until `worker_ready`."""
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        self._release(entry)
        if scope == "run":
            self._push_back(entry, now_s)
            return self._abort(f"{error_type}: {error}")
        if retryable:
            return self._retry(entry, worker, error_type, error, now_s) + self._work(now_s)
        return self._give_up(entry, error_type, error) + self._work(now_s)

    # ---- the end ----

    def stop(self) -> None:
        """Starts nothing more; what is being made may finish."""
        self._is_stopped = True

    @property
    def is_complete(self) -> bool:
        """Whether every row of the file is settled."""
        return self._is_exhausted and not self._entries

    @property
    def is_idle(self) -> bool:
        """Whether no worker is making anything."""
        return not self._busy

    @property
    def num_waiting(self) -> int:
        """Rows read that no worker is making."""
        return len(self._waiting)

    def assigned(self) -> dict[str, tuple[int, int]]:
        """Worker → row and attempt that it is making."""
        return {worker: (index, self._entries[index].attempt) for worker, index in self._busy.items()}

    def stalled(self, now_s: float, after_s: float) -> list[str]:
        """Workers whose attempt has shown no progress for `after_s`."""
        return [
            worker for worker, index in self._busy.items() if now_s - self._entries[index].last_progress_s >= after_s
        ]

    # ---- inside ----

    def _note_read(self, index: int) -> None:
        self.num_read += 1
        self._num_asked = max(0, self._num_asked - 1)
        self._shards.setdefault(index // self._prompts_per_shard, _Shard()).num_read += 1

    def _current(self, index: int, attempt: int, worker: str) -> _Entry | None:
        entry = self._entries.get(index)
        is_current = entry is not None and entry.worker == worker and entry.attempt == attempt
        return entry if is_current else None

    def _work(self, now_s: float) -> list[Decision]:
        """Gives waiting rows to idle workers; asks for more rows where there are too few."""
        decisions: list[Decision] = []
        if self._is_stopped:
            return decisions
        while self._waiting and self._idle:
            entry = self._entries[self._waiting.popleft()]
            fresh = (worker for worker in self._idle if worker not in entry.lost_workers)
            worker = next(fresh, None) or next(iter(self._idle))
            del self._idle[worker]
            self._busy[worker] = entry.row.index
            entry.worker, entry.attempt, entry.last_progress_s = worker, entry.attempt + 1, now_s
            decisions.append(Assign(entry.row, entry.attempt, worker, now_s - entry.waiting_since_s))
        wanted = len(self._idle) + self._lookahead - len(self._waiting) - self._num_asked
        if wanted > 0 and not self._is_exhausted:
            self._num_asked += wanted
            decisions.append(ReadRows(wanted))
        return decisions

    def _release(self, entry: _Entry) -> None:
        if entry.worker is not None:
            self._busy.pop(entry.worker)
        entry.worker = None

    def _close(self, entry: _Entry) -> None:
        self._release(entry)
        del self._entries[entry.row.index]

    def _push_back(self, entry: _Entry, now_s: float) -> None:
        entry.waiting_since_s = now_s
        self._waiting.appendleft(entry.row.index)

    def _lose(self, worker: str, reason: str, now_s: float, is_free: bool) -> list[Decision]:
        index = self._busy.get(worker)
        if index is None:
            return []
        entry = self._entries[index]
        self._release(entry)
        if is_free:
            self._push_back(entry, now_s)
            return [Requeued(entry.row, entry.attempt, reason)]
        return self._retry(entry, worker, LOST, reason, now_s)

    def _retry(self, entry: _Entry, worker: str, error_type: str, error: str, now_s: float) -> list[Decision]:
        """Once more, on another worker where there is one, until the row has had its attempts."""
        entry.num_losses += 1
        entry.lost_workers.add(worker)
        if entry.num_losses >= self._max_attempts:
            return self._give_up(entry, error_type, f"given up after {entry.num_losses} attempts; the last: {error}")
        self._push_back(entry, now_s)
        return [Requeued(entry.row, entry.attempt, error)]

    def _give_up(self, entry: _Entry, error_type: str, error: str) -> list[Decision]:
        self._close(entry)
        self.num_dead += 1
        self._num_tried += 1
        self._num_tried_dead += 1
        dead = Quarantine(entry.row, entry.attempt, error_type, error)
        return [dead, *self._settled(entry.row.index), *self._abort_if_hopeless()]

    def _settled(self, index: int, is_news: bool = True) -> list[Decision]:
        number = index // self._prompts_per_shard
        shard = self._shards[number]
        shard.num_settled += 1
        shard.has_news |= is_news
        return self._sealed_if_full(number)

    def _sealed_if_full(self, number: int) -> list[Decision]:
        shard = self._shards[number]
        is_whole = self._is_exhausted or shard.num_read == self._prompts_per_shard
        if not is_whole or shard.num_settled < shard.num_read:
            return []
        del self._shards[number]
        return [Seal(number)] if shard.has_news else []

    def _abort_if_hopeless(self) -> list[Decision]:
        if self._num_tried < self._min_finished_rows or self.abort_reason is not None:
            return []
        if self._num_tried_dead <= self._max_failed_share * self._num_tried:
            return []
        return self._abort(
            f"{self._num_tried_dead} of {self._num_tried} rows failed, more than the share of "
            f"{self._max_failed_share:g} that [run] max_failed_share allows"
        )

    def _abort(self, reason: str) -> list[Decision]:
        self._is_stopped = True
        if self.abort_reason is not None:
            return []
        self.abort_reason = reason
        return [Abort(reason)]
