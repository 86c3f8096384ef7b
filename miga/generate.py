"""The whole algorithm on one screen: the base clip, then one of the methods that make it long.

A video in the making is a `VideoState`, a value. `Sampler.advance` takes it one pass further and hands out the latents
that are finished; whoever keeps the state can stop and go on at any pass (`checkpoint.py` writes it to a file).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from miga.backbones.base import Denoiser
from miga.base_clip import advance_base_clip, base_clip_stepper, start_base_clip
from miga.beam_search import BeamSearch, BeamSearchState, Features
from miga.config import SamplerConfig
from miga.denoise_pass import RunWindows, Stepper, WindowCall, run_in_batches
from miga.errors import UsageError
from miga.fifo import Fifo, FifoState
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import GrowAll, ReflectionTrace
from miga.released import Released, ReleasedState
from miga.solvers import make_solver
from miga.two_stage import TwoStage, TwoStageState
from miga.unified import UnifiedOnly, UnifiedOnlyState

MethodState: TypeAlias = TwoStageState | FifoState | BeamSearchState | UnifiedOnlyState | ReleasedState


class Method(Protocol):
    """A way to make a video longer than a clip; its state is a value, what self-reflection did is `state.trace`."""

    needs_base_clip: bool

    def start(self, clean_FCHW: Any) -> Any:
        """The state behind a clean base clip of `f0` latents (None where none is needed)."""
        ...

    def advance(self, state: Any) -> tuple[Any, FrameQueue | None]:
        """One pass further: the state, and the latents that are finished (None if there are none)."""
        ...


@dataclass(frozen=True)
class VideoState:
    """A video in the making. Exactly one of `base` and `method` is set.

    Attributes:
        base: the base clip, while it is being made.
        method: the method's own state, after it.
        num_finished: latents handed out clean.
    """

    base: FrameQueue | None = None
    method: MethodState | None = None
    num_finished: int = 0

    @property
    def trace(self) -> ReflectionTrace:
        """What self-reflection did so far (of a video without end, the last evaluation alone)."""
        return ReflectionTrace() if self.method is None else self.method.trace


class Sampler:
    """Makes one video.

    Args:
        denoiser: the network (any callable of that protocol; no backbone is needed).
        config: the settings.
        prompts: which condition a latent stands under.
        noise: noise by name.
        num_latents: length of the video; None if it has no end.
        run_windows: runs the windows of a pass; by default here, `config.windows_per_batch` at a time.
        grow_all: grows the candidates of a search elsewhere; by default here, side by side.
        features: (scalingnoise) what the candidates of its search are judged by; by default the latents themselves.

    Raises:
        ValueError: if `num_latents` is below 1.
        UsageError: if features are given to a method without a beam search.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: SamplerConfig,
        prompts: PromptTrack,
        noise: NoiseSource,
        num_latents: int | None,
        run_windows: RunWindows | None = None,
        grow_all: GrowAll | None = None,
        features: Features | None = None,
    ) -> None:
        if num_latents is not None and num_latents < 1:
            raise ValueError(f"num_latents must be at least 1, not {num_latents}")
        self.config = config
        self.num_latents = num_latents
        self.num_calls = 0
        self._run = run_windows or run_in_batches(denoiser, config.windows_per_batch)
        solver = make_solver(config.solver, denoiser.schedule, config.eta)
        self.stepper = Stepper(denoiser.schedule, solver, prompts, noise, self._counted)
        self.base_stepper = base_clip_stepper(self.stepper, config.eta)
        self.method = _method(config, self.stepper, num_latents, grow_all, features)

    def start(self, base_clip_FCHW: torch.Tensor | None = None) -> VideoState:
        """A video of which nothing is made yet, or only the given clean base clip of `f0` latents."""
        if base_clip_FCHW is not None or not self.method.needs_base_clip:
            return VideoState(method=self.method.start(base_clip_FCHW))
        return VideoState(base=start_base_clip(self.config, self.base_stepper))

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
            base = advance_base_clip(state.base, self.config, self.base_stepper)
            if int(base.level_F[0]) > 0:
                return VideoState(base=base), None
            return VideoState(method=self.method.start(base.x_FCHW)), None
        method, finished = self.method.advance(state.method)
        if finished is None:
            return VideoState(method=method, num_finished=state.num_finished), None
        assert finished.first == state.num_finished, "latents leave in the order of the video"
        return VideoState(method=method, num_finished=state.num_finished + len(finished)), finished.x_FCHW

    def run(self, state: VideoState | None = None) -> Iterator[tuple[VideoState, torch.Tensor | None]]:
        """Advances to the end of the video (for ever if it has none)."""
        state = self.start() if state is None else state
        while not self.is_done(state):
            state, finished = self.advance(state)
            yield state, finished

    def _counted(self, calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        outputs = self._run(calls)
        self.num_calls += len(outputs)
        return outputs


def _method(
    config: SamplerConfig,
    stepper: Stepper,
    num_latents: int | None,
    grow_all: GrowAll | None,
    features: Features | None,
) -> Method:
    if config.method == "fifo" and config.num_beams:
        return BeamSearch(config, stepper, features)
    if features is not None:
        raise UsageError(
            f"features do nothing in profile {config.profile!r}",
            "they judge the candidates of a beam search: take profile 'scalingnoise', or leave them out",
        )
    if config.method == "fifo":
        return Fifo(config, stepper)
    if config.method == "unified":
        return UnifiedOnly(config, stepper, num_latents)
    if config.method == "released":
        return Released(config, stepper, num_latents, grow_all)
    return TwoStage(config, stepper, num_latents, grow_all)
