"""The whole algorithm on one screen: the base clip, then one of the methods that make it long.

A video in the making is a `VideoState`, a value. `Sampler.advance` takes it one pass further and hands out the latents
that are finished; whoever keeps the state can stop and go on at any pass (`checkpoint.py` writes it to a file).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from miga.backbones.base import BackboneSpec, Denoiser
from miga.base_clip import advance_base_clip, base_clip_stepper, start_base_clip
from miga.config import SamplerConfig, check_denoiser, check_positions
from miga.consistency import Judge, judge_consistency
from miga.denoise_pass import RunWindows, Stepper, WindowCall, run_in_batches
from miga.errors import NonFiniteError, UsageError
from miga.image_condition import (
    HeldFirst,
    PictureRules,
    Pictures,
    WindowChannels,
    WindowPictures,
    picture_rules,
    require_pictures,
)
from miga.methods import methods
from miga.methods.base import Begin, Features
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.queue import FrameQueue, map_queues
from miga.reflection import GrowAll, ReflectionTrace
from miga.solvers import make_solver
from miga.solvers.check import check_steps
from miga.wavefront import LazyStepper, Wavefront, WindowExecutor


@dataclass(frozen=True)
class VideoState:
    """A video in the making. Exactly one of `base` and `method` is set.

    Attributes:
        base: the base clip, while it is being made.
        method: the method's own state, after it.
        num_finished: latents handed out clean.
    """

    base: FrameQueue | None = None
    method: Any = None
    num_finished: int = 0

    @property
    def trace(self) -> ReflectionTrace:
        """What self-reflection did so far (of a video without end, the last evaluation alone)."""
        trace: ReflectionTrace = getattr(self.method, "trace", ReflectionTrace())
        return trace


class VideoCourse:
    """One video from its first pass to its last: the base clip where the method needs one, then the method.

    Args:
        config: the settings.
        begin: what it begins with.

    Raises:
        ConfigError: if the schedule is not one that the method can follow.
        UsageError: if features are given to a method that takes none.
    """

    def __init__(self, config: SamplerConfig, begin: Begin) -> None:
        kind = methods()[config.method]
        if begin.features is not None and not kind.takes_features:
            takers = [name for each in methods().values() if each.takes_features for name in each.profiles]
            raise UsageError(
                f"features do nothing in profile {config.profile!r}",
                f"they judge the candidates of a beam search: take profile {' or '.join(map(repr, takers))}, or leave "
                "them out",
            )
        self.config = config
        self.num_latents = begin.num_latents
        self.needs_base_clip = kind.needs_base_clip
        self.base_stepper = base_clip_stepper(begin.stepper, config.eta)
        self.method = kind.begin(config, begin)

    def start(self, base_clip_FCHW: torch.Tensor | None = None) -> VideoState:
        """A video of which nothing is made yet, or only a clean base clip of `f0` latents."""
        if base_clip_FCHW is not None or not self.needs_base_clip:
            return VideoState(method=self.method.start(base_clip_FCHW))
        return VideoState(base=start_base_clip(self.config, self.base_stepper))

    def is_done(self, state: VideoState) -> bool:
        """Whether all latents have been handed out."""
        return self.num_latents is not None and state.num_finished >= self.num_latents

    def advance(self, state: VideoState) -> tuple[VideoState, FrameQueue | None]:
        """One pass further: the state, and the latents that follow those handed out before (None if there are none)."""
        if state.base is not None:
            base = advance_base_clip(state.base, self.config, self.base_stepper)
            if int(base.level_F[0]) > 0:
                return VideoState(base=base), None
            return VideoState(method=self.method.start(base.x_FCHW)), None
        method, finished = self.method.advance(state.method)
        if finished is None:
            return VideoState(method=method, num_finished=state.num_finished), None
        assert finished.first == state.num_finished, "latents leave in the order of the video"
        return VideoState(method=method, num_finished=state.num_finished + len(finished)), finished

    def is_open(self, state: VideoState) -> bool:
        """Whether nothing of the state depends on the video's length yet."""
        if self.num_latents is None:
            return False
        return state.base is not None or self.method.is_open(state.method)


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
        executor: runs the windows of many passes at once (`wavefront.py`), each as soon as its latents are there; the
            video is the same, bit for bit, as with `windows_per_batch` 1. It takes the place of `run_windows` and
            `grow_all`.
        features: what the candidates of a beam search are judged by; by default the latents themselves.
        judge: answers the evaluations of searches; by default the consistency score.
        pictures: those that the video begins (and ends) with; None if there are none, and of a chain where nobody looks
            at latents.

    Raises:
        BadRowError: if no video can be made with the pictures.
        ValueError: if `num_latents` is no whole number above 0.
        ConfigError: if the denoiser's schedule is not one that the config's solver can step through, or it is to be
            told positions that it takes none of, or the method needs an attention, or rotary frequencies, that it
            does not take.
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
        executor: WindowExecutor | None = None,
        judge: Judge = judge_consistency,
        pictures: Pictures | None = None,
    ) -> None:
        if num_latents is not None and (type(num_latents) is not int or num_latents < 1):
            raise ValueError(f"num_latents must be at least 1, a whole number, not {num_latents!r}")
        self.config = config
        self.num_latents = num_latents
        self.num_calls = 0
        self.wavefront = None if executor is None else Wavefront(denoiser, executor)
        self._run = run_windows or run_in_batches(denoiser, config.windows_per_batch)
        if self.wavefront is not None:
            assert run_windows is None, "windows run in one place"
            assert grow_all is None, "candidates grow where windows run"
            self._run = self.wavefront.run_windows
        kind = methods()[config.method]
        self._is_lazy = self.wavefront is not None and kind.is_lazy
        check_steps(config, denoiser.schedule)
        check_positions(config, getattr(denoiser, "takes_positions", False))
        check_denoiser(config, denoiser)
        solver = make_solver(config.solver, denoiser.schedule, config.eta)
        if pictures is not None:
            require_pictures(rules_of_pictures(pictures.backbone.spec, config), pictures)
        is_method_s = kind.needs_picture or kind.needs_cache
        shown = None if pictures is None or is_method_s else shown_in_windows(pictures, config)
        if pictures is not None and isinstance(shown, WindowChannels):
            prompts = reading(prompts, pictures)
        self.stepper = Stepper(denoiser.schedule, solver, prompts, noise, self._counted, judge=judge, pictures=shown)
        if self.wavefront is not None and self._is_lazy:
            self.stepper = LazyStepper.of(self.stepper, self.wavefront, self._count)
        self.course = VideoCourse(config, Begin(self.stepper, num_latents, grow_all, features, denoiser, pictures))

    @property
    def method(self) -> Any:
        """The method at work."""
        return self.course.method

    def start(self, base_clip_FCHW: torch.Tensor | None = None) -> VideoState:
        """A video of which nothing is made yet, or only the given clean base clip of `f0` latents.

        Args:
            base_clip_FCHW: of any floating-point type, on any device; None: it is made first. Of a causal method the
                latents that the video begins with, whole blocks of them.

        Raises:
            ValueError: if the clip has another shape, or holds something else than finite numbers.
        """
        if base_clip_FCHW is not None:
            base_clip_FCHW = self._checked(base_clip_FCHW)
        return self.course.start(base_clip_FCHW)

    def restore(self, finished_FCHW: torch.Tensor) -> None:
        """Before a state is gone on with that another sampler made: the latents finished by then, from the first on.

        Methods that keep a cache in the network fill it again from them; to all others they say nothing.
        """
        if methods()[self.config.method].needs_cache:
            with torch.no_grad():
                self.method.replay(finished_FCHW)

    def is_done(self, state: VideoState) -> bool:
        """Whether all latents have been handed out."""
        return self.course.is_done(state)

    def advance(self, state: VideoState) -> tuple[VideoState, torch.Tensor | None]:
        """One pass further.

        Returns:
            The state, and the clean latents `[F, C, H, W]` that follow those handed out before (None if there are
            none yet).

        Raises:
            NonFiniteError: if one of them is NaN or infinite.
        """
        state, finished = self.advance_queue(state)
        return state, None if finished is None else finite_latents(finished)

    def advance_queue(self, state: VideoState) -> tuple[VideoState, FrameQueue | None]:
        """The same, but what is finished comes as a queue, and nobody has looked at it yet.

        With an executor, neither it nor the state need be there yet (`wavefront.py`): only what the pass itself looks
        at is waited for.
        """
        if self.wavefront is None:
            return self.course.advance(state)
        self.wavefront.wait_for_room()
        with self.wavefront.on_stream():
            return self.course.advance(map_queues(state, self.wavefront.lazy) if self._is_lazy else state)

    def close(self) -> None:
        """Drops the windows that are planned and not done; without an executor there are none."""
        if self.wavefront is not None:
            self.wavefront.close()

    def is_open(self, state: VideoState) -> bool:
        """Whether nothing of the state depends on the video's length yet.

        If so, a sampler of a larger `num_latents` (all else the same) is in this very state after as many passes, and
        may go on from it.
        """
        return self.course.is_open(state)

    def run(self, state: VideoState | None = None) -> Iterator[tuple[VideoState, torch.Tensor | None]]:
        """Advances to the end of the video (for ever if it has none)."""
        state = self.start() if state is None else state
        while not self.is_done(state):
            state, finished = self.advance(state)
            yield state, finished

    def _checked(self, base_clip_FCHW: torch.Tensor) -> torch.Tensor:
        """A base clip where noise is drawn, in float32 (or float64)."""
        if not isinstance(base_clip_FCHW, torch.Tensor):
            raise ValueError(f"the base clip is a {type(base_clip_FCHW).__name__}, not a tensor")
        shape, wanted = tuple(base_clip_FCHW.shape), getattr(self.stepper.noise, "latent_shape", None)
        takes_any = methods()[self.config.method].needs_cache  # given latents, which the method looks at itself
        is_long = len(shape) == 4 and (shape[0] >= 1 if takes_any else shape[0] == self.config.window)
        if not is_long or shape[1:] != (wanted or shape[1:]):
            latent = ", ".join(map(str, wanted or ("C", "H", "W")))
            length = "F" if takes_any else self.config.window
            raise ValueError(f"the base clip has shape {list(shape)}: it must be [{length}, {latent}]")
        if not base_clip_FCHW.is_floating_point() or base_clip_FCHW.layout != torch.strided or base_clip_FCHW.is_meta:
            raise ValueError(f"the base clip holds {base_clip_FCHW.dtype} on {base_clip_FCHW.device}: it takes floats")
        dtype = torch.promote_types(base_clip_FCHW.dtype, torch.float32)
        clip_FCHW = base_clip_FCHW.detach().to(getattr(self.stepper.noise, "device", base_clip_FCHW.device), dtype)
        is_finite_F = torch.isfinite(clip_FCHW).flatten(1).all(1)
        if not bool(is_finite_F.all()):
            raise ValueError(f"latent {int(is_finite_F.int().argmin())} of the base clip is NaN or infinite")
        return clip_FCHW

    def _counted(self, calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        outputs = self._run(calls)
        self._count(len(outputs))
        return outputs

    def _count(self, num_calls: int) -> None:
        self.num_calls += num_calls


def shown_in_windows(pictures: Pictures, config: SamplerConfig) -> WindowPictures:
    """What the windows of a queue show of a picture."""
    if config.later_windows:
        return WindowChannels.of(pictures, config.window, config.later_windows)
    return HeldFirst(pictures.anchor())


def reading(prompts: PromptTrack, pictures: Pictures) -> PromptTrack:
    """The prompts with what the network reads of the first picture; as they are where it reads nothing."""
    tokens_LD = pictures.backbone.image_tokens(pictures.first_CHW[None])
    if tokens_LD is None:
        return prompts
    return replace(prompts, conditions=[pictures.backbone.with_image(each, tokens_LD) for each in prompts.conditions])


def rules_of_pictures(spec: BackboneSpec, config: SamplerConfig) -> PictureRules:
    """Which pictures a model takes in a profile.

    Raises:
        ConfigError: if the two do not go together, with or without pictures.
    """
    method = methods()[config.method]
    return picture_rules(spec, config, makes_chains=method.needs_picture, keeps_cache=method.needs_cache)


def finite_latents(queue: FrameQueue) -> torch.Tensor:
    """The latents of a queue.

    Raises:
        NonFiniteError: if one is NaN or infinite, saying which.
    """
    x_FCHW = queue.x_FCHW
    is_finite_F = torch.isfinite(x_FCHW).flatten(1).all(1)
    if not is_finite_F.all():
        position = int((~is_finite_F).int().argmax())
        raise NonFiniteError(
            f"latent {queue.first + position} of the video is NaN or infinite, at level {int(queue.level_F[position])}",
            "if it happens to every row, the weights are broken or do not bear the dtype (try float32), or guidance is "
            "too strong; if it happens on one GPU alone, that GPU is broken",
        )
    return x_FCHW
