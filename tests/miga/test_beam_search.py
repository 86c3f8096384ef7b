"""ScalingNoise: against a search written out by brute force, against scripted rewards, and its cost."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.errors import ConfigError, NonFiniteError, UsageError
from miga.generate import Sampler, VideoState
from miga.methods.base import Features
from miga.methods.scalingnoise.beam_search import BeamSearch, BeamSearchState
from miga.methods.scalingnoise.candidates import KINDS, TailNoise
from miga.noise import NamedNoise, NoiseSource
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.schedule import ddim_schedule, flow_unipc_schedule
from tests.miga.closed_form import (
    SHAPE,
    LabelDenoiser,
    LabelledNoise,
    in_order,
    make_config,
    make_fifo_config,
    sample,
)
from tests.miga.reference import Latent, Reference

MEANS = [0.5, -1.0, 0.2]


def make_search_config(**settings: Any) -> SamplerConfig:
    """Three beams of two candidates."""
    small = {"num_beams": 3, "num_candidates": 2, "num_eval_latents": 2, "num_steps": 8}
    return make_config(**{"method": "scalingnoise"} | small | settings)


class MixingDenoiser:
    """A network whose prediction depends on the latent's own noise, its neighbours, its level and the condition: an
    exact one ignores pure noise, so that all candidates would be worth the same."""

    def __init__(self, config: SamplerConfig) -> None:
        self.window = config.window
        self.schedule = flow_unipc_schedule(config.num_steps, config.flow_shift)  # whatever the solver

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        outputs = []
        for x_FCHW, level_F, condition in zip(x_BFCHW, level_BF, conditions, strict=True):
            own = torch.tanh(x_FCHW.double() * (1.0 + 0.1 * level_F[:, None, None, None]))
            outputs.append(0.7 * own + 0.4 * own.roll(1, 0) + 0.2 * own.mean(0) + 0.3 * condition)
        return torch.stack(outputs).float()


def make_search(
    config: SamplerConfig,
    num_latents: int | None,
    *,
    denoiser: Any = None,
    noise: NoiseSource | None = None,
    run_windows: Any = None,
    features: Features | None = None,
) -> Sampler:
    return Sampler(
        denoiser or MixingDenoiser(config),
        config,
        PromptTrack(MEANS, 4),
        noise or NamedNoise(5, SHAPE),
        num_latents,
        run_windows,
        features=features,
    )


def beams_of(state: VideoState) -> BeamSearchState:
    assert isinstance(state.method, BeamSearchState)
    return state.method


def clip(config: SamplerConfig) -> torch.Tensor:
    return torch.randn(config.window, *SHAPE, generator=torch.Generator().manual_seed(3))


@dataclass
class RenoisedLatent(Latent):
    """A latent under the `renoise` solver: x' = alpha' * clean + sigma' * noise."""

    naive: Any = None
    candidate: int = 0

    def step(self, clean: torch.Tensor) -> None:
        schedule = self.naive.denoiser.schedule
        noise = self.naive.noise(f"step@{self.level}", [self.index], self.candidate)[0]
        self.level -= 1
        self.x = float(schedule.alpha[self.level]) * clean + float(schedule.sigma[self.level]) * noise

    def __deepcopy__(self, memo: Any) -> RenoisedLatent:
        return copy.copy(self)


@dataclass
class NaiveBeam:
    """Every choice of its past, its queue, its reward."""

    choices: tuple[int, ...]
    queue: list[Latent]
    reward: float


