"""Schedules against diffusers' schedulers, exact fractions and figures recorded from VideoCrafter2's sampler.

`tests/fixtures/vc2_ddim_fixture.json` says what was recorded and how.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from miga.schedule import (
    NoiseSchedule,
    ddim_schedule,
    ddim_signal_scale,
    few_step_schedule,
    flow_euler_schedule,
    flow_unipc_schedule,
    released_flow_schedule,
)

RECORDED = load_file(Path(__file__).parents[1] / "fixtures" / "vc2_ddim_fixture.safetensors")
FEW_STEPS = (1000, 750, 500, 250)
FLOW_SCHEDULES = [
    flow_unipc_schedule(54, 5.0),
    flow_euler_schedule(50, 3.0),
    released_flow_schedule(54, 5.0),
    few_step_schedule(FEW_STEPS, 5.0),
]
VP_SCHEDULES = [ddim_schedule(64), ddim_schedule(64, "strided"), ddim_schedule(4), ddim_schedule(1)]


def shifted(sigma: Fraction, shift: int) -> Fraction:
    return shift * sigma / (1 + (shift - 1) * sigma)


def assert_equals_fractions(table: torch.Tensor, fractions: list[Fraction]) -> None:
    torch.testing.assert_close(
        table, torch.tensor([float(fraction) for fraction in fractions], dtype=torch.float64), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("schedule", FLOW_SCHEDULES + VP_SCHEDULES)
def test_tables_are_whole_and_monotone(schedule: NoiseSchedule) -> None:
    length = schedule.num_steps + 1
    assert schedule.alpha.shape == schedule.sigma.shape == schedule.timestep.shape == (length,)
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.float64
    assert schedule.timestep.dtype in (torch.int64, torch.float32)
    assert (schedule.sigma.diff() >= 0).all()
    assert (schedule.alpha.diff() <= 0).all()
    assert (schedule.sigma.diff()[1:] > 0).all(), "levels from 1 on differ"
    assert (schedule.timestep.diff()[1:] > 0).all()
    assert schedule.timestep[0] == schedule.timestep[1], "level 0 holds the lowest time step"
    assert (schedule.alpha >= 0).all()
    assert (schedule.sigma[1:] > 0).all(), "solvers divide by it"


@pytest.mark.parametrize("schedule", FLOW_SCHEDULES)
def test_flow_schedules_mix_linearly_and_end_clean(schedule: NoiseSchedule) -> None:
    assert torch.equal(schedule.alpha, 1.0 - schedule.sigma)
    assert (schedule.alpha[0], schedule.sigma[0]) == (1.0, 0.0)


@pytest.mark.parametrize("schedule", VP_SCHEDULES)
def test_ddim_schedules_keep_the_variance_and_end_at_time_0(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones_like(schedule.alpha))
    first = float(RECORDED["alphas_cumprod"][0])
    assert float(schedule.alpha[0]) == pytest.approx(math.sqrt(first), rel=1e-12)
    assert float(schedule.sigma[0]) == pytest.approx(math.sqrt(1.0 - first), rel=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 20, 50, 54])
def test_flow_euler_equals_diffusers(num_steps: int, shift: float) -> None:
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(num_steps)
    schedule = flow_euler_schedule(num_steps, shift)
    assert schedule.num_steps == num_steps
    assert torch.equal(schedule.sigma.flip(0).float(), reference.sigmas)
    assert torch.equal(schedule.timestep.flip(0)[:-1], reference.timesteps)
    assert schedule.alpha[-1] == 0.0


@pytest.mark.parametrize("shift", [1, 3, 5, 8])
@pytest.mark.parametrize("num_steps", [1, 4, 50, 54])
def test_released_schedule_in_exact_fractions(num_steps: int, shift: int) -> None:
    sigmas = [shifted(Fraction(999, 1000) * (num_steps - i) / num_steps, shift) for i in range(num_steps)]
    schedule = released_flow_schedule(num_steps, shift)
    assert_equals_fractions(schedule.sigma.flip(0), [*sigmas, Fraction(0)])
    assert schedule.timestep.dtype == torch.int64
    assert schedule.timestep.flip(0)[:-1].tolist() == [math.floor(1000 * sigma) for sigma in sigmas]


def test_released_schedule_has_the_figures_published_for_four_steps() -> None:
    """Wan's own UniPC scheduler at 4 steps, shift 5."""
    schedule = released_flow_schedule(4, 5.0)
    assert schedule.sigma.flip(0).tolist() == pytest.approx([0.99980, 0.93727, 0.83306, 0.62469, 0.0], abs=5e-6)
    assert schedule.timestep.flip(0)[:-1].tolist() == [999, 937, 833, 624]


def test_few_step_schedule_has_the_figures_published_for_distilled_wan() -> None:
    schedule = few_step_schedule(FEW_STEPS, 5.0)
    assert_equals_fractions(
        schedule.sigma.flip(0), [Fraction(1), Fraction(15, 16), Fraction(5, 6), Fraction(5, 8), Fraction(0)]
    )
    assert schedule.timestep.dtype == torch.float32
    assert schedule.timestep.flip(0)[:-1].tolist() == pytest.approx([1000.0, 937.5, 2500 / 3, 625.0], rel=1e-7)


