"""Whether a config's solver can step through a schedule, found out before anything is made.

Legend: F latents, one for every level from which a video's latents may start.
"""

from __future__ import annotations

import functools

import torch

from miga.config import SamplerConfig, SolverName
from miga.errors import ConfigError
from miga.schedule import NoiseSchedule, check_levels
from miga.solvers import Solver, make_solver

MAX_ERROR = 1e-2
"""Of a latent of size 1: rounding leaves about 1e-6 at the published settings."""


def check_steps(config: SamplerConfig, schedule: NoiseSchedule) -> None:
    """Finds settings under which levels coincide, or steps are not finite or lost in rounding.

    Latents of size 1 whose clean latent is known are taken through all steps in float32, as a video's are.

    Raises:
        ConfigError: naming the settings.
    """
    if schedule.num_steps != config.num_steps:
        raise ConfigError(
            f"sampler.num_steps = {config.num_steps}, but the denoiser's schedule has {schedule.num_steps} steps",
            "ask the backbone for a denoiser of this config",
        )
    if config.solver == "renoise" and float(schedule.sigma[0]) > 0.0:
        raise ConfigError(
            f"sampler.solver = 'renoise' would leave noise of {float(schedule.sigma[0]):.3g} on finished latents: this "
            "model's schedule ends above 0, and the solver noises its prediction to that",
            "take 'ddim' (with eta = 1: as much fresh noise in between) or 'euler'",
        )
    tables = (tuple(schedule.alpha.tolist()), tuple(schedule.sigma.tolist()), tuple(schedule.timestep.tolist()))
    if reason := _why_not(config.solver, config.eta, *tables):
        steps = f"timesteps = {list(config.timesteps)}" if config.timesteps else f"num_steps = {config.num_steps}"
        raise ConfigError(
            f"sampler.{steps} and sampler.flow_shift = {config.flow_shift} make no noise schedule that solver "
            f"{config.solver!r} can step through: {reason}",
            "take fewer steps, or a flow_shift nearer 1 (models are published with 1 to 17)",
        )


@functools.lru_cache(maxsize=64)
def _why_not(
    name: SolverName, eta: float, alpha: tuple[float, ...], sigma: tuple[float, ...], timestep: tuple[float, ...]
) -> str:
    """What is wrong with a schedule, given by its tables, for a solver; empty if nothing is."""
    as_tensor = functools.partial(torch.tensor, dtype=torch.float64)
    schedule = NoiseSchedule(as_tensor(alpha), as_tensor(sigma), as_tensor(timestep))
    try:
        check_levels(schedule)
        error = _largest_error(make_solver(name, schedule, eta), schedule)
    except (ValueError, ArithmeticError) as failure:
        return str(failure) or type(failure).__name__
    return "" if error <= MAX_ERROR else f"a latent of size 1 would stray by {error:.3g} from its level"


def _largest_error(solver: Solver, schedule: NoiseSchedule) -> float:
    """How far latents of clean 1 and noise 1 stray from what their level allows, on all ways down; NaN is infinite.

    With the right prediction every solver keeps the signal of each level exactly, and at most its noise, whatever level
    a latent starts from.
    """
    level_F = torch.arange(1, schedule.num_steps + 1)
    ones = torch.ones(schedule.num_steps, 1, 1, 1)
    x = schedule.add_noise(ones, ones, level_F)
    history, largest = solver.fresh_history(x), 0.0
    while len(level_F):
        x, history = solver.step(x, level_F, ones[: len(x)], history, torch.zeros_like(x))
        level_F = level_F - 1
        error_F = (x.flatten() - schedule.alpha[level_F]).abs() - schedule.sigma[level_F]
        largest = max(largest, float(torch.nan_to_num(error_F, nan=torch.inf).max()))
        x, level_F, history = x[1:], level_F[1:], {key: tensor[1:] for key, tensor in history.items()}
    return largest
