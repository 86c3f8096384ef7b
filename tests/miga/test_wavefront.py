"""Windows of many passes at once: the same video, bit for bit, whatever order and time they run in."""

from __future__ import annotations

import gc
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, TypeAlias

import pytest
import torch

from miga.backbones.registry import load_spec
from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.denoise_pass import WindowCall, run_call
from miga.generate import Sampler, VideoState
from miga.noise import NamedNoise
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.sharing import SHARES, Share
from miga.virtual_time import VirtualExecutor, make_virtual_video, useful_slots
from miga.wavefront import RUN_AHEAD, WAITING_PER_SLOT, Block, LazyQueue, is_there, materialised
from tests.miga.closed_form import (
    FEW_STEPS,
    PROFILES,
    SHAPE,
    VIDEOCRAFTER2,
    LabelDenoiser,
    LabelledNoise,
    MixingDenoiser,
    make_config,
    make_fifo_config,
    make_sampler,
    make_schedule,
    profile_config,
    reflects,
)

NUM_LATENTS = 9
RENOISE = {"solver": "renoise", "timesteps": FEW_STEPS, "num_steps": len(FEW_STEPS), "handoff_level": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((profile, {}) for profile in PROFILES),
    *((profile, {"solver": "ddim", "eta": 1.0}) for profile in ("paper", "swift", "scalingnoise", "stage-2-only")),
    *((profile, RENOISE) for profile in ("paper", "swift")),
    ("released", VIDEOCRAFTER2 | {"eta": 1.0}),
    ("paper", {"drain": True, "position_0_context": True}),
    ("paper", {"reflection_threshold": 0.0}),
]


class GuidedDenoiser:
    """Two forwards a call at levels 3 and above, one below; offers them one by one. Counts what is asked of it."""

    def __init__(self, config: SamplerConfig, lowest_guided: int = 3) -> None:
        self.window = config.window
        self.schedule = make_schedule(config)
        self.lowest_guided = lowest_guided
        self.network = MixingDenoiser(config)
        self.asked: list[int | None] = []

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        self.asked.append(None)
        outputs = [self._forward(x_BFCHW, level_BF, conditions, n) for n in range(self.num_branches(level_BF))]
        return self.combine(x_BFCHW, level_BF, outputs)

    def num_branches(self, level_BF: torch.Tensor) -> int:
        return 1 + bool((level_BF >= self.lowest_guided).any())

    def predict_branch(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float], branch: int
    ) -> torch.Tensor:
        self.asked.append(branch)
        return self._forward(x_BFCHW, level_BF, conditions, branch)

    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if len(predictions) == 1:
            return predictions[0]
        return predictions[1] + 1.7 * (predictions[0] - predictions[1])

    def _forward(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float], branch: int
    ) -> torch.Tensor:
        return self.network(x_BFCHW, level_BF, [condition + 0.3 * branch for condition in conditions])


class RestlessExecutor:
    """Several threads that take any waiting call, whatever its priority, and any time over it."""

    def __init__(self, denoiser: Any, num_slots: int, seed: int = 0, longest_s: float = 0.0005) -> None:
        self.num_slots = self.num_general_slots = num_slots
        self.denoiser = denoiser
        self.chance = random.Random(seed)
        self.longest_s = longest_s
        self.waiting: list[tuple[WindowCall, Future[torch.Tensor]]] = []
        self.lock = threading.Lock()
        self.threads = ThreadPoolExecutor(num_slots)

    def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        future: Future[torch.Tensor] = Future()
        with self.lock:
            self.waiting.append((call, future))
        self.threads.submit(self._run_any)
        return future

    def _run_any(self) -> None:
        with self.lock:
            call, future = self.waiting.pop(self.chance.randrange(len(self.waiting)))
            pause_s = self.chance.random() * self.longest_s
        time.sleep(pause_s)
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(run_call(self.denoiser, call))
        except Exception as error:
            future.set_exception(error)


@pytest.fixture
def restless() -> Iterator[Callable[..., RestlessExecutor]]:
    made: list[RestlessExecutor] = []

    def make(*args: Any, **others: Any) -> RestlessExecutor:
        made.append(RestlessExecutor(*args, **others))
        return made[-1]

    yield make
    for executor in made:
        executor.threads.shutdown()


