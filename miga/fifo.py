"""FIFO-Diffusion, the baseline: a queue of `T` latents one level apart, one clean latent out per pass.

Source: Kim et al. 2024; MIGA Alg. 1-3; its lookahead denoising (windows keep their right half, and clean context
stands before the head): decisions/0004.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.windows import plan_lookahead


@dataclass(frozen=True)
class FifoState:
    """The diagonal queue, and the clean context before its head."""

    context: FrameQueue
    queue: FrameQueue


@dataclass(frozen=True)
class Fifo:
    """FIFO-Diffusion of one video."""

    config: SamplerConfig
    stepper: Stepper

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
        queue = self._renoised(clean_FCHW[source], level, first)
        context = self._renoised(
            clean_FCHW[:1].expand(num_context, -1, -1, -1),
            torch.ones(num_context, dtype=torch.int64),
            first - num_context,
        )
        return FifoState(replace(context, level_F=torch.zeros(num_context, dtype=torch.int64)), queue)

    def advance(self, state: FifoState) -> tuple[FrameQueue | None, FifoState]:
        """One pass; the head leaves clean, noise enters at the tail.

        Returns:
            The popped latent (None while copies of the base clip's first come out), and the state.
        """
        config, context = self.config, state.context
        plan = plan_lookahead(len(context), len(state.queue), config.window, config.stride)
        queue = self.stepper.pass_over(context.append(state.queue), plan)
        head, queue = queue.pop(1)
        context = context.append(head)[1:].compact()
        queue = self.stepper.push_noise(queue.compact(), 1, config.num_steps, "push")
        return (head.compact() if head.first >= 0 else None), FifoState(context, queue)

    def _renoised(self, clean_FCHW: torch.Tensor, level_F: torch.Tensor, first: int) -> FrameQueue:
        noise = self.stepper.noise("renoise", range(first, first + len(level_F))).to(clean_FCHW)
        return self.stepper.fresh(self.stepper.schedule.add_noise(clean_FCHW, noise, level_F), level_F, first)