class NaiveSearch(Reference):
    """Brute force: every pair of beam and noise is a whole pass over copies of everything; nothing is shared."""

    num_dropped = num_short = 0

    def video(self, base: torch.Tensor, num_passes: int) -> tuple[torch.Tensor, list[list[NaiveBeam]]]:
        c = self.config
        extra, half = c.num_steps - c.window, c.window // 2
        context = [self.renoised(base[0], i - half - extra, 1) for i in range(half)]
        for latent in context:
            latent.level = 0
        beams, out, past = [NaiveBeam((), self.fifo_queue(list(base)), 0.0)], [], []
        for number in range(num_passes):
            tried = []
            for place, beam in enumerate(beams):
                share = c.num_beams * c.num_candidates // len(beams)
                for candidate in range(place * share + 1, (place + 1) * share + 1) if number else [0]:
                    tried.append(self.one_tried(context, beam, candidate))
            tried.sort(key=lambda beam: beam.reward, reverse=True)
            head = tried[0].choices[: max(0, tried[0].queue[0].index - c.window + 1)]
            beams = [beam for beam in tried if beam.choices[: len(head)] == head]
            self.num_dropped += len(beams) < len(tried)
            if number:
                self.num_short += len(beams) < c.num_beams
                beams = [beams[i % len(beams)] for i in range(c.num_beams)]
            beams = [copy.deepcopy(beam) for beam in beams]
            popped = [beam.queue.pop(0) for beam in beams]
            context = [*context[1:], popped[0]]
            out.append(popped[0].x)
            past.append(copy.deepcopy(beams))
        return torch.stack(out[extra:]), past

    def one_tried(self, context: list[Latent], beam: NaiveBeam, candidate: int) -> NaiveBeam:
        c = self.config
        context, queue, choices = copy.deepcopy(context), copy.deepcopy(beam.queue), beam.choices
        if candidate:
            self.push(queue, "push", candidate)
            choices = (*choices, candidate)
        everything, clean = context + queue, {}
        for start in range(0, len(queue), c.stride):
            low = max(0, min(start, len(everything) - c.window))
            outputs = self.call(everything[low : low + c.window], queue[start].index)
            for position in range(start, min(start + c.stride, len(queue))):
                clean[position] = outputs[len(context) + position - low]
        for position, latent in enumerate(queue):
            latent.step(clean[position])
        reward = 0.0
        if candidate:
            cosines = [
                torch.cosine_similarity(a.mean(0).flatten(), b.x.mean(0).flatten(), dim=0)
                for a in outputs[-c.num_eval_latents :]
                for b in context
            ]
            reward = float(sum(cosines) / len(cosines))
        return NaiveBeam(choices, queue, beam.reward + reward)

    def push(self, queue: list[Latent], purpose: str, candidate: int = 0, count: int | None = None) -> None:
        super().push(queue, purpose, candidate, count)
        if isinstance(queue[-1], RenoisedLatent):
            queue[-1].candidate = candidate

    def entering(self, x: torch.Tensor, index: int, level: int) -> Latent:
        latent = super().entering(x, index, level)
        if self.config.solver == "renoise":
            return RenoisedLatent(index, x, level, latent.scheduler, naive=self)
        return latent


SETTINGS: list[tuple[dict[str, Any], int]] = [
    ({}, 5),
    ({"num_eval_latents": 1, "num_candidates": 3, "num_beams": 2}, 4),
    ({"num_steps": 6, "num_eval_latents": 3}, 7),
    ({"num_beams": 1, "num_candidates": 4}, 3),
    ({"window": 5, "stride": 1, "num_eval_latents": 3, "num_steps": 6}, 3),
    ({"window": 7, "stride": 3, "num_steps": 7}, 3),
    ({"window": 4, "stride": 2, "num_steps": 5, "num_candidates": 1}, 9),
    ({"window": 4, "stride": 2, "num_steps": 4, "num_candidates": 2, "num_beams": 3}, 9),
    ({"solver": "renoise"}, 5),
    ({"solver": "renoise", "window": 4, "num_steps": 5, "num_candidates": 1}, 9),
]


@functools.cache
def written_out(case: int) -> tuple[NaiveSearch, torch.Tensor, list[list[NaiveBeam]]]:
    settings, num_latents = SETTINGS[case]
    config = make_search_config(**settings)
    naive = NaiveSearch(MixingDenoiser(config), config, NamedNoise(5, SHAPE), MEANS, 4, num_latents)
    return naive, *naive.video(clip(config), num_latents + config.num_steps - config.window)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_equals_a_search_by_brute_force(case: int) -> None:
    naive, expected, past = written_out(case)
    config, num_latents = naive.config, naive.num_latents
    sampler = make_search(config, num_latents)
    steps = list(sampler.run(sampler.start(clip(config))))
    assert len(steps) == len(past)
    for number, ((state, _), beams) in enumerate(zip(steps, past, strict=True)):
        ours = beams_of(state)
        assert len(ours.beams) == (config.num_beams if number else 1)
        for beam, naive_beam in zip(ours.beams, beams, strict=True):
            candidates = ((0,) * config.num_steps + naive_beam.choices)[-len(beam.queue) :]
            assert beam.candidates == candidates
            assert beam.reward == pytest.approx(naive_beam.reward, abs=1e-5)
            assert beam.queue.level_F.tolist() == list(range(1, config.num_steps))
            assert list(beam.queue.indices) == [latent.index for latent in naive_beam.queue]
            assert torch.allclose(beam.queue.x_FCHW, torch.stack([a.x for a in naive_beam.queue]), atol=1e-5)
    video = torch.cat([finished for _, finished in steps if finished is not None])
    assert torch.allclose(video, expected, atol=1e-5)
    assert len(video) == num_latents