@pytest.mark.parametrize(("timesteps", "shift"), [((1000,), 5), ((999, 1), 3), ((1000, 757, 522), 8), ((800, 400), 1)])
def test_few_step_schedule_in_exact_fractions(timesteps: tuple[int, ...], shift: int) -> None:
    sigmas = [shifted(Fraction(time, 1000), shift) for time in timesteps]
    schedule = few_step_schedule(timesteps, shift)
    assert_equals_fractions(schedule.sigma.flip(0), [*sigmas, Fraction(0)])
    assert schedule.timestep.flip(0)[:-1].tolist() == pytest.approx([float(1000 * s) for s in sigmas], rel=1e-7)


@pytest.mark.parametrize("shift", [1.0, 3.3, 5.0, 7.7])
def test_few_step_pure_noise_has_no_signal(shift: float) -> None:
    schedule = few_step_schedule(FEW_STEPS, shift)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "timesteps", [(), (1000, 1000), (500, 750), (1000, 0), (1001, 500), (1000, 750, 750), (1000, -1)]
)
def test_wrong_lists_of_time_steps(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fall from one to the next and lie within 1 \.\.\. 1000|at least 1"):
        few_step_schedule(timesteps, 5.0)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_wrong_shifts(shift: float) -> None:
    for make in (flow_euler_schedule, released_flow_schedule):
        with pytest.raises(ValueError, match="flow_shift"):
            make(4, shift)
    with pytest.raises(ValueError, match="flow_shift"):
        few_step_schedule(FEW_STEPS, shift)


def test_no_steps() -> None:
    for make in (flow_euler_schedule, released_flow_schedule):
        with pytest.raises(ValueError, match="at least 1"):
            make(0, 5.0)


@pytest.mark.parametrize(("spacing", "recorded"), [("linspace", "fifo"), ("strided", "orig")])
def test_ddim_schedule_equals_the_recorded_one(spacing: str, recorded: str) -> None:
    schedule = ddim_schedule(64, spacing)  # type: ignore[arg-type]
    a = (schedule.alpha**2).float()
    assert torch.equal(schedule.timestep[1:], RECORDED[f"{recorded}.timesteps64"])
    assert torch.equal(a[1:], RECORDED[f"{recorded}.ddim_alphas"])
    assert torch.equal(a[:-1], RECORDED[f"{recorded}.ddim_alphas_prev"])


@pytest.mark.parametrize(("spacing", "recorded"), [("linspace", "fifo"), ("strided", "orig")])
def test_signal_scale_equals_the_recorded_one(spacing: str, recorded: str) -> None:
    scale = ddim_signal_scale(ddim_schedule(64, spacing)).float()  # type: ignore[arg-type]
    torch.testing.assert_close(scale[1:], RECORDED[f"{recorded}.ddim_scale_arr"], rtol=1e-7, atol=0)
    torch.testing.assert_close(scale[:-1], RECORDED[f"{recorded}.ddim_scale_arr_prev"], rtol=1e-7, atol=0)


def test_ddim_schedule_takes_every_training_step() -> None:
    schedule = ddim_schedule(1000)
    assert torch.equal((schedule.alpha[1:] ** 2).float(), RECORDED["alphas_cumprod"])
    assert schedule.timestep[1:].tolist() == list(range(1000))


def test_level_1_of_even_spacing_is_time_0_already() -> None:
    schedule = ddim_schedule(64)
    assert schedule.timestep[1] == 0
    assert (schedule.alpha[0], schedule.sigma[0]) == (schedule.alpha[1], schedule.sigma[1])


def test_a_single_ddim_step_starts_from_the_highest_time() -> None:
    assert ddim_schedule(1).timestep.tolist() == [999, 999]
    assert ddim_schedule(1, "strided").timestep.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("num_steps", "spacing", "reason"),
    [
        (0, "linspace", "1 to 1000"),
        (1001, "linspace", "1 to 1000"),
        (501, "strided", "1 to 500"),
        (27, "strided", "time step 1000"),
        (64, "even", "linspace, strided"),
    ],
)
def test_ddim_steps_that_there_are_not(num_steps: int, spacing: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ddim_schedule(num_steps, spacing)  # type: ignore[arg-type]


def test_fifo_queue_is_noised_as_recorded() -> None:
    """8 steps, a clip of 4 latents, 2 of context; position i holds base latent max(0, i - (T - f0)) at level i + 1."""
    schedule = ddim_schedule(8)
    assert torch.equal(schedule.timestep[1:], RECORDED["queue.timesteps8"])
    assert torch.equal((schedule.alpha[1:] ** 2).float(), RECORDED["queue.ddim_alphas8"])
    video, noise, queue = (RECORDED[f"queue.{name}"][0].transpose(0, 1) for name in ("video", "noise", "latents"))
    position = torch.cat([torch.zeros(2, dtype=torch.int64), torch.arange(8)])
    ours = schedule.add_noise(video[(position - 4).clamp(min=0)], noise, position + 1)
    torch.testing.assert_close(ours, queue, rtol=1e-6, atol=1e-6)
