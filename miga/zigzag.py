"""Stage 1: the zigzag queue, whose level changes only every `L_zig` latents. Source: MIGA Alg. 4 and 5.

The steady queue spans levels `e ... T`, `L_zig` latents each, `e` at its head. One advance is one pass over it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace, SelfReflection
from miga.windows import plan_pass


@dataclass(frozen=True)
class Zigzag:
    """Stage 1 of one video."""

    config: SamplerConfig
    stepper: Stepper
    reflection: SelfReflection | None

    def start(self, clean_FCHW: torch.Tensor) -> FrameQueue:
        """The base clip, its groups noised to levels `T - n_zig ... T - 1`. Source: Alg. 4, lines 7-13.

        Args:
            clean_FCHW: the base clip's `f0` clean latents.
        """
        config = self.config
        num_groups = config.window // config.zigzag_width
        level = config.num_steps - num_groups + torch.arange(config.window) // config.zigzag_width
        noise = self.stepper.noise("renoise", range(config.window)).to(clean_FCHW)
        return self.stepper.fresh(self.stepper.schedule.add_noise(clean_FCHW, noise, level), level, first=0)

    def advance(
        self, queue: FrameQueue, trace: ReflectionTrace
    ) -> tuple[FrameQueue | None, FrameQueue, ReflectionTrace]:
        """One push, judgement and pass; once the head has reached level `e`, its group leaves at level `e - 1`.

        Returns:
            The group that left (None during initialisation), the queue, the trace.
        """
        config = self.config
        is_full = int(queue.level_F[0]) == config.handoff_level
        queue = self.stepper.push_noise(queue, config.zigzag_width, config.num_steps, "push")
        if self.reflection is not None:
            queue, trace = self.reflection.reflect(queue, trace)
        plan = plan_pass(len(queue), config.window, config.stride, config.num_guidance_latents, config.zigzag_width)
        queue = self.stepper.pass_over(queue, plan)
        if not is_full:
            return None, queue, trace
        head, queue = queue.pop(config.zigzag_width)
        return head.compact(), queue.compact(), trace
