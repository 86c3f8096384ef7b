"""The profile `released`: against the programs written out naively, and against plans written out by hand."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_backbone, load_spec
from miga.config import SamplerConfig
from miga.consistency import consistency_score
from miga.cost import count_calls
from miga.errors import ConfigError
from miga.generate import Sampler
from miga.methods.released.branches import BRANCHES
from miga.methods.released.reflection import ReleasedReflection
from miga.methods.released.released import ReleasedState
from miga.noise import NamedNoise
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import CandidateTask
from miga.schedule import NoiseSchedule, ddim_schedule, flow_unipc_schedule, released_flow_schedule
from miga.unified import Unified, UnifiedState
from miga.windows import plan_pass
from tests.miga.closed_form import PROFILES, SHAPE, Call, GaussianDenoiser, LabelDenoiser, LabelledNoise, make_config
from tests.miga.reference_released import ReleasedReference

MEANS = [0.5, -1.0, 0.2]
SPECS = {
    "wan": BackboneSpec("wan", "test", "0", 21, 16, 60, 104, 480, 832, 16),
    "videocrafter2": BackboneSpec("videocrafter2", "test", "0", 16, 4, 40, 64, 320, 512, 10),
}


class CachedNoise:
    """`NamedNoise` that draws every name once."""

    def __init__(self, seed: int = 5) -> None:
        self.named = NamedNoise(seed, SHAPE)
        self.drawn: dict[tuple[str, int, int], torch.Tensor] = {}

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        for latent in latents:
            if (purpose, latent, candidate) not in self.drawn:
                self.drawn[purpose, latent, candidate] = self.named(purpose, [latent], candidate)[0]
        return torch.stack([self.drawn[purpose, latent, candidate] for latent in latents])


def small(branch: str, **changes: Any) -> SamplerConfig:
    own = {"videocrafter2": {"solver": "ddim", "eta": 1.0}, "wan": {}}[branch]
    return make_config(**{"method": "released", "released_branch": branch, **own, **changes})


def published(branch: str, **changes: Any) -> SamplerConfig:
    return resolve_config("released", SPECS[branch], changes)


def schedule_of(config: SamplerConfig) -> NoiseSchedule:
    if config.released_branch == "wan":
        return released_flow_schedule(config.num_steps, config.flow_shift)
    return ddim_schedule(config.num_steps)


def gaussian(config: SamplerConfig) -> GaussianDenoiser:
    """Correlated data: context matters."""
    denoiser = GaussianDenoiser(config, correlation=0.9)
    denoiser.schedule = schedule_of(config)
    return denoiser


def base_clip(config: SamplerConfig) -> torch.Tensor:
    return 0.5 + 0.7 * NamedNoise(3, SHAPE)("base", range(config.window))


def make_sampler(config: SamplerConfig, num_latents: int | None, noise: Any = None, **others: Any) -> Sampler:
    noise = noise or CachedNoise()
    return Sampler(gaussian(config), config, PromptTrack(MEANS, 4), noise, num_latents, **others)


def sample(sampler: Sampler) -> torch.Tensor:
    steps = sampler.run(sampler.start(base_clip(sampler.config)))
    return torch.cat([finished for _, finished in steps if finished is not None])


def assert_equals_reference(config: SamplerConfig, num_latents: int, tolerance: float = 1e-5) -> ReleasedReference:
    noise = CachedNoise()
    sampler, base = make_sampler(config, num_latents, noise), base_clip(config)
    reference = ReleasedReference(gaussian(config), config, noise, MEANS, 4, num_latents, base)
    steps = list(sampler.run(sampler.start(base)))
    ours, theirs = torch.cat([part for _, part in steps if part is not None]), reference.video()
    assert ours.shape == theirs.shape == (num_latents, *SHAPE)
    assert float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))
    trace = steps[-1][0].trace
    assert (sum(trace.searched), sum(trace.corrected)) == (reference.num_searches, reference.num_corrections)
    assert trace.scores == pytest.approx(reference.scores, abs=1e-5)
    counted = count_calls(config, num_latents)
    assert counted.num_evaluations == len(trace.scores)
    expected = counted.total - config.num_steps + counted.per_search * reference.num_searches
    assert sampler.num_calls == reference.num_calls == expected
    return reference


REFLECTING = {"self_reflection": True, "reflection_threshold": -10.0, "num_candidates": 2, "num_steps": 15}
SMALL: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 6, 7]),  # 3 passes fill the queue: of VideoCrafter2 from 7 latents, 4 groups, on; of Wan always
    ({"num_steps": 16}, [1, 8, 9]),  # 7 passes: of Wan from 9 latents, 5 groups and the 3 dropped, on
    ({"num_guidance_latents": 0}, [3, 20]),
    ({"num_steps": 13, "window": 8, "num_guidance_latents": 3, "stride": 5, "handoff_level": 6}, [4, 17]),
    ({"zigzag_width": 1, "num_guidance_latents": 3, "num_steps": 13, "handoff_level": 5}, [2, 7]),
    ({"zigzag_width": 6, "num_steps": 9, "handoff_level": 1, "num_guidance_latents": 1}, [5, 31]),
    ({"window": 7, "zigzag_width": 7, "stride": 2, "num_guidance_latents": 5, "num_steps": 8}, [15]),
    ({"num_steps": 9, "handoff_level": 4}, [2, 7]),  # initialisation is one push, without a pass
    (REFLECTING, [11, 13]),
    (REFLECTING | {"num_candidates": 3, "judged_group": 1, "num_guidance_latents": 3}, [4, 15]),
    (REFLECTING | {"num_reflection_guidance_latents": 8, "num_reference_latents": 3, "num_steps": 16}, [20]),
    (REFLECTING | {"reflection_threshold": 0.0, "num_steps": 16, "judged_group": 4}, [20]),
]


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize(("changes", "lengths"), SMALL)
@pytest.mark.sampled(21)
def test_equals_the_program_written_out(branch: str, changes: dict[str, Any], lengths: list[int]) -> None:
    config = small(branch, **changes)
    for num_latents in lengths:
        reference = assert_equals_reference(config, num_latents)
    assert bool(reference.num_searches) == config.self_reflection
    if config.self_reflection and branch == "wan":
        assert reference.num_corrections > 0


@pytest.mark.parametrize(
    ("config", "num_latents"),
    [
        (published("wan", solver="euler", self_reflection=False), 253),  # 37 groups and 3: Stage 1 pushes
        (published("wan", solver="euler", self_reflection=False), 35),  # 5 and 3: the queue drains
        (published("wan", reflection_threshold=-1.0, num_candidates=1), 53),  # 8 and 3: one search
        (published("videocrafter2"), 194),  # 49 groups: Stage 1 pushes
        (published("videocrafter2", self_reflection=True, num_candidates=1, reflection_threshold=-1.0), 56),
    ],
)
@pytest.mark.sampled(8)
def test_equals_the_program_at_the_published_settings(config: SamplerConfig, num_latents: int) -> None:
    assert_equals_reference(config, num_latents, tolerance=3e-5)


def test_calls_of_a_short_video_of_wan() -> None:
    """35 latents are 5 groups, and 3 that are dropped: 8 passes, a queue of 77; 32 passes more, then 8 groups leave.

    Counted by hand: a pass over `n > 21` latents behind border `o` takes `ceil((n - 17 - o) / 10) + 1` windows, one
    more where `o > 0`; of Stage 2, whose 20 passes see 56 latents, `ceil((n - 21 - o) / 10) + 1`.
    """
    config = published("wan", self_reflection=False)

    def windows(length: int, capacity: int, border: int) -> int:
        border = 0 if length - border < capacity else border
        return 1 if length <= 21 else math.ceil((length - capacity - border) / 10) + 1 + (border > 0)

    initial = [21 + 7 * number for number in range(1, 9)]
    stage_1 = [77] * 32 + [77 - 7 * number for number in range(8)]
    expected = 54 + sum(windows(length, 17, 0) for length in initial)
    expected += sum(windows(length, 17, number % 10) for number, length in enumerate(stage_1))
    expected += 2 * sum(windows(56, 21, number) for number in range(10))
    assert count_calls(config, 35).total == expected == 497
    sampler = Sampler(LabelDenoiser(config), config, PromptTrack(["a"]), LabelledNoise(), 35)
    lengths = [len(state.method.queue) for state, _ in sampler.run() if isinstance(state.method, ReleasedState)]
    assert lengths[1 : 1 + len(initial)] == initial
    assert sampler.num_calls == 497


def flat_end(config: SamplerConfig) -> NoiseSchedule:
    """As VideoCrafter2's, level 1 stands where level 0 does; else a flow schedule, in which labels can be read."""
    schedule = flow_unipc_schedule(config.num_steps, config.flow_shift)
    sigma = schedule.sigma.clone()
    sigma[:2] = 1e-6
    return NoiseSchedule(1.0 - sigma, sigma, schedule.timestep)