@pytest.mark.slow
def test_the_brute_force_search_meets_every_case() -> None:
    """Beams of another video that drop out, too few left of one video, and a best beam that is overtaken."""
    dropped, short, overtaken = 0, 0, 0
    for case in range(len(SETTINGS)):
        naive, _, past = written_out(case)
        dropped, short = dropped + naive.num_dropped, short + naive.num_short
        overtaken += sum(now[0].choices[:-1] != then[0].choices for then, now in itertools.pairwise(past))
    assert min(dropped, short, overtaken) > 0


@pytest.mark.parametrize("solver", ["unipc", "renoise", "ddim"])
def test_one_beam_of_one_candidate_is_fifo(solver: str) -> None:
    """With its noise: candidate 1 of every new latent, all the way down."""
    eta = 1.0 if solver == "ddim" else 0.0
    config = make_search_config(num_beams=1, num_candidates=1, solver=solver, eta=eta)
    named = NamedNoise(5, SHAPE)

    def as_candidate_one(purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        return torch.cat([named(purpose, [latent], int(latent >= config.window)) for latent in latents])

    plain = make_fifo_config(**config.to_dict() | {"method": "fifo"})
    fifo = make_search(plain, 12, noise=as_candidate_one)
    search = make_search(config, 12)
    assert isinstance(search.method, BeamSearch)
    assert torch.equal(sample(search), sample(fifo))
    assert search.num_calls == fifo.num_calls


SCRIPT = {
    (6, 1): 0.1, (6, 2): 0.9, (6, 3): 0.8, (6, 4): 0.2,
    (7, 1): 0.0, (7, 2): 0.1, (7, 3): 0.6, (7, 4): 0.4,
    (8, 1): 0.5, (8, 2): 0.5, (8, 3): 0.5, (8, 4): 0.5,
    (9, 1): -0.9, (9, 2): -0.8, (9, 3): -0.7, (9, 4): -0.4,
}  # fmt: skip
"""Reward of a candidate by (latent, number)."""


def scripted(x_FCHW: torch.Tensor) -> torch.Tensor:
    """Vectors at the scripted cosine to those of the base clip's latents."""
    labels = x_FCHW.mean((2, 3))[:, [0, 2]].round().int().tolist()
    cosine = torch.tensor([SCRIPT.get((index, candidate), 1.0) for index, candidate in labels])
    return 7.0 * torch.stack([cosine, (1.0 - cosine**2).sqrt()], 1)


def test_the_best_pairs_by_summed_reward_go_on() -> None:
    """Two beams, two candidates; worked out by hand from `SCRIPT`."""
    config = make_search_config(num_beams=2, num_eval_latents=1)
    denoiser = LabelDenoiser(config)
    sampler = make_search(config, None, denoiser=denoiser, noise=LabelledNoise(), features=scripted)
    clean = torch.zeros(6, *SHAPE)
    clean[:, 0] = torch.arange(6.0)[:, None, None]
    state = sampler.start(clean)
    seen = []
    for expected in (
        [((), 0.0)],  # the base clip's own queue
        [((2,), 0.9), ((3,), 0.8)],
        [((3, 3), 0.8 + 0.6), ((3, 4), 0.8 + 0.4)],  # both behind the second beam, which the first now falls behind
        [((3, 3, 1), 1.4 + 0.5), ((3, 3, 2), 1.4 + 0.5)],  # of four equal gains the earlier, on the better beam
        [((3, 3, 2, 4), 1.9 - 0.4), ((3, 3, 2, 3), 1.9 - 0.7)],
    ):
        before = len(denoiser.calls)
        state, _ = sampler.advance(state)
        seen.append(denoiser.calls[before:])
        beams = beams_of(state).beams
        assert [tuple(c for c in beam.candidates if c) for beam in beams] == [choices for choices, _ in expected]
        assert [beam.reward for beam in beams] == pytest.approx([reward for _, reward in expected], abs=1e-4)
        for beam in beams:
            labels = beam.queue.x_FCHW[:, 2].mean((1, 2))
            assert tuple(labels.round().int().tolist()) == beam.candidates, "its latents grew from that noise"
    assert [len(calls) for calls in seen] == [3, 2 + 4, 4 + 4, 4 + 4, 4 + 4]
    tails = [call.candidates[-2:] for call in seen[2][-4:]]
    assert tails == [(2, 1), (2, 2), (3, 3), (3, 4)], "every beam is offered noise of its own"
    assert all(call.latents[-1] == 7 and call.levels[-1] == 8 for call in seen[2][-4:])
    assert all(8 not in call.levels for call in seen[2][:4])


@pytest.mark.parametrize("solver", ["unipc", "renoise"])
@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_computation_does_not_matter(solver: str, order: str) -> None:
    config = make_search_config(solver=solver)
    expected = sample(make_search(config, 6))
    shuffle = random.Random(0)

    def numbers(count: int) -> list[int]:
        return list(reversed(range(count))) if order == "reversed" else shuffle.sample(range(count), count)

    lists: list[int] = []
    run_windows = in_order(MixingDenoiser(config), numbers, lists)
    assert torch.equal(sample(make_search(config, 6, run_windows=run_windows)), expected)
    assert lists[config.num_steps :] == [3, 2 + 6] + [6 + 6] * 6, "all calls of a pass are handed over as one list"


@pytest.mark.parametrize("solver", ["unipc", "renoise"])
def test_stopped_saved_and_resumed_anywhere(solver: str) -> None:
    config = make_search_config(solver=solver)
    expected = sample(make_search(config, 6))
    sampler = make_search(config, 6)
    state, parts = sampler.start(), []
    while not sampler.is_done(state):
        state = pickle.loads(pickle.dumps(state))
        sampler = make_search(config, 6)
        state, finished = sampler.advance(state)
        parts += [] if finished is None else [finished]
    assert torch.equal(torch.cat(parts), expected)


def test_a_video_without_end_takes_constant_memory_and_begins_like_any_other() -> None:
    config = make_search_config(num_steps=6, window=4)
    expected = sample(make_search(config, 12))
    sampler = make_search(config, None)
    sizes, parts, entries = [], [], []
    for number, (state, finished) in enumerate(sampler.run()):
        parts += [] if finished is None else [finished]
        if state.method is not None and number > config.num_steps:
            method = beams_of(state)
            assert len(state.trace.scores) == 0
            queues = [method.context, *(beam.queue for beam in method.beams)]
            tensors = [t for queue in queues for t in (queue.x_FCHW, queue.level_F, *queue.history.values())]
            assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors), "nothing popped is kept alive"
            sizes.append(sum(t.nbytes for t in tensors))
            entries.append([len(beam.candidates) for beam in method.beams])
        if number == 50:
            break
    assert torch.equal(torch.cat(parts)[:12], expected)
    assert len(torch.cat(parts)) == state.num_finished > 30
    assert set(sizes[1:]) == {sizes[1]}
    assert all(lengths == [config.num_steps - 1] * 3 for lengths in entries[1:])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_latents", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 1, "num_candidates": 3},
        {"num_steps": 6},
        {"num_steps": 7, "window": 7, "stride": 3},
        {"num_steps": 7, "window": 4, "stride": 1},
        {"num_steps": 11, "window": 5, "stride": 2},
        {"num_steps": 4, "window": 2, "stride": 1, "num_eval_latents": 1},
    ],
)
def test_the_cost_is_known_beforehand(settings: dict[str, Any], num_latents: int) -> None:
    config = make_search_config(**settings)
    sampler = make_search(config, num_latents)
    sample(sampler)
    counted = count_calls(config, num_latents)
    assert sampler.num_calls == counted.total == counted.most
    assert counted.base_clip == config.num_steps


