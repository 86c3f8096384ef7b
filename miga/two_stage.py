"""MIGA's two-stage alignment: Stage 1's zigzag queue feeds Stage 2's wavefront. Source: MIGA Alg. 5."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.reflection import GrowAll, ReflectionTrace, SelfReflection
from miga.unified import StreamedPass, Unified, UnifiedState
from miga.zigzag import Zigzag


@dataclass(frozen=True)
class TwoStageState:
    """Both stages of one video.

    Attributes:
        queue: Stage 1's.
        unified: Stage 2's wavefront.
        num_handed_over: latents that have left Stage 1 for Stage 2.
        trace: what self-reflection did (of a video without end, the last evaluation alone).
    """

    queue: FrameQueue
    unified: UnifiedState
    num_handed_over: int = 0
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


class TwoStage:
    """MIGA of one video.

    Args:
        config: the settings.
        stepper: takes the steps.
        num_latents: of the video; None if it has no end.
        grow_all: grows the candidates of a search elsewhere; None: here, side by side.
    """

    needs_base_clip = True

    def __init__(
        self, config: SamplerConfig, stepper: Stepper, num_latents: int | None, grow_all: GrowAll | None = None
    ) -> None:
        self.num_latents = num_latents
        reflection = SelfReflection(config, stepper, grow_all) if config.self_reflection else None
        self.zigzag = Zigzag(config, stepper, reflection, num_latents)
        self.unified = Unified(config, stepper, num_latents, [StreamedPass()] * (config.handoff_level - 1))

    def start(self, clean_FCHW: torch.Tensor) -> TwoStageState:
        """The base clip brought to its levels."""
        return TwoStageState(self.zigzag.start(clean_FCHW), self.unified.start())

    def advance(self, state: TwoStageState) -> tuple[TwoStageState, FrameQueue | None]:
        """One pass of Stage 1, and as much of Stage 2 as that allows.

        Returns:
            The state, and the latents that are clean by now (None if there are none).
        """
        popped, queue, trace = self.zigzag.advance(state.queue, state.trace)
        if self.num_latents is None:
            trace = trace.tail()
        if popped is None:
            return TwoStageState(queue, state.unified, state.num_handed_over, trace), None
        if self.num_latents is not None:
            popped = popped[: self.num_latents - state.num_handed_over]
        unified, finished = self.unified.advance(state.unified, popped)
        return TwoStageState(queue, unified, state.num_handed_over + len(popped), trace), finished

    def is_open(self, state: TwoStageState) -> bool:
        """While every pass has pushed, all that left Stage 1 is of the video, and Stage 2 has not come near its end."""
        is_whole = state.num_handed_over == state.queue.first
        return is_whole and self.zigzag.is_open(state.queue) and self.unified.is_open(state.unified)
