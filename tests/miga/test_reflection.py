"""Self-reflection on scripted scores: when it searches, what a candidate is, what is kept and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from miga.consistency import consistency_score
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import CandidateTask, ReflectionTrace, SelfReflection
from tests.miga.closed_form import (
    SHAPE,
    GaussianDenoiser,
    LabelDenoiser,
    LabelledNoise,
    make_config,
    make_sampler,
    sample,
)
from tests.miga.reference import Reference

Script = Callable[[Sequence[float]], None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Scores that evaluations and candidates get, in the order they are asked for."""

    def set_scores(scores: Sequence[float]) -> None:
        coming = iter(scores)
        monkeypatch.setattr("miga.consistency.consistency_score", lambda *_: next(coming))

    return set_scores


def make_reflection(denoiser: Any = None, **settings: Any) -> tuple[SelfReflection, LabelledNoise]:
    config = make_config(self_reflection=True, reflection_threshold=0.125, **settings)
    noise = LabelledNoise()
    reflection = make_sampler(denoiser or LabelDenoiser(config), config, None, noise=noise).method.zigzag.reflection
    assert reflection is not None
    return reflection, noise


def full_queue(reflection: SelfReflection, first: int = 0) -> FrameQueue:
    """Levels e ... T, labelled with index and (right) noise, as if they had been stepped down."""
    config, stepper = reflection.config, reflection.stepper
    level = config.handoff_level + torch.arange(config.queue_length) // config.zigzag_width
    noise = stepper.noise("base", range(first, first + len(level)))
    clean = noise.clone()
    clean[:, 1] = 0.0
    queue = stepper.fresh(stepper.schedule.add_noise(clean, noise, level), level, first)
    queue.history["num_taken"] += (config.num_steps - level).clamp(max=2)
    return queue


def candidates_of(queue: FrameQueue) -> list[int]:
    return [int(number) for number in queue.x_FCHW[:, 2].mean((1, 2)).round()]


def reflect_each(reflection: SelfReflection, count: int) -> ReflectionTrace:
    trace = ReflectionTrace()
    for number in range(count):
        _, trace = reflection.reflect(full_queue(reflection, first=2 * number), trace)
    return trace


def test_the_first_evaluation_only_stores(script: Script) -> None:
    reflection, noise = make_reflection()
    script([-0.9])
    queue = full_queue(reflection)
    after, trace = reflection.reflect(queue, ReflectionTrace())
    assert after is queue
    assert trace == ReflectionTrace((12,), (-0.9,), (False,), (False,))
    assert {purpose for purpose, _, _ in noise.asked} == {"base"}


@pytest.mark.parametrize(
    ("scores", "searches"),
    [([0.5, 0.375], False), ([0.5, 0.3749, 0.0, 0.0], True), ([0.5, 0.9], False), ([0.0, -0.25, -1.0, -1.0], True)],
)
def test_a_search_runs_if_and_only_if_the_score_falls_by_more_than_delta(
    script: Script, scores: list[float], searches: bool
) -> None:
    reflection, _ = make_reflection()
    script(scores)
    trace = reflect_each(reflection, 2)
    assert trace.searched == (False, searches)
    assert not any(trace.corrected)
    assert trace.scores == (scores[0], scores[1]), "without a better candidate the tail's own score is stored"


def test_the_fall_is_measured_from_the_score_that_was_kept(script: Script) -> None:
    reflection, _ = make_reflection()
    script([0.9, 0.5, 0.6, 0.7, 0.65, 0.3, 0.1, 0.2])
    trace = reflect_each(reflection, 4)
    assert trace.searched == (False, True, False, True)
    assert trace.corrected == (False, True, False, False)
    assert trace.scores == (0.9, 0.7, 0.65, 0.3)
    assert trace.correction_rate == 1 / 4
    assert trace.success_rate == 1 / 2


