"""The ledger under thousands of random events, beside books kept in the plainest way: what must always hold, holds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from pipeline.rows import BadRow, PromptRow
from pipeline.scheduling.ledger import (
    Abort,
    Assign,
    Commit,
    Decision,
    Helpers,
    Ignore,
    Ledger,
    Quarantine,
    ReadRows,
    Release,
    Requeued,
    Retire,
    Seal,
    Suspend,
)

SHARD = 7


@dataclass
class Attempt:
    """What the books know of an attempt that is being made or uploaded."""

    index: int
    number: int
    share: float = 0.0
    is_uploading: bool = False


@dataclass
class Row:
    """What the books know of a row."""

    num_attempts: int = 0
    num_deaths: int = 0
    num_errors: int = 0
    share: float = 0.0
    checkpoint: str | None = None


@dataclass
class Worker:
    """What the books know of a worker."""

    speed: float = 1.0
    is_draining: bool = False
    is_resting: bool = False
    uploads: list[Attempt] = field(default_factory=list)


class World:
    """Plays prompt file, coordinator and workers, and checks every decision where it is taken."""

    def __init__(self, seed: int, num_rows: int) -> None:
        self.rng = rng = random.Random(seed)
        self.num_rows = num_rows
        self.max_videos = rng.choice([None, None, 1, 3])
        self.max_uploads = rng.choice([0, 1, 2])
        self.max_attempts = rng.choice([1, 3])
        self.parallelism = [rng.choice([1, 2, 4]) for _ in range(num_rows)]
        self.lookahead = rng.choice([0, 2])
        self.ledger = Ledger(
            prompts_per_shard=SHARD,
            max_attempts=self.max_attempts,
            max_failed_share=1.0,
            lookahead=self.lookahead,
            work_of=lambda row: 1.0 + row.index % 5,
            parallelism_of=lambda row: self.parallelism[row.index],
            max_videos=self.max_videos,
            max_uploads=self.max_uploads,
            max_worker_deaths=10**9,
        )
        self.now_s = 0.0
        self.num_asked = 0
        self.next_row = 0
        self.is_exhausted = False
        self.rows: dict[int, Row] = {}
        self.fresh: list[int] = []
        self.given_back: list[int] = []
        self.making: dict[str, Attempt] = {}
        self.helpers: dict[str, tuple[str, ...]] = {}
        self.workers: dict[str, Worker] = {}
        self.settled: Counter[int] = Counter()
        self.sealed: Counter[int] = Counter()
        self.stale: list[tuple[int, int, str]] = []
        self.suspending: set[str] = set()

    # ---- decisions ----

    def do(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.carry_out(decision)
            self.check_helpers()
        self.check_rest()

    def carry_out(self, decision: Decision) -> None:
        match decision:
            case ReadRows(count):
                self.num_asked += count
            case Assign():
                self.assign(decision)
            case Helpers(worker, helpers):
                assert worker in self.workers, "a list for a worker that is gone"
                assert helpers == () or worker in self.making, "helpers for nobody"
                self.helpers[worker] = helpers
            case Suspend(worker):
                assert worker in self.making
                self.suspending.add(worker)
            case Release(worker):
                released = self.workers.pop(worker)
                assert released.is_draining
                assert worker not in self.making
                assert not released.uploads, "its video would be lost"
            case Commit(row) | Quarantine(row):
                self.settled[row.index] += 1
                self.rows.pop(row.index, None)
            case Requeued(row):
                self.given_back.append(row.index)
            case Seal(shard):
                members = range(shard * SHARD, min(self.num_rows, (shard + 1) * SHARD))
                assert all(self.settled[index] == 1 for index in members), "sealed too early"
                self.sealed[shard] += 1
            case Ignore() | Retire() | Abort():
                raise AssertionError(f"no reason for {decision}")

    def assign(self, decision: Assign) -> None:
        index, worker, row = decision.row.index, decision.worker, self.rows[decision.row.index]
        assert worker not in self.making, "two rows for a worker"
        assert all(worker not in helpers for helpers in self.helpers.values()), "a helper was given a row"
        assert not self.workers[worker].is_draining
        assert not self.workers[worker].is_resting
        assert len(self.workers[worker].uploads) <= self.max_uploads
        assert self.max_videos is None or len(self.making) < self.max_videos
        waiting = self.given_back or self.fresh
        assert waiting.pop(0) == index, "rows that were given back go first, in that order"
        row.num_attempts += 1
        assert decision.attempt == row.num_attempts
        assert decision.checkpoint == row.checkpoint
        self.making[worker] = Attempt(index, decision.attempt, row.share)

    # ---- what must hold ----

    def check_helpers(self) -> None:
        lent = [helper for helpers in self.helpers.values() for helper in helpers]
        assert len(set(lent)) == len(lent), "two hosts share a helper"
        for helper in lent:
            assert helper in self.workers
            assert helper not in self.making

    def check_rest(self) -> None:
        ledger = self.ledger
        assert ledger.assigned() == {made.index: (name, made.number) for name, made in self.making.items()}
        lent = {helper for helpers in self.helpers.values() for helper in helpers}
        assert not any(self.workers[helper].is_draining for helper in lent)
        for host, helpers in self.helpers.items():
            assert ledger.helpers(host) == helpers
            assert not helpers or len(helpers) < self.parallelism[self.making[host].index]
        assert ledger.num_waiting == len(self.given_back) + len(self.fresh)
        uploads = [upload for worker in self.workers.values() for upload in worker.uploads]
        assert ledger.num_uploading == len(uploads)
        free = {
            name
            for name, worker in self.workers.items()
            if name not in self.making and not worker.is_draining and not worker.is_resting
        }
        may_host = {name for name in free if len(self.workers[name].uploads) <= self.max_uploads}
        has_room = self.max_videos is None or len(self.making) < self.max_videos
        if ledger.num_waiting and has_room:
            assert not may_host, "a row waits beside a worker that may take it"
        if has_room and may_host and not self.is_exhausted:
            assert self.num_asked, "nobody reads rows for the idle"
        if (free - lent) and (self.is_exhausted or not has_room):
            needy = [name for name in self.making if self.wants_helpers(name)]
            assert not needy, f"{free - lent} idle beside {needy}"

    def wants_helpers(self, host: str) -> bool:
        made = self.making[host]
        is_full = len(self.helpers.get(host, ())) >= self.parallelism[made.index] - 1
        return not is_full and made.share < 1 and not self.workers[host].is_draining

    # ---- events ----

    def read(self) -> None:
        if not self.num_asked or self.is_exhausted:
            return
        self.num_asked -= 1
        index, self.next_row = self.next_row, self.next_row + 1
        if index >= self.num_rows:
            self.is_exhausted = True
            self.do(self.ledger.rows_exhausted(self.now_s))
        elif (kind := self.rng.random()) < 0.1:
            self.settled[index] += 1
            self.do(self.ledger.row_skipped(index, "ok", self.now_s, is_sealed=False))
        elif kind < 0.2:
            self.do(self.ledger.row_read(BadRow(index=index, id=str(index), source="p:1", error="blank"), self.now_s))
        else:
            row = PromptRow(index=index, id=str(index), prompts=("a",), negative_prompt=None, seed=index, num_frames=9)
            self.rows[index] = Row()
            self.fresh.append(index)
            self.do(self.ledger.row_read(row, self.now_s))

    def join(self) -> None:
        name = f"worker-{self.rng.randrange(9)}"
        if name not in self.workers:
            self.workers[name] = Worker(speed=self.rng.choice([1.0, 1.0, 2.5]))
            self.do(self.ledger.worker_ready(name, self.now_s, node="n", speed=self.workers[name].speed))

    def drain(self) -> None:
        if name := self.any_worker():
            self.workers[name].is_draining = True
            self.do(self.ledger.worker_draining(name, self.now_s))

    def lose(self, *, is_free: bool = False) -> None:
        if (name := self.any_worker()) is None:
            return
        ledger, is_told = self.ledger, not self.workers[name].is_draining
        expected = self.forget(name, is_free=is_free)
        self.do_lost(ledger.worker_lost(name, "killed", self.now_s, is_free=is_free and is_told), expected)

    def restart(self) -> None:
        """An actor is there in the place of one at work, whose end nobody has told."""
        if not self.making:
            return
        name = self.rng.choice(sorted(self.making))
        expected = self.forget(name, is_free=False)
        self.workers[name] = Worker()
        self.do_lost(self.ledger.worker_ready(name, self.now_s, node="n", speed=1.0), expected)

    def do_lost(self, decisions: list[Decision], expected: list[tuple[str, int]]) -> None:
        found = [(type(d).__name__, d.row.index) for d in decisions if isinstance(d, Quarantine | Requeued)]
        assert found == expected
        self.do(decisions)

    def forget(self, name: str, *, is_free: bool) -> list[tuple[str, int]]:
        """A worker is gone, with all it had; returns what is to become of its rows."""
        worker = self.workers.pop(name)
        attempts = [*sorted(worker.uploads, key=lambda upload: upload.index)]
        if made := self.making.pop(name, None):
            attempts.append(made)
        is_free |= worker.is_draining
        expected: list[tuple[str, int]] = []
        for attempt in attempts:
            self.stale.append((attempt.index, attempt.number, name))
            row = self.rows[attempt.index]
            row.num_deaths += not is_free
            gives_up = not is_free and row.num_deaths >= self.max_attempts
            expected.append(("Quarantine" if gives_up else "Requeued", attempt.index))
        self.suspending.discard(name)
        self.helpers.pop(name, None)
        for host, helpers in self.helpers.items():
            if name in helpers:
                self.helpers[host] = tuple(helper for helper in helpers if helper != name)
        return expected

    def tell(self) -> None:
        """An attempt shows progress, or writes a checkpoint."""
        if not self.making:
            return
        name = self.rng.choice(sorted(self.making))
        made = self.making[name]
        made.share = min(1.0, made.share + self.rng.choice([0.0, 0.2, 0.5]))
        if self.rng.random() < 0.5:
            self.do(self.ledger.progress(made.index, made.number, name, self.now_s, share=made.share))
        else:
            self.checkpoint(name)

    def checkpoint(self, name: str) -> None:
        made = self.making[name]
        row = self.rows[made.index]
        row.checkpoint = f"{made.index}-{made.number}-{self.rng.random()}"
        if made.share > row.share:
            row.share, row.num_deaths = made.share, 0
        self.do(
            self.ledger.checkpointed(
                made.index, made.number, name, self.now_s, checkpoint=row.checkpoint, share=made.share
            )
        )

    def suspend(self) -> None:
        if not self.suspending:
            return
        name = self.rng.choice(sorted(self.suspending))
        self.checkpoint(name)
        self.suspending.remove(name)
        made = self.making.pop(name)
        self.workers[name].is_resting = True
        self.do(self.ledger.suspended(made.index, made.number, name, self.now_s))

    def make(self) -> None:
        if not self.making:
            return
        name = self.rng.choice(sorted(self.making))
        made = self.making.pop(name)
        made.is_uploading, made.share = True, 1.0
        self.suspending.discard(name)
        self.workers[name].uploads.append(made)
        self.do(self.ledger.made(made.index, made.number, name, self.now_s))

    def end(self) -> None:
        """An attempt, or an upload, ends well or not."""
        ends = [(name, made) for name, made in self.making.items()]
        ends += [(name, upload) for name, worker in self.workers.items() for upload in worker.uploads]
        if not ends:
            return
        name, attempt = self.rng.choice(ends)
        worker = self.workers[name]
        if attempt.is_uploading:
            worker.uploads.remove(attempt)
        else:
            del self.making[name]
            self.suspending.discard(name)
            worker.is_resting = True
        if self.rng.random() < 0.6:
            self.do(self.ledger.finished(attempt.index, attempt.number, name, self.now_s))
        else:
            self.fail(name, attempt)
        if name in self.workers and not attempt.is_uploading:
            worker.is_resting = False
            self.do(self.ledger.worker_ready(name, self.now_s))

    def fail(self, name: str, attempt: Attempt) -> None:
        is_retryable = self.rng.random() < 0.5
        row = self.rows[attempt.index]
        gives_up = not is_retryable or row.num_errors > 0
        row.num_errors += 1
        decisions = self.ledger.failed(
            attempt.index,
            attempt.number,
            name,
            self.now_s,
            error_type="E",
            error="why",
            scope="worker" if is_retryable else "row",
            retryable=is_retryable,
        )
        assert any(isinstance(decision, Quarantine) for decision in decisions) == gives_up
        self.do(decisions)

    def say_stale(self) -> None:
        """A worker that was declared lost still talks."""
        if not self.stale:
            return
        index, attempt, worker = who = self.rng.choice(self.stale)
        made = self.making.get(worker)
        if made is not None and (made.index, made.number) == (index, attempt):
            return
        ledger, now_s = self.ledger, self.now_s
        before = ledger.assigned()
        heard = [
            ledger.progress(*who, now_s, share=1.0),
            ledger.checkpointed(*who, now_s, checkpoint="stale", share=1.0),
            ledger.suspended(*who, now_s),
            ledger.made(*who, now_s),
            ledger.finished(*who, now_s),
            ledger.failed(*who, now_s, error_type="E", error="why", scope="run", retryable=False),
        ]
        assert heard == [[Ignore(*who)]] * 6
        assert ledger.assigned() == before

    def any_worker(self) -> str | None:
        return self.rng.choice(sorted(self.workers)) if self.workers else None

    def play(self, num_events: int) -> None:
        events = {
            self.read: 12, self.join: 8, self.drain: 1, self.lose: 1, self.restart: 1, self.tell: 8, self.suspend: 2,
            self.make: 4, self.end: 6, self.say_stale: 1, lambda: self.lose(is_free=True): 1,
        }  # fmt: skip
        for event in self.rng.choices(list(events), list(events.values()), k=num_events):
            self.now_s += 1.0
            event()

    def finish(self) -> None:
        """From here on all goes well."""
        while not self.ledger.is_complete:
            self.now_s += 1.0
            self.join()
            self.read()
            self.make()
            for name, worker in list(self.workers.items()):
                for upload in list(worker.uploads):
                    worker.uploads.remove(upload)
                    self.do(self.ledger.finished(upload.index, upload.number, name, self.now_s))


@pytest.mark.parametrize("seed", range(40))
def test_what_must_hold_holds_after_every_event(seed: int) -> None:
    world = World(seed, num_rows=60)
    world.play(1000)
    world.finish()
    assert world.settled == Counter(range(60))
    assert world.sealed == Counter(range(-(-60 // SHARD)))
    ledger = world.ledger
    assert ledger.num_done + ledger.num_dead == ledger.num_read == 60
    assert ledger.is_idle
    kept = [ledger._entries, ledger._shards, ledger._busy, ledger._given_back, ledger._fresh]
    assert not any([*kept, ledger._lending._hosts, ledger._lending._host_of])
