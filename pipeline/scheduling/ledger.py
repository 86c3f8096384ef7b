"""Where every row of a run is: the coordinator's whole state, and every decision it takes.

Pure: no I/O, no Ray, no clock. Each event is one method; it changes the state and returns what is to be done, in order.
The coordinator does these things and reports what came of them as further events.

    row_read, row_skipped, rows_exhausted                 from the prompt file
    worker_ready, worker_draining, worker_lost            from the workers
    progress, checkpointed, suspended, made, finished,
    rejected, failed                                      from an attempt, named by row, number and worker

The life of a row:

    waiting → making → uploading → settled (done, or dead)
       ↑         │ │        │
       └─────────┴─┼────────┘   given back: its worker was lost, drained or ran out of memory
                   └→ settled   (`finished` without `made` before it; an error of the row itself)

A row that is given back goes before all new ones, to a worker that it was not lost on where there is one, and starts
from its last checkpoint. What arrives from an attempt that is not the row's current one is ignored: a worker that was
declared lost may still be running.

The life of a worker, which is the name of a place: an actor started in place of a dead one keeps it.

    (starting) → idle ⇄ hosting        makes a row; up to `max_uploads` videos of its own may be uploading meanwhile
                 idle ⇄ helping        is lent: computes windows for a host (pipeline/scheduling/lending.py)
                 hosting → resting     its row ended by `finished`, `failed` or `suspended`; idle with `worker_ready`
    any → lost (→ idle again), released (drained) or retired (died too often)

A worker may say that it makes several videos at once (`num_videos`): it is given rows until it has so many, idle
workers first, and each of them is a row of its own in all that is said here. Nobody is lent to it, nor it to others.

Who has no row waiting for it is lent, and taken back as soon as one waits. The ledger sees no windows, so a host and
its helpers cost the coordinator a few events a minute.

Retries: a death of the worker gives the row back, until `max_attempts` deaths without a checkpoint of progress between
them; on a node that is drained or dead it costs nothing. An error worth retrying gives it back once. Any other error of
the row settles it as failed; an error of the run ends the run. Of several rows that a worker made at once nobody knows
which one killed it: each has lost a worker, but none is given up for that. A row's last attempt, and what follows an
error worth retrying, is made on a worker of its own; while it waits for one, no worker gets a further row.

Memory does not grow with the run: a settled row leaves a count per open shard and nothing else. No event looks at all
workers or rows.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final, Literal, TypeAlias

from miga.errors import Scope
from pipeline.rows import BadRow, PromptRow, Status
from pipeline.scheduling.lending import IdleWorkers, Lending

LOST: Final = "WorkerLostError"
"""`error_type` of a row given up because its workers were lost."""

NUM_LOOKED_AT: Final = 64
"""Helpers looked at when one is to be taken back."""


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
        checkpoint: what to start from; None: from nothing.
    """

    row: PromptRow
    attempt: int
    worker: str
    waited_s: float
    checkpoint: str | None = None


@dataclass(frozen=True)
class Helpers:
    """The helpers of a host from now on: the whole list, which replaces the one before.

    A helper leaves one list before it is named in another, or given a row. A host whose video has ended gets the empty
    list; one that is gone gets none.
    """

    worker: str
    helpers: tuple[str, ...]


@dataclass(frozen=True)
class Suspend:
    """Have `worker` write a checkpoint of what it makes and stop; report `checkpointed`, then `suspended`."""

    worker: str


@dataclass(frozen=True)
class Release:
    """End the actor of `worker`, which has nothing to do; nothing takes its place. Its end is not to be reported."""

    worker: str


@dataclass(frozen=True)
class Retire:
    """The place of `worker` is not filled again: its actors die there."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Commit:
    """Record the result of this attempt as the row's: it was the current one."""

    row: PromptRow
    attempt: int
    worker: str


@dataclass(frozen=True)
class KeepEarlier:
    """Record the best of the row's earlier tries: the last one was given up."""

    row: PromptRow
    attempt: int
    error_type: str
    error: str


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