def stepped(
    denoiser: Any,
    num_gpus: int,
    call_s: Callable[[WindowCall], float] = lambda call: 1.0,
    share: Share = "windows",
) -> VirtualExecutor:
    return VirtualExecutor(num_gpus, lambda call: run_call(denoiser, call), call_s, share)


def new_sampler(denoiser: Any, config: SamplerConfig, executor: Any = None, num_latents: int | None = 9) -> Sampler:
    prompts = PromptTrack([0.5, -1.0, 0.2], 3)
    return Sampler(denoiser, config, prompts, NamedNoise(0, SHAPE), num_latents, executor=executor)


def assert_same(found: Any, expected: Any) -> None:
    """The same classes, values and dtypes throughout."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif is_dataclass(expected):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def whole(sampler: Sampler) -> tuple[torch.Tensor, list[VideoState]]:
    """The video, looked at only once all of it is planned; and the state after every pass."""
    states, finished = [sampler.start()], []
    while not sampler.is_done(states[-1]):
        state, queue = sampler.advance_queue(states[-1])
        states.append(state)
        finished += [] if queue is None else [queue]
    return torch.cat([queue.x_FCHW for queue in finished]), states


@pytest.mark.parametrize("num_slots", [1, 5])
@pytest.mark.parametrize(("profile", "settings"), CASES)
@pytest.mark.sampled(15)
def test_in_any_order_and_time(
    profile: str, settings: dict[str, Any], num_slots: int, restless: Callable[..., RestlessExecutor]
) -> None:
    """The video, what self-reflection did, the count of calls, and the state after every pass."""
    others = set(threading.enumerate())
    config = profile_config(profile, **settings)
    denoiser = GuidedDenoiser(config)
    one_by_one = new_sampler(denoiser, config)
    expected, expected_states = whole(one_by_one)
    sampler = new_sampler(denoiser, config, restless(denoiser, num_slots, seed=num_slots))
    found, states = whole(sampler)
    assert torch.equal(found, expected)
    assert sampler.num_calls == one_by_one.num_calls
    assert len(states) == len(expected_states)
    for state, expected_state in zip(states, expected_states, strict=True):
        assert_same(materialised(state), expected_state)
    assert states[-1].trace == expected_states[-1].trace
    sampler.close()
    assert len(set(threading.enumerate()) - others) <= num_slots


@pytest.mark.sampled(5)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("profile", "settings"), [("paper", {}), ("released", {}), ("scalingnoise", {})])
def test_whatever_helpers_take(profile: str, settings: dict[str, Any], share: Share) -> None:
    """Calls take times that come in no order, so passes and candidates get ahead of one another in other ways."""
    config = profile_config(profile, **{"reflection_threshold": 0.0} | settings)
    denoiser = GuidedDenoiser(config)
    expected, expected_states = whole(new_sampler(denoiser, config))
    for num_gpus in (1, 2, 6):
        chance = random.Random(num_gpus)
        executor = stepped(denoiser, num_gpus, lambda call, chance=chance: chance.random(), share)  # type: ignore[misc]
        found, states = whole(new_sampler(denoiser, config, executor))
        assert torch.equal(found, expected)
        assert states[-1].trace == expected_states[-1].trace
    if reflects(config):
        assert any(expected_states[-1].trace.searched)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (16, 3, 11)])
def test_steps_taken_window_by_window_round_alike(shape: tuple[int, int, int]) -> None:
    """Shapes that no vector register divides."""
    config = profile_config("paper")
    denoiser = GuidedDenoiser(config)

    def video(executor: Any) -> torch.Tensor:
        noise = NamedNoise(3, shape)
        return whole(Sampler(denoiser, config, PromptTrack([0.5]), noise, 11, executor=executor))[0]

    assert torch.equal(video(stepped(denoiser, 4)), video(None))


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["paper", "swift", "fifo", "stage-2-only"])
def test_a_state_is_gone_on_with_either_way(profile: str) -> None:
    """With an executor from where it was left without one, and the other way round, at every pass."""
    config = profile_config(profile)
    denoiser = GuidedDenoiser(config)
    expected, states = whole(new_sampler(denoiser, config))
    for state in states[::3]:
        lazy = new_sampler(denoiser, config, stepped(denoiser, 3))
        rest = [finished for _, finished in lazy.run(state) if finished is not None]
        assert torch.equal(torch.cat([expected[: state.num_finished], *rest]), expected)
    lazily = whole(new_sampler(denoiser, config, stepped(denoiser, 3)))[1]
    for state in lazily[::3]:
        rest = [x for _, x in new_sampler(denoiser, config).run(materialised(state)) if x is not None]
        assert torch.equal(torch.cat([expected[: state.num_finished], *rest]), expected)


# ---- what runs beside what ----


Held: TypeAlias = tuple[WindowCall, int, bool, "Future[torch.Tensor]"]


class HeldExecutor:
    """Runs a call only when told to; keeps what was submitted, in order, and whether it was a candidate's."""

    def __init__(self, denoiser: Any, num_slots: int, num_general_slots: int | None = None) -> None:
        self.num_slots = num_slots
        self.num_general_slots = num_general_slots or num_slots
        self.denoiser = denoiser
        self.waiting: list[Held] = []
        self.choose: Callable[[Sequence[Held]], int] = lambda waiting: 0
        self.history: list[tuple[WindowCall, bool]] = []

    def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        future: Future[torch.Tensor] = Future()
        self.waiting.append((call, priority, is_candidate, future))
        self.history.append((call, is_candidate))
        return future

    def advance(self) -> None:
        call, _, _, future = self.waiting.pop(self.choose(self.waiting))
        future.set_result(run_call(self.denoiser, call))


