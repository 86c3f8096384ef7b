"""The ledger: whatever comes in whatever order, every row is settled once, and nobody works on another's row."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ledger import Abort, Assign, Commit, Decision, Ignore, Ledger, Quarantine, ReadRows, Requeued, Seal
from pipeline.rows import BadRow, PromptRow


def prompt_row(index: int) -> PromptRow:
    return PromptRow(index=index, id=str(index), prompts=("a",), negative_prompt=None, seed=index, num_frames=9)


def bad_row(index: int) -> BadRow:
    return BadRow(index=index, id=str(index), source="p.txt:1", error="blank")


def make(**values: object) -> Ledger:
    return Ledger(**({"prompts_per_shard": 10} | values))  # type: ignore[arg-type]


def of(kind: type, decisions: list[Decision]) -> list:
    return [decision for decision in decisions if isinstance(decision, kind)]


def fail(ledger: Ledger, row: int, attempt: int, worker: str, *, scope: str = "row", retryable: bool = False):
    return ledger.failed(row, attempt, worker, 1.0, error_type="E", error="why", scope=scope, retryable=retryable)


def test_rows_are_asked_for_only_when_a_worker_is_idle() -> None:
    ledger = make()
    assert ledger.worker_ready("w1", 0.0) == [ReadRows(1)]
    assert ledger.worker_ready("w2", 0.0) == [ReadRows(1)]
    assert of(Assign, ledger.row_read(prompt_row(0), 1.0)) == [Assign(prompt_row(0), 1, "w1", 0.0)]
    assert of(Assign, ledger.row_read(prompt_row(1), 2.0)) == [Assign(prompt_row(1), 1, "w2", 0.0)]
    assert ledger.assigned() == {"w1": (0, 1), "w2": (1, 1)}


def test_lookahead_keeps_rows_waiting() -> None:
    ledger = make(lookahead=2)
    assert ledger.worker_ready("w", 0.0) == [ReadRows(3)]
    ledger.row_read(prompt_row(0), 0.0)
    ledger.row_read(prompt_row(1), 0.0)
    assert ledger.row_read(prompt_row(2), 0.0) == []
    assert ledger.num_waiting == 2


def test_finished_row_is_committed_and_the_last_shard_sealed() -> None:
    ledger = make()
    ledger.worker_ready("w", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    assert ledger.finished(0, 1, "w", 1.0) == [Commit(prompt_row(0), 1, "w")]
    assert not ledger.is_complete
    assert ledger.rows_exhausted(2.0) == [Seal(0)]
    assert ledger.is_complete


def test_full_shard_is_sealed_before_the_end_of_the_file() -> None:
    ledger = make(prompts_per_shard=2)
    assert of(Seal, ledger.row_read(bad_row(0), 0.0)) == []
    assert of(Seal, ledger.row_read(bad_row(1), 0.0)) == [Seal(0)]


def test_application_error_quarantines_at_once() -> None:
    ledger = make()
    ledger.worker_ready("w", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    assert of(Quarantine, fail(ledger, 0, 1, "w")) == [Quarantine(prompt_row(0), 1, "E", "why")]
    assert ledger.num_dead == 1


def test_lost_worker_gives_the_row_back_before_new_ones_and_then_gives_it_up() -> None:
    ledger = make(max_attempts=3)
    ledger.worker_ready("w1", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    ledger.row_read(prompt_row(1), 0.0)
    assert of(Requeued, ledger.worker_lost("w1", "killed", 1.0)) == [Requeued(prompt_row(0), 1, "killed")]
    assert of(Assign, ledger.worker_ready("w2", 2.0)) == [Assign(prompt_row(0), 2, "w2", 1.0)]
    assert ledger.finished(0, 1, "w1", 2.0) == [Ignore(0, 1, "w1")], "the first worker was only unreachable"
    ledger.worker_lost("w2", "killed", 3.0)
    ledger.worker_ready("w3", 3.0)
    dead = of(Quarantine, ledger.worker_lost("w3", "killed", 4.0))[0]
    assert (dead.row.index, dead.error_type) == (0, "WorkerLostError")
    assert "3 attempts" in dead.error
    assert of(Assign, ledger.worker_ready("w4", 5.0))[0].row.index == 1


def test_a_drained_node_costs_the_row_nothing() -> None:
    ledger = make(max_attempts=1)
    ledger.worker_ready("w1", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    assert of(Requeued, ledger.worker_lost("w1", "drained", 1.0, is_free=True))
    assert of(Assign, ledger.worker_ready("w1", 1.0))[0].attempt == 2


def test_worker_error_goes_to_another_worker_where_there_is_one() -> None:
    ledger = make()
    ledger.worker_ready("w1", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    fail(ledger, 0, 1, "w1", scope="worker", retryable=True)
    ledger.stop()
    ledger.worker_ready("w1", 1.0)
    ledger.worker_ready("w2", 1.0)
    ledger._is_stopped = False
    assert of(Assign, ledger.worker_ready("w3", 1.0))[0].worker == "w2"


def test_worker_started_anew_loses_its_row() -> None:
    ledger = make()
    ledger.worker_ready("w", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    decisions = ledger.worker_ready("w", 1.0)
    assert [type(decision) for decision in decisions][:2] == [Requeued, Assign]
    assert ledger.assigned() == {"w": (0, 2)}


def test_run_error_aborts() -> None:
    ledger = make()
    ledger.worker_ready("w", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    assert of(Abort, fail(ledger, 0, 1, "w", scope="run"))
    assert ledger.worker_ready("w", 1.0) == []
    assert not ledger.is_complete
    assert ledger.is_idle


def test_too_many_failures_abort_but_bad_rows_of_the_file_do_not() -> None:
    ledger = make(prompts_per_shard=1000, min_finished_rows=20, max_failed_share=0.5)
    for index in range(100):
        assert of(Abort, ledger.row_read(bad_row(index), 0.0)) == []
    aborts: list[Decision] = []
    for index in range(100, 121):
        ledger.worker_ready("w", 0.0)
        ledger.row_read(prompt_row(index), 0.0)
        decisions = ledger.finished(index, 1, "w", 1.0) if index % 2 == 0 else fail(ledger, index, 1, "w")
        aborts += of(Abort, decisions)
    assert aborts == [], "10 of 21 is not more than half"
    for index in (121, 123):
        ledger.worker_ready("w", 0.0)
        ledger.row_read(prompt_row(index), 0.0)
        aborts += of(Abort, fail(ledger, index, 1, "w"))
    assert len(aborts) == 1
    assert "12 of 23" in aborts[0].reason  # type: ignore[union-attr]


def test_resumed_rows_are_counted_and_sealed_only_if_there_is_news() -> None:
    ledger = make(prompts_per_shard=2)
    assert ledger.row_skipped(0, "ok", 0.0, is_sealed=True) == []
    assert ledger.row_skipped(1, "failed", 0.0, is_sealed=True) == []
    ledger.row_skipped(2, "ok", 0.0, is_sealed=False)
    assert ledger.row_skipped(3, "ok", 0.0, is_sealed=False) == [Seal(1)]
    assert (ledger.num_done, ledger.num_dead, ledger.num_skipped) == (3, 1, 4)


def test_a_short_shard_that_grew_is_sealed_again() -> None:
    ledger = make(prompts_per_shard=10)
    ledger.row_skipped(0, "ok", 0.0, is_sealed=True)
    ledger.row_read(bad_row(1), 0.0)
    assert ledger.rows_exhausted(1.0) == [Seal(0)]


def test_stalled_attempts_are_named() -> None:
    ledger = make()
    ledger.worker_ready("w", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    assert ledger.stalled(10.0, 20.0) == []
    assert ledger.progress(0, 1, "w", 15.0) == []
    assert ledger.stalled(30.0, 20.0) == []
    assert ledger.stalled(35.0, 20.0) == ["w"]


def test_memory_does_not_grow_with_the_run() -> None:
    ledger = make(prompts_per_shard=10)
    for index in range(5000):
        ledger.worker_ready("w", 0.0)
        ledger.row_read(prompt_row(index), 0.0)
        ledger.finished(index, 1, "w", 0.0)
    assert len(ledger._entries) + len(ledger._shards) + len(ledger._waiting) + len(ledger._busy) == 0


class World:
    """Plays the coordinator, the prompt file and the workers, and keeps its own books."""

    def __init__(self, num_rows: int, bad: set[int], skipped: set[int], max_attempts: int) -> None:
        self.ledger = Ledger(
            prompts_per_shard=3, max_attempts=max_attempts, max_failed_share=1.0, min_finished_rows=1, lookahead=1
        )
        self.num_rows, self.bad, self.skipped = num_rows, bad, skipped
        self.next_row = 0
        self.wanted = 0
        self.running: dict[str, tuple[int, int]] = {}
        self.ghosts: list[tuple[int, int, str]] = []
        self.settled: Counter[int] = Counter()
        self.sealed: Counter[int] = Counter()
        self.starts: Counter[int] = Counter()

    def do(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case ReadRows(count):
                    self.wanted += count
                case Assign(row, attempt, worker):
                    assert worker not in self.running
                    assert row.index not in {index for index, _ in self.running.values()}, "two workers on a row"
                    assert self.settled[row.index] == 0, "a settled row was started again"
                    self.starts[row.index] += 1
                    assert attempt == self.starts[row.index]
                    self.running[worker] = (row.index, attempt)
                case Commit(row) | Quarantine(row):
                    self.settled[row.index] += 1
                case Seal(shard):
                    members = range(shard * 3, min(self.num_rows, shard * 3 + 3))
                    assert all(self.settled[index] == 1 for index in members), "sealed too early"
                    self.sealed[shard] += 1
                case Abort():
                    raise AssertionError("no reason to abort")
        assert self.ledger.assigned() == self.running

    def read(self) -> None:
        self.wanted = max(0, self.wanted - 1)
        index, self.next_row = self.next_row, self.next_row + 1
        if index >= self.num_rows:
            self.do(self.ledger.rows_exhausted(0.0))
        elif index in self.skipped:
            self.settled[index] += 1
            self.do(self.ledger.row_skipped(index, "ok", 0.0, is_sealed=False))
        else:
            self.do(self.ledger.row_read(bad_row(index) if index in self.bad else prompt_row(index), 0.0))

    def end(self, worker: str, how: str) -> None:
        index, attempt = self.running.pop(worker)
        if how == "finished":
            self.do(self.ledger.finished(index, attempt, worker, 0.0))
        elif how == "lost":
            self.ghosts.append((index, attempt, worker))
            self.do(self.ledger.worker_lost(worker, "lost", 0.0))
        elif how == "drained":
            self.do(self.ledger.worker_lost(worker, "drained", 0.0, is_free=True))
        elif how == "restarted":
            self.do(self.ledger.worker_ready(worker, 0.0))
        else:
            self.do(fail(self.ledger, index, attempt, worker, scope="worker" if how == "oom" else "row",
                         retryable=how == "oom"))  # fmt: skip


ENDS = ["finished", "lost", "drained", "restarted", "oom", "error"]


def play(world: World, event: str, data: st.DataObject) -> None:
    """Lets `event` happen, where it can."""
    ledger = world.ledger
    idle = [worker for worker in ("a", "b", "c") if worker not in world.running]
    if event == "ready" and idle:
        world.do(ledger.worker_ready(data.draw(st.sampled_from(idle)), 0.0))
    elif event == "lose idle" and idle:
        world.do(ledger.worker_lost(data.draw(st.sampled_from(idle)), "gone", 0.0))
    elif event == "read" and world.wanted and world.next_row <= world.num_rows:
        world.read()
    elif event == "end" and world.running:
        world.end(data.draw(st.sampled_from(sorted(world.running))), data.draw(st.sampled_from(ENDS)))
    elif event == "ghost" and world.ghosts:
        index, attempt, worker = data.draw(st.sampled_from(world.ghosts))
        assert ledger.finished(index, attempt, worker, 0.0) == [Ignore(index, attempt, worker)]


def play_to_the_end(world: World) -> None:
    """From here on all goes well."""
    for _ in range(200):
        if world.ledger.is_complete:
            return
        if world.wanted and world.next_row <= world.num_rows:
            world.read()
        elif world.running:
            world.end(next(iter(world.running)), "finished")
        else:
            world.do(world.ledger.worker_ready("a", 0.0))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), num_rows=st.integers(0, 9), max_attempts=st.integers(1, 3))
def test_every_row_is_settled_exactly_once_whatever_happens(data: st.DataObject, num_rows: int, max_attempts: int):
    rows = st.sets(st.integers(0, 8))
    world = World(num_rows, data.draw(rows), data.draw(rows), max_attempts)
    for event in data.draw(st.lists(st.sampled_from(["ready", "read", "end", "ghost", "lose idle"]), max_size=40)):
        play(world, event, data)
    play_to_the_end(world)
    assert world.ledger.is_complete
    assert world.settled == Counter(range(num_rows))
    assert world.sealed == Counter(range(-(-num_rows // 3)))
    assert world.ledger.num_done + world.ledger.num_dead == num_rows


def test_decisions_are_values() -> None:
    assert Seal(1) == Seal(1)
    with pytest.raises(AttributeError):
        Seal(1).shard = 2  # type: ignore[misc]
