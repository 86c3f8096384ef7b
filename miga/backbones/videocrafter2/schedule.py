"""VideoCrafter2's noise schedule. No weights, and no library that loads them, are needed to know it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from miga.backbones.videocrafter2.spec import Settings
from miga.config import SamplerConfig
from miga.errors import ConfigError
from miga.schedule import NUM_TRAIN_TIMESTEPS, DdimSpacing, NoiseSchedule, ddim_schedule, ddim_signal_scale


def schedule_of(config: SamplerConfig, settings: Settings) -> NoiseSchedule:
    """VideoCrafter2's noise schedule, with the factor for the base clip if `settings` ask for it.

    Raises:
        ConfigError: if the schedule has no such number of steps, or the solver cannot step through it.
    """
    if config.solver == "unipc":
        raise ConfigError(
            "sampler.solver = 'unipc' cannot step through VideoCrafter2's schedule, whose last step changes nothing",
            "take 'ddim' (with eta 1 as published, or 0), or 'euler'",
        )
    spacing: DdimSpacing = "strided" if config.takes_strided_steps else settings.spacing
    schedule = _ddim(config.num_steps, spacing)
    return replace(schedule, base_clip_scale=ddim_signal_scale(schedule)) if settings.use_scale else schedule


_STRIDED: Final = {
    -(-NUM_TRAIN_TIMESTEPS // (NUM_TRAIN_TIMESTEPS // asked)): asked
    for asked in range(1, NUM_TRAIN_TIMESTEPS // 2 + 1)
    if (NUM_TRAIN_TIMESTEPS - 1) % (NUM_TRAIN_TIMESTEPS // asked)
}
"""Numbers of steps that the strided spacing can make, and how many to ask it for (67: 66, as 64 makes)."""


def _ddim(num_steps: int, spacing: DdimSpacing) -> NoiseSchedule:
    if spacing == "linspace":
        try:
            return ddim_schedule(num_steps)
        except ValueError as error:
            raise ConfigError(f"sampler.num_steps = {num_steps} cannot be: {error}", "take another number") from error
    if num_steps not in _STRIDED:
        nearest = sorted(_STRIDED, key=lambda count: abs(count - num_steps))[:2]
        raise ConfigError(
            f"sampler.num_steps = {num_steps} cannot be with spacing 'strided', which takes every n-th of "
            f"{NUM_TRAIN_TIMESTEPS} time steps",
            f"the nearest are {nearest[0]} and {nearest[1]}",
        )
    return ddim_schedule(_STRIDED[num_steps], "strided")