def make_lazy(denoiser: Any, config: SamplerConfig, executor: Any, num_latents: int | None) -> Sampler:
    return Sampler(denoiser, config, PromptTrack([0.5]), NamedNoise(0, SHAPE), num_latents, executor=executor)


@pytest.mark.parametrize("config", [make_config(), make_fifo_config(), make_config(self_reflection=True)])
def test_later_passes_begin_before_earlier_ones_end(config: SamplerConfig) -> None:
    """Windows of three passes and more wait for a slot at one moment, where the tail goes first. A latent's index and
    level tell the pass: both are read off what the call shows."""
    denoiser = LabelDenoiser(config)
    executor = HeldExecutor(denoiser, 64)
    spread: list[int] = []

    def tail(waiting: Sequence[Held]) -> int:
        passes = {pass_of(call) for call, *_ in waiting if is_of_stage_1(call)}
        spread.append(max(passes) - min(passes) if passes else 0)
        return max(range(len(waiting)), key=lambda number: int(waiting[number][0].level_F.max()))

    def is_of_stage_1(call: WindowCall) -> bool:
        return len(set(call.level_F.tolist())) > 1 and float(call.x_FCHW[-1, 0].mean()) > 0.5

    def pass_of(call: WindowCall) -> int:
        return round(float(call.x_FCHW[-1, 0].mean())) // getattr(config, "zigzag_width", 1) - int(call.level_F[-1])

    executor.choose = tail
    sampler = Sampler(denoiser, config, PromptTrack([0.5]), LabelledNoise(), 30, executor=executor)
    whole(sampler)
    sampler.close()
    assert max(spread) >= 2


def test_stage_2_runs_beside_stage_1_and_waits_for_it() -> None:
    """Of calls that wait at one moment some are of Stage 1 and some of Stage 2; those of Stage 1 go first."""
    config = make_config()
    denoiser = MixingDenoiser(config)
    executor = HeldExecutor(denoiser, 64)
    num_mixed = 0

    def look(waiting: Sequence[Held]) -> int:
        nonlocal num_mixed
        of_stage_1 = [rank for call, rank, *_ in waiting if int(call.level_F.min()) >= config.handoff_level]
        of_stage_2 = [rank for call, rank, *_ in waiting if int(call.level_F.max()) < config.handoff_level]
        if of_stage_1 and of_stage_2:
            num_mixed += 1
            assert max(of_stage_1) < min(of_stage_2)
        return 0

    executor.choose = look
    sampler = make_lazy(denoiser, config, executor, 30)
    whole(sampler)
    sampler.close()
    assert num_mixed > 3


def test_candidates_go_side_by_side_and_beside_windows_of_earlier_passes() -> None:
    config = make_config(self_reflection=True, reflection_threshold=-10.0, num_candidates=3)
    denoiser = MixingDenoiser(config)
    executor = HeldExecutor(denoiser, 64)
    at_once: list[list[bool]] = []

    def candidates_first(waiting: Sequence[Held]) -> int:
        at_once.append([is_candidate for _, _, is_candidate, _ in waiting])
        return max(range(len(waiting)), key=lambda number: waiting[number][2])

    executor.choose = candidates_first
    sampler = make_lazy(denoiser, config, executor, 20)
    _, states = whole(sampler)
    sampler.close()
    num_searches = sum(states[-1].trace.searched)
    assert num_searches > 5
    num_candidates = [sum(kinds) for kinds in at_once]
    assert max(num_candidates) >= 3
    assert any(0 < candidates < len(kinds) for candidates, kinds in zip(num_candidates, at_once, strict=True))
    per_search = count_calls(config, 20).per_search
    assert sum(is_candidate for _, is_candidate in executor.history) == num_searches * per_search


