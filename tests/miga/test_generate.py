"""The whole method: against itself written out naively, and against data whose exact answer is known."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch

from miga.base_clip import advance_base_clip, start_base_clip
from miga.config import SamplerConfig
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from tests.miga.closed_form import (
    SHAPE,
    GaussianDenoiser,
    LabelDenoiser,
    LabelledNoise,
    in_order,
    make_config,
    make_fifo_config,
    make_sampler,
    make_schedule,
    reflects,
    sample,
)
from tests.miga.reference import Reference

MEANS = [0.5, -1.0, 0.2]

PAPER = [
    ({}, 13),
    ({}, 1),
    ({"num_guidance_latents": 0}, 6),
    ({"zigzag_width": 1, "num_steps": 9, "handoff_level": 3, "num_guidance_latents": 3}, 7),
    ({"zigzag_width": 3, "handoff_level": 1, "num_guidance_latents": 1}, 8),
    ({"zigzag_width": 6, "num_steps": 6, "handoff_level": 5}, 14),
    ({"window": 7, "stride": 2, "zigzag_width": 7, "num_guidance_latents": 5, "num_steps": 5, "handoff_level": 2}, 17),
    ({"window": 4, "stride": 4, "zigzag_width": 2, "num_guidance_latents": 0, "num_steps": 7, "handoff_level": 5}, 11),
    ({"window": 2, "stride": 1, "zigzag_width": 1, "num_guidance_latents": 1, "num_steps": 4, "handoff_level": 2}, 5),
    ({"window": 5, "zigzag_width": 5, "num_steps": 4, "handoff_level": 2, "num_guidance_latents": 2}, 12),
    ({"self_reflection": True, "reflection_threshold": -10.0}, 9),
    ({"self_reflection": True, "reflection_threshold": 0.0, "num_guidance_latents": 0}, 9),
    ({"self_reflection": True, "reflection_threshold": 0.01, "judged_group": 1, "num_candidates": 3}, 7),
    ({"drain": True}, 1),
    ({"drain": True}, 6),
    ({"drain": True}, 13),
    ({"drain": True, "zigzag_width": 6, "num_steps": 6, "handoff_level": 5}, 14),
    ({"drain": True, "zigzag_width": 1, "num_steps": 9, "handoff_level": 3, "num_guidance_latents": 3}, 7),
    ({"drain": True, "self_reflection": True, "reflection_threshold": -10.0}, 9),
    ({"drain": True, "position_0_context": True, "stride": 2}, 11),
    ({"position_0_context": True}, 13),
    ({"position_0_context": True, "num_guidance_latents": 0}, 13),
    ({"position_0_context": True, "num_guidance_latents": 1, "stride": 5}, 14),
    ({"position_0_context": True, "self_reflection": True, "reflection_threshold": -10.0, "stride": 2}, 9),
    ({"position_0_context": True, "self_reflection": True, "reflection_threshold": -1.0, "num_guidance_latents": 0}, 9),
]
STAGE_2_ONLY = [
    ({}, 1),
    ({}, 6),
    ({}, 7),
    ({}, 19),
    ({"stride": 1}, 10),
    ({"stride": 6}, 13),
    ({"position_0_context": True}, 7),
    ({"position_0_context": True, "stride": 5}, 12),
    ({"position_0_context": True, "window": 2, "stride": 1, "num_steps": 4}, 5),
    ({"num_steps": 2, "window": 5, "stride": 2}, 11),
]
FIFO = [
    ({}, 1),
    ({}, 10),
    ({"num_steps": 6}, 4),
    ({"num_steps": 8, "window": 7, "stride": 3}, 9),
    ({"num_steps": 11, "window": 5, "stride": 3}, 6),
    ({"num_steps": 7, "window": 4, "stride": 1}, 5),
]


def assert_near(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert float((ours - reference).abs().max()) <= 1e-5 * max(1.0, float(reference.abs().max()))


def make_pair(config: SamplerConfig, num_latents: int) -> tuple[Any, Reference]:
    """Correlated data (context matters), three prompts in turn."""
    denoiser, noise = GaussianDenoiser(config, correlation=0.9), NamedNoise(11, SHAPE)
    sampler = make_sampler(denoiser, config, num_latents, prompts=PromptTrack(MEANS, 4), noise=noise)
    return sampler, Reference(denoiser, config, noise, MEANS, 4, num_latents)


@pytest.mark.sampled(12)
@pytest.mark.parametrize(("settings", "num_latents"), PAPER)
def test_equals_the_paper_written_out(settings: dict[str, Any], num_latents: int) -> None:
    sampler, reference = make_pair(make_config(**settings), num_latents)
    steps = list(sampler.run())
    trace = steps[-1][0].trace
    assert_near(torch.cat([finished for _, finished in steps if finished is not None]), reference.paper())
    assert sampler.num_calls == reference.num_calls
    assert (sum(trace.searched), sum(trace.corrected)) == (reference.num_searches, reference.num_corrections)
    assert trace.scores == pytest.approx(reference.scores, abs=1e-5)
    if reflects(sampler.config):
        assert reference.num_searches > 0


@pytest.mark.parametrize(("settings", "num_latents"), FIFO)
def test_equals_fifo_written_out(settings: dict[str, Any], num_latents: int) -> None:
    sampler, reference = make_pair(make_fifo_config(**settings), num_latents)
    assert_near(sample(sampler), reference.fifo())
    assert sampler.num_calls == reference.num_calls


@pytest.mark.parametrize(("settings", "num_latents"), FIFO)
def test_equals_fifo_without_lookahead_written_out(settings: dict[str, Any], num_latents: int) -> None:
    sampler, reference = make_pair(make_fifo_config(lookahead=False, **settings), num_latents)
    assert_near(sample(sampler), reference.fifo_literal())
    assert sampler.num_calls == reference.num_calls


@pytest.mark.parametrize(("settings", "num_latents"), STAGE_2_ONLY)
def test_equals_stage_2_alone_written_out(settings: dict[str, Any], num_latents: int) -> None:
    sampler, reference = make_pair(make_config(method="unified", **settings), num_latents)
    assert_near(sample(sampler), reference.stage_2_only())
    assert sampler.num_calls == reference.num_calls


SEEN = {
    "paper": (make_config(self_reflection=True, reflection_threshold=-10.0), Reference.paper),
    "drained": (make_config(drain=True, self_reflection=True, reflection_threshold=-10.0), Reference.paper),
    "lead": (make_config(drain=True, position_0_context=True), Reference.paper),
    "stage 2 only": (make_config(method="unified", position_0_context=True), Reference.stage_2_only),
    "fifo": (make_fifo_config(), Reference.fifo),
    "fifo-literal": (make_fifo_config(lookahead=False), Reference.fifo_literal),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SEEN)
def test_every_call_sees_what_the_method_written_out_sees(name: str) -> None:
    """Which latents, grown for which candidate, at which levels, under which prompt; `LabelDenoiser` checks the noise
    is that of its level: no window reads a latent another window of the pass has already stepped, or a level that is
    not the latent's."""
    config, written_out = SEEN[name]
    ours, theirs = LabelDenoiser(config), LabelDenoiser(config)
    noise = LabelledNoise()
    sample(make_sampler(ours, config, 11, prompts=PromptTrack(["a", "b", "c"], 3), noise=noise))
    written_out(Reference(theirs, config, LabelledNoise(), ["a", "b", "c"], 3, 11))
    assert {call.condition for call in ours.calls} == {"a", "b", "c"}
    assert sorted(ours.calls) == sorted(theirs.calls)
    assert len(set(noise.asked)) == len(noise.asked), "no noise is used twice"


