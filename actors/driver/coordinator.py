"""The coordinator: reads rows, hands them to workers, records what comes back. It is the driver process.

It decides nothing itself. Every event goes to the ledger, and what the ledger answers is carried out here, in order:

    read a row → assign it → embeddings (once per distinct prompt) → worker → record its manifest row → seal the shard

All it hears comes through one inbox: news of workers (`BackboneWorker.answer`), the end of calls, nodes that come and
go, writes that are done. Each worker has one call for news open, which fails when it dies.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Final, get_args

from ray.exceptions import RayError, RayTaskError

from actors.driver.cluster_nodes import NodesView
from actors.driver.inbox import Inbox
from actors.driver.metrics import RunMetrics, WorkerState
from actors.driver.pool import Member, Pool
from actors.driver.progress import ProgressBoard
from actors.driver.quality import QualityGate
from actors.driver.recorder import Recorder
from actors.driver.rows import RowMaker
from actors.messages import (
    DEATHS,
    HelperFailed,
    News,
    Question,
    VideoCheckpointed,
    VideoEvent,
    VideoFailed,
    VideoFinished,
    VideoMade,
    VideoNote,
    VideoProgress,
    VideoResult,
    VideoSuspended,
    VideoTask,
    WorkerInfo,
)
from actors.runtime import Slots
from actors.text_encoder import TextStage
from miga.backbones.base import BackboneSpec
from miga.errors import MigaError, ModelError
from pipeline.config import RunConfig
from pipeline.prompts.images import folder_of, frame_of, picture_at
from pipeline.records.manifest import BrokenFile, Manifest
from pipeline.records.quality import Try, try_name
from pipeline.records.run_folder import CheckpointName, checkpoint_folder, latents_path, newest_checkpoint, video_path
from pipeline.rows import BadRow, ManifestRow, PromptRow, Status, first_frames
from pipeline.scheduling.ledger import (
    Abort,
    Assign,
    Commit,
    Decision,
    Helpers,
    Ignore,
    KeepEarlier,
    Ledger,
    Quarantine,
    ReadRows,
    Release,
    Requeued,
    Retire,
    Seal,
    Suspend,
)
from pipeline.storage.base import Storage
from pipeline.trackers.run_log import RunLog
from pipeline.upkeep.repair import rebuilt_row, row_videos

BEAT_S: Final = 2.0
"""A worker that has nothing to tell answers after this time,"""
BEATS_PER_S: Final = 100.0
"""or later where there are many: so many answers a second are enough."""
IDLE_S: Final = 60.0
"""How long a worker that nothing is left for is kept."""
MAX_READ_AHEAD: Final = 16
"""Rows read at once, beside those that the ledger asks for."""
_POLL_S: Final = 0.5

COUNT_EVERY_S: Final = 0.5
LOADING: Final = "loading the model"
ENCODING: Final = "encoding prompts"
FIRST_CALL: Final = "measuring a call of the network"


@dataclass
class _Attempt:
    """A row being made, under the seed of its try, and what to remember for its manifest row."""

    row: PromptRow
    asked: PromptRow
    key: str
    number: int
    worker: Member
    waited_s: float
    try_number: int = 0


@dataclass
class _Read:
    """A row that was read, and what an earlier run has left of it."""

    row: PromptRow | BadRow
    status: Status | None
    is_sealed: bool
    checkpoint: str | None = None
    has_video: bool = False


@dataclass(frozen=True)
class _Earlier:
    """What an earlier run has left of a shard.

    Attributes:
        statuses: row → how it was settled.
        is_sealed: whether the shard's file has all that.
        broken: rows that were settled, but whose record cannot be read.
        folders: names of folders of checkpoints.
    """

    statuses: dict[int, Status]
    is_sealed: bool
    broken: dict[int, BrokenFile]
    folders: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a coordinator works with.

    Attributes:
        config: of the run.
        spec: the model.
        rows: the prompt file, read lazily.
        num_rows: how many that are; None if it is not known.
        calls_of: expected network calls of a row's video.
        ledger: the state of the run.
        storage: of OUT.
        manifest: where rows are recorded.
        epoch: of the run's lease.
        maker: of manifest rows.
        slots: what each worker takes.
        prompts: the prompt file: pictures that rows name lie beside it.
    """

    config: RunConfig
    spec: BackboneSpec
    rows: Iterable[PromptRow | BadRow]
    num_rows: int | None
    calls_of: Callable[[PromptRow], float]
    ledger: Ledger
    storage: Storage
    manifest: Manifest
    epoch: int
    maker: RowMaker
    slots: Slots
    retry_failed: bool = False
    prompts: str = ""