@pytest.mark.parametrize("num_slots", [1, 2, 7])
def test_run_ahead_is_bounded(num_slots: int) -> None:
    """Windows planned and not done, and calls handed over and not begun; on executors that change their mind too."""
    config = make_config()
    denoiser = MixingDenoiser(config)
    executor = HeldExecutor(denoiser, num_slots)
    sampler = make_lazy(denoiser, config, executor, 60)
    largest_pass = 20
    handed_over: list[int] = []
    executor.choose = lambda waiting: handed_over.append(len(waiting)) or 0  # type: ignore[func-returns-value]
    state, num_planned = sampler.start(), []
    assert sampler.wavefront is not None
    while not sampler.is_done(state):
        state, _ = sampler.advance_queue(state)
        num_planned.append(sampler.wavefront._num_planned)
    sampler.close()
    assert max(num_planned) <= RUN_AHEAD * num_slots + largest_pass
    assert max(num_planned) >= RUN_AHEAD * num_slots, "it does run ahead"
    assert max(handed_over) <= (1 + WAITING_PER_SLOT) * num_slots


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_slots", [4, 9])
def test_slots_for_candidates_are_not_kept_busy_with_other_windows(num_slots: int) -> None:
    """Of other windows no more are handed over than one slot needs soon; of candidates as many as all do."""
    config = make_config(
        self_reflection=True, reflection_threshold=-10.0, num_candidates=3, num_steps=16, judged_group=8
    )
    denoiser = MixingDenoiser(config)
    executor = HeldExecutor(denoiser, num_slots, num_general_slots=1)
    handed_over: list[tuple[int, int]] = []

    def last(waiting: Sequence[Held]) -> int:
        candidates = sum(is_candidate for _, _, is_candidate, _ in waiting)
        handed_over.append((candidates, len(waiting) - candidates))
        return len(waiting) - 1

    executor.choose = last
    whole(make_lazy(denoiser, config, executor, 30))
    most = 1 + WAITING_PER_SLOT
    assert max(others for _, others in handed_over) == most
    assert 3 <= max(candidates for candidates, _ in handed_over) <= most * num_slots
    assert any(candidates >= 3 and others == most for candidates, others in handed_over), "neither waits for the other"


