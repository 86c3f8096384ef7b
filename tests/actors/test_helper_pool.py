"""A host's GPU and those of its helpers: who computes which window, whatever comes between. No Ray, no network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from actors.worker.helpers import HelperPool
from miga.denoise_pass import WindowCall
from miga.errors import NonFiniteError, WorkerError
from miga.sharing import Share
from tests.pace import paced
from tests.processes import wait_for

PROMPT = "a prompt"
SECONDS = 10.0


class Gpu:
    """Computes ten times what it is shown. Notes what that was, and holds what it is told to until it is let go."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def compute(self, x: Any) -> Any:
        self.seen.append(float(x.ravel()[0]))
        self.begun.release()
        assert self.may_end.wait(paced(SECONDS))
        return 10.0 * x


class HostGpu(Gpu):
    """See `Denoiser`."""

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any]) -> torch.Tensor:
        assert conditions == [PROMPT]
        return self.compute(x_BFCHW)


class HelperGpu(Gpu):
    """See `Helper`. It fails with `error` at the next window, where there is one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.error: Exception | None = None
        self.positions: list[list[int] | None] = []
        self.may_open = threading.Event()
        self.may_open.set()

    def open_video(self) -> None:
        assert self.may_open.wait(paced(SECONDS))

    def run_window(
        self,
        prompt: int,
        x_FCHW: np.ndarray,
        level_F: np.ndarray,
        branch: int | None,
        position_F: np.ndarray | None,
    ) -> tuple[np.ndarray, float]:
        self.positions.append(None if position_F is None else position_F.tolist())
        output = self.compute(x_FCHW)
        if self.error is not None:
            raise self.error
        return output, 1.0

    def is_dead(self, error: BaseException) -> bool:
        return False


class Setup:
    """A pool, its host's GPU and its helpers, who are there and idle once it is made."""

    def __init__(self, share: Share, num_helpers: int) -> None:
        self.host = HostGpu()
        self.lost: list[str] = []
        self.pool = HelperPool(self.host, [PROMPT], lambda helper, error: self.lost.append(helper.name), share)
        self.helpers = [HelperGpu(f"helper {number}") for number in range(num_helpers)]
        self.set_helpers(self.helpers)
        wait_until(lambda: self.pool._num_idle_helpers == num_helpers)

    def set_helpers(self, helpers: Sequence[HelperGpu]) -> None:
        self.pool.set_helpers({helper.name: helper for helper in helpers})

    def submit(self, value: float, *, is_candidate: bool, priority: int = 0) -> Future[torch.Tensor]:
        call = WindowCall(torch.full((1, 1, 1, 1), value), torch.tensor([3]), PROMPT)
        return self.pool.submit(call, priority, is_candidate=is_candidate)

    def close(self) -> None:
        for gpu in (self.host, *self.helpers):
            gpu.may_end.set()
        self.pool.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    wait_for(is_so, SECONDS, every_s=0.0005)


@pytest.fixture
def setup() -> Iterator[Callable[..., Setup]]:
    made: list[Setup] = []

    def make(share: Share = "candidates", num_helpers: int = 2) -> Setup:
        made.append(Setup(share, num_helpers))
        return made[-1]

    yield make
    for each in made:
        each.close()


def values(futures: Sequence[Future[torch.Tensor]]) -> list[float]:
    return [future.result(SECONDS).item() for future in futures]


def test_a_helper_is_told_where_latents_stand_in_time(setup: Callable[..., Setup]) -> None:
    at = setup(num_helpers=1)
    call = WindowCall(torch.full((2, 1, 1, 1), 1.0), torch.tensor([3, 3]), PROMPT, position_F=torch.tensor([0, 40]))
    at.pool.submit(call, 0, is_candidate=True).result(SECONDS)
    assert values([at.submit(2.0, is_candidate=True)]) == [20.0]
    assert at.helpers[0].positions == [[0, 40], None]


def test_helpers_that_take_candidates_never_get_another_window(setup: Callable[..., Setup]) -> None:
    """While the host is held up, all its windows wait for it, and all candidates are computed."""
    at = setup()
    at.host.may_end.clear()
    own = [at.submit(float(number), is_candidate=False, priority=-number) for number in range(30)]
    assert at.host.begun.acquire(timeout=paced(SECONDS))
    candidates = [at.submit(100.0 + number, is_candidate=True, priority=number) for number in range(30)]
    assert values(candidates) == [10 * (100.0 + number) for number in range(30)]
    assert not any(future.done() for future in own)
    assert sorted(at.helpers[0].seen + at.helpers[1].seen) == [100.0 + number for number in range(30)]
    assert at.pool.num_helper_calls == 30
    at.host.may_end.set()
    assert values(own) == [10.0 * number for number in range(30)]
    assert len(at.host.seen) == 30


def test_an_idle_host_leaves_candidates_to_idle_helpers_and_takes_what_is_too_much_for_them(
    setup: Callable[..., Setup],
) -> None:
    at = setup()
    for gpu in (at.host, *at.helpers):
        gpu.may_end.clear()
    for number in range(2):
        at.submit(float(number), is_candidate=True)
        wait_until(lambda number=number: sum(len(helper.seen) for helper in at.helpers) == number + 1)
    assert [len(helper.seen) for helper in at.helpers] == [1, 1]
    assert at.host.seen == []
    at.submit(2.0, is_candidate=True)
    assert at.host.begun.acquire(timeout=paced(SECONDS))
    assert at.host.seen == [2.0]


