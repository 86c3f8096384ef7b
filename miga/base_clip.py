"""The base clip: what the backbone was trained to make, one window with all latents at one level."""

from __future__ import annotations

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.windows import plan_pass


def start_base_clip(config: SamplerConfig, stepper: Stepper) -> FrameQueue:
    """`f0` latents of pure noise."""
    noise = stepper.noise("base", range(config.window))
    return stepper.fresh(noise, torch.full((config.window,), config.num_steps), first=0)


def advance_base_clip(queue: FrameQueue, config: SamplerConfig, stepper: Stepper) -> FrameQueue:
    """One denoise step of the whole clip."""
    return stepper.pass_over(queue, plan_pass(len(queue), config.window, config.stride))
