"""Noise levels: what signal scale, noise scale and time step each level stands for.

Level `r` is the number of denoise steps still to take: step `i` of a sampler of `T` steps takes level `T - i` to
`T - i - 1`. A latent at level `r` is `alpha_r * clean + sigma_r * noise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

import numpy as np
import torch

if TYPE_CHECKING:
    from miga.config import SamplerConfig

Sigma = TypeVar("Sigma", float, torch.Tensor)
NUM_TRAIN_TIMESTEPS: Final = 1000
DDIM_LINEAR_START: Final = 0.00085
DDIM_LINEAR_END: Final = 0.012

DdimSpacing = Literal["linspace", "strided"]


@dataclass(frozen=True)
class NoiseSchedule:
    """Tables over levels `0 ... T` (index = level), all of length `T + 1`, on the CPU.

    Attributes:
        alpha: signal scale, float64; level 0 is what the last step ends at, 1 in flow schedules; level `T` may be 0.
        sigma: noise scale, float64; level 0 is what the last step ends at, 0 in flow schedules; above 0 at all others.
        timestep: what the network is told, int64 or float32 (never bfloat16: 993 would become 992); level 0 holds the
            schedule's lowest, level 1's, which clean context latents are given.
        base_clip_scale: factor on the signal scale, float64, that the base clip alone is sampled with
            (`ddim_signal_scale`; decisions/0011); None: 1.
    """

    alpha: torch.Tensor
    sigma: torch.Tensor
    timestep: torch.Tensor
    base_clip_scale: torch.Tensor | None = None

    @property
    def num_steps(self) -> int:
        """`T`."""
        return len(self.sigma) - 1

    def at(self, table: torch.Tensor, level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`table[level]` shaped to multiply latents `[..., C, H, W]` of `like`'s dtype and device."""
        return table[level.cpu()].to(like.device, like.dtype)[..., None, None, None]

    def expert_of_level(self, boundary: float) -> torch.Tensor:
        """Which of two networks answers for every level: 0 from this share of the noise on, 1 below it."""
        return (self.timestep < boundary * NUM_TRAIN_TIMESTEPS).long()

    def add_noise(self, clean_FCHW: torch.Tensor, noise_FCHW: torch.Tensor, level_F: torch.Tensor) -> torch.Tensor:
        """Clean latents brought to their levels. Source: MIGA Eq. A1."""
        alpha, sigma = self.at(self.alpha, level_F, clean_FCHW), self.at(self.sigma, level_F, clean_FCHW)
        return alpha * clean_FCHW + sigma * noise_FCHW


def check_levels(schedule: NoiseSchedule) -> None:
    """Finds levels that no solver can step between.

    Raises:
        ValueError: if a table is not finite, noise does not rise from level to level, in float32 too (level 1 may be
            level 0 over again), or there is a level without noise above 0.
    """
    tables = {"alpha": schedule.alpha, "sigma": schedule.sigma, "timestep": schedule.timestep}
    for name, table in tables.items():
        if table.shape != schedule.sigma.shape or table.dim() != 1 or len(table) < 2:
            raise ValueError(f"its {name} is no table over levels 0 ... T")
        if not bool(torch.isfinite(table.float()).all()):
            raise ValueError(f"its {name} is not finite at level {int(torch.isfinite(table.float()).int().argmin())}")
    alpha, sigma = schedule.alpha.float(), schedule.sigma.float()
    if bool((sigma[1:] <= 0.0).any()) or bool((alpha < 0.0).any()) or float(sigma[0]) < 0.0:
        raise ValueError("a level above 0 has no noise, or one a signal below 0")
    falls = (sigma.diff() < 0.0) | (alpha.diff() > 0.0)
    is_same = (sigma.diff() == 0.0) & (alpha.diff() == 0.0)
    is_same[0] = False
    if bool((falls | is_same).any()):
        level = int((falls | is_same).int().argmax())
        before, after = float(schedule.sigma[level + 1]), float(schedule.sigma[level])
        raise ValueError(f"no step leads from level {level + 1}, sigma {before:.9g}, to level {level}, {after:.9g}")


def schedule_for(config: SamplerConfig) -> NoiseSchedule:
    """A schedule that a config's solver can step through: DDIM's, or the flow-matching one that goes with the solver.

    Raises:
        ValueError: if there is none of so many steps.
    """
    if config.solver == "ddim":
        return ddim_schedule(config.num_steps)
    if config.timesteps:
        return few_step_schedule(config.timesteps, config.flow_shift)
    make = flow_unipc_schedule if config.solver == "unipc" else flow_euler_schedule
    return make(config.num_steps, config.flow_shift)