def labelled_base(config: SamplerConfig) -> torch.Tensor:
    """Channel 0: the index."""
    base = torch.zeros(config.window, *SHAPE)
    base[:, 0] = torch.arange(config.window, dtype=torch.float32)[:, None, None]
    return base


class Recorder:
    """Runs a video whose latents are labelled, and keeps each advance's state and calls."""

    def __init__(self, branch: str, num_latents: int | None, **changes: Any) -> None:
        others = {"solver": "euler", "eta": 0.0} if branch == "videocrafter2" else {}
        self.config = published(branch, **others, **({"self_reflection": False} | changes))
        self.denoiser = LabelDenoiser(self.config)
        if branch == "videocrafter2":
            self.denoiser.schedule = flat_end(self.config)
        self.noise = LabelledNoise()
        self.sampler = Sampler(self.denoiser, self.config, PromptTrack(["a"]), self.noise, num_latents)

    def advances(self) -> Iterator[tuple[ReleasedState, list[Call]]]:
        num_before = 0
        for state, _ in self.sampler.run(self.sampler.start(labelled_base(self.config))):
            assert isinstance(state.method, ReleasedState)
            calls = self.denoiser.calls[num_before:]
            num_before += len(calls)
            yield state.method, calls

    def starts_by_level(self) -> dict[int, list[int]]:
        """Runs to the end; by level, the starts of the windows whose latents all stand there."""
        list(self.advances())
        starts: dict[int, list[int]] = {}
        for call in self.denoiser.calls:
            if set(call.levels) == {call.levels[0]}:
                assert call.latents == tuple(range(call.latents[0], call.latents[-1] + 1))
                starts.setdefault(call.levels[0], []).append(call.latents[0])
        return starts


