"""FIFO-Diffusion, the baseline: a queue of `T` latents one level apart, one clean latent out per pass.

Source: Kim et al. 2024; MIGA Alg. 1-3; its lookahead denoising (windows keep their right half, and clean context
stands before the head): decisions/0004. Without lookahead it is Alg. 3 as printed: windows keep their left part, and
nothing stands before the head. The copies of the base clip's first latent, which Alg. 2 counts as the video's first
`T - f0`, are thrown away either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch

from miga.denoise_pass import Stepper
from miga.methods.base import Begin
from miga.methods.fifo.settings import DiagonalSettings, FifoSettings
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.windows import plan_lookahead, plan_pass

PART: Final = "stage 1"


@dataclass(frozen=True)
class FifoState:
    """The diagonal queue, and the clean context before its head (without lookahead, none)."""

    context: FrameQueue | None
    queue: FrameQueue
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


@dataclass(frozen=True)
class Fifo:
    """FIFO-Diffusion of one video.

    Attributes:
        lookahead: see `FifoSettings`.
    """

    config: DiagonalSettings
    stepper: Stepper
    lookahead: bool = True

    @property
    def num_warmup(self) -> int:
        """Latents that come out before the base clip's first: copies of it, to be thrown away."""
        return self.config.num_steps - self.config.window

    def start(self, clean_FCHW: torch.Tensor) -> FifoState:
        """Queue position `i` is base latent `max(0, i - (T - f0))` noised to level `i + 1`.

        Positions before the base clip have negative indices in the video.
        """
        num_steps, num_context = self.config.num_steps, self.config.window // 2
        level = 1 + torch.arange(num_steps)
        source = (torch.arange(num_steps) - self.num_warmup).clamp_min(0)
        first = -self.num_warmup
        queue = self.stepper.renoised(clean_FCHW[source], level, first)
        if not self.lookahead:
            return FifoState(None, queue)
        copies = clean_FCHW[:1].expand(num_context, -1, -1, -1)
        context = self.stepper.renoised(copies, 1, first - num_context)
        return FifoState(context.at_level(torch.zeros(num_context, dtype=torch.int64)), queue)

    def advance(self, state: FifoState) -> tuple[FifoState, FrameQueue | None]:
        """One pass; the head leaves clean, noise enters at the tail.

        Returns:
            The state, and the popped latent (None while copies of the base clip's first come out).
        """
        queue = self.pass_over(state)
        head, queue = queue.pop(1)
        context = None if state.context is None else state.context.append(head)[1:].compact()
        queue = self.stepper.push_noise(queue.compact(), 1, self.config.num_steps, "push")
        return FifoState(context, queue), (head.compact() if head.first >= 0 else None)

    def is_open(self, state: FifoState) -> bool:
        """Always: no pass knows how long the video is."""
        return True

    def pass_over(self, state: FifoState) -> FrameQueue:
        """The queue one level down."""
        config, context, queue = self.config, state.context, state.queue
        if context is None:
            return self.stepper.pass_over(queue, plan_pass(len(queue), config.room, config.stride))
        plan = plan_lookahead(len(context), len(queue), config.room, config.stride)
        return self.stepper.pass_over(context.append(queue), plan)


def begin(config: FifoSettings, begin: Begin) -> Fifo:
    """Begins one video."""
    return Fifo(config, begin.stepper.in_part(PART), config.lookahead)