class Coordinator:
    """Makes one run.

    Args:
        parts: what it works with.
        inbox: where it hears.
        pool: the workers.
        recorder: writes what is settled.
        text: the text encoding stage.
        board: the progress display.
        metrics: what is told of the run to Prometheus.
        log: what is told of it to a tracker.
    """

    def __init__(
        self,
        parts: RunParts,
        inbox: Inbox,
        pool: Pool,
        recorder: Recorder,
        text: TextStage,
        board: ProgressBoard,
        metrics: RunMetrics,
        log: RunLog | None = None,
    ) -> None:
        self._log = log
        self._parts, self._inbox, self._pool, self._recorder = parts, inbox, pool, recorder
        self._text, self._board, self._metrics = text, board, metrics
        self._ledger, self._maker = parts.ledger, parts.maker
        self._gate = QualityGate(parts.config.quality, parts.storage, board.say)
        self._judged: dict[tuple[int, int], ManifestRow] = {}
        self._workers = parts.config.workers
        self._rows: Iterator[PromptRow | BadRow] = iter(parts.rows)
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        self._results: dict[tuple[int, int], VideoResult] = {}
        self._todo: deque[Decision] = deque()
        self._hosting: dict[str, dict[tuple[int, int], None]] = {}
        self._heard: Member | None = None
        self._ahead: deque[_Read] = deque()
        self._num_read = 0
        self._settled_before: dict[int, _Earlier] = {}
        self._with_checkpoints: set[int] = set()
        self._view = NodesView()
        self._is_stopping = False
        self._is_started = False
        self._has_measured = False
        self._counted_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Makes every row that is not settled yet; returns when all are, or the ledger has aborted.

        Args:
            stop: set from elsewhere to end the run; what is being made is saved as far as `stop_grace_s` allows.

        Raises:
            MigaError: if the run itself cannot go on.
            KeyboardInterrupt: once `stop` is set.
        """
        self._todo.append(ReadRows(1))
        self._carry_out()  # as far as it goes without workers: a run that is complete needs none
        if not self._ledger.is_complete:
            self._is_started = True
            self._resize()
        gc.freeze()  # what is there by now stays: looking through it again and again took the collector 0.3 s each time
        try:
            while not self._is_over:
                if stop.is_set():
                    self._stop()
                    raise KeyboardInterrupt
                self._inbox.run(_POLL_S)
                self._carry_out()
                self._count_gpus()
                self._board.refresh()
                if self._metrics.is_due:
                    self._report()
                if self._log is not None and self._log.is_due:
                    self._log_figures()
        finally:
            gc.unfreeze()
            self._report()
            self._log_figures()

    @property
    def _is_over(self) -> bool:
        ledger = self._ledger
        is_made = ledger.is_complete or (ledger.abort_reason is not None and ledger.is_idle)
        return is_made and self._recorder.is_idle

    def _stop(self) -> None:
        """Starts nothing more, has the videos in the making saved, and writes down what is finished meanwhile."""
        self._is_stopping = True
        self._ledger.stop()
        for name in self._hosting:
            self._suspend(name)
        until_s = time.monotonic() + self._parts.config.run.stop_grace_s
        while not self._ledger.is_idle and (left_s := until_s - time.monotonic()) > 0:
            self._inbox.run(min(_POLL_S, left_s))
            self._carry_out()

    # ---- workers ----

    def nodes_changed(self, view: NodesView) -> None:
        """What the cluster is like now; told every few seconds."""
        known, self._view = self._view.draining, view
        now_s = time.monotonic()
        for node in view.draining:
            for name in self._ledger.workers_on(node):
                if node not in known:
                    self._board.say(f"{name} is drained with its node")
                self._todo.extend(self._ledger.worker_draining(name, now_s))
        self._end_silent(now_s)
        self._resize()

    def _resize(self) -> None:
        """Starts workers where there is room and need for more, and ends some where there are too many."""
        if not self._is_started or self._is_stopping or self._ledger.abort_reason is not None:
            return
        target = self._target()
        while len(self._pool) < target:
            self._start_worker(None)
        surplus = len(self._pool) - target
        if surplus > 0:
            surplus -= self._end_starting(surplus)
        self._end_idle(surplus)

    def _target(self) -> int:
        workers, slots = self._workers, self._parts.slots
        room = slots.room(self._view.staying()) if self._view.alive else slots.num_actors
        if workers.num_actors is not None:
            target = workers.num_actors
        elif workers.max_actors is not None:
            target = min(workers.max_actors, max(1, self._num_wanted(workers.max_actors)))
        else:
            target = room if slots.gpus else min(room, slots.num_actors)
        return target - len(self._pool.retired)

    def _num_wanted(self, most: int) -> int:
        """Workers that what is known of the rest of the run can use."""
        left = 0 if self._parts.num_rows is None else self._parts.num_rows - self._ledger.num_read
        return min(most, self._ledger.num_wanted(most) + left)

    def _start_worker(self, name: str | None) -> None:
        member = self._pool.start(name)
        self._ledger.worker_expected(member.name)
        self._board.begun(LOADING)
        self._inbox.when_ready(member.actor.load.remote(), partial(self._loaded, member))

    def _end_starting(self, most: int) -> int:
        """Ends workers that are not there yet, the last ones first; returns how many."""
        starting = [member for member in self._pool.members() if member.info is None][::-1][:most]
        for member in starting:
            self._pool.end(member)
            self._todo.extend(self._ledger.worker_draining(member.name, time.monotonic()))
        return len(starting)

    def _end_idle(self, surplus: int) -> None:
        """Ends workers that have had nothing to do for a while: as many as are too many, or that no row is left for."""
        now_s, idle = time.monotonic(), set(self._ledger.idle_workers())
        for member in self._pool.members():
            member.idle_since_s = (member.idle_since_s or now_s) if member.name in idle else None
            long_idle = member.idle_since_s is not None and now_s - member.idle_since_s >= IDLE_S
            if surplus > 0 and long_idle:
                surplus -= 1
                self._todo.extend(self._ledger.worker_draining(member.name, now_s))

    def _loaded(self, member: Member, future: Future[Any]) -> None:
        """A worker has loaded its backbone; its speed is measured next.

        Raises:
            MigaError: if loading failed for a reason that would fail every worker.
        """
        if not self._pool.is_current(member):
            return
        try:
            member.info = future.result()
        except RayTaskError as error:
            if isinstance(error.cause, MigaError):
                raise error.cause from None
            raise ModelError(
                f"{member.name} cannot load {self._parts.config.model!r}: {type(error.cause).__name__}: {error.cause}",
                "try it in Python: LongVideoPipeline.from_pretrained",
            ) from error
        except DEATHS as error:
            self._lose(
                member,
                f"{member.name} died while loading {self._parts.config.model!r} (most often the machine has too little "
                f"memory: fewer num_actors in [workers] need less): {_first_line(error)}",
            )
            return
        self._board.done(LOADING)
        prompt = self._parts.spec.negative_prompt
        self._text.when_encoded([prompt], partial(self._measure, member, prompt))

    def _measure(self, member: Member, prompt: str) -> None:
        """Has a worker measure its speed."""
        if self._pool.is_current(member):
            self._board.done(ENCODING)
            if not self._has_measured:
                self._board.begun(FIRST_CALL)
            reference = member.actor.measure.remote(*self._text.embeddings([prompt]))
            self._inbox.when_ready(reference, partial(self._measured, member))

    def _measured(self, member: Member, future: Future[Any]) -> None:
        """A worker is ready.

        Raises:
            MigaError: as `_loaded`.
        """
        if not self._pool.is_current(member):
            return
        try:
            call_s: float = future.result()
        except RayTaskError as error:
            if isinstance(error.cause, MigaError) and error.cause.retryable:
                self._lose(member, str(error.cause))
                return
            raise error.cause from None
        except DEATHS as error:
            self._lose(member, f"{member.name} died in its first call: {_first_line(error)}")
            return
        assert isinstance(member.info, WorkerInfo)
        self._has_measured = True
        self._board.done(FIRST_CALL)
        self._board.worker_ready(member.name, f"{member.info.device} on {member.info.node}", member.started_s)
        member.is_ready, member.heard_at_s = True, time.monotonic()
        speed = 1.0 / max(call_s, 1e-6)
        info = member.info
        self._todo.extend(
            self._ledger.worker_ready(
                member.name, member.heard_at_s, node=info.node_id, speed=speed, num_videos=info.num_videos
            )
        )
        if member.info.node_id in self._view.draining:
            self._todo.extend(self._ledger.worker_draining(member.name, member.heard_at_s))
        self._ask_for_news(member)

    def _ask_for_news(self, member: Member) -> None:
        (task, embeddings), member.outgoing = member.outgoing, (None, ())
        question = Question(timeout_s=max(BEAT_S, len(self._pool) / BEATS_PER_S), task=task)
        reference = member.actor.answer.remote(question.packed(), *embeddings)
        self._inbox.when_ready(reference, partial(self._hear, member))

    def _hear(self, member: Member, future: Future[Any]) -> None:
        """A worker answers, or never will again."""
        if not self._pool.is_current(member):
            return
        try:
            news = News.unpacked(future.result())
        except DEATHS as error:
            self._lose(member, f"the process of {member.name} died: {_first_line(error)}")
            return
        except RayError as error:  # what it was told could not be carried there
            self._lose(member, f"{member.name} could not be told what to do: {_first_line(error)}", is_free=True)
            return
        self._heard = member
        member.heard_at_s = time.monotonic()
        member.busy_s, member.num_calls = news.busy_s, news.num_calls
        self._metrics.gpu(member.name, member.info.node if member.info else "", news.num_calls, news.busy_s)
        self._board.gpu(member.key, news.num_calls)
        for hosted in news.hosted:
            if self._is_hosting(member.name, hosted.row, hosted.attempt):
                self._board.video_calls(_name_of(member.name, hosted.row), hosted)
        for event in news.events:
            self._hear_event(member, event)
        self._heard = None
        if not self._pool.is_current(member):
            return
        if news.call_running_s > self._workers.stalled_after_s:
            self._lose(member, f"a call of {member.name} has not ended for {news.call_running_s:.0f} s")
            return
        self._ask_for_news(member)

    def _end_silent(self, now_s: float) -> None:
        """Replaces workers that say nothing any more, as behind a network that is cut, or whose video stands still."""
        silent_s = self._workers.silent_after_s + len(self._pool) / BEATS_PER_S
        for member in self._pool.members():
            if member.is_ready and now_s - member.heard_at_s > silent_s:
                self._lose(member, f"{member.name} has not answered for {now_s - member.heard_at_s:.0f} s")
        for name in self._ledger.stalled(now_s, self._workers.stalled_after_s):
            if stalled := self._pool.get(name):
                self._lose(stalled, f"the video of {name} has come no further for {self._workers.stalled_after_s:g} s")

    def _lose(self, member: Member, reason: str, is_free: bool = False) -> None:
        """A worker is gone, or not to be used any more: another takes its place where there is still room."""
        node = "" if member.info is None else member.info.node_id
        is_free |= bool(node and self._view.alive and node not in self._view.alive) or node in self._view.draining
        is_free |= "its node has died" in reason
        self._pool.end(member)
        self._todo.extend(self._ledger.worker_lost(member.name, reason, time.monotonic(), is_free=is_free))
        self._carry_out()
        if self._is_stopping or member.name in self._pool.retired or self._ledger.abort_reason is not None:
            return
        if len(self._pool) < self._target():
            self._start_worker(member.name)

    def _count_gpus(self) -> None:
        """Tells the board now and then how many workers there are, and how many have work."""
        now_s = time.monotonic()
        if now_s - self._counted_s < COUNT_EVERY_S:
            return
        self._counted_s = now_s
        ready = {member.name for member in self._pool.members() if member.is_ready}
        self._board.gpus(len(ready), len(ready & (self._hosting.keys() | self._helping())))

    def _helping(self) -> set[str]:
        return {helper for host in self._hosting for helper in self._ledger.helpers(host)}

    def _report(self) -> None:
        """Tells Prometheus how many workers do what, and where rows are."""
        ledger = self._ledger
        hosts = self._hosting
        helping = self._helping()
        states: dict[WorkerState, int] = dict.fromkeys(get_args(WorkerState), 0)
        states["retired"] = len(self._pool.retired)
        for member in self._pool.members():
            name = member.name
            is_draining = member.info is not None and member.info.node_id in self._view.draining
            state: WorkerState = (
                "starting" if not member.is_ready
                else "draining" if is_draining
                else "helping" if name in helping
                else "hosting" if name in hosts
                else "idle"
            )  # fmt: skip
            states[state] += 1
        num_making = sum(map(len, hosts.values()))
        self._metrics.refresh(states, ledger.num_waiting, num_making, ledger.num_uploading)

    def _log_figures(self) -> None:
        if self._log is not None:
            metrics, board = self._metrics, self._board
            self._log.look(board.figures(), metrics.num_calls, metrics.busy_s, board.say)

    # ---- attempts ----

    def _hear_event(self, member: Member, event: VideoEvent) -> None:
        if isinstance(event, HelperFailed):
            self._helper_failed(event)
            return
        attempt = self._attempts.get((event.row, event.attempt))
        name, now_s, ledger = member.name, time.monotonic(), self._ledger
        row, number = event.row, event.attempt
        match event:
            case VideoProgress():
                share = self._share(attempt, event.num_calls)
                self._todo.extend(ledger.progress(row, number, name, now_s, share=share))
            case VideoCheckpointed():
                self._with_checkpoints.add(row)
                self._metrics.saved(row, number)
                share = self._share(attempt, event.num_calls)
                self._todo.extend(ledger.checkpointed(row, number, name, now_s, checkpoint=event.path, share=share))
            case VideoNote():
                self._board.say(f"row {row}: {event.text}")
            case VideoSuspended():
                self._metrics.suspended(row, number)
                self._close(event.row, event.attempt)
                self._todo.extend(ledger.suspended(row, number, name, now_s))
                self._todo.extend(ledger.worker_ready(name, now_s))
            case VideoMade():
                self._metrics.made(row, number)
                if self._is_hosting(name, row, number):
                    self._board.video_made(_name_of(name, row))
                self._stop_hosting(name, row, number)
                self._todo.extend(ledger.made(row, number, name, now_s))
            case VideoFinished():
                self._finished(member, attempt, event)
            case VideoFailed():
                self._failed(member, event)
        self._carry_out()

    def _finished(self, member: Member, attempt: _Attempt | None, event: VideoFinished) -> None:
        """A video is in its place: it settles its row, unless it is not good enough and another try is left."""
        row, number, result = event.row, event.attempt, event.result
        if attempt is not None and attempt.worker is member and self._gate.is_asked:
            made = self._maker.finished(attempt.row, attempt.key, number, attempt.waited_s, result)
            this = self._gate.judged(attempt.try_number, made, result.scores)
            if not self._gate.settles(this):
                folder = checkpoint_folder(made.shard, row, self._maker.key(attempt.asked))
                self._with_checkpoints.add(row)
                noted = partial(self._rejected, member.name, number, this)
                self._recorder.note(f"{folder}/{try_name(this.number)}", this.to_json(), noted)
                return
            self._judged[row, number] = self._gate.kept(row, this)
        self._results[row, number] = result
        self._todo.extend(self._ledger.finished(row, number, member.name, time.monotonic()))

    def _rejected(self, name: str, number: int, this: Try) -> None:
        """The record of a try that was not good enough is written: its row waits for the next."""
        assert this.row is not None
        index, now_s = this.row.row, time.monotonic()
        self._gate.reject(index, this)
        self._metrics.rejected(index, number)
        reason = self._gate.reason(this)
        self._todo.extend(self._ledger.rejected(index, number, name, now_s, reason=reason))

    def _failed(self, member: Member, event: VideoFailed) -> None:
        now_s = time.monotonic()
        was_making = self._is_hosting(member.name, event.row, event.attempt)
        self._metrics.erred(event.row, event.attempt)
        self._close(event.row, event.attempt)
        self._todo.extend(
            self._ledger.failed(
                event.row,
                event.attempt,
                member.name,
                now_s,
                error_type=event.error_type,
                error=event.error,
                scope=event.scope,
                retryable=event.retryable,
            )
        )
        if event.needs_new_process:
            self._lose(member, f"{member.name} is started anew: {event.error}", is_free=True)
        elif was_making:
            self._todo.extend(self._ledger.worker_ready(member.name, now_s))

    def _helper_failed(self, event: HelperFailed) -> None:
        """A helper that erred is started anew; one that died is heard of through its own calls."""
        member = self._pool.by_key(event.helper)
        if member is not None and not event.is_dead:
            self._lose(member, f"{member.name} is started anew, since it could not help: {event.error}", is_free=True)

    def _share(self, attempt: _Attempt | None, num_calls: int) -> float:
        return 0.0 if attempt is None else min(0.99, num_calls / max(1.0, self._parts.calls_of(attempt.row)))

    def _close(self, row: int, number: int) -> _Attempt | None:
        """Forgets an attempt that is over."""
        attempt = self._attempts.pop((row, number), None)
        if attempt is not None:
            self._stop_hosting(attempt.worker.name, row, number)
        return attempt

    def _stop_hosting(self, name: str, row: int, number: int) -> None:
        """The worker makes this video no more."""
        if self._is_hosting(name, row, number):
            del self._hosting[name][row, number]
            if not self._hosting[name]:
                del self._hosting[name]
            self._board.video_closed(_name_of(name, row))

    def _is_hosting(self, name: str, row: int, number: int) -> bool:
        return (row, number) in self._hosting.get(name, ())

    # ---- decisions ----

    def _carry_out(self) -> None:
        while self._todo:
            decision = self._todo.popleft()
            self._todo.extend(self._do(decision))

    def _do(self, decision: Decision) -> list[Decision]:
        """Carries one decision out; returns what follows from it."""
        match decision:
            case ReadRows(count):
                return self._read_rows(count)
            case Assign():
                self._assign(decision)
            case Commit(row, attempt, _):
                self._commit(row, attempt)
            case Quarantine(row, attempt, error_type, error):
                self._quarantine(row, attempt, error_type, error)
            case KeepEarlier(row, attempt, error_type, error):
                self._keep_earlier(row, attempt, error_type, error)
            case Seal(shard):
                self._recorder.seal(shard)
                self._settled_before.pop(shard, None)
            case Helpers() | Suspend() | Release() | Retire():
                self._direct(decision)
            case Requeued() | Abort() | Ignore():
                self._tell(decision)
        return []

    def _direct(self, decision: Helpers | Suspend | Release | Retire) -> None:
        """What a worker is told, beside making videos."""
        member = self._pool.get(decision.worker)
        match decision:
            case Helpers(worker, helpers):
                if member is not None:
                    there = [found for name in helpers if (found := self._pool.get(name)) is not None]
                    for row_attempt in self._hosting.get(worker, ()):
                        member.actor.set_helpers.remote(*row_attempt, [(helper.key, helper.actor) for helper in there])
            case Suspend(worker):
                self._suspend(worker)
            case Release():
                if member is not None:
                    self._pool.end(member)
                self._resize()  # one that went with its node may be wanted elsewhere
            case Retire(worker, reason):
                self._board.say(f"{worker} is not started again: it {reason}")
                self._pool.retire(worker)

    def _suspend(self, name: str) -> None:
        """Has all that a worker makes saved and stopped."""
        if member := self._pool.get(name):
            for row, attempt in self._hosting.get(name, ()):
                member.actor.suspend.remote(row, attempt)

    def _tell(self, decision: Requeued | Abort | Ignore) -> None:
        """What is only for the log."""
        match decision:
            case Requeued(row, number, reason):
                self._metrics.given_back(row.index, number)
                self._close(row.index, number)
                self._board.row_back(row, reason)
            case Abort(reason):
                self._board.say(f"the run stops: {reason}")
            case Ignore(index, number, worker):
                self._results.pop((index, number), None)
                self._judged.pop((index, number), None)
                self._board.say(f"row {index}: attempt {number} of {worker} is no longer current")

    def _read_rows(self, count: int) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(count):
            if not self._ahead:
                self._read_ahead()
            now_s = time.monotonic()
            if not self._ahead:
                return [*decisions, *self._ledger.rows_exhausted(now_s)]
            read = self._ahead.popleft()
            if read.status is not None:
                self._board.row_skipped(read.row, read.status)
                self._metrics.row_settled("skipped")
                index, is_sealed = read.row.index, read.is_sealed
                decisions += self._ledger.row_skipped(index, read.status, now_s, is_sealed=is_sealed)
            else:
                self._board.row_read(read.row)
                decisions += self._ledger.row_read(
                    read.row, now_s, checkpoint=read.checkpoint, has_video=read.has_video
                )
        return decisions

    def _read_ahead(self) -> None:
        """Reads some rows, and has their prompts encoded together; at first one, so that a run begins soon."""
        prompts: list[str] = []
        for row in islice(self._rows, min(MAX_READ_AHEAD, self._num_read + 1)):
            self._num_read += 1
            earlier = self._earlier(self._maker.shard(row))
            read = _Read(row, earlier.statuses.get(row.index), earlier.is_sealed)
            if row.index in earlier.broken:
                read.status = self._mended(row, earlier.broken[row.index])
            if isinstance(row, PromptRow) and read.status is None:
                read.checkpoint = self._checkpoint_of(row, earlier.folders)
                read.has_video = bool(self._gate.tries(row.index))
                if self._gate.is_over(row.index):  # its last try was recorded, and then the run was ended
                    self._record(row, self._gate.kept(row.index), lambda: None)
                    read.status = "ok"
                else:
                    prompts += self._prompts(row)
            self._ahead.append(read)
        if prompts:
            if not self._has_measured:
                self._board.begun(ENCODING)
            self._text.prepare(prompts)

    def _earlier(self, shard: int) -> _Earlier:
        """What an earlier run has left of a shard. Rows come in order, so one shard is remembered at a time."""
        if shard not in self._settled_before:
            self._settled_before.clear()
            parts = self._parts
            statuses, is_sealed, broken = parts.manifest.settled(shard)
            if parts.retry_failed:
                statuses = {row: status for row, status in statuses.items() if status == "ok"}
            folders = frozenset(parts.storage.children(f"checkpoint/{shard:05d}"))
            self._settled_before[shard] = _Earlier(statuses, is_sealed, broken, folders)
        return self._settled_before[shard]

    def _mended(self, row: PromptRow | BadRow, file: BrokenFile) -> Status | None:
        """A row was settled, but its record is broken: it gets one anew from its video, or is settled anew."""
        what = f"row {row.index} ({row.id}): its record {file.path} is broken ({file.why})"
        if isinstance(row, PromptRow):
            storage, videos = self._parts.storage, row_videos(self._parts.storage, self._maker.shard(row))
            made = rebuilt_row(
                storage, self._maker.record, row, videos.get(row.index, ()), self._parts.spec.num_latents
            )
            if made is not None:
                self._board.say(f"{what}; it is written anew from its video")
                self._recorder.record(made, lambda: None)
                return "ok"
        self._board.say(f"{what}; the row is settled anew")
        return None

    def _checkpoint_of(self, row: PromptRow, folders: frozenset[str]) -> str | None:
        """The newest checkpoint of a row that an earlier run has left."""
        if not folders:
            return None
        folder = checkpoint_folder(self._maker.shard(row), row.index, self._maker.key(row))
        if folder.rpartition("/")[2] not in folders:
            return None
        self._with_checkpoints.add(row.index)
        names = self._parts.storage.children(folder)
        if self._gate.is_asked and self._gate.remember(row, folder, names):
            over = self._gate.newest_before(row.index)
            parts = filter(None, map(CheckpointName.parse, names))
            names = [str(name) for name in parts if (name.epoch, name.attempt) > over]
        name = newest_checkpoint(names)
        return None if name is None else f"{folder}/{name}"

    def _assign(self, decision: Assign) -> None:
        row, parts, number = decision.row, self._parts, decision.attempt
        member = self._pool.get(decision.worker)
        assert member is not None, f"{decision.worker} was given a row, and is not there"
        asked, row = row, self._gate.asked(row)
        key, shard = self._maker.key(row), self._maker.shard(row)
        keeps = parts.config.run.keep_latents
        frames = first_frames(row, parts.spec.fps)
        task = VideoTask(
            row=row.index,
            attempt=number,
            num_latents=parts.spec.num_latents(row.num_frames),
            num_frames=row.num_frames,
            seed=row.seed,
            path=video_path(shard, row.index, key, parts.epoch, number),
            checkpoints=checkpoint_folder(shard, row.index, self._maker.key(asked) if row is not asked else key),
            epoch=parts.epoch,
            resume_from=decision.checkpoint,
            latents_path=latents_path(shard, row.index, key, parts.epoch, number) if keeps else None,
            prompts=row.prompts if self._gate.reads_frames else (),
            prompt_frames=frames,
            prompt_starts=tuple(map(parts.spec.latent_at, frames)),
        )
        tried = len(self._gate.tries(row.index))
        self._attempts[row.index, number] = _Attempt(row, asked, key, number, member, decision.waited_s, tried)
        self._hosting.setdefault(member.name, {})[row.index, number] = None
        self._board.video_started(_name_of(member.name, row.index), row)
        self._metrics.began(row.index, number)
        self._text.when_encoded(self._prompts(row), partial(self._begin, task))

    def _begin(self, task: VideoTask) -> None:
        """The prompts of a row that a worker was given are encoded: it may begin."""
        attempt = self._attempts.get((task.row, task.attempt))
        if attempt is None:  # its worker was lost meanwhile
            return
        member = attempt.worker
        try:
            embeddings = self._text.embeddings(self._prompts(attempt.row))
            task = self._with_pictures(task, attempt.row)
        except MigaError as error:
            self._failed(member, VideoFailed.of(task.row, task.attempt, error))
            return
        if self._heard is member and member.outgoing[0] is None:  # it is asked for news next: one call less
            member.outgoing = (task, embeddings)
            return
        reference = member.actor.begin.remote(task, *embeddings)
        self._inbox.when_ready(reference, partial(self._begun, member, task))

    def _with_pictures(self, task: VideoTask, row: PromptRow) -> VideoTask:
        """The task with the row's pictures, read again: rows hold no more than their names and digests.

        Raises:
            BadRowError: if one is no longer what it was when the row was read.
        """
        if row.image is None and row.last_image is None:
            return task
        spec, folder = self._parts.spec, folder_of(self._parts.prompts)

        def fitted(name: str | None, sha256: str | None) -> bytes | None:
            if name is None or sha256 is None:
                return None
            return frame_of(picture_at(name, folder), sha256, spec.height, spec.width)

        return replace(
            task,
            image=fitted(row.image, row.image_sha256),
            last_image=fitted(row.last_image, row.last_image_sha256),
        )

    def _begun(self, member: Member, task: VideoTask, future: Future[Any]) -> None:
        """A worker was told to begin; it may be that the call did not get there."""
        error = future.exception()
        if error is not None and not isinstance(error, DEATHS) and self._pool.is_current(member):
            self._lose(member, f"{member.name} could not be told what to do: {_first_line(error)}", is_free=True)
        self._carry_out()

    def _prompts(self, row: PromptRow) -> list[str]:
        """The negative prompt, then the others."""
        negative = self._parts.spec.negative_prompt if row.negative_prompt is None else row.negative_prompt
        return [negative, *row.prompts]

    # ---- the manifest ----

    def _commit(self, row: PromptRow, number: int) -> None:
        attempt, result = self._close(row.index, number), self._results.pop((row.index, number))
        assert attempt is not None
        manifest_row = self._judged.pop((row.index, number), None)
        if manifest_row is None:
            manifest_row = self._maker.finished(row, attempt.key, number, attempt.waited_s, result)
        elif said := _words(manifest_row):
            self._board.say(f"row {row.index} ({row.id}): {said}")
        self._metrics.committed(
            row.index,
            number,
            num_frames=result.num_frames,
            num_bytes=result.bytes,
            num_searches=manifest_row.num_searches,
            num_corrections=manifest_row.num_corrections,
        )
        self._record(row, manifest_row, partial(self._board.row_done, row, result))

    def _keep_earlier(self, row: PromptRow, number: int, error_type: str, error: str) -> None:
        self._close(row.index, number)
        manifest_row = self._gate.kept(row.index, self._gate.failed(row, error_type, error))
        self._metrics.committed(
            row.index,
            number,
            num_frames=manifest_row.num_frames or 0,
            num_bytes=manifest_row.bytes or 0,
            num_searches=manifest_row.num_searches,
            num_corrections=manifest_row.num_corrections,
        )
        self._record(row, manifest_row, partial(self._board.row_kept, row, _words(manifest_row)))

    def _quarantine(self, row: PromptRow | BadRow, number: int, error_type: str, error: str) -> None:
        self._close(row.index, number)
        self._metrics.quarantined(row.index, number, error_type)
        manifest_row = self._maker.failed(row, number, error_type, error)
        self._record(row, manifest_row, partial(self._board.row_failed, row, error))

    def _record(self, row: PromptRow | BadRow, manifest_row: ManifestRow, recorded: Callable[[], None]) -> None:
        self._gate.forget(row.index)
        folder = None
        if row.index in self._with_checkpoints:
            self._with_checkpoints.remove(row.index)
            folder = checkpoint_folder(self._maker.shard(row), row.index, self._maker.key(row))
        self._recorder.record(manifest_row, partial(self._recorded, manifest_row, recorded), folder)

    def _recorded(self, row: ManifestRow, recorded: Callable[[], None]) -> None:
        recorded()
        if self._log is not None:
            self._log.row_settled(row)


def _name_of(worker: str, row: int) -> str:
    """Of a worker's video on the board: it may make several."""
    return f"{worker}/{row}"


def _words(row: ManifestRow) -> str:
    """What is to be said of a row's tries; nothing where the first was good."""
    values = json.loads(row.quality or "{}")
    is_plain = values.get("good", True) and len(values.get("tries", ())) < 2
    return "" if is_plain else f"try {values['kept'] + 1} is kept: {values['why']}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
