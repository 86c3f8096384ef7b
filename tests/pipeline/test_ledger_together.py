"""The ledger with workers that make several rows at once: who is given what, who is blamed, and what always holds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from pipeline.scheduling.ledger import (
    Assign,
    Commit,
    Decision,
    Ledger,
    Quarantine,
    ReadRows,
    Release,
    Requeued,
    Suspend,
)
from tests.pipeline.test_ledger import fail, make, of, prompt_row


def joined(ledger: Ledger, *workers: str, num_videos: int = 3) -> list[Decision]:
    decisions: list[Decision] = []
    for worker in workers:
        decisions += ledger.worker_ready(worker, 0.0, node="n", num_videos=num_videos)
    return decisions


def read(ledger: Ledger, *rows: int) -> list[Assign]:
    return [found for row in rows for found in of(Assign, ledger.row_read(prompt_row(row), 0.0))]


def test_a_worker_is_given_as_many_rows_as_it_makes_at_once() -> None:
    ledger = make(lookahead=1)
    assert joined(ledger, "w") == [ReadRows(4)]
    assert [each.worker for each in read(ledger, 0, 1, 2)] == ["w"] * 3
    assert read(ledger, 3) == []
    assert ledger.assigned() == {0: ("w", 1), 1: ("w", 1), 2: ("w", 1)}
    assert of(Assign, ledger.made(1, 1, "w", 1.0)) == [Assign(prompt_row(3), 1, "w", 1.0)]
    assert ledger.uploading("w") == [(1, 1)]


def test_idle_workers_come_before_those_with_room() -> None:
    ledger = make()
    joined(ledger, "a", "b")
    assert [each.worker for each in read(ledger, *range(6))] == ["a", "b", "a", "b", "a", "b"]


def test_workers_may_make_different_numbers() -> None:
    """Of "auto" every card has its own."""
    ledger = make()
    joined(ledger, "small", num_videos=1)
    joined(ledger, "large", num_videos=4)
    assert Counter(each.worker for each in read(ledger, *range(6))) == {"small": 1, "large": 4}


def test_each_row_ends_by_itself() -> None:
    ledger = make()
    joined(ledger, "w")
    read(ledger, 0, 1, 2)
    assert of(Quarantine, fail(ledger, 1, 1, "w"))[0].row.index == 1
    assert ledger.worker_ready("w", 1.0) == [ReadRows(1)], "room for one more; the others go on"
    ledger.made(0, 1, "w", 1.0)
    assert ledger.finished(0, 1, "w", 2.0)[0] == Commit(prompt_row(0), 1, "w")
    assert ledger.assigned() == {2: ("w", 1)}
    assert not ledger.is_idle


def test_a_killed_worker_gives_all_its_rows_back_with_their_checkpoints() -> None:
    ledger = make()
    joined(ledger, "w")
    read(ledger, 0, 1, 2)
    ledger.checkpointed(1, 1, "w", 1.0, checkpoint="c1", share=0.5)
    lost = ledger.worker_lost("w", "killed", 2.0)
    assert [each.row.index for each in of(Requeued, lost)] == [0, 1, 2]
    again = of(Assign, joined(ledger, "v"))
    assert [(each.row.index, each.attempt, each.checkpoint) for each in again] == [
        (0, 2, None), (1, 2, "c1"), (2, 2, None),
    ]  # fmt: skip


def test_a_row_is_never_given_up_for_deaths_that_it_had_in_company() -> None:
    """Row 1 kills its worker every time; the others lose three and are made all the same."""
    ledger = make(max_attempts=3)
    num_dead: Counter[int] = Counter()
    joined(ledger, "w")
    read(ledger, 0, 1, 2)
    ledger.rows_exhausted(0.0)
    alone = []
    for _ in range(20):
        making = sorted(row for row, (worker, _) in ledger.assigned().items())
        if 1 in making:
            alone += [making] * (len(making) == 1)
            decisions = ledger.worker_lost("w", "killed", 1.0)
            num_dead.update(each.row.index for each in of(Quarantine, decisions))
            joined(ledger, "w")
            continue
        for row in making:
            attempt = ledger.assigned()[row][1]
            ledger.made(row, attempt, "w", 1.0)
            ledger.finished(row, attempt, "w", 1.0)
        if ledger.is_complete:
            break
    assert ledger.is_complete
    assert num_dead == {1: 1}
    assert alone == [[1]], "it was blamed when nobody else was there"
    assert ledger.num_done == 2


def test_what_follows_an_error_worth_retrying_is_made_alone() -> None:
    ledger = make(lookahead=2)
    joined(ledger, "w", num_videos=2)
    read(ledger, 0, 1, 2, 3)
    fail(ledger, 0, 1, "w", scope="worker", retryable=True)
    assert of(Assign, ledger.worker_ready("w", 1.0)) == [], (
        "no further row beside row 1, so that the worker is free soon"
    )
    (only,) = of(Assign, ledger.made(1, 1, "w", 2.0))
    assert (only.row.index, only.attempt) == (0, 2)
    assert ledger.assigned() == {0: ("w", 2)}
    assert of(Assign, ledger.finished(1, 1, "w", 3.0)) == [], "it has no company"
    assert [each.row.index for each in of(Assign, ledger.made(0, 2, "w", 4.0))] == [2, 3]


def test_a_drained_worker_is_released_when_all_its_rows_are_saved() -> None:
    ledger = make(lookahead=1)
    joined(ledger, "w", num_videos=2)
    read(ledger, 0, 1)
    assert of(Suspend, ledger.worker_draining("w", 1.0)) == [Suspend("w")]
    assert of(Release, ledger.suspended(0, 1, "w", 2.0)) == []
    assert ledger.worker_ready("w", 2.0) == []
    assert of(Release, ledger.suspended(1, 1, "w", 3.0)) == [Release("w")]
    assert ledger.num_waiting == 2


def test_uploads_may_lie_ahead_for_each_of_the_videos_made_at_once() -> None:
    ledger = make(max_uploads=1, lookahead=4)
    joined(ledger, "w", num_videos=2)
    read(ledger, 0, 1, 2, 3, 4, 5)
    for row in (0, 1):
        assert len(of(Assign, ledger.made(row, 1, "w", 1.0))) == 1
    assert of(Assign, ledger.made(2, 1, "w", 1.0)) == [], "three lie there"
    assert len(of(Assign, ledger.finished(0, 1, "w", 2.0))) == 1


def test_the_cap_on_videos_counts_rows() -> None:
    ledger = make(max_videos=2)
    joined(ledger, "w")
    assert len(read(ledger, 0, 1, 2)) == 2


def test_one_that_stands_still_among_others_is_found() -> None:
    ledger = make()
    joined(ledger, "w")
    read(ledger, 0, 1)
    ledger.progress(0, 1, "w", 100.0)
    assert ledger.stalled(100.0, 60.0) == ["w"]
    ledger.progress(1, 1, "w", 100.0)
    assert ledger.stalled(100.0, 60.0) == []


def test_no_more_workers_are_wanted_than_rows_fill() -> None:
    ledger = make()
    assert ledger.num_wanted(9) == 1
    joined(ledger, "w", num_videos=3)
    read(ledger, *range(3))
    ledger.rows_exhausted(0.0)
    assert ledger.num_wanted(9) == 1


# ---- what always holds ----


@dataclass
class Worker:
    capacity: int
    rows: dict[int, int] = field(default_factory=dict)
    uploads: dict[int, int] = field(default_factory=dict)
    is_alone: bool = False
    num_resting: int = 0
    is_draining: bool = False


class World:
    """Plays all parts at random, beside books kept in the plainest way."""

    def __init__(self, seed: int, num_rows: int) -> None:
        self.rng = random.Random(seed)
        self.num_rows, self.next_row, self.num_asked = num_rows, 0, 0
        self.max_uploads, self.max_attempts = self.rng.choice([0, 1]), self.rng.choice([1, 2, 3])
        self.ledger = make(
            prompts_per_shard=7, max_attempts=self.max_attempts, max_failed_share=1.0, max_uploads=self.max_uploads,
            lookahead=self.rng.choice([0, 3]), max_worker_deaths=10**9,
        )  # fmt: skip
        self.workers: dict[str, Worker] = {}
        self.waiting: list[int] = []
        self.deaths: Counter[int] = Counter()
        self.errors: Counter[int] = Counter()
        self.settled: Counter[int] = Counter()
        self.blamed: list[int] = []

    def needs_own(self, row: int) -> bool:
        return bool(self.deaths[row] and self.deaths[row] + 1 >= self.max_attempts) or self.errors[row] > 0

    def do(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case ReadRows(count):
                    self.num_asked += count
                case Assign(row, attempt, name):
                    worker = self.workers[name]
                    assert not worker.is_draining
                    assert not worker.is_alone
                    assert len(worker.rows) + worker.num_resting < worker.capacity
                    assert len(worker.uploads) <= self.max_uploads * worker.capacity
                    own = self.needs_own(row.index)
                    assert not (own and worker.rows), "it was to have no company"
                    worker.rows[row.index], worker.is_alone = attempt, own
                    self.waiting.remove(row.index)
                case Requeued(row):
                    self.waiting.append(row.index)
                case Commit(row) | Quarantine(row):
                    self.settled[row.index] += 1
                case Release(name):
                    released = self.workers.pop(name)
                    assert released.is_draining
                    assert not released.rows
                    assert not released.uploads
        self.check()

    def check(self) -> None:
        made = {row: (name, number) for name, worker in self.workers.items() for row, number in worker.rows.items()}
        assert self.ledger.assigned() == made
        assert self.ledger.num_waiting == len(self.waiting)
        assert self.ledger.num_uploading == sum(len(worker.uploads) for worker in self.workers.values())
        if self.waiting and not any(map(self.needs_own, self.waiting)):
            assert not any(map(self.has_room, self.workers.values())), "a row waits beside a worker that may take it"
        if self.waiting and not self.num_asked:
            assert not any(self.has_room(worker) and not worker.rows for worker in self.workers.values())

    def has_room(self, worker: Worker) -> bool:
        is_open = not worker.is_draining and not worker.is_alone
        is_there = worker.rows or not worker.num_resting
        has_place = len(worker.rows) + worker.num_resting < worker.capacity
        return bool(is_open and is_there and has_place and len(worker.uploads) <= self.max_uploads * worker.capacity)

    # ---- events ----

    def read(self) -> None:
        if not self.num_asked or self.ledger._is_exhausted:
            return
        self.num_asked -= 1
        if self.next_row >= self.num_rows:
            self.do(self.ledger.rows_exhausted(0.0))
            return
        self.waiting.append(self.next_row)
        self.next_row += 1
        self.do(self.ledger.row_read(prompt_row(self.next_row - 1), 0.0))

    def join(self) -> None:
        name = f"w{self.rng.randrange(4)}"
        if name not in self.workers:
            self.workers[name] = Worker(self.rng.choice([1, 2, 2, 4]))
            self.do(self.ledger.worker_ready(name, 0.0, node="n", num_videos=self.workers[name].capacity))

    def lose(self, *, restart: bool = False) -> None:
        if not self.workers:
            return
        name = self.rng.choice(sorted(self.workers))
        worker = self.workers[name]
        if restart and not worker.rows:
            return
        del self.workers[name]
        is_free = worker.is_draining
        blamed = {row for row in worker.rows if worker.capacity == 1 or len(worker.rows) == 1}
        blamed |= {row for row in worker.uploads if worker.capacity == 1 or len(worker.rows) + len(worker.uploads) == 1}
        for row in [] if is_free else [*worker.rows, *worker.uploads]:
            self.deaths[row] += 1
        given_up = {row for row in blamed if self.deaths[row] >= self.max_attempts and not is_free}
        if restart:
            self.workers[name] = Worker(worker.capacity)
            decisions = self.ledger.worker_ready(name, 0.0, node="n")
        else:
            decisions = self.ledger.worker_lost(name, "killed", 0.0)
        assert {each.row.index for each in of(Quarantine, decisions)} == given_up
        assert len(of(Requeued, decisions)) == len(worker.rows) + len(worker.uploads) - len(given_up)
        self.do(decisions)

    def drain(self) -> None:
        if self.workers:
            name = self.rng.choice(sorted(self.workers))
            self.workers[name].is_draining = True
            self.do(self.ledger.worker_draining(name, 0.0))

    def any_row(self) -> tuple[str, Worker, int, int] | None:
        found = [(n, w, row, number) for n, w in self.workers.items() for row, number in w.rows.items()]
        return self.rng.choice(found) if found else None

    def make(self) -> None:
        if (found := self.any_row()) is None:
            return
        name, worker, row, number = found
        del worker.rows[row]
        worker.uploads[row], worker.is_alone = number, False
        self.do(self.ledger.made(row, number, name, 0.0))

    def store(self) -> None:
        found = [(n, w, row, number) for n, w in self.workers.items() for row, number in w.uploads.items()]
        if found:
            name, worker, row, number = self.rng.choice(found)
            del worker.uploads[row]
            self.do(self.ledger.finished(row, number, name, 0.0))

    def fail(self) -> None:
        if (found := self.any_row()) is None:
            return
        name, worker, row, number = found
        del worker.rows[row]
        worker.num_resting, worker.is_alone = worker.num_resting + 1, False
        is_retryable = self.rng.random() < 0.7
        self.errors[row] += 1
        if worker.is_draining and self.rng.random() < 0.5:
            self.errors[row] -= 1
            self.do(self.ledger.suspended(row, number, name, 0.0))
        else:
            self.do(fail(self.ledger, row, number, name, scope="worker", retryable=is_retryable))
        if name in self.workers:
            worker.num_resting -= 1
            self.do(self.ledger.worker_ready(name, 0.0))

    def play(self, num_events: int) -> None:
        events = {
            self.read: 12, self.join: 6, self.lose: 1, lambda: self.lose(restart=True): 1, self.drain: 1, self.make: 6,
            self.store: 6, self.fail: 2,
        }  # fmt: skip
        for event in self.rng.choices(list(events), list(events.values()), k=num_events):
            event()


@pytest.mark.parametrize("seed", range(30))
def test_what_must_hold_holds_after_every_event(seed: int) -> None:
    world = World(seed, num_rows=50)
    world.play(600)
    for _ in range(3000):
        if world.ledger.is_complete:
            break
        for event in (world.join, world.read, world.make, world.store):
            event()
    assert world.settled == Counter(range(50))
    ledger = world.ledger
    assert ledger.is_idle
    assert ledger.num_done + ledger.num_dead == ledger.num_read == 50
    kept = [ledger._entries, ledger._busy, ledger._given_back, ledger._fresh, ledger._open]
    assert not any(kept)
    assert ledger._num_room == sum(ledger._room_of.values())
