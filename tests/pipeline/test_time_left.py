"""The time that a run still takes, by a clock that the test moves: GPUs are simulated call by call."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest

from pipeline.scheduling.time_left import CallRate, SteadyTime, VideoCost, WorkLeft

CALLS = {45: 60, 161: 255, 1001: 1056}
"""Frames → calls."""
COST = {frames: VideoCost(calls) for frames, calls in CALLS.items()}


class Run:
    """GPUs that make videos one after the other, each by itself, call by call; the estimate is asked for every 2 s.

    Attributes:
        shown: when, and what was shown.
        ended_s: when the last call ended.
    """

    def __init__(
        self, lengths: list[int], num_gpus: int, call_s: Callable[[float, int], float], *, is_counted: bool = True
    ) -> None:
        self.work = WorkLeft(len(lengths), COST.__getitem__)
        self.rate, steady = CallRate(), SteadyTime()
        if is_counted:
            self.work.count(Counter(lengths), lengths)
        self.shown: list[tuple[float, float]] = []
        rows = iter(enumerate(lengths))
        making: dict[int, list[int]] = {}  # GPU → row, calls so far
        num_made = Counter[int]()
        events: list[tuple[float, int, int]] = []  # when, what (a GPU's call ends; -1: the estimate is asked for)
        order = itertools.count()

        def begin(gpu: int, now_s: float) -> None:
            if (row := next(rows, None)) is not None:
                self.work.read(row[1])
                self.work.began(*row)
                making[gpu] = [row[0], 0]
                heapq.heappush(events, (now_s + call_s(now_s, gpu), next(order), gpu))
            self.rate.working(len(making), now_s)

        for gpu in range(num_gpus):
            self.rate.gpu(str(gpu), 0.0, 0.0)
            begin(gpu, 0.0)
        heapq.heappush(events, (2.0, next(order), -1))
        while making:
            now_s, _, gpu = heapq.heappop(events)
            if gpu < 0:
                for each, (row, calls) in making.items():  # news come every 2 s
                    self.work.calls(row, calls)
                    self.rate.gpu(str(each), num_made[each], now_s)
                each_s = self.rate.calls_a_second
                shown_s = steady.show(self.work.seconds(each_s, num_gpus) if each_s else None)
                if shown_s is not None:
                    self.shown.append((now_s, shown_s))
                heapq.heappush(events, (now_s + 2.0, next(order), -1))
                continue
            row, calls = making[gpu]
            num_made[gpu] += 1
            making[gpu][1] = calls + 1
            if calls + 1 < CALLS[lengths[row]]:
                heapq.heappush(events, (now_s + call_s(now_s, gpu), next(order), gpu))
                continue
            self.rate.gpu(str(gpu), num_made[gpu], now_s)
            self.work.made(row)
            self.work.settled(row, calls + 1)
            del making[gpu]
            begin(gpu, now_s)
        self.ended_s = now_s

    def rises(self) -> list[tuple[float, float]]:
        """When what is shown rose, and by how much."""
        pairs = itertools.pairwise(self.shown)
        return [(at_s, after_s - before_s) for (_, before_s), (at_s, after_s) in pairs if after_s > before_s]

    def errors(self) -> list[float]:
        """What was shown over what was left in truth, beyond the first minute and before the last."""
        return [shown_s / (self.ended_s - at_s) for at_s, shown_s in self.shown if 60.0 < at_s < self.ended_s - 60.0]


@pytest.mark.parametrize(
    ("lengths", "num_gpus"),
    [([161] * 16, 2), ([1001, 161, 45] * 8, 4), ([161] * 3, 2), ([1001], 1), ([1001, 45, 45, 45, 45], 2)],
)
def test_it_never_rises_while_work_is_steadily_done(lengths: list[int], num_gpus: int) -> None:
    """Videos end one after the other, rows are of any length, and GPUs run out of work at the end."""
    run = Run(lengths, num_gpus, lambda now_s, gpu: 1.4)
    assert run.rises() == []
    assert all(0.8 < error < 1.2 for error in run.errors()), (min(run.errors()), max(run.errors()))


def test_calls_of_uneven_length_do_not_make_it_flicker() -> None:
    draws = random.Random(0)
    run = Run([161] * 40, 4, lambda now_s, gpu: draws.uniform(0.5, 2.5))
    assert run.rises() == []
    assert all(0.8 < error < 1.2 for error in run.errors())


def test_it_falls_at_once_where_gpus_become_faster_and_never_rises() -> None:
    """Slow first calls, as while kernels are compiled, and faster ones later: work goes on all the time."""
    speeds = [(0.0, 6.0), (100.0, 3.0), (600.0, 1.0)]
    run = Run([161] * 16, 2, lambda now_s, gpu: [call_s for from_s, call_s in speeds if now_s >= from_s][-1])
    assert run.rises() == []
    (at_s, late_s), *_ = [each for each in run.shown if each[0] >= 900.0]
    assert late_s == pytest.approx(run.ended_s - at_s, rel=0.1), "minutes later only the new rate counts"


def test_it_rises_in_few_steps_where_gpus_become_slower_for_good() -> None:
    run = Run([161] * 16, 2, lambda now_s, gpu: 1.0 if now_s < 600.0 else 2.0)
    rises = run.rises()
    assert 1 <= len(rises) <= 5
    assert all(600.0 <= at_s <= 600.0 + 240.0 for at_s, _ in rises), "only while the window takes in the new rate"
    before = dict(run.shown)[600.0]
    (at_s, after_s), *_ = [each for each in run.shown if each[0] >= 850.0]
    assert after_s == pytest.approx(run.ended_s - at_s, rel=0.15)
    assert before < run.ended_s - 600.0, "nobody can know before"


def test_videos_in_flight_count_call_by_call() -> None:
    """One video of 1,056 calls: halfway it says half, though nothing of the video is finished."""
    run = Run([1001], 1, lambda now_s, gpu: 1.0)
    (_, half_s), *_ = [each for each in run.shown if each[0] >= 528.0]
    assert half_s == pytest.approx(528.0, rel=0.02)


def test_unread_rows_are_taken_to_be_like_those_read() -> None:
    run = Run([161] * 16, 2, lambda now_s, gpu: 1.0, is_counted=False)
    assert run.rises() == []
    assert all(0.8 < error < 1.2 for error in run.errors())


def test_a_gpu_less_shows_at_once() -> None:
    work = WorkLeft(8, COST.__getitem__)
    work.count({161: 8})
    assert work.seconds(1.0, 4) == pytest.approx(2 * 255)
    assert work.seconds(1.0, 2) == pytest.approx(4 * 255)
    assert work.seconds(1.0, 3) == pytest.approx(3 * 255), "three at a time: the last two are made by two of them"


def test_helpers_share_the_last_videos() -> None:
    """Three videos on two GPUs: where each uses both, no GPU is idle at the end."""
    alone = WorkLeft(3, lambda frames: VideoCost(100))
    together = WorkLeft(3, lambda frames: VideoCost(100, slots=8))
    for work in (alone, together):
        work.count({45: 3})
    assert (alone.seconds(1.0, 2), together.seconds(1.0, 2)) == (200.0, 150.0)


# ---- what is done and left ----


def test_what_goes_back_to_the_queue_is_to_be_made_again() -> None:
    work = WorkLeft(2, COST.__getitem__)
    for row in (0, 1):
        work.read(161)
        work.began(row, 161)
        work.calls(row, 100)
    assert (work.num_done, work.num_left) == (200, 310)
    work.given_back(1)
    assert (work.num_done, work.num_left) == (100, 410)
    work.began(1, 161)
    work.calls(1, 80)  # its checkpoint
    assert (work.num_done, work.num_left) == (180, 330)
    work.made(0)
    work.settled(0, 255)
    work.settled(1, None)  # quarantined: nothing of it counts any more
    assert (work.num_done, work.num_left) == (255, 0)


def test_bad_rows_and_rows_of_an_earlier_run() -> None:
    work = WorkLeft(4, COST.__getitem__)
    work.count({161: 3})
    assert work.num_left == 3 * 255
    work.read(161, is_settled=True)
    work.read(None)
    assert (work.num_done, work.num_left) == (255, 2 * 255)
    work.read(161)
    work.read(161)
    assert (work.num_done, work.num_left) == (255, 2 * 255)


def test_searches_are_expected_as_often_as_they_were_seen() -> None:
    """1,000 calls, and up to 9 searches of 60: nothing is known at first, then none is seen, then every one."""
    work = WorkLeft(2, lambda frames: VideoCost(1000, per_search=60, num_possible=9))
    work.count({161: 2})
    assert not work.is_exact
    assert work.num_left == pytest.approx(2 * (1000 + 0.1 * 540))
    work.read(161)
    work.began(0, 161)
    work.calls(0, 700, num_searches=0, num_chances=7)
    assert work.num_left == pytest.approx((300 + 2 * 60 * 0.1 / 8) + (1000 + 9 * 60 * 0.1 / 8))
    work.calls(0, 1000, num_searches=0, num_chances=9)
    work.made(0)
    work.settled(0, 1000, 0, 9)
    assert work.num_left == pytest.approx(1000 + 9 * 60 * 0.1 / 10)

    every = WorkLeft(2, lambda frames: VideoCost(1000, per_search=60, num_possible=9))
    every.count({161: 2})
    every.read(161)
    every.began(0, 161)
    every.calls(0, 500 + 5 * 60, num_searches=5, num_chances=5)
    share = 5.1 / 6
    assert every.num_left == pytest.approx(500 + 4 * 60 * share + 1000 + 9 * 60 * share)


def test_profiles_without_searches_are_exact() -> None:
    work = WorkLeft(2, COST.__getitem__)
    work.read(161)
    assert not work.is_exact, "a row is unread"
    work.count({161: 1, 45: 1})
    assert work.is_exact
    assert work.num_left == 255 + 60


# ---- the rate ----


def test_the_rate_is_of_gpus_that_have_work() -> None:
    """Two GPUs of one call a second; then one of them is idle, which makes the other no slower."""
    rate = CallRate()
    rate.working(2, 0.0)
    for second in range(101):
        rate.gpu("a", second, float(second))
        rate.gpu("b", second, float(second))
    rate.working(1, 100.0)
    for second in range(101, 400):
        rate.gpu("a", second, float(second))
        rate.gpu("b", 100, float(second))
    assert rate.calls_a_second == pytest.approx(1.0, rel=0.02)


def test_a_new_process_counts_from_its_first_word() -> None:
    rate = CallRate()
    rate.working(1, 0.0)
    for second in range(11):
        rate.gpu("worker-0#1", second, float(second))
    for second in range(11, 21):
        rate.gpu("worker-0#2", 1000 + second, float(second))
    assert rate.num_calls == 19


def test_nothing_is_said_before_a_few_calls() -> None:
    rate = CallRate()
    rate.working(1, 0.0)
    rate.gpu("a", 0, 0.0)
    rate.gpu("a", 2, 2.0)
    assert rate.calls_a_second is None
    rate.gpu("a", 4, 4.0)
    assert rate.calls_a_second == pytest.approx(1.0)