@pytest.mark.parametrize(
    ("family", "window", "num_latents", "expected"),
    [
        # 6 windows a pass, 74 passes; 5 windows do not see the tail, one does
        ("wan", 21, 41, 54 + 6 + (5 + 15) + 72 * (3 * 5 + 15)),
        # 8 windows a pass, 176 passes
        ("videocrafter2", 16, 128, 64 + 8 + (7 + 15) + 174 * (3 * 7 + 15)),
    ],
)
def test_the_profile(family: str, window: int, num_latents: int, expected: int) -> None:
    config = resolve_config("scalingnoise", BackboneSpec(family, "", "", window, 4, 2, 3, 16, 24, 8))
    assert (config.num_beams, config.num_candidates, config.num_eval_latents) == (3, 5, 1)
    assert count_calls(config, num_latents).total == expected


@pytest.mark.parametrize(
    ("settings", "name", "allowed"),
    [
        ({"num_beams": 0}, "num_beams", "at least 1"),
        ({"num_steps": 5}, "num_steps", "at least window = 6: the base clip fills the last `window` places"),
        ({"stride": 4}, "stride", "1 to 3: each window writes its right half"),
        ({"num_candidates": 0}, "num_candidates", "at least 1"),
        ({"num_eval_latents": 0}, "num_eval_latents", "1 to 3, the right half of a window"),
        ({"num_eval_latents": 4}, "num_eval_latents", "1 to 3, the right half of a window"),
    ],
)
def test_out_of_range(settings: dict[str, Any], name: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_search_config(**settings)
    assert caught.value.message.startswith(f"sampler.{name} = ")
    assert allowed in caught.value.hint


def test_features_of_latents_decide_as_the_latents_do() -> None:
    config = make_search_config()

    def same(x_FCHW: torch.Tensor) -> torch.Tensor:
        return x_FCHW.mean(1).flatten(1)

    assert torch.equal(sample(make_search(config, 6, features=same)), sample(make_search(config, 6)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: x.mean((1, 2, 3)), r"features of 3 latents came as \[3\]"),
        (lambda x: x.flatten(1)[:1], r"features of 3 latents came as \[1, 24\]"),
        (lambda x: x.flatten(1) / 0.0, "features of 3 latents hold NaN or infinity"),
    ],
)
def test_features_that_cannot_be_ranked(features: Features, message: str) -> None:
    config = make_search_config()
    sampler = make_search(config, 6, features=features)
    state, _ = sampler.advance(sampler.start(clip(config)))
    with pytest.raises(UsageError, match=message):
        sampler.advance(state)


