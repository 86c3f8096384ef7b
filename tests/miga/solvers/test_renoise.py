"""The distilled models' step against diffusers' stochastic flow-matching scheduler and closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from miga.schedule import few_step_schedule, flow_euler_schedule
from miga.solvers import RenoiseSolver

FEW_STEPS = few_step_schedule((1000, 750, 500, 250), 5.0)


def randn(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def fake_velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x * (1.0 + timestep / 1000.0)) - 0.3 * torch.sin(2.0 * x + 0.003 * timestep)


@pytest.mark.parametrize("num_steps", [1, 4, 20])
def test_whole_trajectory_equals_diffusers(num_steps: int) -> None:
    schedule = flow_euler_schedule(num_steps, 5.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True)
    scheduler.set_timesteps(num_steps)
    theirs, ours = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    solver, x = RenoiseSolver(schedule), randn(3)
    reference = x
    for level, t in zip(range(num_steps, 0, -1), scheduler.timesteps, strict=True):
        velocity = fake_velocity(reference, t)
        reference = scheduler.step(velocity, t, reference, generator=theirs, return_dict=False)[0]
        clean = x - schedule.sigma[level].float() * fake_velocity(x, schedule.timestep[level])
        x, history = solver.step(x, torch.full((3,), level), clean, {}, torch.randn(x.shape, generator=ours))
        torch.testing.assert_close(x, reference, rtol=1e-5, atol=1e-5)
        assert history == {}


def test_every_step_in_closed_form() -> None:
    """Levels 4, 3, 2, 1 end at sigmas 15/16, 5/6, 5/8 and 0."""
    clean, noise = randn(4, 1), randn(4, 2)
    stepped, _ = RenoiseSolver(FEW_STEPS).step(randn(4), torch.tensor([4, 3, 2, 1]), clean, {}, noise)
    sigma = torch.tensor([15 / 16, 5 / 6, 5 / 8, 0.0])[:, None, None, None]
    torch.testing.assert_close(stepped, (1 - sigma) * clean + sigma * noise, rtol=1e-6, atol=1e-6)


def test_last_step_is_the_prediction_itself() -> None:
    clean = randn(2, 1)
    stepped, _ = RenoiseSolver(FEW_STEPS).step(randn(2), torch.tensor([1, 1]), clean, {}, randn(2, 2))
    assert torch.equal(stepped, clean)


def test_nothing_of_the_noisy_latent_is_kept() -> None:
    solver, level, clean, noise = RenoiseSolver(FEW_STEPS), torch.tensor([4, 2]), randn(2, 1), randn(2, 2)
    one, _ = solver.step(randn(2, 3), level, clean, {}, noise)
    other, _ = solver.step(randn(2, 4), level, clean, {}, noise)
    assert torch.equal(one, other)