def seen(*parts: tuple[list[int], int, int]) -> list[tuple[int, ...]]:
    """What windows see: guidance, then latents `start ... stop`."""
    return [(*guidance, *range(start, stop)) for guidance, start, stop in parts]


WAN_INITIAL = [
    seen(([], 0, 21), ([], 1, 22), ([3, 5, 7, 9], 11, 28)),
    seen(([], 0, 21), ([0, 2, 4, 6], 8, 25), ([2, 6, 10, 14], 18, 35)),
    seen(([], 0, 21), ([1, 2, 3, 4], 5, 22), ([3, 6, 9, 12], 15, 32), ([1, 7, 13, 19], 25, 42)),
    seen(
        ([], 0, 21), ([], 2, 23), ([0, 3, 6, 9], 12, 29), ([2, 7, 12, 17], 22, 39), ([8, 15, 22, 29], 32, 49)
    ),
]  # fmt: skip
VIDEOCRAFTER2_INITIAL = [
    seen(([], 0, 16), ([0, 2, 4, 6], 8, 20)),
    seen(([], 0, 16), ([0, 1, 2, 3], 4, 16), ([0, 3, 6, 9], 12, 24)),
    seen(([], 0, 16), ([0, 2, 4, 6], 8, 20), ([2, 6, 10, 14], 16, 28)),
]


@pytest.mark.parametrize(("branch", "plans"), [("wan", WAN_INITIAL), ("videocrafter2", VIDEOCRAFTER2_INITIAL)])
def test_windows_of_the_first_passes_of_initialisation(branch: str, plans: list[list[tuple[int, ...]]]) -> None:
    recorder = Recorder(branch, None)
    for plan, (state, calls) in zip(plans, recorder.advances(), strict=False):
        assert [call.latents for call in calls] == plan
        assert state.num_passes == 0


def groups(*runs: tuple[int, int]) -> tuple[int, ...]:
    """Levels, each so many times."""
    return tuple(level for level, count in runs for _ in range(count))


def test_initialisation_works_in_place() -> None:
    """Guidance has been stepped by the windows before, and is told so; local latents have not."""
    _, calls = next(Recorder("wan", None).advances())
    assert [call.levels for call in calls] == [
        groups((51, 7), (52, 7), (53, 7)),
        groups((51, 6), (52, 7), (53, 7), (54, 1)),
        groups((50, 2), (51, 2), (52, 3), (53, 7), (54, 7)),  # latents 3, 5 and 7, 9
    ]
    _, calls = next(Recorder("videocrafter2", None).advances())
    assert [call.levels for call in calls] == [
        groups((60, 4), (61, 4), (62, 4), (63, 4)),
        groups((59, 2), (60, 2), (62, 4), (63, 4), (64, 4)),  # latents 0, 2 and 4, 6
    ]


