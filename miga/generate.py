"""The whole algorithm on one screen: base clip, then Stage 1 feeding Stage 2, or FIFO-Diffusion's queue.

A video in the making is a `VideoState`, a value. `Sampler.advance` takes it one pass further and hands out the latents
that are finished; whoever keeps the state can stop and go on at any pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from miga.backbones.base import Denoiser
from miga.base_clip import advance_base_clip, start_base_clip
from miga.config import SamplerConfig
from miga.denoise_pass import RunWindows, Stepper, run_one_by_one
from miga.fifo import Fifo, FifoState
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import GrowAll, ReflectionTrace, SelfReflection, grow_one_by_one
from miga.solvers import UniPCSolver
from miga.unified import Unified, UnifiedState
from miga.zigzag import Zigzag


@dataclass(frozen=True)
class VideoState:
    """A video in the making. Exactly one of `base`, `zigzag` and `fifo` is set.

    Attributes:
        base: the base clip, while it is being made.
        zigzag: Stage 1's queue.
        unified: Stage 2's wavefront, beside `zigzag`.
        fifo: FIFO-Diffusion's queue.
        num_handed_over: latents that have left Stage 1 for Stage 2.
        num_finished: latents handed out clean.
        trace: what self-reflection did (of a video without end, the last evaluation alone).
    """

    base: FrameQueue | None = None
    zigzag: FrameQueue | None = None
    unified: UnifiedState | None = None
    fifo: FifoState | None = None
    num_handed_over: int = 0
    num_finished: int = 0
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


class Sampler:
    """Makes one video.

    Args:
        denoiser: the network (any callable of that protocol; no backbone is needed).
        config: the settings.
        prompts: which condition a latent stands under.
        noise: noise by name.
        num_latents: length of the video; None if it has no end.
        run_windows: runs the windows of a pass; by default here, one by one.
        grow_all: grows the candidates of a search; by default here, one by one.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: SamplerConfig,
        prompts: PromptTrack,
        noise: NoiseSource,
        num_latents: int | None,
        run_windows: RunWindows | None = None,
        grow_all: GrowAll = grow_one_by_one,
    ) -> None:
        if num_latents is not None and num_latents < 1:
            raise ValueError(f"num_latents must be at least 1, not {num_latents}")
        self.config = config
        self.num_latents = num_latents
        self.num_calls = 0
        self._run = run_windows or run_one_by_one(denoiser)
        self.stepper = Stepper(denoiser.schedule, UniPCSolver(denoiser.schedule), prompts, noise, self._counted)
        reflection = SelfReflection(config, self.stepper, grow_all) if config.self_reflection else None
        self.zigzag = Zigzag(config, self.stepper, reflection)
        self.unified = Unified(config, self.stepper, num_latents)
        self.fifo = Fifo(config, self.stepper)

    def start(self, base_clip_FCHW: torch.Tensor | None = None) -> VideoState:
        """A video of which nothing is made yet, or only the given clean base clip of `f0` latents."""
        if base_clip_FCHW is None:
            return VideoState(base=start_base_clip(self.config, self.stepper))
        return self._after_base_clip(base_clip_FCHW)

    def is_done(self, state: VideoState) -> bool:
        """Whether all latents have been handed out."""
        return self.num_latents is not None and state.num_finished >= self.num_latents

    def advance(self, state: VideoState) -> tuple[VideoState, torch.Tensor | None]:
        """One pass further.

        Returns:
            The state, and the clean latents `[F, C, H, W]` that follow those handed out before (None if there are
            none yet).
        """
        if state.base is not None:
            base = advance_base_clip(state.base, self.config, self.stepper)
            if int(base.level_F[0]) > 0:
                return replace(state, base=base), None
            return self._after_base_clip(base.x_FCHW), None
        if state.fifo is not None:
            head, fifo = self.fifo.advance(state.fifo)
            return self._hand_out(replace(state, fifo=fifo), head)
        assert state.zigzag is not None
        assert state.unified is not None
        wavefront = state.unified
        popped, zigzag, trace = self.zigzag.advance(state.zigzag, state.trace)
        state = replace(state, zigzag=zigzag, trace=trace if self.num_latents is not None else trace.tail())
        if popped is None:
            return state, None
        if self.num_latents is not None:
            popped = popped[: self.num_latents - state.num_handed_over]
        unified, finished = self.unified.advance(wavefront, popped)
        state = replace(state, unified=unified, num_handed_over=state.num_handed_over + len(popped))
        return self._hand_out(state, finished)

    def run(self, state: VideoState | None = None) -> Iterator[tuple[VideoState, torch.Tensor | None]]:
        """Advances to the end of the video (for ever if it has none)."""
        state = self.start() if state is None else state
        while not self.is_done(state):
            state, finished = self.advance(state)
            yield state, finished

    def _after_base_clip(self, clean_FCHW: torch.Tensor) -> VideoState:
        if self.config.method == "fifo":
            return VideoState(fifo=self.fifo.start(clean_FCHW))
        return VideoState(zigzag=self.zigzag.start(clean_FCHW), unified=self.unified.start())

    def _hand_out(self, state: VideoState, finished: FrameQueue | None) -> tuple[VideoState, torch.Tensor | None]:
        if finished is None:
            return state, None
        assert finished.first == state.num_finished, "latents leave in the order of the video"
        return replace(state, num_finished=state.num_finished + len(finished)), finished.x_FCHW

    def _counted(self, calls: object) -> list[torch.Tensor]:
        outputs = self._run(calls)  # type: ignore[arg-type]
        self.num_calls += len(outputs)
        return outputs
