"""MIGA's two-stage alignment: Stage 1's zigzag queue feeds Stage 2's wavefront. Source: MIGA Alg. 5."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from miga.anchors import Anchors
from miga.methods.base import Begin
from miga.methods.miga.settings import MigaSettings
from miga.methods.miga.zigzag import Zigzag
from miga.queue import ADDED_LATER, FrameQueue
from miga.reflection import ReflectionTrace, SelfReflection
from miga.unified import StreamedPass, Unified, UnifiedState


@dataclass(frozen=True)
class TwoStageState:
    """Both stages of one video.

    Attributes:
        queue: Stage 1's.
        unified: Stage 2's wavefront.
        num_handed_over: latents that have left Stage 1 for Stage 2.
        trace: what self-reflection did (of a video without end, the last evaluation alone).
        anchors: finished latents that Stage 1 is guided by.
    """

    queue: FrameQueue
    unified: UnifiedState
    num_handed_over: int = 0
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)
    anchors: Anchors = field(default=(), metadata=ADDED_LATER)


class TwoStage:
    """MIGA of one video.

    Args:
        config: the settings.
        begin: what the video begins with.
    """

    def __init__(self, config: MigaSettings, begin: Begin) -> None:
        self.num_latents = begin.num_latents
        stepper = config.guided_stepper(begin.stepper.in_part("stage 1"))
        reflection = SelfReflection(config, stepper, begin.grow_all, config.lead) if config.self_reflection else None
        self.zigzag = Zigzag(config, stepper, reflection, begin.num_latents)
        passes = [StreamedPass()] * (config.handoff_level - 1)
        self.unified = Unified(
            config.room, config.unified_stride, config.lead, begin.stepper, begin.num_latents, passes
        )

    def start(self, clean_FCHW: torch.Tensor) -> TwoStageState:
        """The base clip brought to its levels."""
        anchors = self.zigzag.long_range.begin(clean_FCHW, self.zigzag.stepper)
        return TwoStageState(self.zigzag.start(clean_FCHW), self.unified.start(), anchors=anchors)

    def advance(self, state: TwoStageState) -> tuple[TwoStageState, FrameQueue | None]:
        """One pass of Stage 1, and as much of Stage 2 as that allows.

        Returns:
            The state, and the latents that are clean by now (None if there are none).
        """
        popped, queue, trace = self.zigzag.advance(state.queue, state.trace, state.anchors)
        if self.num_latents is None:
            trace = trace.tail()
        if popped is None:
            return replace(state, queue=queue, trace=trace), None
        if self.num_latents is not None:
            popped = popped[: self.num_latents - state.num_handed_over]
        unified, finished = self.unified.advance(state.unified, popped)
        anchors = self.zigzag.long_range.after(state.anchors, finished)
        return TwoStageState(queue, unified, state.num_handed_over + len(popped), trace, anchors), finished

    def is_open(self, state: TwoStageState) -> bool:
        """While every pass has pushed, all that left Stage 1 is of the video, and Stage 2 has not come near its end."""
        is_whole = state.num_handed_over == state.queue.first
        return is_whole and self.zigzag.is_open(state.queue) and self.unified.is_open(state.unified)