Decision: TypeAlias = (
    ReadRows
    | Assign
    | Helpers
    | Suspend
    | Release
    | Retire
    | Commit
    | KeepEarlier
    | Quarantine
    | Requeued
    | Ignore
    | Seal
    | Abort
)


@dataclass
class _Entry:
    """A row between being read and being settled.

    Attributes:
        work: of the whole video, in the unit of `work_of`.
        parallelism: workers that its windows keep busy at once.
        deaths: place → workers lost there since the last checkpoint of progress.
        failed_on: places where it failed in a way worth another try.
        num_progress: signs of life of the current attempt.
        has_video: whether an earlier try has left one, which is kept should this one be given up.
    """

    row: PromptRow
    waiting_since_s: float
    work: float
    parallelism: int
    attempt: int = 0
    worker: str | None = None
    is_uploading: bool = False
    checkpoint: str | None = None
    checkpoint_share: float = 0.0
    deaths: dict[str, int] = field(default_factory=dict)
    failed_on: set[str] = field(default_factory=set)
    num_errors: int = 0
    num_progress: int = 0
    last_progress_s: float = 0.0
    has_video: bool = False


_State: TypeAlias = Literal["away", "idle", "helping", "hosting", "resting", "released", "retired"]


@dataclass
class _Place:
    """A worker.

    Attributes:
        state: "away": starting, or lost and being started anew.
        capacity: rows that it makes at once.
        rows: that it makes.
        is_alone: whether its row is to have no company.
        num_resting: rows whose attempts have ended, and that no `worker_ready` has followed yet.
        uploads: rows whose videos it has made and is uploading.
        num_deaths: without progress between them.
        host_progress: signs of life of its host's attempt when it was lent.
    """

    name: str
    node: str = ""
    speed: float = 1.0
    state: _State = "away"
    is_draining: bool = False
    capacity: int = 1
    rows: set[int] = field(default_factory=set)
    is_alone: bool = False
    num_resting: int = 0
    uploads: set[int] = field(default_factory=set)
    num_deaths: int = 0
    host_progress: int = 0

    @property
    def room(self) -> int:
        """Rows that it may be given."""
        return 0 if self.is_alone else self.capacity - len(self.rows) - self.num_resting


@dataclass
class _Shard:
    """Counts of a shard that is not sealed."""

    num_read: int = 0
    num_settled: int = 0
    has_news: bool = False


def _num_frames(row: PromptRow) -> float:
    return float(row.num_frames)


def _no_windows(row: PromptRow) -> int:
    return 1


