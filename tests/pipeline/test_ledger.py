"""The ledger, transition by transition. What must always hold is in test_ledger_random.py."""

from __future__ import annotations

import sys

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


def prompt_row(index: int) -> PromptRow:
    return PromptRow(index=index, id=str(index), prompts=("a",), negative_prompt=None, seed=index, num_frames=9)


def bad_row(index: int) -> BadRow:
    return BadRow(index=index, id=str(index), source="p.txt:1", error="blank")


def make(**values: object) -> Ledger:
    return Ledger(**({"prompts_per_shard": 10} | values))  # type: ignore[arg-type]


def of(kind: type, decisions: list[Decision]) -> list:
    return [decision for decision in decisions if isinstance(decision, kind)]


def assigned_to(ledger: Ledger, worker: str) -> tuple[int, int]:
    """The row and attempt that a worker makes."""
    ((row, attempt),) = [(row, made[1]) for row, made in ledger.assigned().items() if made[0] == worker]
    return row, attempt


def fail(ledger: Ledger, row: int, attempt: int, worker: str, *, scope: str = "row", retryable: bool = False):
    return ledger.failed(row, attempt, worker, 1.0, error_type="E", error="why", scope=scope, retryable=retryable)


def test_rows_are_asked_for_only_when_a_worker_is_idle() -> None:
    ledger = make()
    assert ledger.worker_ready("w1", 0.0) == [ReadRows(1)]
    assert ledger.worker_ready("w2", 0.0) == [ReadRows(1)]
    assert of(Assign, ledger.row_read(prompt_row(0), 1.0)) == [Assign(prompt_row(0), 1, "w1", 0.0)]
    assert of(Assign, ledger.row_read(prompt_row(1), 2.0)) == [Assign(prompt_row(1), 1, "w2", 0.0)]
    assert ledger.assigned() == {0: ("w1", 1), 1: ("w2", 1)}


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
    assert ledger.assigned() == {0: ("w", 2)}


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
    ledger.worker_ready("v", 20.0)
    ledger.row_read(prompt_row(1), 20.0)
    ledger.progress(0, 1, "w", 40.0)
    assert ledger.stalled(45.0, 20.0) == ["v"]
    assert ledger.stalled(60.0, 20.0) == ["v", "w"], "the longest silent first"


def test_memory_does_not_grow_with_the_run() -> None:
    ledger = make(prompts_per_shard=10)
    for index in range(5000):
        ledger.worker_ready("w", 0.0)
        ledger.row_read(prompt_row(index), 0.0)
        ledger.finished(index, 1, "w", 0.0)
    assert [len(kept) for kept in (ledger._entries, ledger._shards, ledger._busy, ledger._fresh)] == [0] * 4
    assert len(ledger._lending._heap) + len(ledger._idle._heap) < 300, "outdated entries are cleared away"


# ---- checkpoints and suspension ----


def started(num_rows: int = 1, *workers: str, **values: object) -> Ledger:
    """A ledger whose rows are being made by these workers, in order, and whose file has no more."""
    ledger = make(**values)
    for worker in workers or ("w",):
        ledger.worker_ready(worker, 0.0, node="node")
    for index in range(num_rows):
        ledger.row_read(prompt_row(index), 0.0)
    ledger.rows_exhausted(0.0)
    return ledger


def checkpoint(ledger: Ledger, attempt: int, worker: str, name: str, share: float) -> None:
    assert ledger.checkpointed(0, attempt, worker, 1.0, checkpoint=name, share=share) == []


def test_the_next_attempt_starts_from_the_last_checkpoint() -> None:
    ledger = started()
    checkpoint(ledger, 1, "w", "c1", 0.3)
    checkpoint(ledger, 1, "w", "c2", 0.6)
    ledger.worker_lost("w", "killed", 5.0)
    assert ledger.worker_ready("w", 9.0) == [Assign(prompt_row(0), 2, "w", 4.0, "c2")]
    assert ledger.checkpointed(0, 1, "w", 9.0, checkpoint="late", share=0.7) == [Ignore(0, 1, "w")]


