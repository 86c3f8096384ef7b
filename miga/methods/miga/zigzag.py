"""Stage 1: the zigzag queue, whose level changes only every `L_zig` latents. Source: MIGA Alg. 4 and 5.

The steady queue spans levels `e ... T`, `L_zig` latents each, `e` at its head. One advance is one pass over it. Of a
video of known length the queue may run empty once the last latent is in it (`MigaSettings.drain`, decisions/0008).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from miga.anchors import Anchors
from miga.denoise_pass import Stepper
from miga.long_range import LongRange
from miga.methods.miga.settings import MigaSettings
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace, SelfReflection


@dataclass(frozen=True)
class Zigzag:
    """Stage 1 of one video.

    Attributes:
        num_latents: of the video; None if it has no end.
    """

    config: MigaSettings
    stepper: Stepper
    reflection: SelfReflection | None
    num_latents: int | None = None

    @functools.cached_property
    def long_range(self) -> LongRange:
        """Its guidance."""
        return LongRange(self.config, self.stepper.prompts, self.config.lead)

    def start(self, clean_FCHW: torch.Tensor) -> FrameQueue:
        """The base clip, its groups noised to levels `T - n_zig ... T - 1`. Source: Alg. 4, lines 7-13.

        Groups that would come to stand below the level that Stage 1 hands over at are noised to just that level
        (`MigaSettings.num_early_groups`).

        Args:
            clean_FCHW: the base clip's `f0` clean latents.
        """
        config = self.config
        level = config.num_steps - config.num_base_groups + torch.arange(config.window) // config.zigzag_width
        return self.stepper.renoised(clean_FCHW, level.clamp_min(config.handoff_level - 1), first=0)

    def advance(
        self, queue: FrameQueue, trace: ReflectionTrace, anchors: Anchors = ()
    ) -> tuple[FrameQueue | None, FrameQueue, ReflectionTrace]:
        """One push, judgement and pass; once the head has reached level `e`, its group leaves at level `e - 1`.

        A queue that drains is neither pushed to nor judged. Base groups that start at level `e - 1` leave at once.

        Args:
            queue: Stage 1's.
            trace: what self-reflection did so far.
            anchors: finished latents that windows may be shown.

        Returns:
            The group that left (None during initialisation), the queue, the trace.
        """
        config = self.config
        num_early = int((queue.level_F < config.handoff_level).sum())
        if num_early:
            early, queue = queue.pop(num_early)
            return early.compact(), queue.compact(), trace
        if self.is_pushed(queue.first + len(queue)):
            queue = self.stepper.push_noise(queue, config.zigzag_width, config.num_steps, "push")
            if self.reflection is not None:
                queue, trace = self.reflection.reflect(queue, trace, anchors=anchors)
        is_full = int(queue.level_F[0]) == config.handoff_level
        queue = self.stepper.pass_over(queue, self.long_range.plan(queue, anchors), anchors)
        if not is_full:
            return None, queue, trace
        head, queue = queue.pop(config.zigzag_width)
        return head.compact(), queue.compact(), trace

    def is_pushed(self, end: int) -> bool:
        """Whether a queue whose tail ends before latent `end` of the video gets another group."""
        config = self.config
        return not config.drain or self.num_latents is None or end < self.num_latents + config.zigzag_width

    def is_open(self, queue: FrameQueue) -> bool:
        """Whether no push was withheld: a tail that was pushed in the last pass has taken one step."""
        return len(queue) == 0 or int(queue.level_F[-1]) == self.config.num_steps - 1