@pytest.mark.parametrize("config", [make_config(self_reflection=True, reflection_threshold=-10.0), make_fifo_config()])
@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_computation_does_not_matter(config: SamplerConfig, order: str) -> None:
    denoiser = GaussianDenoiser(config, correlation=0.9)
    shuffle = random.Random(0)

    def numbers(count: int) -> list[int]:
        return list(reversed(range(count))) if order == "reversed" else shuffle.sample(range(count), count)

    expected = sample(make_sampler(denoiser, config, 9))
    batches: list[int] = []
    run_windows = in_order(denoiser, numbers, batches)
    assert torch.equal(sample(make_sampler(denoiser, config, 9, run_windows=run_windows)), expected)
    assert max(batches) >= 3, "the windows of a pass are handed over together"


@pytest.mark.parametrize("config", [make_config(self_reflection=True, reflection_threshold=0.0), make_fifo_config()])
def test_stopped_saved_and_resumed_anywhere(config: SamplerConfig) -> None:
    denoiser = GaussianDenoiser(config, correlation=0.9)
    expected = sample(make_sampler(denoiser, config, 7))
    sampler = make_sampler(denoiser, config, 7)
    state, parts = sampler.start(), []
    while not sampler.is_done(state):
        state = pickle.loads(pickle.dumps(state))
        sampler = make_sampler(denoiser, config, 7)
        state, finished = sampler.advance(state)
        parts += [] if finished is None else [finished]
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("config", [make_config(), make_fifo_config()])
def test_a_given_base_clip_is_as_good_as_a_made_one(config: SamplerConfig) -> None:
    denoiser = GaussianDenoiser(config, correlation=0.9)
    made, given = make_sampler(denoiser, config, 5), make_sampler(denoiser, config, 5)
    clip = start_base_clip(config, made.stepper)
    for _ in range(config.num_steps):
        clip = advance_base_clip(clip, config, made.stepper)
    parts = [finished for _, finished in given.run(given.start(clip.x_FCHW)) if finished is not None]
    expected = make_sampler(denoiser, config, 5)
    assert torch.equal(torch.cat(parts), sample(expected))
    assert given.num_calls == expected.num_calls - config.num_steps


