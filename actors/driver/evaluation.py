"""Evaluates the videos of a run on its workers: the same ledger, pool and inbox, and a call a video.

A video is a row like any other: tried again where its worker dies, quarantined where it cannot be read, not touched
where an earlier evaluation has settled it. The ledger decides; this carries out.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from actors.driver.inbox import Inbox
from actors.driver.pool import Member, Pool, StartActor
from actors.messages import DEATHS
from actors.runtime import Slots
from actors.worker.evaluation import CONCURRENCY_GROUPS, EvaluationFailed, EvaluationWorker
from miga.errors import MigaError, WorkerError
from pipeline.config import WorkersConfig
from pipeline.evaluation.evaluator import EvaluationSettings
from pipeline.evaluation.records import EvaluatedRow
from pipeline.evaluation.videos import Video
from pipeline.rows import PromptRow
from pipeline.scheduling.ledger import (
    Abort,
    Assign,
    Commit,
    Decision,
    Ignore,
    Ledger,
    Quarantine,
    ReadRows,
    Release,
    Requeued,
    Retire,
)

_POLL_S: Final = 0.5
_ASK_EVERY_S: Final = 5.0
MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class Job:
    """A video, and which measures are still to be had of it; none where it is settled."""

    video: Video
    measures: tuple[str, ...]
    is_failed: bool = False


def evaluator_starter(settings: EvaluationSettings, slots: Slots) -> StartActor:
    """What makes the workers of an evaluation."""
    kind = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(EvaluationWorker).options(
        num_cpus=slots.cpus, num_gpus=slots.gpus, max_restarts=0, max_task_retries=0
    )
    return lambda: kind.remote(settings)


class EvaluationDriver:
    """Evaluates each of some videos.

    Args:
        jobs: in the order of their rows.
        num_workers: that are started, as far as there are videos for them.
        pool: the workers.
        record: is given each video's results, those of a failed one too; whoever it is writes them down.
        say: told what is worth telling.
        stalled_after_s: seconds after which a worker whose video comes no further is replaced.
        inbox: where it hears.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        num_workers: int,
        pool: Pool,
        record: Callable[[EvaluatedRow], None],
        say: Callable[[str], None],
        stalled_after_s: float = WorkersConfig().stalled_after_s,
        inbox: Inbox | None = None,
    ) -> None:
        self._jobs: Mapping[int, Job] = {job.video.row: job for job in jobs}
        self._rows: Iterator[Job] = iter(jobs)
        self._num_workers = min(num_workers, sum(bool(job.measures) for job in jobs))
        self._pool = pool
        self._record, self._say = record, say
        self._stalled_after_s = stalled_after_s
        self._ask_every_s = min(_ASK_EVERY_S, stalled_after_s / 4)
        self._num_steps: dict[str, int] = {}
        self._asked: set[str] = set()  # and have not answered yet
        self._asked_s = -math.inf
        self._inbox = inbox or Inbox()
        self._results: dict[tuple[int, int], EvaluatedRow] = {}
        self._todo: deque[Decision] = deque()
        self.ledger = Ledger(prompts_per_shard=2**62, max_attempts=MAX_ATTEMPTS, max_failed_share=1.0, lookahead=2)

    def run(self, stop: threading.Event) -> None:
        """Returns when every video is settled.

        Args:
            stop: set from elsewhere to end it; what is recorded stays.

        Raises:
            MigaError: if the evaluation itself cannot go on, such as for weights that do not load.
            KeyboardInterrupt: once `stop` is set.
        """
        self._todo.append(ReadRows(1))
        self._carry_out()
        for _ in range(self._num_workers):
            self._start(None)
        try:
            while not self.ledger.is_complete:
                if stop.is_set():
                    raise KeyboardInterrupt
                self._inbox.run(min(_POLL_S, self._ask_every_s))
                self._watch()
                self._carry_out()
                if self.ledger.abort_reason is not None:
                    raise WorkerError(self.ledger.abort_reason, "the same command goes on with what is left")
        finally:
            self._pool.close()

    # ---- workers ----

    def _start(self, name: str | None) -> None:
        member = self._pool.start(name)
        self.ledger.worker_expected(member.name)
        self._inbox.when_ready(member.actor.load.remote(), partial(self._loaded, member))

    def _loaded(self, member: Member, future: Future[Any]) -> None:
        if not self._pool.is_current(member):
            return
        try:
            info = future.result()
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, MigaError) else error from None
        except RayError as error:
            self._lose(member, f"{member.name} died while it was starting: {_first_line(error)}")
            return
        self._todo.extend(self.ledger.worker_ready(member.name, time.monotonic(), node=info.node_id))

    def _watch(self) -> None:
        """Asks workers now and then how far they are, and replaces those whose video stands still."""
        now_s = time.monotonic()
        if now_s - self._asked_s < self._ask_every_s:
            return
        self._asked_s = now_s
        for name in self.ledger.stalled(now_s, self._stalled_after_s):
            if stalled := self._pool.get(name):
                self._lose(stalled, f"the video of {name} has come no further for {self._stalled_after_s:g} s")
        for row, (name, attempt) in self.ledger.assigned().items():
            member = self._pool.get(name)
            if member is not None and member.key not in self._asked:
                self._asked.add(member.key)
                self._inbox.when_ready(member.actor.num_steps.remote(), partial(self._has_come, member, row, attempt))

    def _has_come(self, member: Member, row: int, attempt: int, future: Future[Any]) -> None:
        """A worker says how far it is; one that cannot is found out by its video's own call."""
        self._asked.discard(member.key)
        if not self._pool.is_current(member) or future.exception() is not None:
            return
        if self._num_steps.get(member.key) != future.result():
            self._num_steps[member.key] = future.result()
            self._todo.extend(self.ledger.progress(row, attempt, member.name, time.monotonic()))

    def _lose(self, member: Member, reason: str) -> None:
        """Ends what is left of a worker, and starts another in its place."""
        self._pool.end(member)
        self._say(reason)
        self._todo.extend(self.ledger.worker_lost(member.name, reason, time.monotonic()))
        self._carry_out()
        if member.name not in self._pool.retired and not self.ledger.is_complete:
            self._start(member.name)

    # ---- decisions ----

    def _carry_out(self) -> None:
        while self._todo:
            decision = self._todo.popleft()
            match decision:
                case ReadRows(count):
                    self._read(count)
                case Assign(row, attempt, worker):
                    self._assign(row, attempt, worker)
                case Commit(row, attempt, _):
                    self._record(self._results.pop((row.index, attempt)))
                case Quarantine(row, attempt, error_type, error):
                    job = self._jobs[row.index]
                    self._say(f"row {row.index} ({job.video.id}): {error}")
                    self._record(
                        EvaluatedRow(
                            video=job.video,
                            sha256=job.video.sha256 or "",
                            error_type=error_type,
                            error=error,
                            attempt=attempt,
                        )
                    )
                case Retire(worker, reason):
                    self._say(f"{worker} is not started again: it {reason}")
                    self._pool.retire(worker)
                case Requeued(row, _, reason):
                    self._say(f"row {row.index} is tried again: {reason}")
                case Release() | Abort() | Ignore():
                    pass
                case _:  # helpers and shards there are none
                    pass

    def _read(self, count: int) -> None:
        for _ in range(count):
            job, now_s = next(self._rows, None), time.monotonic()
            if job is None:
                self._todo.extend(self.ledger.rows_exhausted(now_s))
                return
            video = job.video
            if job.measures:
                row = PromptRow(
                    index=video.row,
                    id=video.id,
                    prompts=video.prompts,
                    negative_prompt=None,
                    seed=video.seed or 0,
                    num_frames=video.form.num_frames if video.form else 1,
                )
                self._todo.extend(self.ledger.row_read(row, now_s))
            else:
                status = "failed" if job.is_failed else "ok"
                self._todo.extend(self.ledger.row_skipped(video.row, status, now_s, is_sealed=True))  # type: ignore[arg-type]

    def _assign(self, row: PromptRow, attempt: int, worker: str) -> None:
        member = self._pool.get(worker)
        assert member is not None, f"{worker} was given a row, and is not there"
        job = self._jobs[row.index]
        reference = member.actor.evaluate.remote(job.video, job.measures)
        self._inbox.when_ready(reference, partial(self._evaluated, member, row.index, attempt))

    def _evaluated(self, member: Member, row: int, attempt: int, future: Future[Any]) -> None:
        if not self._pool.is_current(member):
            return
        try:
            found = future.result()
        except DEATHS as error:
            self._lose(member, f"the process of {member.name} died: {_first_line(error)}")
            return
        except RayError as error:
            self._lose(member, f"{member.name} did not answer: {_first_line(error)}")
            return
        name, now_s = member.name, time.monotonic()
        if isinstance(found, EvaluationFailed):
            self._todo.extend(
                self.ledger.failed(
                    row,
                    attempt,
                    name,
                    now_s,
                    error_type=found.error_type,
                    error=found.error,
                    scope=found.scope,
                    retryable=found.retryable,
                )
            )
        else:
            self._results[row, attempt] = replace(found, attempt=attempt)
            self._todo.extend(self.ledger.finished(row, attempt, name, now_s))
        self._todo.extend(self.ledger.worker_ready(name, now_s))
        self._carry_out()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