STAGE_1: dict[str, list[list[int]]] = {  # starts of the windows, from the head of the queue on
    "wan": [
        [*range(0, 281, 10), 284],  # 301 latents
        [0, *range(1, 282, 10), 291],  # 308
        [0, *range(2, 283, 10), 291],
    ],
    "videocrafter2": [
        list(range(0, 201, 8)),  # 212
        [0, *range(1, 202, 8), 204],  # 216
        [0, *range(2, 203, 8), 204],
    ],
}


@pytest.mark.parametrize(("branch", "num_initial"), [("wan", 39), ("videocrafter2", 48)])
def test_levels_and_windows_of_the_first_passes_of_stage_1(branch: str, num_initial: int) -> None:
    recorder = Recorder(branch, None)
    config = recorder.config
    wide, top = config.zigzag_width, config.num_steps
    advances = recorder.advances()
    for _ in range(num_initial):
        state, _ = next(advances)
    assert state.num_passes == 0
    assert state.queue.level_F.tolist() == [level for level in range(12, top) for _ in range(wide)]
    heads = []
    for expected in STAGE_1[branch]:
        first = state.queue.first
        state, calls = next(advances)
        num_guidance = [0 if start < 4 else 4 for start in expected]
        assert [call.latents[count] - first for call, count in zip(calls, num_guidance, strict=True)] == expected
        assert [len(call.latents) for call in calls] == [config.window] * len(calls)
        assert state.queue.level_F.tolist() == [level for level in range(11, top + 1) for _ in range(wide)]
        heads.append(state.queue.first)
    assert heads == [0, wide, 2 * wide]
    pushed = [latent for purpose, latent, _ in recorder.noise.asked if purpose == "push"]
    assert pushed == list(range(config.window, state.queue.first + len(state.queue)))
    assert len(pushed) == (num_initial + 1 + len(heads)) * wide


def test_stage_1_reads_a_snapshot_on_wan_alone() -> None:
    for branch, num_initial, start in (("wan", 39, 30), ("videocrafter2", 48, 16)):
        advances = Recorder(branch, None).advances()
        for _ in range(num_initial):
            next(advances)
        _, calls = next(advances)
        call = next(call for call in calls if call.latents[4] == start)
        if branch == "wan":
            assert call.latents[:4] == (6, 13, 20, 27)
            assert call.levels[:6] == (12, 13, 14, 15, 16, 16)
        else:
            assert call.latents[:4] == (2, 6, 10, 14)
            assert call.levels[:6] == (11, 12, 13, 14, 16, 16)


def test_windows_of_stage_2_and_the_second_denoising() -> None:
    """Wan passes levels 10 ... 1 twice, with the same borders; VideoCrafter2 levels 10 ... 2, then 11 ... 2.

    Where less than a window would be left behind a border, there is none.
    """
    wan = Recorder("wan", 7).starts_by_level()  # 28 latents
    borders = [[0, 7], [0, 1, 7], [0, 2, 7], [0, 3, 7], [0, 4, 7], [0, 5, 7], [0, 6, 7], [0, 7], [0, 7], [0, 7]]
    for number, expected in enumerate(borders):
        assert sorted(wan[10 - number]) == sorted(2 * expected)
    wan = Recorder("wan", 14).starts_by_level()  # 35 latents
    borders = [[0, 10, 14], [0, 1, 11, 14], [0, 2, 12, 14], [0, 3, 13, 14], [0, 4, 14], [0, 5, 14], [0, 6, 14]]
    for number, expected in enumerate([*borders, [0, 7, 14], [0, 8, 14], [0, 9, 14]]):
        assert sorted(wan[10 - number]) == sorted(2 * expected)
    other = Recorder("videocrafter2", 20).starts_by_level()
    borders = [[0, 4], [0, 1, 4], [0, 2, 4], [0, 3, 4], [0, 4], [0, 4], [0, 4], [0, 4], [0, 4], [0, 1, 4]]
    assert other[11] == [0, 4]
    for number, expected in enumerate(borders[:9]):
        assert sorted(other[10 - number]) == sorted(expected + borders[number + 1])
    assert 1 not in other
    assert 0 not in other