def test_an_executor_may_gain_and_lose_slots() -> None:
    config = profile_config("paper")
    denoiser = GuidedDenoiser(config)
    expected, _ = whole(new_sampler(denoiser, config))
    executor, chance = stepped(denoiser, 1), random.Random(4)
    submit = executor.submit

    def changing(call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        executor.num_gpus = chance.choice([1, 2, 9])
        return submit(call, priority, is_candidate=is_candidate)

    executor.submit = changing  # type: ignore[method-assign]
    assert torch.equal(whole(new_sampler(denoiser, config, executor))[0], expected)


# ---- branches of guided calls ----


def test_the_branches_of_the_base_clip_go_to_two_slots() -> None:
    """While there is one window and two slots; levels without guidance are one forward; on one slot none is split."""
    config = make_config()
    for num_slots, expected in ((1, [None] * 12), (2, [0, 1] * 10 + [None] * 2)):
        denoiser = GuidedDenoiser(config, lowest_guided=3)
        sampler = new_sampler(denoiser, config, stepped(denoiser, num_slots))
        state = sampler.start()
        while state.base is not None:
            state, _ = sampler.advance(state)
        assert denoiser.asked == expected
        assert sampler.num_calls == 12, "a guided call is one call, however it runs"
        sampler.close()


def test_windows_go_before_branches() -> None:
    """As many windows as slots: no call is split."""
    config = make_config(num_guidance_latents=0, method="unified", num_steps=5)
    denoiser = GuidedDenoiser(config, lowest_guided=1)
    executor = stepped(denoiser, 2)
    sampler = new_sampler(denoiser, config, executor, num_latents=60)
    whole(sampler)
    split = sum(branch is not None for branch in denoiser.asked)
    assert split <= 8, "at the ends of the video alone"
    assert executor.busy_s == len(denoiser.asked)


def test_only_slots_that_take_a_call_are_a_reason_to_split_it() -> None:
    """Seven helpers that take candidates alone: windows of three candidates are split, no other is."""
    config = make_config(self_reflection=True, reflection_threshold=-10.0, num_candidates=3)
    denoiser = GuidedDenoiser(config, lowest_guided=1)
    executor = HeldExecutor(denoiser, 8, num_general_slots=1)
    whole(make_lazy(denoiser, config, executor, 20))
    assert {call.branch for call, is_candidate in executor.history if not is_candidate} == {None}
    assert {0, 1} <= {call.branch for call, is_candidate in executor.history if is_candidate}


def test_a_denoiser_without_branches_is_never_asked_for_them() -> None:
    config = profile_config("paper")
    denoiser = MixingDenoiser(config)
    executor = HeldExecutor(denoiser, 16)
    whole(new_sampler(denoiser, config, executor))
    assert {call.branch for call, _ in executor.history} == {None}


# ---- failures ----


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("fails_at", [1, 5, 13, 40])
@pytest.mark.parametrize("profile", ["paper", "swift", "scalingnoise", "released"])
@pytest.mark.sampled(3)
def test_a_call_that_fails_ends_the_video_in_the_driving_thread(
    profile: str, fails_at: int, restless: Callable[..., RestlessExecutor]
) -> None:
    config = profile_config(profile)
    denoiser = MixingDenoiser(config)
    counted = threading.Lock()
    num_calls = 0

    def failing(*args: Any) -> torch.Tensor:
        nonlocal num_calls
        with counted:
            num_calls += 1
            if num_calls >= fails_at:
                raise BrokenError(f"call {num_calls}")
        return denoiser(*args)

    sampler = new_sampler(denoiser, config, restless(failing, 3))
    with pytest.raises(BrokenError):
        whole(sampler)
    sampler.close()


def test_an_executor_that_refuses_ends_the_video() -> None:
    config = make_config()
    denoiser = MixingDenoiser(config)
    executor = stepped(denoiser, 2)
    executor.submit = lambda call, priority, **kind: (_ for _ in ()).throw(BrokenError("no"))  # type: ignore[method-assign]
    sampler = new_sampler(denoiser, config, executor)
    with pytest.raises(BrokenError, match="no"):
        whole(sampler)


def test_closing_leaves_no_thread_and_cancels_what_waits() -> None:
    config = make_config()
    denoiser = MixingDenoiser(config)
    before = set(threading.enumerate())

    futures: list[Future[torch.Tensor]] = []

    class Silent:
        num_slots = num_general_slots = 2

        def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
            futures.append(Future())
            return futures[-1]

    sampler = new_sampler(denoiser, config, Silent())
    state, _ = sampler.advance_queue(sampler.start())
    while not futures:
        time.sleep(0.001)
    assert state.base is not None
    assert not is_there(state)
    sampler.close()
    assert all(future.cancelled() for future in futures)
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError, match="closed"):
        _ = state.base.x_FCHW
    sampler.close()


# ---- memory ----


@pytest.mark.parametrize("config", [make_config(), make_config(self_reflection=True), make_fifo_config()])
@pytest.mark.slow
def test_a_video_without_end_keeps_as_many_latents_late_as_early(config: SamplerConfig) -> None:
    gc.collect()
    gc.freeze()  # hides all that is alive already, which makes counting quick
    denoiser = MixingDenoiser(config)
    sampler = make_lazy(denoiser, config, stepped(denoiser, 3), None)
    state, held = sampler.start(), []
    for number in range(240):
        state, finished = sampler.advance(state)
        del finished
        if number % 4:
            continue
        held.append(sum(type(each) is Block and each.value is not None for each in gc.get_objects()))
    sampler.close()
    gc.unfreeze()
    assert max(held) > 5
    assert max(held[45:]) <= max(held[15:45])


# ---- lazy queues ----