def test_a_checkpoint_of_an_earlier_run_is_started_from() -> None:
    ledger = make()
    ledger.worker_ready("w", 0.0)
    assert of(Assign, ledger.row_read(prompt_row(0), 0.0, checkpoint="old", share=0.5))[0].checkpoint == "old"
    ledger.checkpointed(0, 1, "w", 0.0, checkpoint="no further", share=0.5)
    assert ledger._entries[0].checkpoint_share == 0.5


def test_deaths_count_only_since_the_last_checkpoint_of_progress() -> None:
    ledger = started(max_attempts=2)
    for attempt in range(1, 6):
        checkpoint(ledger, attempt, "w", f"c{attempt}", attempt / 10)
        assert of(Requeued, ledger.worker_lost("w", "killed", 1.0))
        ledger.worker_ready("w", 1.0)
    checkpoint(ledger, 6, "w", "c6", 0.5)  # no further than the one before
    assert of(Quarantine, ledger.worker_lost("w", "killed", 1.0))[0].error_type == "WorkerLostError"


def test_an_error_worth_retrying_is_retried_once_however_many_attempts_there_are() -> None:
    ledger = started(max_attempts=5)
    assert of(Requeued, fail(ledger, 0, 1, "w", scope="worker", retryable=True)) == [
        Requeued(prompt_row(0), 1, "E: why")
    ]
    ledger.worker_lost("w", "replaced", 1.0, is_free=True)
    checkpoint_of_first = ledger.worker_ready("w", 1.0)[0]
    assert isinstance(checkpoint_of_first, Assign)
    dead = of(Quarantine, fail(ledger, 0, 2, "w", scope="worker", retryable=True))[0]
    assert "2 attempts" in dead.error


def test_a_draining_host_is_suspended_and_then_released() -> None:
    ledger = started()
    assert ledger.worker_draining("w", 1.0) == [Suspend("w")]
    assert ledger.worker_draining("w", 1.0) == [], "it was told"
    checkpoint(ledger, 1, "w", "c", 0.2)
    assert ledger.suspended(0, 1, "w", 2.0) == [Release("w"), Requeued(prompt_row(0), 1, "w is drained")]
    assert ledger.worker_ready("w", 2.0) == [], "it is gone"
    assert ledger.worker_ready("v", 5.0) == [Assign(prompt_row(0), 2, "v", 3.0, "c")]
    assert ledger.worker_lost("w", "ended", 6.0) == []


def test_a_suspended_row_goes_before_new_ones() -> None:
    ledger = started(3)
    ledger.worker_draining("w", 1.0)
    ledger.suspended(0, 1, "w", 1.0)
    assert of(Assign, ledger.worker_ready("v", 1.0))[0].row.index == 0


def test_the_loss_of_a_draining_worker_is_free() -> None:
    ledger = started(max_attempts=1, max_worker_deaths=1)
    ledger.worker_draining("w", 1.0)
    assert ledger.worker_lost("w", "killed", 1.0) == [Requeued(prompt_row(0), 1, "killed")]
    assert of(Assign, ledger.worker_ready("w", 1.0)), "the place is filled again, elsewhere"


def test_a_draining_host_that_ends_in_another_way_is_released_too() -> None:
    ledger = started(2)
    ledger.worker_draining("w", 1.0)
    assert ledger.finished(0, 1, "w", 1.0)[:2] == [Commit(prompt_row(0), 1, "w"), Release("w")]
    assert ledger.worker_ready("w", 1.0) == []
    ledger.worker_expected("w")
    assert of(Assign, ledger.worker_ready("w", 1.0))
    ledger.worker_draining("w", 1.0)
    assert Release("w") in fail(ledger, 1, 1, "w")


def test_idle_and_starting_workers_are_released_at_once() -> None:
    ledger = make()
    ledger.worker_ready("idle", 0.0)
    assert ledger.worker_draining("idle", 1.0) == [Release("idle")]
    assert ledger.worker_draining("starting", 1.0) == [Release("starting")]
    assert ledger.row_read(prompt_row(0), 1.0) == []
    assert of(Assign, ledger.worker_ready("idle", 2.0, node="its node is back"))