@pytest.mark.parametrize("settings", [{}, {"method": "miga", "zigzag_width": 2}, {"method": "unified"}])
def test_features_without_a_search(settings: dict[str, Any]) -> None:
    config = make_fifo_config(**settings)
    with pytest.raises(UsageError, match="features do nothing in profile 'test'"):
        make_search(config, 6, features=scripted)


def test_a_network_that_fails_is_named() -> None:
    config = make_search_config()
    sampler = make_search(config, 6)
    state, _ = sampler.advance(sampler.start(clip(config)))
    broken = make_search(config, 6, run_windows=lambda calls: [call.x_FCHW * float("nan") for call in calls])
    with pytest.raises(NonFiniteError, match="the reward of candidate 1 before latent -1 is nan"):
        broken.advance(state)


def test_kinds_of_candidates() -> None:
    """Each is standard normal where the latent before is, and the latent before is in it as it should be."""
    shape = (4, 96, 64)
    noise, schedule = NamedNoise(3, shape), ddim_schedule(50)
    before = noise("base", [6])
    fresh = noise("push", [7], 2)
    drawn = {kind: TailNoise(noise, kind, before, schedule)("push", [7], 2) for kind in KINDS}
    assert torch.equal(drawn["fresh"], fresh)
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    torch.testing.assert_close(drawn["renoised"], alpha * before + sigma * fresh, atol=1e-6, rtol=0)
    square = ((2 * torch.arange(96) / 96 - 1) ** 2)[:, None] + (2 * torch.arange(64) / 64 - 1) ** 2
    gain = torch.exp(-square / (2 * 0.25**2))
    old, new = (torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3)) for x in (before, fresh))
    mixed = torch.fft.ifft2(torch.fft.ifftshift(old * gain + new * (1 - gain), dim=(2, 3))).real
    torch.testing.assert_close(drawn["low_pass"], mixed, atol=1e-5, rtol=0)
    for kind in ("fresh", "renoised", "mixed"):
        assert float(drawn[kind].std()) == pytest.approx(1, abs=0.02)
    both = torch.stack([drawn["mixed"], fresh, before]).flatten(1)
    correlation = torch.corrcoef(both)
    # the mean of u / sqrt(u^2 + (1 - u)^2) over u from 0 to 1 is asinh(1) / sqrt(2)
    assert float(correlation[0, 1]) == pytest.approx(0.623, abs=0.03)
    assert float(correlation[0, 2]) == pytest.approx(0.623 * alpha, abs=0.03)


def test_a_search_over_kinds() -> None:
    """Candidates take kinds in turn; fresh noise alone is what was there before the setting."""
    config = make_search_config(candidate_kinds="fresh, low_pass")
    assert [config.kind_of(number) for number in (1, 2, 3)] == ["fresh", "low_pass", "fresh"]
    plain = make_search_config()
    assert "candidate_kinds" not in plain.noted()
    assert config.noted()["candidate_kinds"] == "fresh, low_pass"
    videos = [sample(make_search(each, 14)) for each in (plain, config)]
    assert videos[0].shape == videos[1].shape
    assert not torch.equal(*videos)
    assert count_calls(config, 14) == count_calls(plain, 14)
    for kinds in ("", "fresh,fresh", "stale"):
        with pytest.raises(ConfigError, match="candidate_kinds"):
            make_search_config(candidate_kinds=kinds)