def test_a_lazy_queue_is_the_queue() -> None:
    config = make_config()
    denoiser = MixingDenoiser(config)
    eager = make_sampler(denoiser, config, 9)
    lazy = new_sampler(denoiser, config, stepped(denoiser, 2))
    assert lazy.wavefront is not None
    ours, theirs = lazy.stepper.noise_queue(3, 7, 5, "push"), eager.stepper.noise_queue(3, 7, 5, "push")
    assert isinstance(ours, LazyQueue)
    for part in (slice(None), slice(2), slice(2, 6), slice(-3, None), slice(0, 0)):
        assert len(ours[part]) == len(theirs[part])
        assert ours[part].level_F.tolist() == theirs[part].level_F.tolist()
        if len(theirs[part]):
            assert_same(ours[part].materialised(), theirs[part])  # type: ignore[attr-defined]
    joined = ours[:2].append(theirs[2:5]).append(ours[5:])
    assert_same(materialised(joined), theirs)
    with pytest.raises(AssertionError, match="does not follow"):
        ours.append(theirs)


# ---- virtual time ----


def wan_config(profile: str) -> SamplerConfig:
    return resolve_config(profile, load_spec("simulated:wan"))


NUM_WAN_LATENTS = 251
"""Of 1,001 frames."""
PAPERS_RATE = 1 / 46
"""Searches per evaluation that the paper's own seconds speak of."""


@pytest.mark.slow
def test_one_slot_takes_all_calls_one_after_the_other() -> None:
    """A second per guided call of a full window: as many as `count_calls` says."""
    config = wan_config("paper")
    counted = count_calls(config, 8)
    video = make_virtual_video(config, 8, 1)
    assert video.num_calls == counted.total
    assert video.seconds == video.busy_s == pytest.approx(counted.total, rel=0.02), "few windows are shorter"
    searched = make_virtual_video(config, 8, 1, search_share=1.0)
    assert searched.num_searches == counted.num_evaluations - 1
    assert searched.num_calls == counted.most


@pytest.mark.slow
def test_virtual_time_is_the_same_every_time() -> None:
    config = wan_config("paper")
    first, again = (make_virtual_video(config, 12, 5, search_share=0.1) for _ in range(2))
    assert first == again


def test_without_end_of_slots_a_video_takes_its_longest_chain() -> None:
    """Stage 2 alone: every pass needs the one before, and no more."""
    config = make_config(method="unified", guidance_scale=5.0, guidance_high_level=12)
    video = make_virtual_video(config, 40, 1000)
    assert video.seconds == config.num_steps * 0.5
    halves = make_virtual_video(config, 40, 1000, has_branches=False)
    assert halves.seconds == config.num_steps * 1.0


@pytest.mark.parametrize(("profile", "search_share"), [("paper", 0.0), ("paper", 0.387), ("swift", 0.0)])
@pytest.mark.slow
def test_a_long_video_on_eight_slots(profile: str, search_share: float) -> None:
    """1,001 frames: at least 6.5 times as fast as on one, and near what the base clip leaves possible: its chain, on
    two slots, and then all slots at work."""
    config = wan_config(profile)
    one, eight = (make_virtual_video(config, NUM_WAN_LATENTS, slots, search_share=search_share) for slots in (1, 8))
    assert one.num_calls == eight.num_calls
    assert one.busy_s == pytest.approx(eight.busy_s)
    assert one.seconds / eight.seconds >= 6.5
    base_s = 0.5 * config.num_steps
    base_busy_s = sum(
        0.5 * (1 + (config.guidance_low_level <= level <= config.guidance_high_level))
        for level in range(1, config.num_steps + 1)
    )
    bound_s = base_s + (one.busy_s - base_busy_s) / 8
    assert bound_s <= eight.seconds <= 1.05 * bound_s


class SearchTimes(VirtualExecutor):
    """Notes the moments at which candidates' calls came and ended."""

    searches: ClassVar[list[list[float]]] = []
    """Per search, the first and the last of them."""

    def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        future = super().submit(call, priority, is_candidate=is_candidate)
        if is_candidate:
            if self.now_s > self.searches[-1][1]:
                self.searches.append([self.now_s, self.now_s])
            future.add_done_callback(lambda ended: self._note_end())
        return future

    def _note_end(self) -> None:
        self.searches[-1][1] = self.now_s