@pytest.mark.parametrize("config", [make_config(), make_config(num_guidance_latents=0), make_fifo_config()])
def test_independent_gaussian_data(config: SamplerConfig) -> None:
    """The exact ODE takes z to mean + std * z (std of the noisy data at each level), and the last step returns the
    posterior mean at level 1: so the samples have the data's mean, and alpha * std^2 / sqrt(alpha^2 std^2 + sigma^2).
    """
    std, mean = 0.7, 0.5
    config = make_config(**{**config.to_dict(), "num_steps": 40})
    video = sample(make_sampler(GaussianDenoiser(config, std), config, 60))
    schedule = make_schedule(config)
    alpha, sigma = float(schedule.alpha[1]), float(schedule.sigma[1])
    expected = alpha * std**2 / (alpha**2 * std**2 + sigma**2) ** 0.5
    assert abs(float(video.mean()) - mean) < 5 * std / video.numel() ** 0.5
    assert abs(float(video.std()) / expected - 1.0) < 5 / (2 * video.numel()) ** 0.5 + 0.01


def test_converges_at_the_solvers_order() -> None:
    """UniPC-2: order 3 with its corrector at a fixed noise level, order 2 up to the last, ever cleaner level 1."""
    errors = {shift: [ode_errors(num_steps, shift) for num_steps in (32, 64, 128)] for shift in (1.0, 5.0)}
    for coarse, fine in zip(errors[5.0], errors[5.0][1:], strict=False):
        assert fine[0] < coarse[0] / 2**2.8
    for coarse, fine in zip(errors[1.0], errors[1.0][1:], strict=False):
        assert fine[1] < coarse[1] / 2**1.9
    assert errors[1.0][-1][1] < 2e-3


def ode_errors(num_steps: int, flow_shift: float) -> tuple[float, float]:
    """Largest error of a base clip, half way and at level 1; the exact ODE takes z to mean + (std at a level) * z."""
    config = make_config(num_steps=num_steps, flow_shift=flow_shift)
    denoiser, named = GaussianDenoiser(config), NamedNoise(0, SHAPE)
    sampler = make_sampler(denoiser, config, 6, noise=lambda *name: named(*name).double())
    alpha = denoiser.schedule.alpha
    scale = (alpha**2 * denoiser.std**2 + denoiser.schedule.sigma**2).sqrt()
    clip = sampler.start().base
    assert clip is not None
    z = (clip.x_FCHW - alpha[num_steps] * 0.5) / scale[num_steps]
    errors = []
    for level in range(num_steps - 1, 0, -1):
        clip = advance_base_clip(clip, config, sampler.stepper)
        if level in (num_steps // 2, 1):
            errors.append(float((clip.x_FCHW - alpha[level] * 0.5 - scale[level] * z).abs().max()))
    return errors[0], errors[1]


@pytest.mark.parametrize("num_latents", [0, -1])
def test_no_video_without_latents(num_latents: int) -> None:
    config = make_config()
    with pytest.raises(ValueError, match="num_latents must be at least 1"):
        make_sampler(GaussianDenoiser(config), config, num_latents)


@pytest.mark.parametrize(
    "config", [make_config(self_reflection=True, reflection_threshold=-10.0, num_candidates=1), make_fifo_config()]
)
def test_a_video_without_end_takes_constant_memory(config: SamplerConfig) -> None:
    denoiser = GaussianDenoiser(config)
    sampler = make_sampler(denoiser, config, None)
    sizes, num_out = [], 0
    for number, (state, finished) in enumerate(sampler.run()):
        num_out += 0 if finished is None else len(finished)
        if number >= 40:
            sizes.append(storage(state))
        if number == 90:
            break
    assert num_out == state.num_finished > 30
    half = len(sizes) // 2
    assert max(sizes[half:]) <= max(sizes[:half])
    assert len(state.trace.scores) <= 1


def storage(state: Any) -> int:
    """Bytes of the tensors a state keeps alive (whole storages, not only the part looked at), and tuple entries."""
    found: dict[int, int] = {}
    entries = 0

    def visit(value: Any) -> None:
        nonlocal entries
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, tuple | list):
            entries += len(value)
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                visit(getattr(value, name))

    visit(state)
    return sum(found.values()) + entries