# ---- uploads ----


def test_a_worker_takes_the_next_row_while_it_uploads() -> None:
    ledger = started(3, max_uploads=1)
    assert ledger.made(0, 1, "w", 1.0) == [Assign(prompt_row(1), 1, "w", 1.0)]
    assert ledger.made(1, 1, "w", 2.0) == [], "two are uploading: the third row waits"
    assert ledger.uploading("w") == [(0, 1), (1, 1)]
    assert ledger.finished(0, 1, "w", 3.0) == [Commit(prompt_row(0), 1, "w"), Assign(prompt_row(2), 1, "w", 3.0)]
    assert not ledger.is_complete
    ledger.finished(1, 1, "w", 4.0)
    ledger.made(2, 1, "w", 4.0)
    assert not ledger.is_idle
    assert of(Seal, ledger.finished(2, 1, "w", 5.0)) == [Seal(0)]
    assert ledger.is_complete
    assert ledger.is_idle


def test_a_lost_worker_loses_its_uploads_too() -> None:
    ledger = started(2)
    checkpoint(ledger, 1, "w", "c", 0.9)
    ledger.made(0, 1, "w", 1.0)
    assert ledger.worker_lost("w", "killed", 2.0) == [
        Requeued(prompt_row(0), 1, "killed"),
        Requeued(prompt_row(1), 1, "killed"),
    ]
    assert ledger.finished(0, 1, "w", 2.0) == [Ignore(0, 1, "w")], "an upload that was done all the same"
    assert ledger.worker_ready("w", 3.0) == [Assign(prompt_row(0), 2, "w", 1.0, "c")]


def test_a_failed_upload_gives_the_row_back_once() -> None:
    ledger = started(1)
    ledger.made(0, 1, "w", 1.0)
    decisions = fail(ledger, 0, 1, "w", scope="worker", retryable=True)
    assert [type(decision) for decision in decisions] == [Requeued, Assign], "the worker was idle"


def test_a_draining_worker_is_released_after_its_uploads() -> None:
    ledger = started(1)
    ledger.made(0, 1, "w", 1.0)
    assert ledger.worker_draining("w", 1.0) == []
    assert ledger.finished(0, 1, "w", 1.0)[:2] == [Commit(prompt_row(0), 1, "w"), Release("w")]


def test_made_is_said_once() -> None:
    ledger = started(1)
    ledger.made(0, 1, "w", 1.0)
    assert ledger.made(0, 1, "w", 1.0) == [Ignore(0, 1, "w")]
    assert ledger.suspended(0, 1, "w", 1.0) == [Ignore(0, 1, "w")]


# ---- lending ----


def shared(num_rows: int, *workers: str, **values: object) -> tuple[Ledger, dict[str, tuple[str, ...]]]:
    """As `started`, with videos for up to four workers; and the helpers that were lent by then."""
    ledger = started(num_rows, *workers, **({"parallelism_of": lambda row: 4} | values))
    return ledger, {worker: ledger.helpers(worker) for worker in workers if ledger.helpers(worker)}


def test_workers_without_a_row_are_spread_over_those_with_one() -> None:
    ledger, lent = shared(2, *"abcdef")
    assert {host: len(helpers) for host, helpers in lent.items()} == {"a": 2, "b": 2}
    assert set(lent["a"] + lent["b"]) == set("cdef")
    assert ledger.is_in_tail


