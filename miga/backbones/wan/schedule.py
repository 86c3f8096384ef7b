"""The noise schedule of Wan's models. No weights, and no library that loads them, are needed to know it."""

from __future__ import annotations

from miga.config import SamplerConfig
from miga.schedule import (
    NoiseSchedule,
    even_flow_schedule,
    few_step_schedule,
    flow_euler_schedule,
    flow_unipc_schedule,
    released_flow_schedule,
)


def schedule_of(config: SamplerConfig) -> NoiseSchedule:
    """The schedule that a config's solver and method step through."""
    if config.timesteps:
        return few_step_schedule(config.timesteps, config.flow_shift)
    if config.takes_wan_program_steps:
        return released_flow_schedule(config.num_steps, config.flow_shift)
    if config.solver == "euler" and config.takes_even_steps:
        return even_flow_schedule(config.num_steps, config.flow_shift)
    if config.solver == "euler":
        return flow_euler_schedule(config.num_steps, config.flow_shift)
    return flow_unipc_schedule(config.num_steps, config.flow_shift)
