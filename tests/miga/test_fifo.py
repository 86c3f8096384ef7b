"""FIFO-Diffusion: its queue, its clean context, what is thrown away; and Alg. 3 as printed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.methods.fifo.fifo import Fifo
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from tests.miga.closed_form import (
    SHAPE,
    GaussianDenoiser,
    LabelDenoiser,
    LabelledNoise,
    in_order,
    make_fifo_config,
    make_sampler,
    sample,
)
from tests.miga.reference import Reference

MEANS = [0.5, -1.0, 0.2]
LITERAL: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({}, 10),
    ({"num_steps": 6}, 4),
    ({"num_steps": 8, "window": 7, "stride": 3}, 9),
    ({"num_steps": 11, "window": 5, "stride": 5}, 6),
    ({"num_steps": 7, "window": 4, "stride": 1}, 5),
    ({"num_steps": 9, "window": 4, "stride": 3}, 3),
]


def base_clip(window: int) -> torch.Tensor:
    """Clean latents labelled with their index."""
    clean = torch.zeros(window, *SHAPE)
    clean[:, 0] = torch.arange(window, dtype=torch.float32)[:, None, None]
    return clean


def make_fifo(denoiser: Any, config: SamplerConfig) -> Fifo:
    method = make_sampler(denoiser, config, None, noise=LabelledNoise()).method
    assert isinstance(method, Fifo)
    return method


@pytest.mark.parametrize("settings", [{}, {"window": 7, "stride": 3}, {"num_steps": 6}, {"window": 2, "stride": 1}])
def test_levels_context_and_order(settings: dict[str, Any]) -> None:
    config = make_fifo_config(**settings)
    fifo = make_fifo(LabelDenoiser(config), config)
    num_warmup = config.num_steps - config.window
    state = fifo.start(base_clip(config.window))
    assert fifo.num_warmup == num_warmup
    assert state.queue.level_F.tolist() == list(range(1, config.num_steps + 1))
    assert list(state.queue.indices) == list(range(-num_warmup, config.window))
    labels = state.queue.x_FCHW[:, 0].mean((1, 2)).round().int().tolist()
    assert labels == [0] * num_warmup + list(range(config.window)), "its base latent, the first one repeated"
    for number in range(num_warmup + 9):
        assert state.queue.level_F.tolist() == list(range(1, config.num_steps + 1))
        assert state.context is not None
        assert set(state.context.level_F.tolist()) == {0}
        assert len(state.context) == config.window // 2
        state, head = fifo.advance(state)
        if number < num_warmup:
            assert head is None
            continue
        assert head is not None
        latent = number - num_warmup
        assert (head.level_F.tolist(), list(head.indices)) == ([0], [latent])
        assert int(head.x_FCHW[0, 0].mean().round()) == latent
        assert torch.equal(state.context.x_FCHW[-1], head.x_FCHW[0]), "the latest popped is the nearest context"


def test_first_context_is_the_first_base_latent_at_level_one() -> None:
    config = make_fifo_config()
    fifo = make_fifo(LabelDenoiser(config), config)
    clean = torch.randn(config.window, *SHAPE, generator=torch.Generator().manual_seed(0))
    context = fifo.start(clean).context
    assert context is not None
    schedule = fifo.stepper.schedule
    noise = LabelledNoise()("renoise", context.indices)
    expected = float(schedule.alpha[1]) * clean[:1] + float(schedule.sigma[1]) * noise
    assert torch.allclose(context.x_FCHW, expected, atol=1e-6)
    assert list(context.indices) == [-9, -8, -7]
    assert schedule.timestep[0] == schedule.timestep[1], "told the schedule's lowest time step"


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        # context of 3, two windows that write their right half, a last one moved up to the end
        ({"num_steps": 8}, [(0, 0, 0, 1, 2, 3), (1, 2, 3, 4, 5, 6), (3, 4, 5, 6, 7, 8)]),
        # Alg. 3: starts 1, then T - f0 + 1 (as printed it reads `T - f0 : T`, one-based)
        ({"num_steps": 8, "lookahead": False}, [(1, 2, 3, 4, 5, 6), (3, 4, 5, 6, 7, 8)]),
        ({"num_steps": 10, "lookahead": False}, [(1, 2, 3, 4, 5, 6), (4, 5, 6, 7, 8, 9), (5, 6, 7, 8, 9, 10)]),
    ],
)
def test_a_pass_written_out(settings: dict[str, Any], levels: list[tuple[int, ...]]) -> None:
    config = make_fifo_config(**settings)
    denoiser = LabelDenoiser(config)
    fifo = make_fifo(denoiser, config)
    fifo.advance(fifo.start(base_clip(6)))
    assert [call.levels for call in denoiser.calls] == levels


@pytest.mark.parametrize("lookahead", [True, False])
def test_the_state_owns_its_storage(lookahead: bool) -> None:
    config = make_fifo_config(lookahead=lookahead)
    fifo = make_fifo(LabelDenoiser(config), config)
    state, _ = fifo.advance(fifo.start(base_clip(6)))
    assert (state.context is None) is not lookahead
    for part in (state.queue, state.context) if state.context else (state.queue,):
        for tensor in (part.x_FCHW, part.level_F, *part.history.values()):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize(("settings", "num_latents"), LITERAL)
def test_literal_equals_algorithm_3_written_out(settings: dict[str, Any], num_latents: int) -> None:
    config = make_fifo_config(lookahead=False, **settings)
    denoiser, noise = GaussianDenoiser(config, correlation=0.9), NamedNoise(11, SHAPE)
    sampler = make_sampler(denoiser, config, num_latents, prompts=PromptTrack(MEANS, 4), noise=noise)
    reference = Reference(denoiser, config, noise, MEANS, 4, num_latents)
    assert torch.allclose(sample(sampler), reference.fifo_literal(), atol=1e-5)
    assert sampler.num_calls == reference.num_calls == count_calls(config, num_latents).total


def test_literal_sees_what_algorithm_3_sees() -> None:
    config = make_fifo_config(lookahead=False, num_steps=10)
    ours, theirs = LabelDenoiser(config), LabelDenoiser(config)
    sample(make_sampler(ours, config, 11, prompts=PromptTrack(["a", "b"], 5), noise=LabelledNoise()))
    Reference(theirs, config, LabelledNoise(), ["a", "b"], 5, 11).fifo_literal()
    assert sorted(ours.calls) == sorted(theirs.calls)


def test_literal_differs_from_lookahead_and_needs_no_order() -> None:
    literal, lookahead = make_fifo_config(lookahead=False), make_fifo_config()
    denoiser = GaussianDenoiser(literal, correlation=0.9)
    expected = sample(make_sampler(denoiser, literal, 9))
    assert not torch.allclose(sample(make_sampler(denoiser, lookahead, 9)), expected, atol=1e-3)
    run_windows = in_order(denoiser, lambda count: list(reversed(range(count))))
    assert torch.equal(sample(make_sampler(denoiser, literal, 9, run_windows=run_windows)), expected)