def test_a_host_goes_on_with_its_own_windows_before_it_joins_in(setup: Callable[..., Setup]) -> None:
    at = setup(num_helpers=0)
    at.host.may_end.clear()
    held = at.submit(0.0, is_candidate=False)
    assert at.host.begun.acquire(timeout=paced(SECONDS))
    futures = [at.submit(10.0, is_candidate=True, priority=1), at.submit(20.0, is_candidate=False, priority=2)]
    at.host.may_end.set()
    assert values([held, *futures]) == [0.0, 100.0, 200.0]
    assert at.host.seen == [0.0, 20.0, 10.0]


def test_without_helpers_the_host_computes_candidates(setup: Callable[..., Setup]) -> None:
    at = setup(num_helpers=0)
    assert values([at.submit(float(number), is_candidate=True) for number in range(4)]) == [0.0, 10.0, 20.0, 30.0]


def test_nothing_is_left_to_a_helper_that_has_not_opened_the_video(setup: Callable[..., Setup]) -> None:
    at = setup(num_helpers=0)
    slow = HelperGpu("slow")
    slow.may_open.clear()
    at.helpers.append(slow)
    at.set_helpers([slow])
    assert values([at.submit(1.0, is_candidate=True)]) == [10.0]
    assert slow.seen == []
    slow.may_open.set()


def test_candidates_left_to_helpers_who_leave_are_computed_by_the_host(setup: Callable[..., Setup]) -> None:
    """Both are busy and leave; what waits for them is not left waiting, and what they hold they finish."""
    at = setup()
    for helper in at.helpers:
        helper.may_end.clear()
    held = [at.submit(float(number), is_candidate=True) for number in range(2)]
    wait_until(lambda: all(helper.seen for helper in at.helpers))
    at.set_helpers([])
    assert values([at.submit(5.0, is_candidate=True)]) == [50.0]
    for helper in at.helpers:
        helper.may_end.set()
    assert values(held) == [0.0, 10.0]


def test_idle_helpers_who_leave_hold_nothing_up(setup: Callable[..., Setup]) -> None:
    """Helpers come and go, faster than they can be counted, while candidates come one after the other."""
    at = setup()
    for number in range(200):
        at.set_helpers(at.helpers[: number % 3])
        assert values([at.submit(float(number), is_candidate=True)]) == [10.0 * number]


def test_a_candidate_of_a_helper_that_fails_is_computed_elsewhere_and_the_helper_is_dropped(
    setup: Callable[..., Setup],
) -> None:
    at = setup()
    bad, good = at.helpers
    bad.error = WorkerError("the GPU ran out of memory")
    others = (at.host, good)
    for gpu in others:  # or they might have done all before the bad one is given any
        gpu.may_end.clear()
    futures = [at.submit(float(number), is_candidate=True) for number in range(20)]
    assert bad.begun.acquire(timeout=paced(SECONDS))
    for gpu in others:
        gpu.may_end.set()
    assert values(futures) == [10.0 * number for number in range(20)]
    wait_until(lambda: at.lost == [bad.name])
    assert (at.pool.num_slots, at.pool.num_general_slots) == (2, 1)
    assert good.seen


def test_what_a_helper_finds_wrong_with_the_row_the_host_looks_at_before_its_own_windows(
    setup: Callable[..., Setup],
) -> None:
    at = setup(num_helpers=1)
    at.helpers[0].error = NonFiniteError("the network returned NaN")
    at.host.may_end.clear()
    own = [at.submit(0.0, is_candidate=False, priority=number) for number in range(3)]
    assert at.host.begun.acquire(timeout=paced(SECONDS))
    doubtful = at.submit(7.0, is_candidate=True, priority=9)
    wait_until(lambda: bool(at.pool._waiting._for_host))
    at.host.may_end.set()
    assert values([doubtful, *own]) == [70.0, 0.0, 0.0, 0.0]
    assert at.host.seen == [0.0, 7.0, 0.0, 0.0]
    assert at.lost == []


def test_helpers_that_take_nothing_get_nothing(setup: Callable[..., Setup]) -> None:
    at = setup("nothing")
    futures = [at.submit(float(number), is_candidate=bool(number % 2)) for number in range(10)]
    assert values(futures) == [10.0 * number for number in range(10)]
    assert [helper.seen for helper in at.helpers] == [[], []]
    assert (at.pool.num_slots, at.pool.num_general_slots) == (1, 1)


def test_helpers_that_take_windows_take_any(setup: Callable[..., Setup]) -> None:
    at = setup("windows")
    assert (at.pool.num_slots, at.pool.num_general_slots) == (3, 3)
    at.host.may_end.clear()
    at.submit(0.0, is_candidate=False)
    wait_until(lambda: len(at.host.seen) + sum(len(helper.seen) for helper in at.helpers) == 1)
    futures = [at.submit(1.0 + number, is_candidate=False) for number in range(20)]
    wait_until(lambda: sum(future.done() for future in futures) >= 19)
    assert len(at.host.seen) <= 1


def test_closing_cancels_what_waits_and_ends_the_threads(setup: Callable[..., Setup]) -> None:
    at = setup()
    at.host.may_end.clear()
    at.submit(0.0, is_candidate=False)
    assert at.host.begun.acquire(timeout=paced(SECONDS))
    waiting = [at.submit(1.0, is_candidate=False) for _ in range(3)]
    threading.Timer(0.05, at.host.may_end.set).start()
    at.pool.close()
    assert all(future.cancelled() for future in waiting)
    wait_until(lambda: not any(thread.name.startswith("miga-helper") for thread in threading.enumerate()))