def flow_unipc_schedule(
    num_steps: int, flow_shift: float, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS
) -> NoiseSchedule:
    """The schedule of diffusers' `UniPCMultistepScheduler(use_flow_sigmas=True)`, as Wan's pipeline uses it.

    Equal to it bit for bit, which is why the noise scales are rounded to float32: the signal scale of pure noise is
    1e-6, and rounds to 1.01e-6. The time steps are truncated before that rounding. Level 0 is the clean latent
    (alpha 1, sigma 0), its time step that of level 1.

    Raises:
        ValueError: if there are no steps, or the shift is not above 0.
    """
    _check_flow(num_steps, flow_shift)
    slope = (1.0 / num_train_timesteps - 1.0) / num_steps
    sigma = 1.0 + slope * torch.arange(num_steps, dtype=torch.float64)
    sigma = shifted(sigma, flow_shift)
    sigma[0] -= 1e-6  # keeps the signal scale above 0: solvers take its logarithm
    timestep = (sigma * num_train_timesteps).to(torch.int64)
    sigma = torch.cat([sigma, sigma.new_zeros(1)]).float().double()
    timestep = torch.cat([timestep, timestep[-1:]])
    return NoiseSchedule(alpha=1.0 - sigma.flip(0), sigma=sigma.flip(0), timestep=timestep.flip(0))


def flow_euler_schedule(num_steps: int, flow_shift: float) -> NoiseSchedule:
    """The schedule of diffusers' `FlowMatchEulerDiscreteScheduler(shift=flow_shift)`, equal to it bit for bit.

    Evenly spaced from 1000 to the lowest time step, which is shifted already, then shifted (so the lowest one twice).
    Pure noise has signal scale 0. Time steps are float32, not rounded. Level 0 is the clean latent (alpha 1, sigma 0),
    its time step that of level 1.

    Raises:
        ValueError: if there are no steps, or the shift is not above 0.
    """
    _check_flow(num_steps, flow_shift)
    lowest = shifted(torch.ones(1) / NUM_TRAIN_TIMESTEPS, flow_shift).item() * NUM_TRAIN_TIMESTEPS  # float32 as there
    time = torch.from_numpy(np.linspace(NUM_TRAIN_TIMESTEPS, lowest, num_steps))
    sigma = shifted(time / NUM_TRAIN_TIMESTEPS, flow_shift).float()
    return _flow_schedule(sigma.double(), sigma * NUM_TRAIN_TIMESTEPS)


def released_flow_schedule(num_steps: int, flow_shift: float) -> NoiseSchedule:
    """The schedule of Wan's own UniPC program, which MIGA's released one samples with.

    Evenly spaced from 0.999, the highest noise scale of that program's table, towards 0, then shifted; time steps are
    truncated to integers. The highest level, sigma 0.9998 under shift 5, is so not quite pure noise. Level 0 is the
    clean latent (alpha 1, sigma 0), its time step that of level 1.

    Raises:
        ValueError: if there are no steps, or the shift is not above 0.
    """
    _check_flow(num_steps, flow_shift)
    sigma = shifted(torch.from_numpy(np.linspace(0.999, 0.0, num_steps + 1)[:num_steps]), flow_shift)
    return _flow_schedule(sigma, (sigma * NUM_TRAIN_TIMESTEPS).to(torch.int64))


def even_flow_schedule(num_steps: int, flow_shift: float) -> NoiseSchedule:
    """The schedule that Stable Video Infinity, and DiffSynth's other programs for Wan, sample with.

    Evenly spaced from 1 towards 0, then shifted; time steps are float32, not rounded. Pure noise has signal scale 0.
    Level 0 is the clean latent (alpha 1, sigma 0), its time step that of level 1.

    Raises:
        ValueError: if there are no steps, or the shift is not above 0.
    """
    _check_flow(num_steps, flow_shift)
    sigma = shifted(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1], flow_shift)
    return _flow_schedule(sigma, (sigma * NUM_TRAIN_TIMESTEPS).float())


def few_step_schedule(timesteps: Sequence[int], flow_shift: float) -> NoiseSchedule:
    """The schedule of a step-distilled model: the list of time steps that it was distilled for, one step each.

    The list is as such models publish it, unshifted: (1000, 750, 500, 250) under shift 5 stand for sigmas 1, 0.9375,
    0.8333 and 0.625, and the network is told the *shifted* time, 1000 * sigma, in float32. Pure noise (time step 1000)
    has signal scale 0. Level 0 is the clean latent (alpha 1, sigma 0), its time step that of level 1.

    Source: decisions/0007.

    Args:
        timesteps: strictly decreasing, within 1 ... 1000; most models expect the first to be 1000.
        flow_shift: shift the model was distilled with; 1 for a list that is shifted already.

    Raises:
        ValueError: if the list is empty, not strictly decreasing or out of range, or the shift is not above 0.
    """
    _check_flow(len(timesteps), flow_shift)
    for before, after in zip((NUM_TRAIN_TIMESTEPS + 1, *timesteps), timesteps, strict=False):
        if not 1 <= after < before:
            raise ValueError(
                f"timesteps = {list(timesteps)} of a few-step model are wrong at {after!r}: they must fall from one to "
                f"the next and lie within 1 ... {NUM_TRAIN_TIMESTEPS} (the clean latent, 0, is added behind them)"
            )
    time = torch.tensor(timesteps, dtype=torch.float64) / NUM_TRAIN_TIMESTEPS
    alpha = (1.0 - time) / (1.0 + (flow_shift - 1.0) * time)  # of the shifted sigma; exactly 0 at pure noise
    return _flow_schedule(1.0 - alpha, ((1.0 - alpha) * NUM_TRAIN_TIMESTEPS).float())


