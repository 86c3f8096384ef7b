"""The base clip: what the backbone was trained to make, one window with all latents at one level."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue, History
from miga.schedule import NoiseSchedule
from miga.solvers import DDIMSolver
from miga.solvers.base import WithoutHistory
from miga.windows import plan_pass

PART: Final = "base clip"


class ScaledSolver(WithoutHistory):
    """DDIM with a factor on the signal scale, from clean latents that were predicted without it. See `Solver`.

    Args:
        schedule: one with a `base_clip_scale`.
        eta: of DDIM.
    """

    def __init__(self, schedule: NoiseSchedule, eta: float) -> None:
        assert schedule.base_clip_scale is not None, "there is no factor: take the solver itself"
        self._scale = schedule.base_clip_scale
        self._schedule = schedule
        self._ddim = DDIMSolver(schedule, eta, self._scale)
        self.is_stochastic = self._ddim.is_stochastic

    def step(
        self,
        x_FCHW: torch.Tensor,
        level_F: torch.Tensor,
        clean_FCHW: torch.Tensor,
        history: History,
        noise_FCHW: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, History]:
        """See `Solver.step`."""
        scaled_FCHW = clean_FCHW / self._schedule.at(self._scale, level_F, clean_FCHW)
        return self._ddim.step(x_FCHW, level_F, scaled_FCHW, history, noise_FCHW)


def base_clip_stepper(stepper: Stepper, eta: float) -> Stepper:
    """The stepper for the base clip: the same, unless the schedule has a factor for that clip alone.

    Source: decisions/0011.
    """
    if stepper.schedule.base_clip_scale is None:
        return stepper
    return replace(stepper, solver=ScaledSolver(stepper.schedule, eta))


def start_base_clip(config: SamplerConfig, stepper: Stepper) -> FrameQueue:
    """`f0` latents of pure noise."""
    return stepper.noise_queue(0, config.window, config.num_steps, "base")


def advance_base_clip(queue: FrameQueue, config: SamplerConfig, stepper: Stepper) -> FrameQueue:
    """One denoise step of the whole clip (its latents are stepped again as part of the video: other names of noise)."""
    return stepper.named("base/").in_part(PART).pass_over(queue, plan_pass(len(queue), config.window, config.window))
