"""The base clip: what the backbone was trained to make, one window with all latents at one level."""

from __future__ import annotations

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.windows import plan_pass


def start_base_clip(config: SamplerConfig, stepper: Stepper) -> FrameQueue:
    """`f0` latents of pure noise."""
    return stepper.noise_queue(0, config.window, config.num_steps, "base")


def advance_base_clip(queue: FrameQueue, config: SamplerConfig, stepper: Stepper) -> FrameQueue:
    """One denoise step of the whole clip (its latents are stepped again as part of the video: other names of noise)."""
    return stepper.named("base/").pass_over(queue, plan_pass(len(queue), config.window, config.stride))