def test_a_candidate_no_better_than_the_tail_is_not_taken(script: Script) -> None:
    reflection, _ = make_reflection()
    queue = full_queue(reflection)
    script([0.5, 0.5, 0.4])
    after, trace = reflection.reflect(queue, ReflectionTrace((0,), (0.9,), (False,), (False,)))
    assert after is queue
    assert trace.scores == (0.9, 0.5)
    assert (trace.searched, trace.corrected) == ((False, True), (False, False))


def test_rates_before_anything_happened() -> None:
    assert math.isnan(ReflectionTrace().correction_rate)
    assert math.isnan(ReflectionTrace((0,), (0.5,), (False,), (False,)).success_rate)


@pytest.mark.parametrize("best", [1, 2, 3])
@pytest.mark.parametrize("num_guidance", [0, 2])
def test_the_best_candidate_replaces_the_tail_with_its_history(script: Script, best: int, num_guidance: int) -> None:
    reflection, _ = make_reflection(num_candidates=3, num_guidance_latents=num_guidance)
    script([0.2, *(0.8 if number == best else 0.3 for number in (1, 2, 3))])
    queue = full_queue(reflection)
    before = [tensor.clone() for tensor in (queue.x_FCHW, queue.level_F, *queue.history.values())]
    after, trace = reflection.reflect(queue, ReflectionTrace((0,), (0.9,), (False,), (False,)))
    assert trace.scores[-1] == 0.8
    assert trace.corrected[-1]
    judged = trace.latents[-1]
    assert candidates_of(after) == [0] * judged + [best] * 6
    assert after.level_F.tolist() == queue.level_F.tolist()
    assert list(after.indices) == list(queue.indices)
    assert torch.equal(after.x_FCHW[:judged], queue.x_FCHW[:judged])
    assert after.history["num_taken"].tolist() == [2] * judged + [2, 2, 1, 1, 0, 0]
    taken = (after.history["num_taken"][judged:] > 0)[:, None, None, None]
    assert torch.equal((after.history["previous"][judged:, 2:3] != 0).any((2, 3))[:, 0], taken.flatten())
    for old, new in zip(before, (queue.x_FCHW, queue.level_F, *queue.history.values()), strict=True):
        assert torch.equal(old, new), "the queue judged is a value"


@pytest.mark.parametrize("judged_group", [1, 2, 3, 5])
def test_guidance_is_held_fixed_and_only_samples_are_stepped(judged_group: int) -> None:
    config = make_config(self_reflection=True, judged_group=judged_group)
    denoiser = LabelDenoiser(config)
    reflection, noise = make_reflection(denoiser, judged_group=judged_group)
    queue = full_queue(reflection)
    judged = reflection.judged_position(queue)
    assert judged is not None
    held = config.num_reflection_guidance_latents
    tail_levels = tuple(queue[judged:].level_F.tolist())
    task = CandidateTask(queue[judged - held : judged], 2, tail_levels)
    guidance = task.guidance.x_FCHW.clone()
    noise.asked.clear()
    candidate = reflection.grow(task)

    assert tuple(candidate.level_F.tolist()) == tail_levels
    assert list(candidate.indices) == list(queue[judged:].indices)
    assert noise.asked == [(f"search@{judged}", latent, 2) for latent in candidate.indices]
    assert torch.equal(task.guidance.x_FCHW, guidance)
    for call in denoiser.calls:
        for latent, level, number in zip(call.latents, call.levels, call.candidates, strict=True):
            if latent < judged:
                assert level == int(queue.level_F[latent]), "guidance keeps its level"
                assert number == 0
            else:
                assert number == 2
    levels_seen = {
        (latent, level) for call in denoiser.calls for latent, level in zip(call.latents, call.levels, strict=True)
    }
    for group in range(judged_group):
        for latent in range(judged + 2 * group, judged + 2 * group + 2):
            steps = judged_group - 1 - group  # the tail group is untouched
            expected = set(range(config.num_steps - steps + 1, config.num_steps + 1))
            assert {level for index, level in levels_seen if index == latent} == expected


