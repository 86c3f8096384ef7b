"""Alg. 8: all latents from noise at one level, without a queue."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from miga.methods.base import Begin
from miga.methods.unified.settings import UnifiedSettings
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.unified import StreamedPass, Unified, UnifiedState


@dataclass(frozen=True)
class UnifiedOnlyState:
    """Alg. 8 of one video: the wavefront, and how many latents of noise have entered it."""

    unified: UnifiedState
    num_pushed: int = 0
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


@dataclass(frozen=True)
class UnifiedOnly:
    """Stage 2 alone, from pure noise: no queue, so nothing passes from latent to latent but through windows.

    Source: Alg. 8 ("stage 2 only"), here as a stream.
    """

    config: UnifiedSettings
    begin: Begin

    @functools.cached_property
    def unified(self) -> Unified:
        """All `T` passes."""
        config, passes = self.config, [StreamedPass()] * self.config.num_steps
        return Unified(
            config.window, config.unified_stride, config.lead, self.begin.stepper, self.begin.num_latents, passes
        )

    def start(self, clean_FCHW: object = None) -> UnifiedOnlyState:
        """No noise yet; a base clip is of no use."""
        return UnifiedOnlyState(self.unified.start())

    def advance(self, state: UnifiedOnlyState) -> tuple[UnifiedOnlyState, FrameQueue | None]:
        """A stride of noise enters; the wavefront goes as far as it can."""
        count = self.config.unified_stride
        if self.begin.num_latents is not None:
            count = min(count, self.begin.num_latents - state.num_pushed)
        pushed = self.begin.stepper.noise_queue(state.num_pushed, count, self.config.num_steps, "push")
        unified, finished = self.unified.advance(state.unified, pushed)
        return UnifiedOnlyState(unified, state.num_pushed + count), finished

    def is_open(self, state: UnifiedOnlyState) -> bool:
        """While whole strides have entered, and no pass has come near the end."""
        return state.num_pushed % self.config.unified_stride == 0 and self.unified.is_open(state.unified)