@pytest.mark.parametrize("branch", BRANCHES)
def test_what_is_pushed_and_noised_again(branch: str) -> None:
    """Copies of the last base latent, but for Stage 1's on VideoCrafter2; each under noise of its own name."""
    config = small(branch)
    schedule, base, noise = schedule_of(config), base_clip(config), CachedNoise()
    sampler = make_sampler(config, None, noise)
    inputs: dict[tuple[int, int], torch.Tensor] = {}
    denoise = sampler.stepper.run_windows

    def watched(calls: Any) -> list[torch.Tensor]:
        for call in calls:
            for x, level in zip(call.x_FCHW, call.level_F.tolist(), strict=True):
                inputs.setdefault((level, len(inputs)), x)
        return denoise(calls)

    method = sampler.method
    method.stepper = replace(method.stepper, run_windows=watched)
    method.unified = replace(method.unified, stepper=method.stepper)
    state = method.start(base)
    while state.queue.first < 6:
        state, _ = method.advance(state)
    top = [x for (level, _), x in inputs.items() if level == config.num_steps]
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    num_initial = config.num_steps - 3 - config.handoff_level - 1
    for latent in range(6, 6 + 2 * (num_initial + 3)):
        z = noise("push", [latent])[0]
        is_copy = branch == "wan" or latent < 6 + 2 * num_initial
        expected = alpha * base[-1] + sigma * z if is_copy else z
        assert any(torch.allclose(x, expected, atol=1e-6) for x in top)