GROWN: list[dict[str, Any]] = [
    {},
    {"num_guidance_latents": 0},
    {"judged_group": 1},
    {"judged_group": 5, "num_reflection_guidance_latents": 7},
    {"zigzag_width": 3, "num_guidance_latents": 3, "num_reflection_guidance_latents": 5},
    {"position_0_context": True, "num_guidance_latents": 1, "stride": 2, "judged_group": 5},
]


@pytest.mark.parametrize("settings", GROWN)
def test_a_candidate_is_the_one_grown_naively(settings: dict[str, Any]) -> None:
    """Latent by latent with diffusers' scheduler: values, levels, and what the solver remembers of each."""
    config = make_config(self_reflection=True, **settings)
    denoiser, noise, means = GaussianDenoiser(config, correlation=0.9), NamedNoise(2, SHAPE), [0.5, -1.0, 0.2]
    sampler = make_sampler(denoiser, config, None, prompts=PromptTrack(means, 5), noise=noise)
    state = sampler.start()
    while state.num_finished < 4:
        state, _ = sampler.advance(state)
    reflection = sampler.method.zigzag.reflection
    queue = sampler.stepper.push_noise(state.method.queue, config.zigzag_width, config.num_steps, "push")
    judged = reflection.judged_position(queue)
    guidance = queue[judged - config.num_reflection_guidance_latents : judged]
    candidate = reflection.grow(CandidateTask(guidance, 2, tuple(queue[judged:].level_F.tolist())))

    naive = Reference(denoiser, config, noise, means, 5, 0)
    latents = [
        naive.entering(x_CHW, index, level)
        for x_CHW, index, level in zip(queue.x_FCHW, queue.indices, queue.level_F.tolist(), strict=True)
    ]
    grown = naive.grow(latents, judged, number=2)
    assert [(latent.index, latent.level) for latent in grown] == list(
        zip(candidate.indices, candidate.level_F.tolist(), strict=True)
    )
    torch.testing.assert_close(candidate.x_FCHW, torch.stack([latent.x for latent in grown]), rtol=1e-5, atol=1e-5)
    assert candidate.history["num_taken"].tolist() == [latent.scheduler.lower_order_nums for latent in grown]
    for name, number in (("before_previous", 0), ("previous", 1)):
        remembered = [latent.scheduler.model_outputs[number] for latent in grown]
        expected = torch.stack([torch.zeros(SHAPE) if x is None else x for x in remembered])
        torch.testing.assert_close(candidate.history[name], expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(candidate.x_FCHW[-config.zigzag_width :], queue.x_FCHW[-config.zigzag_width :])


def test_rates_of_a_whole_video_by_hand(script: Script) -> None:
    """Judged 0.9, 0.9 (no fall), 0.5 (searched: 0.7 and 0.4, corrected), 0.6 (a fall of 0.1: none), 0.3 (searched: 0.3
    and 0.2, not corrected), 0.3 (no fall). Four evaluations in initialisation, then one a group."""
    config = make_config(self_reflection=True, reflection_threshold=0.125)
    script([0.9, 0.9, 0.5, 0.7, 0.4, 0.6, 0.3, 0.3, 0.2, 0.3])
    sampler = make_sampler(LabelDenoiser(config), config, 3, noise=LabelledNoise())
    *_, (state, _) = sampler.run()
    trace = state.trace
    assert trace.scores == (0.9, 0.9, 0.7, 0.6, 0.3, 0.3)
    assert trace.searched == (False, False, True, False, True, False)
    assert trace.corrected == (False, False, True, False, False, False)
    assert trace.correction_rate == 1 / 6
    assert trace.success_rate == 1 / 2


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_video_goes_on_from_the_candidate_that_was_taken(script: Script, best: int) -> None:
    """One search, at the second evaluation, of latents 6 to 11: those come out as the candidate's, all others not."""
    config = make_config(self_reflection=True, reflection_threshold=0.125)
    script([0.9, 0.5, *(0.8 if number == best else 0.1 for number in (1, 2)), *[0.9] * 20])
    sampler = make_sampler(LabelDenoiser(config), config, 16, noise=LabelledNoise())
    video = sample(sampler)
    candidates = [int(number) for number in video[:, 2].mean((1, 2)).round()]
    assert candidates == [best if 6 <= latent < 12 else 0 for latent in range(16)]
    assert [int(number) for number in video[:, 0].mean((1, 2)).round()] == list(range(16))


def test_a_grown_tail_scores_what_was_stored() -> None:
    """Every evaluation searches; what is kept is never worse than what was judged, and is what stands in the queue."""
    config = make_config(self_reflection=True, reflection_threshold=-10.0, num_candidates=3)
    sampler = make_sampler(GaussianDenoiser(config, correlation=0.9), config, 13)
    reflection = sampler.method.zigzag.reflection
    assert reflection is not None
    state, num_better = sampler.start(), 0
    while not sampler.is_done(state):
        if state.method is not None:
            queue = sampler.stepper.push_noise(state.method.queue, 2, config.num_steps, "push")
            position = reflection.judged_position(queue)
            after, trace = reflection.reflect(queue, state.trace)
            if position is not None:
                first, last = position - config.num_reference_latents, position + config.num_eval_latents
                judged, kept = (
                    consistency_score(each[position:last].x_FCHW, each[first:position].x_FCHW)
                    for each in (queue, after)
                )
                assert trace.scores[-1] == kept >= judged
                assert trace.corrected[-1] == (kept > judged)
                num_better += kept > judged
        state, _ = sampler.advance(state)
    assert sum(state.trace.corrected) == num_better > 0
    assert sum(state.trace.searched) == len(state.trace.scores) - 1
    assert state.trace.correction_rate == num_better / len(state.trace.scores)
    assert state.trace.success_rate == num_better / sum(state.trace.searched)


@pytest.mark.parametrize("held", [2, 4, 7])
def test_nothing_happens_while_too_few_latents_precede(held: int) -> None:
    reflection, noise = make_reflection(num_reflection_guidance_latents=held)
    for length in range(1, 24):
        queue = full_queue(make_reflection(num_steps=20)[0])[:length]
        position = reflection.judged_position(queue)
        assert position == (length - 6 if length - 6 >= held else None)
        if position is None:
            assert reflection.reflect(queue, ReflectionTrace()) == (queue, ReflectionTrace())
    assert noise.asked == []


def test_judged_latents_follow_one_another_by_a_group() -> None:
    """During initialisation too, where the head stays and the tail grows; so no two searches share their noise."""
    config = make_config(self_reflection=True, reflection_threshold=-10.0)
    noise = LabelledNoise()
    *_, (state, _) = make_sampler(LabelDenoiser(config), config, 15, noise=noise).run()
    latents = state.trace.latents
    assert latents == tuple(range(4, 4 + 2 * len(latents), 2))
    assert len(set(noise.asked)) == len(noise.asked)
    searches = {purpose for purpose, _, _ in noise.asked if purpose.startswith("search@")}
    assert searches == {f"search@{latent}" for latent in latents[1:]}


def test_candidates_may_be_grown_elsewhere_in_any_order() -> None:
    config = make_config(self_reflection=True, reflection_threshold=-10.0, num_candidates=3)
    reflection = make_sampler(GaussianDenoiser(config), config, None).method.zigzag.reflection
    assert reflection is not None
    sizes = []

    def backwards(tasks: Sequence[CandidateTask], grow: Callable[[CandidateTask], FrameQueue]) -> list[FrameQueue]:
        sizes.append(len(tasks))
        return [grow(task) for task in reversed(tasks)][::-1]

    other = SelfReflection(config, reflection.stepper, backwards)
    queue, trace = full_queue(reflection), ReflectionTrace((0,), (0.9,), (False,), (False,))
    expected, found = reflection.reflect(queue, trace), other.reflect(queue, trace)
    assert torch.equal(expected[0].x_FCHW, found[0].x_FCHW)
    assert expected[1] == found[1]
    assert sizes == [3]


def test_without_reflection_nothing_is_judged() -> None:
    config = make_config()
    *_, (state, _) = make_sampler(LabelDenoiser(config), config, 5, noise=LabelledNoise()).run()
    assert state.trace == ReflectionTrace()
