"""DDIM against steps recorded from VideoCrafter2's sampler, diffusers' DDIMScheduler and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from miga.schedule import (
    NoiseSchedule,
    ddim_schedule,
    ddim_signal_scale,
    few_step_schedule,
    flow_euler_schedule,
    flow_unipc_schedule,
)
from miga.solvers import DDIMSolver, EulerSolver

RECORDED = load_file(Path(__file__).parents[2] / "fixtures" / "vc2_ddim_fixture.safetensors")
ETAS = [0.0, 0.5, 1.0]
SCHEDULES = [
    ddim_schedule(64),
    ddim_schedule(4, "strided"),
    flow_unipc_schedule(54, 5.0),
    flow_euler_schedule(4, 3.0),
    few_step_schedule((1000, 750, 500, 250), 5.0),
]


def recorded_latents(name: str) -> torch.Tensor:
    """A recorded `[B, C, F, H, W]` as one batch of `B * F` latents."""
    return RECORDED[name].transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("kind", ["fifo", "scaled"])
def test_step_at_mixed_levels_equals_the_recorded_one(kind: str, eta: float) -> None:
    schedule = ddim_schedule(64)
    scale = ddim_signal_scale(schedule) if kind == "scaled" else torch.ones(65, dtype=torch.float64)
    x, eps, noise = (recorded_latents(f"step.{name}") for name in ("x", "eps", "noise"))
    level = RECORDED["step.indices"].repeat(2) + 1
    clean = (x - schedule.at(schedule.sigma, level, x) * eps) / schedule.at(schedule.alpha * scale, level, x)
    torch.testing.assert_close(clean, recorded_latents(f"step.{kind}.eta{eta}.pred_x0"), rtol=1e-5, atol=1e-5)

    solver = DDIMSolver(schedule, eta, scale if kind == "scaled" else None)
    stepped, history = solver.step(x, level, clean, solver.fresh_history(x), noise)
    torch.testing.assert_close(stepped, recorded_latents(f"step.{kind}.eta{eta}.x_prev"), rtol=1e-5, atol=1e-5)
    assert history == {}
    assert solver.is_stochastic == (eta > 0)


@pytest.mark.parametrize(("spacing", "recorded"), [("linspace", "fifo"), ("strided", "orig")])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noise_of_every_level_equals_the_recorded_one(spacing: str, recorded: str, eta: float) -> None:
    schedule = ddim_schedule(64, spacing)  # type: ignore[arg-type]
    nothing = torch.zeros(schedule.num_steps, 1, 1, 1)
    level = torch.arange(1, schedule.num_steps + 1)
    stepped, _ = DDIMSolver(schedule, eta).step(nothing, level, nothing, {}, torch.ones_like(nothing))
    torch.testing.assert_close(stepped.flatten(), eta * RECORDED[f"{recorded}.ddim_sigmas_eta1"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("num_steps", [1, 4, 20, 50])
def test_whole_trajectory_equals_diffusers(num_steps: int, eta: float) -> None:
    """diffusers' "leading" spacing is the strided one where the number of steps divides 1000."""
    reference = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1,
        clip_sample=False, timestep_spacing="leading",
    )  # fmt: skip
    reference.set_timesteps(num_steps)
    schedule = ddim_schedule(num_steps, "strided")
    solver = DDIMSolver(schedule, eta)
    generator = torch.Generator().manual_seed(num_steps)
    x = ours = torch.randn(2, 4, 3, 5, generator=generator)
    for level, t in zip(range(num_steps, 0, -1), reference.timesteps, strict=True):
        noise = torch.randn(x.shape, generator=generator)
        x = reference.step(torch.sin(2.0 * x + t / 300.0), t, x, eta=eta, variance_noise=noise, return_dict=False)[0]

        level_F = torch.full((2,), level)
        eps = torch.sin(2.0 * ours + schedule.timestep[level] / 300.0)
        alpha, sigma = (schedule.at(table, level_F, ours) for table in (schedule.alpha, schedule.sigma))
        ours, _ = solver.step(ours, level_F, (ours - sigma * eps) / alpha, {}, noise)
        torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def weights(solver: DDIMSolver) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of x, clean and noise at levels 1 ... T, read off the step."""
    num_steps = solver.schedule.num_steps
    zero, one = (
        torch.zeros(num_steps, 1, 1, 1, dtype=torch.float64),
        torch.ones(num_steps, 1, 1, 1, dtype=torch.float64),
    )
    level = torch.arange(1, num_steps + 1)
    unit_vectors = [(one, zero, zero), (zero, one, zero), (zero, zero, one)]
    of_x, of_clean, of_noise = (
        solver.step(x, level, clean, {}, noise)[0].flatten() for x, clean, noise in unit_vectors
    )
    return of_x, of_clean, of_noise


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_known_clean_latent_is_taken_to_the_next_level(schedule: NoiseSchedule, eta: float) -> None:
    """`alpha * clean + sigma * noise` comes out with signal scale alpha' and variance sigma'^2, whatever eta."""
    of_x, of_clean, of_noise = weights(DDIMSolver(schedule, eta))
    torch.testing.assert_close(of_x * schedule.alpha[1:] + of_clean, schedule.alpha[:-1])
    variance = of_x**2 * schedule.sigma[1:] ** 2 + of_noise**2
    torch.testing.assert_close(variance, schedule.sigma[:-1] ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_eta_1_reverses_the_diffusion(schedule: NoiseSchedule) -> None:
    """Noising is a Markov chain, x = alpha / alpha' * x' + fresh noise: given the clean latent, Cov(x, x') is known."""
    of_x, _, _ = weights(DDIMSolver(schedule, 1.0))
    covariance = schedule.alpha[1:] / schedule.alpha[:-1] * schedule.sigma[:-1] ** 2
    torch.testing.assert_close(of_x * schedule.sigma[1:] ** 2, covariance)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_eta_0_is_the_first_order_step(schedule: NoiseSchedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x, clean = torch.randn(2, schedule.num_steps, 4, 2, 3, generator=generator)
    level = torch.arange(1, schedule.num_steps + 1)
    ddim, _ = DDIMSolver(schedule, 0.0).step(x, level, clean, {})
    euler, _ = EulerSolver(schedule).step(x, level, clean, {})
    torch.testing.assert_close(ddim, euler, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", ETAS)
def test_level_1_of_64_steps_is_the_identity(eta: float) -> None:
    x, clean, noise = torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    stepped, _ = DDIMSolver(ddim_schedule(64), eta).step(x, torch.ones(2, dtype=torch.int64), clean, {}, noise)
    assert torch.equal(stepped, x)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match=r"0 \(deterministic\) to 1 \(ancestral\)"):
        DDIMSolver(ddim_schedule(4), eta)


def test_scale_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"shape \[4\].*\[5\]"):
        DDIMSolver(ddim_schedule(4), 0.0, torch.ones(4))