@settings(max_examples=20, deadline=None)
@given(
    branch=st.sampled_from(sorted(BRANCHES)),
    num_latents=st.one_of(st.none(), st.integers(1, 30)),
    wide=st.sampled_from([1, 2, 3, 6]),
    handoff=st.integers(1, 5),
)
@pytest.mark.slow
def test_the_queue_never_has_a_hole(branch: str, num_latents: int | None, wide: int, handoff: int) -> None:
    config = small(branch, zigzag_width=wide, handoff_level=handoff, num_steps=16)
    denoiser = GaussianDenoiser(config)
    denoiser.schedule = schedule_of(config)
    sampler = Sampler(denoiser, config, PromptTrack([0.5]), CachedNoise(), num_latents)
    for number, (state, _) in enumerate(sampler.run(sampler.start(base_clip(config)))):
        assert isinstance(state.method, ReleasedState)
        queue = state.method.queue
        head = int(queue.level_F[0]) if len(queue) else 0
        assert queue.level_F.tolist() == [head + position // wide for position in range(len(queue))]
        assert len(queue) == 0 or handoff < head <= int(queue.level_F[-1]) <= config.num_steps
        if number == 40:
            break
    else:
        assert state.num_finished == num_latents


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("num_latents", [1, 5, 14])
def test_stage_2_as_a_stream_equals_whole_passes_bit_for_bit(branch: str, num_latents: int) -> None:
    config = small(branch)
    sampler = make_sampler(config, num_latents)
    unified, arrived = sampler.method.unified, []

    class Watched:
        def start(self) -> UnifiedState:
            return unified.start()

        def advance(self, state: UnifiedState, group: FrameQueue) -> Any:
            arrived.append(group)
            return unified.advance(state, group)

    sampler.method.unified = Watched()
    video = sample(sampler)
    queue = arrived[0]
    for group in arrived[1:]:
        queue = queue.append(group)
    assert isinstance(unified, Unified)
    assert len(queue) == unified.num_latents
    for one in unified.passes:
        stepper = sampler.stepper.named(one.purpose)
        if one.renoise_to is not None:
            queue = stepper.renoised(queue.x_FCHW, one.renoise_to, 0)
        offset = one.offset if len(queue) - one.offset >= config.window else 0
        queue = stepper.pass_over(queue, plan_pass(len(queue), config.window, config.stride, offset=offset))
    assert torch.equal(video, queue.x_FCHW[:num_latents])


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_video_without_end_begins_like_a_long_one(branch: str) -> None:
    config = small(branch, **REFLECTING)
    sampler, endless = make_sampler(config, None), []
    for state, finished in sampler.run(sampler.start(base_clip(config))):
        endless += [] if finished is None else [finished]
        assert len(state.trace.scores) <= 1
        if state.num_finished >= 10:
            break
    whole = sample(make_sampler(config, 60))
    assert torch.equal(torch.cat(endless)[:10], whole[:10])


@pytest.mark.parametrize("branch", BRANCHES)
def test_stopped_saved_and_resumed_anywhere(branch: str) -> None:
    config = small(branch, **REFLECTING)
    expected = sample(make_sampler(config, 14))
    sampler = make_sampler(config, 14)
    state, parts = sampler.start(base_clip(config)), []
    while not sampler.is_done(state):
        state = pickle.loads(pickle.dumps(state))
        state, finished = make_sampler(config, 14).advance(state)
        parts += [] if finished is None else [finished]
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("num_latents", [*range(1, 15), 26])
def test_counts_from_the_base_clip_on(branch: str, num_latents: int) -> None:
    config = small(branch, **REFLECTING)
    sampler = make_sampler(config, num_latents)
    *_, (state, _) = sampler.run()
    counted = count_calls(config, num_latents)
    assert sampler.num_calls == counted.total + counted.per_search * sum(state.trace.searched)
    assert (counted.base_clip, counted.num_evaluations) == (15, len(state.trace.scores))
    assert sum(state.trace.searched) == max(0, counted.num_evaluations - 1)


def test_judged_groups_of_the_published_settings() -> None:
    """Wan: level 44, from the 10th pass on, where the head is at 41; VideoCrafter2: level 51."""
    for branch, level, num_passes in (("wan", 44, 10), ("videocrafter2", 51, 13)):
        recorder = Recorder(branch, None, self_reflection=True, reflection_threshold=1.0)
        reflection = recorder.sampler.method.reflection
        assert isinstance(reflection, ReleasedReflection)
        for number, (state, _) in enumerate(recorder.advances(), start=1):
            assert len(state.trace.scores) == (number >= num_passes)
            position = reflection.judged_position(state.queue)
            if number == 1:
                assert position is None
            if number >= num_passes:
                assert position is not None
                wide = recorder.config.zigzag_width
                assert state.queue.level_F[position : position + wide].tolist() == [level] * wide
                assert int(state.queue.level_F[position - 1]) == level - 1
                assert state.trace.latents == (state.queue.first + position,)
            if number == num_passes + 2:
                break
    assert count_calls(published("wan"), 119).num_evaluations == 11  # its default, 17 + 3 groups: passes 10 ... 20
    assert count_calls(published("wan"), 1000).num_evaluations == 30  # passes 10 ... 39


def test_candidates_of_wan() -> None:
    """10 passes of 46 plain windows behind guidance that stays at levels 42 and 43; all run, the held ones too."""
    recorder = Recorder("wan", None, self_reflection=True, reflection_threshold=-10.0, num_candidates=1)
    advances = recorder.advances()
    for _ in range(10):
        state, calls = next(advances)
    assert state.trace.searched == (False,)
    state, calls = next(advances)
    assert state.trace.searched == (True,)
    grown = calls[-46:]
    assert len(calls) == 46 + -(-(21 + 11 * 7 - 17) // 10) + 1
    first = state.trace.latents[0] - 14
    by_pass = [1, 2, 3, 4, 4, 5, 6, 6, 7, 8]
    starts = {0: [0], 1: [0, 7], 3: [0, 1, 11, 21], 9: [0, 3, 13, 23, 33, 43, 53, 63]}
    for number, count in enumerate(by_pass):
        windows, grown = grown[:count], grown[count:]
        levels = [42] * 7 + [43] * 7 + [54 - number + position // 7 for position in range(7 * (number + 1))]
        for call in windows:
            start = call.latents[0] - first
            assert call.latents == tuple(range(first + start, first + start + 21))
            assert call.levels == tuple(levels[start : start + 21])
            is_sample = [first + 14 <= latent for latent in call.latents]
            assert call.candidates == tuple(int(sample) for sample in is_sample)
        if number in starts:
            assert [call.latents[0] - first for call in windows] == starts[number]
    assert grown == []
    assert count_calls(published("wan"), 140).per_search == 3 * 46


@pytest.mark.parametrize("branch", BRANCHES)
def test_candidates_may_be_grown_elsewhere_in_any_order(branch: str) -> None:
    config = small(branch, **REFLECTING)
    sizes = []

    def backwards(tasks: Sequence[CandidateTask], grow: Callable[[CandidateTask], FrameQueue]) -> list[FrameQueue]:
        sizes.append(len(tasks))
        return [grow(pickle.loads(pickle.dumps(task))) for task in reversed(tasks)][::-1]

    assert torch.equal(sample(make_sampler(config, 14, grow_all=backwards)), sample(make_sampler(config, 14)))
    assert sizes == [2] * (count_calls(config, 14).num_evaluations - 1)


@pytest.mark.parametrize("branch", BRANCHES)
def test_no_noise_is_used_twice(branch: str) -> None:
    config, asked = small(branch, **REFLECTING), []
    named = CachedNoise()

    def noise(purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        asked.extend((purpose, latent, candidate) for latent in latents)
        return named(purpose, latents, candidate)

    *_, (state, _) = make_sampler(config, 20, noise).run()
    assert sum(state.trace.searched) > 0
    assert len(set(asked)) == len(asked)


def test_score_of_means_over_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    judged, reference = (torch.randn(count, *SHAPE, generator=generator) for count in (3, 5))
    vectors = [x.mean((0, 1)).flatten().double() for x in (judged, reference)]
    expected = float(vectors[0] @ vectors[1] / (vectors[0].norm() * vectors[1].norm()))
    assert consistency_score(judged, reference, average_latents=True) == pytest.approx(expected, abs=1e-6)
    assert abs(consistency_score(judged, reference) - expected) > 0.01


def test_the_embedded_model() -> None:
    config = resolve_config("released", load_spec("sprites"))
    shape = (config.num_steps, config.zigzag_width, config.window, config.stride, config.handoff_level)
    assert shape == (30, 4, 12, 6, 7)
    assert (config.num_guidance_latents, config.self_reflection, config.released_branch) == (4, True, "wan")
    for num_latents in (45, 80):
        sampler = make_sampler(config, num_latents)
        *_, (state, _) = sampler.run()
        assert state.num_finished == num_latents
        counted = count_calls(config, num_latents)
        assert sampler.num_calls == counted.total + counted.per_search * sum(state.trace.searched)


def test_what_the_programs_fix() -> None:
    assert {settings["released_branch"] for settings in PROFILES["released"].by_family.values()} == set(BRANCHES)
    wan, other = published("wan"), published("videocrafter2")
    assert (wan.num_guidance_latents, other.num_guidance_latents) == (4, 4)
    assert (wan.self_reflection, wan.reflection_threshold, wan.judged_group) == (True, 0.01, 10)
    assert (other.self_reflection, other.reflection_threshold, other.judged_group) == (False, 0.001, 13)
    assert (wan.queue_length, other.queue_length) == (44 * 7, 54 * 4)


@pytest.mark.parametrize(
    ("changes", "name", "allowed"),
    [
        ({"released_branch": "sora"}, "released_branch", "one of ('wan', 'videocrafter2')"),
        ({"num_steps": 5}, "num_steps", "at least 6, to initialise the queue"),
        ({"handoff_level": 8}, "handoff_level", "1 to 7: initialisation ends two levels above it"),
        ({"stride": 6, "num_guidance_latents": 0}, "stride", "1 to 5: a window must see beyond what it keeps"),
        ({"self_reflection": True, "judged_group": 4}, "judged_group", "at most 3: the tail is judged after"),
        ({"self_reflection": True, "judged_group": 0}, "judged_group", "at least 1"),
        (
            {"self_reflection": True, "num_reflection_guidance_latents": 7},
            "judged_group",
            "num_reflection_guidance_latents = 7 stand before it in the queue (there is room for 6)",
        ),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], name: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small("wan", **changes)
    assert caught.value.message.startswith(f"sampler.{name} = ")
    assert allowed in caught.value.hint


def test_a_branch_that_is_not_the_models_own() -> None:
    with pytest.raises(ConfigError, match="takes level 1 for clean, where this model's schedule has sigma"):
        Sampler(GaussianDenoiser(small("wan")), small("videocrafter2"), PromptTrack([0.5]), CachedNoise(), 5)


def test_wan_samples_on_its_own_programs_schedule() -> None:
    config = resolve_config("released", load_spec("sprites"))
    schedule = load_backbone("sprites", components=("denoiser",)).denoiser(config).schedule
    expected = released_flow_schedule(config.num_steps, config.flow_shift)
    assert torch.equal(schedule.sigma, expected.sigma)
    assert torch.equal(schedule.timestep, expected.timestep)