def test_nobody_is_lent_while_rows_may_come() -> None:
    ledger = make(parallelism_of=lambda row: 4)
    ledger.worker_ready("a", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    assert ledger.worker_ready("b", 0.0) == [ReadRows(1)]
    assert of(Helpers, ledger.rows_exhausted(0.0)) == [Helpers("a", ("b",))]


def test_no_more_helpers_than_a_video_has_windows_for() -> None:
    ledger, lent = shared(1, *"abcdef", parallelism_of=lambda row: 3)
    assert len(lent["a"]) == 2
    assert len(ledger.idle_workers()) == 3


def test_helpers_go_where_most_work_is_left_per_speed() -> None:
    ledger = make(parallelism_of=lambda row: 4, work_of=lambda row: [100.0, 90.0][row.index])
    ledger.worker_ready("fast", 0.0, speed=2.0)
    ledger.worker_ready("slow", 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    ledger.row_read(prompt_row(1), 0.0)
    assert ledger.assigned()[0] == ("fast", 1), "the fastest takes the first row"
    ledger.rows_exhausted(0.0)
    assert ledger.worker_ready("c", 0.0) == [Helpers("slow", ("c",))]  # 100/2 against 90/1
    assert ledger.worker_ready("d", 0.0) == [Helpers("fast", ("d",))]  # 100/2 against 90/2
    ledger.progress(0, 1, "fast", 1.0, share=0.9)
    assert ledger.worker_ready("e", 1.0) == [Helpers("slow", ("c", "e"))]  # 10/3 against 90/2


def test_work_that_a_checkpoint_holds_needs_no_help() -> None:
    ledger = make(parallelism_of=lambda row: 2)
    for worker in "ab":
        ledger.worker_ready(worker, 0.0)
    ledger.row_read(prompt_row(0), 0.0, checkpoint="c", share=0.9)
    ledger.row_read(prompt_row(1), 0.0)
    ledger.rows_exhausted(0.0)
    assert ledger.worker_ready("c", 0.0) == [Helpers("b", ("c",))]


def test_a_helper_is_taken_back_for_a_row_that_waits() -> None:
    ledger, lent = shared(2, *"abc")
    (host,) = lent
    other = "b" if host == "a" else "a"
    row, attempt = assigned_to(ledger, other)
    decisions = ledger.worker_lost(other, "killed", 1.0)
    assert [type(decision) for decision in decisions] == [Requeued, Helpers, Assign]
    assert decisions[1:] == [Helpers(host, ()), Assign(prompt_row(row), attempt + 1, "c", 0.0)]


def test_the_end_of_a_video_frees_its_helpers() -> None:
    ledger, _ = shared(2, *"abcd")
    helper = ledger.helpers("a")[0]
    row, attempt = assigned_to(ledger, "a")
    decisions = ledger.finished(row, attempt, "a", 1.0)
    assert decisions[1] == Helpers("a", ())
    assert of(Helpers, decisions)[1].worker == "b"
    assert helper in ledger.helpers("b")
    assert ledger.worker_ready("a", 1.0) == [Helpers("b", ledger.helpers("b"))]
    assert set(ledger.helpers("b")) == set("acd")


def test_a_lost_or_draining_helper_leaves_the_list() -> None:
    ledger, _ = shared(1, *"abc")
    assert ledger.helpers("a") == ("b", "c")
    assert ledger.worker_lost("b", "killed", 1.0) == [Helpers("a", ("c",))]
    assert ledger.worker_draining("c", 1.0) == [Helpers("a", ()), Release("c")]
    ledger.worker_draining("a", 1.0)
    assert ledger.worker_ready("b", 2.0) == [], "a host that is about to stop gets no more helpers"


def test_the_cap_on_videos_leaves_the_others_as_helpers() -> None:
    ledger = make(max_videos=1, parallelism_of=lambda row: 9, lookahead=1)
    for worker in "abc":
        ledger.worker_ready(worker, 0.0)
    ledger.row_read(prompt_row(0), 0.0)
    ledger.row_read(prompt_row(1), 0.0)
    assert ledger.assigned() == {0: ("a", 1)}
    assert ledger.helpers("a") == ("b", "c")
    assert of(Assign, ledger.made(0, 1, "a", 1.0))[0].row.index == 1


def test_num_wanted_is_what_the_backlog_can_use() -> None:
    ledger = make()
    assert ledger.num_wanted(10) == 1, "rows may come"
    for worker in "ab":
        ledger.worker_ready(worker, 0.0)
    for index in range(5):
        ledger.row_read(prompt_row(index), 0.0)
    assert ledger.num_wanted(100) > 5
    ledger.rows_exhausted(0.0)
    assert ledger.num_wanted(100) == 5
    assert ledger.num_wanted(3) == 3
    ledger, _ = shared(3, "a", "b", max_videos=2)
    assert ledger.num_wanted(100) == 8, "two at a time, four workers each"


# ---- places ----


def test_a_place_where_workers_keep_dying_is_retired() -> None:
    ledger = make(max_worker_deaths=4)
    ledger.worker_expected("v")
    for _ in range(3):
        assert ledger.worker_lost("w", "died while loading", 0.0) == []
    assert of(Retire, ledger.worker_lost("w", "died while loading", 0.0))[0].worker == "w"
    assert ledger.abort_reason is None, "another is starting"
    assert ledger.worker_ready("w", 0.0) == [Release("w")]
    for _ in range(4):
        decisions = ledger.worker_lost("v", "died while loading", 0.0)
    assert [type(decision) for decision in decisions] == [Retire, Abort]
    assert "no worker is left" in decisions[1].reason  # type: ignore[union-attr]


def test_progress_and_free_losses_keep_a_place() -> None:
    ledger = started(1, max_worker_deaths=2, max_attempts=100)
    for attempt in range(1, 6):
        ledger.progress(0, attempt, "w", 0.0)
        assert not of(Retire, ledger.worker_lost("w", "killed", 0.0))
        ledger.worker_ready("w", 0.0)
    for _ in range(3):
        assert not of(Retire, ledger.worker_lost("w", "its node is gone", 0.0, is_free=True))
        ledger.worker_ready("w", 0.0)


def test_deaths_that_were_the_fault_of_a_row_are_not_held_against_the_place() -> None:
    ledger = started(4, max_worker_deaths=4, max_attempts=3)
    for _ in range(4 * 3):
        assert not of(Retire, ledger.worker_lost("w", "killed by the prompt", 0.0))
        ledger.worker_ready("w", 0.0)
    assert ledger.num_dead == 4


def test_a_helper_that_worked_has_not_died_without_progress() -> None:
    ledger, _ = shared(1, "a", "b", max_worker_deaths=2)
    for _ in range(4):
        ledger.progress(0, 1, "a", 0.0)
        ledger.progress(0, 1, "a", 0.0)
        assert not of(Retire, ledger.worker_lost("b", "killed", 0.0))
        ledger.worker_ready("b", 0.0)
    assert of(Retire, ledger.worker_lost("b", "killed", 0.0)), "twice, and between them no sign of life of its host"


def test_what_the_coordinator_asks() -> None:
    ledger = started(1, "a", "b")
    ledger.worker_ready("c", 0.0, node="other")
    assert ledger.workers_on("node") == ["a", "b"]
    assert ledger.idle_workers() == ["b", "c"]
    ledger.worker_draining("c", 0.0)
    assert ledger.workers_on("other") == []


@pytest.mark.slow
def test_no_event_looks_at_all_workers() -> None:
    """Steps of 4,000 workers cost what steps of 40 do, counted in lines of Python run in the ledger and its lending."""
    assert lines_per_video(4000) < 1.5 * lines_per_video(40)


def lines_per_video(num_workers: int) -> float:
    ledger = make(parallelism_of=lambda row: 4, lookahead=1)
    for number in range(num_workers):
        ledger.worker_ready(f"w{number}", 0.0)
    index = 0
    while len(ledger.assigned()) < num_workers:
        ledger.row_read(prompt_row(index), 0.0)
        index += 1
    count = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        for number in range(200):
            ledger.row_read(prompt_row(index + number), 0.0)
            row, attempt = number, 1
            ledger.progress(row, attempt, f"w{number % num_workers}", 0.0)
            ledger.made(row, attempt, f"w{number % num_workers}", 0.0)
            ledger.finished(row, attempt, f"w{number % num_workers}", 0.0)
    finally:
        sys.settrace(None)
    assert ledger.num_done == 200
    return count / 200


def test_decisions_are_values() -> None:
    assert Seal(1) == Seal(1)
    with pytest.raises(AttributeError):
        Seal(1).shard = 2  # type: ignore[misc]
