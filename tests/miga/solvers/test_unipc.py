"""The solver against diffusers' UniPCMultistepScheduler, which keeps one clock for all latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from miga.queue import History
from miga.schedule import flow_unipc_schedule
from miga.solvers.unipc import UniPCSolver

SHAPE = (4, 3, 5)
MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(7)) * 0.6


def fake_velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A nonlinear network: `x` [F, C, H, W], `timestep` [F]."""
    t = (timestep.float() / 1000.0)[:, None, None, None]
    mixed = torch.einsum("ij,fjhw->fihw", MIX, x)
    return torch.tanh(mixed * (1.0 + t)) - 0.3 * torch.sin(2.0 * x + 3.0 * t) + 0.5 * t * x


def reference_scheduler(num_steps: int, shift: float, begin: int = 0) -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(begin)
    return scheduler


def reference_trajectory(x: torch.Tensor, num_steps: int, shift: float, begin: int = 0) -> list[torch.Tensor]:
    """One latent batch all at one level, from step `begin`; the latent before every step and after the last."""
    scheduler = reference_scheduler(num_steps, shift, begin)
    trajectory = [x]
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(fake_velocity(x, t.expand(len(x))), t, x, return_dict=False)[0]
        trajectory.append(x)
    return trajectory


def our_step(
    solver: UniPCSolver, x: torch.Tensor, level: torch.Tensor, history: History
) -> tuple[torch.Tensor, History]:
    velocity = fake_velocity(x, solver.schedule.timestep[level])
    return solver.step(x, level, x - solver.schedule.at(solver.schedule.sigma, level, x) * velocity, history)


def assert_near(ours: torch.Tensor, reference: torch.Tensor) -> None:
    scale = max(1.0, float(reference.abs().max()))
    assert float((ours - reference).abs().max()) <= 1e-5 * scale


def noise(num_latents: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_latents, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, 20, 50, 54, 64, 100])
def test_schedule_equals_diffusers(num_steps: int, shift: float) -> None:
    schedule, reference = flow_unipc_schedule(num_steps, shift), reference_scheduler(num_steps, shift)
    assert schedule.num_steps == num_steps
    assert torch.equal(schedule.sigma.flip(0).float(), reference.sigmas)
    assert torch.equal(schedule.timestep.flip(0)[:-1], reference.timesteps)
    assert schedule.timestep.dtype == torch.int64
    assert schedule.timestep[0] == schedule.timestep[1]
    assert torch.equal(schedule.alpha, 1.0 - schedule.sigma)


@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 20, 50, 54])
def test_whole_trajectory(num_steps: int, shift: float) -> None:
    solver = UniPCSolver(flow_unipc_schedule(num_steps, shift))
    x = noise(3)
    reference = reference_trajectory(x, num_steps, shift)
    history = solver.fresh_history(x)
    for level in range(num_steps, 0, -1):
        x, history = our_step(solver, x, torch.full((3,), level), history)
        assert_near(x, reference[num_steps - level + 1])


@pytest.mark.parametrize("begin", [1, 7, 44, 52, 53])
def test_latent_that_enters_mid_trajectory(begin: int) -> None:
    num_steps = 54
    solver = UniPCSolver(flow_unipc_schedule(num_steps, 5.0))
    x = noise(2, seed=begin)
    reference = reference_trajectory(x, num_steps, 5.0, begin)
    history = solver.fresh_history(x)
    for level in range(num_steps - begin, 0, -1):
        x, history = our_step(solver, x, torch.full((2,), level), history)
    assert_near(x, reference[-1])


def mixed_batch(solver: UniPCSolver, begins: list[int], num_warm: list[int]) -> tuple[torch.Tensor, ...]:
    """Latents that entered at different steps and have taken different numbers of them, in one batch."""
    num_steps = solver.schedule.num_steps
    xs, levels, histories = [], [], []
    for index, (begin, warm) in enumerate(zip(begins, num_warm, strict=True)):
        x, level = noise(1, seed=index), torch.tensor([num_steps - begin])
        history = solver.fresh_history(x)
        for _ in range(warm):
            x, history = our_step(solver, x, level, history)
            level = level - 1
        xs.append(x), levels.append(level), histories.append(history)
    return torch.cat(xs), torch.cat(levels), {k: torch.cat([h[k] for h in histories]) for k in histories[0]}


def finish(
    solver: UniPCSolver, x: torch.Tensor, level: torch.Tensor, history: History, permute: bool = False
) -> torch.Tensor:
    """Steps every latent to level 0, dropping each from the batch when it is there; the results in the first order."""
    done, order = torch.empty_like(x), torch.arange(len(x))
    generator = torch.Generator().manual_seed(3)
    while len(x):
        x, history = our_step(solver, x, level, history)
        level = level - 1
        done[order[level == 0]] = x[level == 0]
        keep = torch.nonzero(level > 0)[:, 0]
        if permute:
            keep = keep[torch.randperm(len(keep), generator=generator)]
        x, level, order = x[keep], level[keep], order[keep]
        history = {name: tensor[keep] for name, tensor in history.items()}
    return done


BEGINS, NUM_WARM = [0, 0, 5, 17, 43, 44, 53, 50], [0, 1, 2, 10, 1, 0, 0, 3]


def test_latents_at_mixed_steps_equal_separate_schedulers() -> None:
    solver = UniPCSolver(flow_unipc_schedule(54, 5.0))
    done = finish(solver, *mixed_batch(solver, BEGINS, NUM_WARM))
    for index, begin in enumerate(BEGINS):
        assert_near(done[index : index + 1], reference_trajectory(noise(1, seed=index), 54, 5.0, begin)[-1])


def test_permuting_and_slicing_the_history_changes_nothing() -> None:
    solver = UniPCSolver(flow_unipc_schedule(54, 5.0))
    batch = mixed_batch(solver, BEGINS, NUM_WARM)
    torch.testing.assert_close(finish(solver, *batch, permute=True), finish(solver, *batch), rtol=0, atol=2e-6)


def test_arguments_are_not_modified() -> None:
    solver = UniPCSolver(flow_unipc_schedule(20, 5.0))
    x, level, history = mixed_batch(solver, [0, 3, 7], [0, 1, 2])
    clean = noise(3, seed=9)
    before = [tensor.clone() for tensor in (x, level, clean, *history.values())]
    solver.step(x, level, clean, history)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, level, clean, *history.values()), strict=True))


def test_last_step_returns_the_prediction_alone() -> None:
    solver = UniPCSolver(flow_unipc_schedule(4, 5.0))
    x, clean = noise(1), noise(1, seed=1)
    stepped, _ = solver.step(x, torch.tensor([1]), clean, solver.fresh_history(x))
    torch.testing.assert_close(stepped, clean)