@pytest.mark.parametrize("search_share", [PAPERS_RATE, 0.1])
@pytest.mark.slow
def test_a_search_takes_the_time_of_one_candidate(search_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper for each: the calls of one, a second each, one after the other. Where windows of earlier passes run out,
    the host takes some of them. All but the first few searches of a video fall where they do not."""
    config = wan_config("paper")
    monkeypatch.setattr("miga.virtual_time.VirtualExecutor", SearchTimes)
    monkeypatch.setattr(SearchTimes, "searches", [[-1.0, -1.0]])
    num_gpus = 1 + config.num_candidates
    video = make_virtual_video(config, NUM_WAN_LATENTS, num_gpus, search_share=search_share, share="candidates")
    took_s = [end - begin for begin, end in SearchTimes.searches[1:]]
    assert len(took_s) == video.num_searches > 0
    one_candidate = count_calls(config, NUM_WAN_LATENTS).per_search / config.num_candidates
    assert all(one_candidate * config.num_candidates / num_gpus <= seconds <= one_candidate for seconds in took_s)
    assert took_s[-1] == one_candidate == 32


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 6])
@pytest.mark.slow
def test_what_searches_add_where_helpers_take_candidates_alone(num_gpus: int) -> None:
    """Without helpers all their calls, with some never more than their even share of them; and the host, which makes
    all else, is never idle but while it waits for a search."""
    config = wan_config("paper")
    counted = count_calls(config, NUM_WAN_LATENTS)
    without = make_virtual_video(config, NUM_WAN_LATENTS, num_gpus, share="candidates")
    assert without.seconds == counted.total, "nobody helps with other windows"
    video = make_virtual_video(config, NUM_WAN_LATENTS, num_gpus, search_share=0.1, share="candidates")
    added = video.num_searches * counted.per_search
    assert video.num_calls == video.busy_s == counted.total + added
    if num_gpus == 1:
        assert video.seconds == counted.total + added
    assert counted.total <= video.seconds <= counted.total + added / num_gpus


@pytest.mark.parametrize(("family", "frames"), [("wan", 1001), ("wan", 321), ("videocrafter2", 160)])
@pytest.mark.slow
def test_reflection_on_four_gpus_at_the_papers_rate(family: str, frames: int) -> None:
    """At most 1.05 times as long as without, where idle GPUs are kept for candidates."""
    spec = load_spec(f"simulated:{family}")
    config, num_latents = resolve_config("paper", spec), spec.num_latents(frames)
    num_evaluations = count_calls(config, num_latents).num_evaluations
    num_searches = math.ceil(num_evaluations * PAPERS_RATE)
    share = (num_searches + 0.5) / num_evaluations
    found = make_virtual_video(config, num_latents, 4, search_share=share, share="candidates")
    assert found.num_searches == num_searches
    assert found.seconds <= 1.05 * make_virtual_video(config, num_latents, 4, share="candidates").seconds


@pytest.mark.slow
def test_gpus_that_may_take_nothing_are_of_no_use() -> None:
    config = wan_config("paper")
    alone = make_virtual_video(config, 12, 1, search_share=0.1)
    assert make_virtual_video(config, 12, 7, search_share=0.1, share="nothing") == alone


# ---- how many GPUs a video can use ----


@pytest.mark.parametrize("num_latents", [20, 41, 100, 251, 600, 5000])
@pytest.mark.parametrize("family", ["wan", "videocrafter2"])
@pytest.mark.slow
def test_as_many_gpus_as_work_is_longer_than_its_chain(family: str, num_latents: int) -> None:
    """Of MIGA: the base clip's steps, the passes of Stage 1, and Stage 2's over the last latents follow one another."""
    config = resolve_config("paper", load_spec(f"simulated:{family}"))
    num_initial = config.num_steps - config.num_base_groups - config.handoff_level
    num_passes = num_initial + math.ceil(num_latents / config.zigzag_width)
    chain = config.num_steps + num_passes + config.handoff_level - 1
    expected = count_calls(config, num_latents).forwards / chain
    assert useful_slots(config, num_latents, "windows") == pytest.approx(expected, abs=1, rel=0.03)
    assert expected < 80


@pytest.mark.slow
def test_passes_of_stage_2_alone_follow_one_another() -> None:
    config = resolve_config("stage-2-only", load_spec("simulated:wan"))
    for num_latents in (41, 251, 1000):
        count = count_calls(config, num_latents)
        assert useful_slots(config, num_latents, "windows") == count.forwards / config.num_steps


def test_a_gpu_for_each_candidate_where_there_may_be_searches() -> None:
    paper, swift = wan_config("paper"), wan_config("swift")
    assert useful_slots(paper, 251, "candidates") == 4
    assert useful_slots(swift, 251, "candidates") == 1
    assert useful_slots(replace(paper, self_reflection=False), 251, "candidates") == 1
    assert useful_slots(paper, 251, "nothing") == 1