def test_a_video_without_end_begins_like_one_with_an_end() -> None:
    config = make_config()
    denoiser = GaussianDenoiser(config, correlation=0.9)
    endless: list[torch.Tensor] = []
    for state, finished in make_sampler(denoiser, config, None).run():
        endless += [] if finished is None else [finished]
        if state.num_finished >= 12:
            break
    reach = (config.handoff_level - 1) * (config.window - 1)
    whole = sample(make_sampler(denoiser, config, 12 + reach))
    assert torch.equal(torch.cat(endless)[:12], whole[:12])


# ---- a base clip of one's own ----


def test_a_base_clip_of_another_type_is_taken_for_what_it_says() -> None:
    """Half precision holds it exactly here, so the video is the same."""
    config = make_config()
    clip = torch.randint(-2, 3, (config.window, *SHAPE), generator=torch.Generator().manual_seed(0)).float()
    sampler = make_sampler(GaussianDenoiser(config), config, 9)
    expected = [part for _, part in sampler.run(sampler.start(clip)) if part is not None]
    strided = torch.zeros(config.window, *SHAPE[:2], SHAPE[2] * 2)[..., ::2].copy_(clip)
    for other in (clip.bfloat16(), clip.half(), clip.clone().requires_grad_(), strided):
        found = [part for _, part in sampler.run(sampler.start(other)) if part is not None]
        assert torch.equal(torch.cat(found), torch.cat(expected))
        assert found[0].dtype == torch.float32


def clip_with(value: float) -> torch.Tensor:
    clip = torch.zeros(6, *SHAPE)
    clip[2, 1, 0, 0] = value
    return clip


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(5, *SHAPE), r"the base clip has shape \[5, .*it must be \[6, "),
        (torch.zeros(0, *SHAPE), r"the base clip has shape \[0, "),
        (torch.zeros(7, *SHAPE), r"the base clip has shape \[7, "),
        (torch.zeros(1, 6, *SHAPE), r"the base clip has shape \[1, 6, "),
        (torch.zeros(6, SHAPE[0] + 1, *SHAPE[1:]), r"it must be \[6, "),
        (torch.zeros(6), r"the base clip has shape \[6\]"),
        (torch.tensor(1.0), r"the base clip has shape \[\]"),
        (torch.zeros(6, *SHAPE, dtype=torch.int64), "the base clip holds torch.int64 on cpu: it takes floats"),
        (torch.zeros(6, *SHAPE, dtype=torch.complex64), "holds torch.complex64"),
        (torch.zeros(6, *SHAPE, device="meta"), "on meta: it takes floats"),
        (torch.zeros(6, *SHAPE).to_sparse(), "it takes floats"),
        (clip_with(float("nan")), "latent 2 of the base clip is NaN or infinite"),
        (clip_with(float("-inf")), "latent 2 of the base clip is NaN or infinite"),
        ([[0.0]], "the base clip is a list, not a tensor"),
    ],
)
@pytest.mark.parametrize("method", ["miga", "unified", "fifo"])
def test_a_base_clip_that_cannot_be(clip: Any, message: str, method: str) -> None:
    config = make_fifo_config() if method == "fifo" else make_config(method=method)
    with pytest.raises(ValueError, match=message):
        make_sampler(GaussianDenoiser(config), config, 9).start(clip)


@pytest.mark.parametrize("num_latents", [0, -1, 2.5, 9.0, True, "9"])
def test_a_length_that_is_none(num_latents: Any) -> None:
    config = make_config()
    with pytest.raises(ValueError, match="num_latents must be at least 1, a whole number, not"):
        make_sampler(GaussianDenoiser(config), config, num_latents)