class Ledger:
    """The state of a run.

    Args:
        prompts_per_shard: rows of a shard.
        max_attempts: workers that a row may lose, without a checkpoint of progress between them, before it is given up.
        max_failed_share: the run is aborted once more than this share of the rows tried in it has failed. Rows that the
            prompt file has wrong, and rows settled by an earlier run, were not tried.
        min_finished_rows: rows tried before that share is looked at.
        lookahead: rows to have waiting beyond one for every idle worker.
        work_of: the work of a row's video, in any unit; workers do `speed` of it in a unit of time.
        parallelism_of: workers that a row's video keeps busy at once, its host included; 1: it takes no helpers.
        max_videos: videos made at the same time; None: as many as there are workers.
        max_uploads: videos of a worker that may be uploading while it makes another, for each that it makes at once.
        max_worker_deaths: deaths of a worker, without progress between them, after which its place stays empty.
    """

    def __init__(
        self,
        *,
        prompts_per_shard: int,
        max_attempts: int = 3,
        max_failed_share: float = 0.5,
        min_finished_rows: int = 20,
        lookahead: int = 0,
        work_of: Callable[[PromptRow], float] = _num_frames,
        parallelism_of: Callable[[PromptRow], int] = _no_windows,
        max_videos: int | None = None,
        max_uploads: int = 1,
        max_worker_deaths: int = 4,
    ) -> None:
        self._prompts_per_shard = prompts_per_shard
        self._max_attempts = max_attempts
        self._max_failed_share = max_failed_share
        self._min_finished_rows = min_finished_rows
        self._lookahead = lookahead
        self._work_of = work_of
        self._parallelism_of = parallelism_of
        self._max_videos = math.inf if max_videos is None else max_videos
        self._max_uploads = max_uploads
        self._max_worker_deaths = max_worker_deaths
        self._entries: dict[int, _Entry] = {}
        self._given_back: deque[int] = deque()
        self._fresh: deque[int] = deque()
        self._places: dict[str, _Place] = {}
        self._busy: OrderedDict[int, str] = OrderedDict()  # row → worker, in the order of their last progress
        self._idle = IdleWorkers()
        self._blocked: OrderedDict[str, None] = OrderedDict()  # idle, but for too many uploads
        self._lent: OrderedDict[str, None] = OrderedDict()  # helpers that may take a row
        self._open: OrderedDict[str, None] = OrderedDict()  # hosts that may take a further row
        self._room_of: dict[str, int] = {}  # of those idle or open
        self._num_room = 0
        self._most_each = 1
        self._lending = Lending()
        self._num_uploading = 0
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

    def row_read(
        self,
        row: PromptRow | BadRow,
        now_s: float,
        *,
        checkpoint: str | None = None,
        share: float = 0.0,
        has_video: bool = False,
    ) -> list[Decision]:
        """A row was read that no earlier run has settled. Rows come in the order of their positions.

        Args:
            row: the row.
            now_s: the time.
            checkpoint: the newest that an earlier run has left of it.
            share: of its work that the checkpoint holds.
            has_video: whether an earlier run has left a video of it that was not good enough.
        """
        self._note_read(row.index)
        if isinstance(row, BadRow):
            self.num_dead += 1
            bad = Quarantine(row, 0, row.error_type, row.error)
            return [bad, *self._settled(row.index), *self._work(now_s)]
        entry = _Entry(row, now_s, self._work_of(row), self._parallelism_of(row))
        entry.checkpoint, entry.checkpoint_share, entry.has_video = checkpoint, share, has_video
        self._entries[row.index] = entry
        self._fresh.append(row.index)
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

    def worker_expected(self, worker: str) -> None:
        """A worker is being started: a run whose other places are retired waits for it; a released place is back."""
        place = self._place(worker)
        if place.state == "released":
            place.state = "away"

    def worker_ready(
        self,
        worker: str,
        now_s: float,
        *,
        node: str | None = None,
        speed: float | None = None,
        num_videos: int | None = None,
    ) -> list[Decision]:
        """A worker is there, or free again. One that was at work has lost all it had: it was started anew.

        Args:
            worker: its name.
            now_s: the time.
            node: where it is, said when it joins; None: it is free again, of one of its rows. (One that was released
                meanwhile is not.)
            speed: work it does in a unit of time; None: as before (1 at first).
            num_videos: that it makes at once; None: as before (1 at first).
        """
        place = self._place(worker)
        if place.state == "retired":
            return [Release(worker)]
        if place.state == "released" and node is None:
            return []
        if node is None and place.num_resting:
            place.num_resting -= 1
            if place.is_draining:
                return self._release_if_free(place) + self._work(now_s)
            self._rest(place)
            return self._work(now_s)
        decisions = self._withdraw(place)
        if place.state == "hosting":
            decisions += self._lose(place, "the worker was started anew", now_s, is_free=False)
            if self._places[worker].state == "retired":
                return decisions + self._work(now_s)
        place.node = place.node if node is None else node
        place.speed = place.speed if speed is None else speed
        place.capacity = place.capacity if num_videos is None else num_videos
        self._most_each = max(self._most_each, place.capacity)
        assert 0 < place.speed < math.inf, f"{worker}: a speed of {place.speed}"
        assert place.capacity >= 1, f"{worker}: {place.capacity} videos at once"
        if place.is_draining:
            return decisions + self._release_if_free(place) + self._work(now_s)
        self._rest(place)
        return decisions + self._work(now_s)

    def worker_draining(self, worker: str, now_s: float) -> list[Decision]:
        """A worker is to go, with its node or because there are too many: it gets nothing more to do.

        It is released once it has nothing left: at once, or when its video is suspended and its uploads are done.
        """
        place = self._place(worker)
        if place.is_draining or place.state in ("released", "retired"):
            return []
        place.is_draining = True
        if place.state == "hosting":
            self._withdraw(place)
            if place.capacity == 1:
                self._lending.close(worker)
            return [Suspend(worker)]
        return self._withdraw(place) + self._release_if_free(place) + self._work(now_s)

    def worker_lost(self, worker: str, reason: str, now_s: float, *, is_free: bool = False) -> list[Decision]:
        """A worker is gone, and with it what it was making and uploading.

        Also to be reported of one that died while it was starting, and of one that is replaced after `failed`.

        Args:
            worker: its name.
            reason: how.
            now_s: the time.
            is_free: whether neither row nor place is to blame, as on a dead node or for an actor that the coordinator
                itself has ended: it costs no attempt. The loss of a draining worker is always free.
        """
        place = self._place(worker)
        if place.state in ("released", "retired"):
            return []
        return self._lose(place, reason, now_s, is_free) + self._work(now_s)

    # ---- an attempt ----

    def progress(self, index: int, attempt: int, worker: str, now_s: float, *, share: float = 0.0) -> list[Decision]:
        """An attempt is alive, and so much of its video is done."""
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        self._note_progress(entry, worker, now_s, share)
        return []

    def checkpointed(
        self, index: int, attempt: int, worker: str, now_s: float, *, checkpoint: str, share: float
    ) -> list[Decision]:
        """An attempt has written a checkpoint, which the next one starts from; this is progress, too."""
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        self._note_progress(entry, worker, now_s, share)
        entry.checkpoint = checkpoint
        if share > entry.checkpoint_share:
            entry.checkpoint_share = share
            entry.deaths.clear()
        return []

    def suspended(self, index: int, attempt: int, worker: str, now_s: float) -> list[Decision]:
        """An attempt has stopped as `Suspend` asked for; the row waits again. The worker is at rest."""
        entry = self._making(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        decisions = self._leave(entry)
        self._push_back(entry, now_s)
        decisions.append(Requeued(entry.row, attempt, f"{worker} is drained"))
        return decisions + self._work(now_s)

    def made(self, index: int, attempt: int, worker: str, now_s: float) -> list[Decision]:
        """An attempt has made its video, which is now uploading; `finished` or `failed` follow.

        The worker is idle without `worker_ready`, and takes the next row if few enough of its videos are uploading.
        """
        entry = self._making(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        place = self._places[worker]
        self._note_progress(entry, worker, now_s, 1.0)
        decisions = self._end_making(place, index)
        place.num_resting -= 1
        entry.is_uploading = True
        place.uploads.add(index)
        self._num_uploading += 1
        if not place.is_draining:
            self._rest(place)
        return decisions + self._work(now_s)

    def finished(self, index: int, attempt: int, worker: str, now_s: float) -> list[Decision]:
        """An attempt's video is stored. A worker that has not said `made` before is at rest until `worker_ready`."""
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        self._places[worker].num_deaths = 0
        left = self._leave(entry)
        del self._entries[index]
        self.num_done += 1
        self._num_tried += 1
        commit = Commit(entry.row, attempt, worker)
        return [commit, *left, *self._settled(index), *self._abort_if_hopeless(), *self._work(now_s)]

    def rejected(self, index: int, attempt: int, worker: str, now_s: float, *, reason: str) -> list[Decision]:
        """An attempt's video is stored, and not good enough: the row waits again, to be made from nothing.

        Nothing that came of it before is held against what comes. For the worker it is as `finished`.
        """
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        self._places[worker].num_deaths = 0
        decisions = self._leave(entry)
        entry.checkpoint, entry.checkpoint_share, entry.num_errors, entry.has_video = None, 0.0, 0, True
        entry.deaths.clear()
        entry.failed_on.clear()
        self._push_back(entry, now_s)
        decisions.append(Requeued(entry.row, attempt, reason))
        return decisions + self._work(now_s)

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
        """An attempt, or the upload of its video, ended in an error; scope and retryable decide.

        A worker that has not said `made` before is at rest until `worker_ready`.
        """
        entry = self._current(index, attempt, worker)
        if entry is None:
            return [Ignore(index, attempt, worker)]
        decisions = self._leave(entry)
        if scope == "run":
            self._push_back(entry, now_s)
            return decisions + self._abort(f"{error_type}: {error}")
        if retryable and entry.num_errors == 0:
            entry.num_errors += 1
            entry.failed_on.add(worker)
            self._push_back(entry, now_s)
            decisions.append(Requeued(entry.row, attempt, f"{error_type}: {error}"))
        else:
            text = f"given up after {entry.num_errors + 1} attempts; the last: {error}" if entry.num_errors else error
            decisions += self._give_up(entry, error_type, text)
        return decisions + self._work(now_s)

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
        """Whether no worker is making or uploading anything."""
        return not self._busy and not self._num_uploading

    @property
    def is_in_tail(self) -> bool:
        """Whether a worker that may take a row has none: none waits, and none will come."""
        return self._is_exhausted and not self.num_waiting and bool(len(self._idle) or self._lent)

    @property
    def num_waiting(self) -> int:
        """Rows read that no worker is making."""
        return len(self._given_back) + len(self._fresh)

    @property
    def num_uploading(self) -> int:
        """Videos made that are not stored yet."""
        return self._num_uploading

    def assigned(self) -> dict[int, tuple[str, int]]:
        """Row → the worker that makes it, and its attempt."""
        return {index: (worker, self._entries[index].attempt) for index, worker in self._busy.items()}

    def uploading(self, worker: str) -> list[tuple[int, int]]:
        """Rows and attempts whose videos the worker is uploading."""
        return [(index, self._entries[index].attempt) for index in sorted(self._place(worker).uploads)]

    def helpers(self, worker: str) -> tuple[str, ...]:
        """The helpers of a host."""
        place = self._place(worker)
        return self._lending.helpers(worker) if place.state == "hosting" and place.capacity == 1 else ()

    def workers_on(self, node: str) -> list[str]:
        """The workers of a node, for draining it."""
        return [
            place.name
            for place in self._places.values()
            if place.node == node and place.state not in ("away", "released", "retired")
        ]

    def idle_workers(self) -> list[str]:
        """Workers that make, upload and help with nothing."""
        return [name for name in chain(self._idle, self._blocked) if not self._places[name].uploads]

    def num_wanted(self, most: int) -> int:
        """Workers that the rows known of can use: in flight, waiting, and about as many more if the file goes on.

        Args:
            most: that can be had.
        """
        room = self._room()
        waiting: Iterable[int] = chain(self._given_back, self._fresh)
        if room < math.inf:
            waiting = islice(waiting, int(room))
        wanted = sum(self._entries[index].parallelism for index in chain(self._busy, waiting))
        if not self._is_exhausted and self.num_waiting < room:
            wanted += max(1, len(self._busy))
        return 0 if self._is_stopped and not self._busy else min(most, -(-wanted // self._most_each))

    def stalled(self, now_s: float, after_s: float) -> list[str]:
        """Workers that make a row of which there was no progress for `after_s`."""
        workers: dict[str, None] = {}
        for index, worker in self._busy.items():
            if now_s - self._entries[index].last_progress_s < after_s:
                break  # all others have shown some later
            workers[worker] = None
        return list(workers)

    # ---- rows ----

    def _note_read(self, index: int) -> None:
        self.num_read += 1
        self._num_asked = max(0, self._num_asked - 1)
        self._shards.setdefault(index // self._prompts_per_shard, _Shard()).num_read += 1

    def _current(self, index: int, attempt: int, worker: str) -> _Entry | None:
        entry = self._entries.get(index)
        is_current = entry is not None and entry.worker == worker and entry.attempt == attempt
        return entry if is_current else None

    def _making(self, index: int, attempt: int, worker: str) -> _Entry | None:
        entry = self._current(index, attempt, worker)
        return None if entry is None or entry.is_uploading else entry

    def _note_progress(self, entry: _Entry, worker: str, now_s: float, share: float) -> None:
        entry.last_progress_s = now_s
        entry.num_progress += 1
        self._places[worker].num_deaths = 0
        if not entry.is_uploading:
            self._busy.move_to_end(entry.row.index)
            if self._places[worker].capacity == 1:
                self._lending.progress(worker, share)

    def _leave(self, entry: _Entry) -> list[Decision]:
        """The row's attempt has ended, its worker lives; the row is nobody's."""
        assert entry.worker is not None
        place = self._places[entry.worker]
        decisions = self._detach(entry, place)
        return decisions + self._release_if_free(place)

    def _detach(self, entry: _Entry, place: _Place) -> list[Decision]:
        decisions: list[Decision] = []
        if entry.is_uploading:
            place.uploads.remove(entry.row.index)
            self._num_uploading -= 1
            if len(place.uploads) == self._most_uploads(place):
                self._unblock(place)
        else:
            decisions = self._end_making(place, entry.row.index)
        entry.worker, entry.is_uploading = None, False
        return decisions

    def _end_making(self, place: _Place, index: int) -> list[Decision]:
        """The worker makes this row no more, and its helpers are free."""
        helpers: list[_Place] = []
        if place.capacity == 1:
            helpers = [self._places[name] for name in self._lending.helpers(place.name)]
            for helper in helpers:
                self._credit(helper)
            self._lending.end(place.name)
        del self._busy[index]
        place.rows.remove(index)
        place.num_resting, place.is_alone = place.num_resting + 1, False
        place.state = "hosting" if place.rows else "resting"
        for helper in helpers:
            self._lent.pop(helper.name, None)
            self._rest(helper)
        return [Helpers(place.name, ())] if helpers else []

    def _push_back(self, entry: _Entry, now_s: float) -> None:
        entry.waiting_since_s = now_s
        self._given_back.append(entry.row.index)

    def _retry_after_loss(
        self, entry: _Entry, worker: str, reason: str, now_s: float, had_company: bool
    ) -> list[Decision]:
        """Once more, until the row has had its attempts; for a death in company it is not given up."""
        entry.deaths[worker] = entry.deaths.get(worker, 0) + 1
        num_losses = sum(entry.deaths.values())
        if num_losses >= self._max_attempts and not had_company:
            for name, count in entry.deaths.items():  # the row was to blame, not the places
                self._places[name].num_deaths = max(0, self._places[name].num_deaths - count)
            return self._give_up(entry, LOST, f"given up after {num_losses} attempts; the last: {reason}")
        self._push_back(entry, now_s)
        return [Requeued(entry.row, entry.attempt, reason)]

    def _give_up(self, entry: _Entry, error_type: str, error: str) -> list[Decision]:
        del self._entries[entry.row.index]
        self._num_tried += 1
        if entry.has_video:
            self.num_done += 1
            kept = KeepEarlier(entry.row, entry.attempt, error_type, error)
            return [kept, *self._settled(entry.row.index)]
        self.num_dead += 1
        self._num_tried_dead += 1
        dead = Quarantine(entry.row, entry.attempt, error_type, error)
        return [dead, *self._settled(entry.row.index), *self._abort_if_hopeless()]

    # ---- workers ----

    def _place(self, worker: str) -> _Place:
        place = self._places.get(worker)
        if place is None:
            place = self._places[worker] = _Place(worker)
        return place

    def _most_uploads(self, place: _Place) -> int:
        return self._max_uploads * place.capacity

    def _rest(self, place: _Place) -> None:
        """The worker is idle, or may take a further row beside those it makes."""
        if place.rows:
            self._open_up(place)
            return
        if place.num_resting:  # `worker_ready` is to follow
            return
        place.state = "idle"
        self._open.pop(place.name, None)
        if len(place.uploads) > self._most_uploads(place):
            self._blocked[place.name] = None
            self._set_room(place, 0)
        else:
            self._idle.add(place.name, place.speed)
            self._set_room(place, place.room)

    def _open_up(self, place: _Place) -> None:
        """A worker that makes rows may take another, or not; of several such, it is the last to be given one."""
        self._open.pop(place.name, None)
        is_open = not place.is_draining and place.room > 0 and len(place.uploads) <= self._most_uploads(place)
        if is_open:
            self._open[place.name] = None
        self._set_room(place, place.room if is_open else 0)

    def _set_room(self, place: _Place, room: int) -> None:
        self._num_room += room - self._room_of.pop(place.name, 0)
        if room:
            self._room_of[place.name] = room

    def _unblock(self, place: _Place) -> None:
        """The worker has few enough uploads to take a row."""
        if place.state == "idle":
            del self._blocked[place.name]
            self._idle.add(place.name, place.speed)
            self._set_room(place, place.room)
        elif place.state == "helping":
            self._lent[place.name] = None
        elif place.state == "hosting":
            self._open_up(place)

    def _withdraw(self, place: _Place) -> list[Decision]:
        """A worker that was idle, a helper or open to further rows is none of them."""
        self._open.pop(place.name, None)
        self._set_room(place, 0)
        if place.state == "idle":
            self._idle.discard(place.name)
            self._blocked.pop(place.name, None)
        elif place.state == "helping":
            self._credit(place)
            self._lent.pop(place.name, None)
            host = self._lending.take_back(place.name)
            place.state = "resting"
            return [Helpers(host, self._lending.helpers(host))]
        else:
            return []
        place.state = "resting"
        return []

    def _credit(self, helper: _Place) -> None:
        """A helper whose host went on with it has worked: one sign of life may be of windows from before."""
        entry = self._entries[self._busy_row(self._lending.host_of(helper.name))]
        if entry.num_progress - helper.host_progress > 1:
            helper.num_deaths = 0

    def _busy_row(self, host: str) -> int:
        (row,) = self._places[host].rows
        return row

    def _release_if_free(self, place: _Place) -> list[Decision]:
        if not place.is_draining or place.state not in ("resting", "away") or place.uploads:
            return []
        place.state, place.is_draining, place.num_resting = "released", False, 0
        return [Release(place.name)]

    def _lose(self, place: _Place, reason: str, now_s: float, is_free: bool) -> list[Decision]:
        is_free |= place.is_draining
        decisions = self._withdraw(place)
        making, rows = set(place.rows), sorted(place.uploads) + sorted(place.rows)
        place.num_deaths += not is_free
        for index in rows:
            had_company = place.capacity > 1 and (len(making) if index in making else len(rows)) > 1
            entry = self._entries[index]
            self._detach(entry, place)
            if is_free:
                self._push_back(entry, now_s)
                decisions.append(Requeued(entry.row, entry.attempt, reason))
            else:
                decisions += self._retry_after_loss(entry, place.name, reason, now_s, had_company)
        self._withdraw(place)  # it may have been opened up while its uploads went
        place.state, place.is_draining, place.num_resting = "away", False, 0
        return decisions + self._retire_if_hopeless(place, reason)

    def _retire_if_hopeless(self, place: _Place, reason: str) -> list[Decision]:
        if place.num_deaths < self._max_worker_deaths:
            return []
        place.state = "retired"
        text = f"died {place.num_deaths} times without progress between them; the last: {reason}"
        decisions: list[Decision] = [Retire(place.name, text)]
        if all(other.state == "retired" for other in self._places.values()):
            decisions += self._abort(f"no worker is left: the last, {place.name}, {text}")
        return decisions

    # ---- who does what ----

    def _room(self) -> float:
        """Videos that may be started."""
        return 0 if self._is_stopped else self._max_videos - len(self._busy)

    def _work(self, now_s: float) -> list[Decision]:
        """Gives waiting rows to workers; asks for more rows where there are too few; lends who is left over."""
        decisions: list[Decision] = []
        while self.num_waiting and self._room() > 0 and (len(self._idle) or self._lent or self._open):
            waiting = self._given_back or self._fresh
            entry = self._entries[waiting[0]]
            is_alone = self._needs_worker_of_its_own(entry)
            if is_alone and not (len(self._idle) or self._lent):
                break  # no worker gets a further row meanwhile: so one will be idle
            waiting.popleft()
            worker = self._pick(entry, is_alone)
            if worker in self._lent:
                decisions += self._withdraw(self._places[worker])
            decisions.append(self._assign(entry, self._places[worker], now_s, is_alone))
        startable = min(self._num_room + len(self._lent), self._room())
        wanted = startable + self._lookahead - self.num_waiting - self._num_asked
        if wanted > 0 and not self._is_exhausted and not self._is_stopped:
            self._num_asked += int(wanted)
            decisions.append(ReadRows(int(wanted)))
        return decisions + self._lend()

    def _needs_worker_of_its_own(self, entry: _Entry) -> bool:
        """Whether this is the row's last attempt, or follows an error worth retrying."""
        is_last = bool(entry.deaths) and sum(entry.deaths.values()) + 1 >= self._max_attempts
        return is_last or entry.num_errors > 0

    def _pick(self, entry: _Entry, is_alone: bool) -> str:
        """The fastest idle worker, or the helper least missed, or a host that may take a further row.

        One that the row was lost on only if there is no other. The caller knows that there is one.
        """
        avoided = entry.deaths.keys() | entry.failed_on
        worker = self._free_worker(avoided, is_alone) or self._free_worker(frozenset(), is_alone)
        assert worker is not None
        return worker

    def _free_worker(self, avoided: Set[str], is_alone: bool) -> str | None:
        worker = self._idle.take(avoided)
        if worker is None:
            others = (helper for helper in self._lent if helper not in avoided)
            worker = self._lending.least_missed(islice(others, NUM_LOOKED_AT))
        if worker is None and not is_alone:
            worker = next((name for name in islice(self._open, NUM_LOOKED_AT) if name not in avoided), None)
        return worker

    def _assign(self, entry: _Entry, place: _Place, now_s: float, is_alone: bool) -> Assign:
        index = entry.row.index
        place.state, place.is_alone = "hosting", is_alone
        place.rows.add(index)
        self._open_up(place)
        self._busy[index] = place.name
        entry.worker, entry.attempt, entry.last_progress_s = place.name, entry.attempt + 1, now_s
        entry.num_progress = 0
        if place.capacity > 1:
            return Assign(entry.row, entry.attempt, place.name, now_s - entry.waiting_since_s, entry.checkpoint)
        self._lending.start(
            place.name,
            work=entry.work,
            share=entry.checkpoint_share,
            speed=place.speed,
            parallelism=entry.parallelism,
        )
        return Assign(entry.row, entry.attempt, place.name, now_s - entry.waiting_since_s, entry.checkpoint)

    def _lend(self) -> list[Decision]:
        """Lends all workers but those that a row is being read for, as long as a host has windows for them."""
        spare = len(self._idle) - int(min(self._num_asked, self._room()))
        changed: dict[str, None] = {}
        while (self._blocked or spare > 0) and (host := self._lending.neediest()) is not None:
            if self._blocked:
                name, _ = self._blocked.popitem(last=False)
            else:
                taken = self._idle.take()
                assert taken is not None
                name, spare = taken, spare - 1
                self._lent[name] = None
            place = self._places[name]
            self._set_room(place, 0)
            place.state = "helping"
            place.host_progress = self._entries[self._busy_row(host)].num_progress
            self._lending.lend(host, name, place.speed)
            changed[host] = None
        return [Helpers(host, self._lending.helpers(host)) for host in changed]

    # ---- shards and the run ----

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
