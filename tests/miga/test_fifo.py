"""FIFO-Diffusion: its queue, its clean context, and what is thrown away."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.miga.closed_form import SHAPE, LabelDenoiser, LabelledNoise, make_fifo_config, make_sampler


def base_clip(window: int) -> torch.Tensor:
    """Clean latents labelled with their index."""
    clean = torch.zeros(window, *SHAPE)
    clean[:, 0] = torch.arange(window, dtype=torch.float32)[:, None, None]
    return clean


@pytest.mark.parametrize("settings", [{}, {"window": 7, "stride": 3}, {"num_steps": 6}, {"window": 2, "stride": 1}])
def test_levels_context_and_order(settings: dict[str, Any]) -> None:
    config = make_fifo_config(**settings)
    fifo = make_sampler(LabelDenoiser(config), config, None, noise=LabelledNoise()).fifo
    num_warmup = config.num_steps - config.window
    state = fifo.start(base_clip(config.window))
    assert fifo.num_warmup == num_warmup
    assert state.queue.level_F.tolist() == list(range(1, config.num_steps + 1))
    assert list(state.queue.indices) == list(range(-num_warmup, config.window))
    labels = state.queue.x_FCHW[:, 0].mean((1, 2)).round().int().tolist()
    assert labels == [0] * num_warmup + list(range(config.window)), "its base latent, the first one repeated"
    for number in range(num_warmup + 9):
        assert state.queue.level_F.tolist() == list(range(1, config.num_steps + 1))
        assert set(state.context.level_F.tolist()) == {0}
        assert len(state.context) == config.window // 2
        head, state = fifo.advance(state)
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
    sampler = make_sampler(LabelDenoiser(config), config, None, noise=LabelledNoise())
    clean = torch.randn(config.window, *SHAPE, generator=torch.Generator().manual_seed(0))
    context = sampler.fifo.start(clean).context
    schedule = sampler.stepper.schedule
    noise = LabelledNoise()("renoise", context.indices)
    expected = float(schedule.alpha[1]) * clean[:1] + float(schedule.sigma[1]) * noise
    assert torch.allclose(context.x_FCHW, expected, atol=1e-6)
    assert list(context.indices) == [-9, -8, -7]
    assert schedule.timestep[0] == schedule.timestep[1], "told the schedule's lowest time step"


def test_a_pass_written_out() -> None:
    """T 8, window 6: context of 3, two windows that write their right half, a last one moved up to the end."""
    config = make_fifo_config(num_steps=8)
    denoiser = LabelDenoiser(config)
    fifo = make_sampler(denoiser, config, None, noise=LabelledNoise()).fifo
    state = fifo.start(base_clip(6))
    fifo.advance(state)
    assert [call.levels for call in denoiser.calls] == [(0, 0, 0, 1, 2, 3), (1, 2, 3, 4, 5, 6), (3, 4, 5, 6, 7, 8)]


def test_the_state_owns_its_storage() -> None:
    config = make_fifo_config()
    fifo = make_sampler(LabelDenoiser(config), config, None, noise=LabelledNoise()).fifo
    _, state = fifo.advance(fifo.start(base_clip(6)))
    for part in (state.queue, state.context):
        for tensor in (part.x_FCHW, part.level_F, *part.history.values()):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
