"""Euler's step against diffusers' FlowMatchEulerDiscreteScheduler, which keeps one clock for all latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from miga.schedule import flow_euler_schedule
from miga.solvers import EulerSolver


def fake_velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x * (1.0 + timestep / 1000.0)) - 0.3 * torch.sin(2.0 * x + 0.003 * timestep)


def reference_result(x: torch.Tensor, num_steps: int, shift: float, begin: int = 0) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(begin)
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(fake_velocity(x, t), t, x, return_dict=False)[0]
    return x


def our_step(solver: EulerSolver, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    schedule = solver.schedule
    timestep, sigma = (schedule.at(table, level, x) for table in (schedule.timestep, schedule.sigma))
    return solver.step(x, level, x - sigma * fake_velocity(x, timestep), solver.fresh_history(x))[0]


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 20, 50])
def test_whole_trajectory(num_steps: int, shift: float) -> None:
    solver = EulerSolver(flow_euler_schedule(num_steps, shift))
    start = x = torch.randn(3, 4, 3, 5, generator=torch.Generator().manual_seed(num_steps))
    for level in range(num_steps, 0, -1):
        x = our_step(solver, x, torch.full((3,), level))
    torch.testing.assert_close(x, reference_result(start, num_steps, shift), rtol=1e-5, atol=1e-5)


def test_latents_at_mixed_levels_equal_separate_schedulers() -> None:
    num_steps, begins = 20, [0, 3, 7, 18, 19]
    solver = EulerSolver(flow_euler_schedule(num_steps, 5.0))
    start = x = torch.randn(len(begins), 4, 3, 5, generator=torch.Generator().manual_seed(1))
    level, done = num_steps - torch.tensor(begins), torch.empty_like(start)
    left = torch.arange(len(begins))
    while len(left):
        x, level = our_step(solver, x, level), level - 1
        done[left[level == 0]] = x[level == 0]
        x, left, level = x[level > 0], left[level > 0], level[level > 0]
    for index, begin in enumerate(begins):
        one = slice(index, index + 1)
        torch.testing.assert_close(done[one], reference_result(start[one], num_steps, 5.0, begin), rtol=1e-5, atol=1e-5)