def ddim_schedule(num_steps: int, spacing: DdimSpacing = "linspace") -> NoiseSchedule:
    """VideoCrafter2's variance-preserving schedule: betas linear in their square root, 1000 training time steps.

    Level 0 is time 0, where the last step ends, at a noise scale of 0.029; its time step entry is that of level 1.

    Args:
        num_steps: `T`.
        spacing: "linspace": `T` time steps evenly over 0 ... 999, rounded, so that level 1 is time 0 and its step the
            identity (a single one is 999); of FIFO-Diffusion and MIGA. "strided": every `1000 // T`-th from 1 on; of
            VideoCrafter. That gives *more* than `T` steps where `T` does not divide 1000: 67 for 64.

    Raises:
        ValueError: if there are no steps, or a number of them that the spacing cannot give.
    """
    if spacing not in get_args(DdimSpacing):
        raise ValueError(
            f"unknown spacing {spacing!r} of DDIM steps: it must be one of {', '.join(get_args(DdimSpacing))}"
        )
    highest = NUM_TRAIN_TIMESTEPS if spacing == "linspace" else NUM_TRAIN_TIMESTEPS // 2
    if not 1 <= num_steps <= highest:
        raise ValueError(f"num_steps = {num_steps!r} is out of range: spacing {spacing!r} gives 1 to {highest} steps")
    if spacing == "strided":
        timestep = torch.arange(0, NUM_TRAIN_TIMESTEPS, NUM_TRAIN_TIMESTEPS // num_steps) + 1
        if timestep[-1] == NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"num_steps = {num_steps} with spacing 'strided' ends at time step {NUM_TRAIN_TIMESTEPS}, past the "
                "last: take another number of steps, or spacing 'linspace'"
            )
    elif num_steps == 1:
        timestep = torch.tensor([NUM_TRAIN_TIMESTEPS - 1])
    else:
        timestep = torch.from_numpy(np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, num_steps).round()).to(torch.int64)
    a = _ddim_alphas_cumprod()[torch.cat([torch.zeros(1, dtype=torch.int64), timestep])]
    return NoiseSchedule(alpha=a.sqrt(), sigma=(1.0 - a).sqrt(), timestep=torch.cat([timestep[:1], timestep]))


def ddim_signal_scale(schedule: NoiseSchedule) -> torch.Tensor:
    """VideoCrafter2's `use_scale` factor on the signal, `[T + 1]` float64: 1 at time 0, 0.7 from time 399 on.

    For `DDIMSolver(..., scale=...)` on a `ddim_schedule`. The base clip is sampled with it; FIFO-Diffusion's and MIGA's
    per-latent steps go without. Level 0 is at time 0.
    """
    ramp = torch.linspace(1.0, 0.7, 400, dtype=torch.float64)
    scale = torch.cat([ramp, torch.full((NUM_TRAIN_TIMESTEPS - len(ramp),), 0.7, dtype=torch.float64)])
    return torch.cat([scale[:1], scale[schedule.timestep[1:]]])


def _ddim_alphas_cumprod() -> torch.Tensor:
    """`[1000]`, float64; rounded to float32 as the model's program keeps it."""
    root_beta = torch.linspace(DDIM_LINEAR_START**0.5, DDIM_LINEAR_END**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
    return (1.0 - root_beta**2).cumprod(0).float().double()


def shifted(sigma: Sigma, flow_shift: float) -> Sigma:
    """Sigmas moved towards noise: `shift s / (1 + (shift - 1) s)`, as SD3, Wan and all on them shift a schedule."""
    return flow_shift * sigma / (1.0 + (flow_shift - 1.0) * sigma)


def _flow_schedule(sigma: torch.Tensor, timestep: torch.Tensor) -> NoiseSchedule:
    """From the entries of levels `T ... 1`."""
    sigma = torch.cat([sigma, sigma.new_zeros(1)]).flip(0)
    return NoiseSchedule(alpha=1.0 - sigma, sigma=sigma, timestep=torch.cat([timestep, timestep[-1:]]).flip(0))


def _check_flow(num_steps: int, flow_shift: float) -> None:
    if num_steps < 1:
        raise ValueError(f"a schedule of {num_steps} steps: there must be at least 1")
    if not 0.0 < flow_shift < float("inf"):
        raise ValueError(f"flow_shift = {flow_shift!r} is out of range: it must be above 0")
