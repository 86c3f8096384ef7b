"""Several videos in step: each as if it were alone, the network called once for all of them.

A causal call is small (three latents), so a card that has room for several caches makes several videos faster than one
after the other. Each video keeps its own noise, prompts and state; what they share is settings, length and the moments
at which prompts change.

Legend: B videos, F latents, C channels, H, W cells.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from miga.backbones.base import CachedDenoiser
from miga.cached_call import CachedCall
from miga.denoise_pass import Stepper, WindowCall
from miga.errors import ConfigError
from miga.methods.base import Begin
from miga.methods.causal.course import Causal, CausalState
from miga.methods.causal.settings import CausalSettings
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.solvers import make_solver


class TogetherDenoiser:
    """What each of several videos takes for its denoiser: calls wait until all have asked, and are made as one.

    Args:
        denoiser: the network.
        num_videos: that are made in step.
    """

    def __init__(self, denoiser: CachedDenoiser, num_videos: int) -> None:
        self.denoiser, self.num_videos = denoiser, num_videos
        self.window, self.schedule = denoiser.window, denoiser.schedule
        self.num_calls = 0
        self._barrier = threading.Barrier(num_videos)
        self._asked: dict[int, WindowCall] = {}
        self._answer: torch.Tensor | None = None
        self._cache: Any = None

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any]) -> torch.Tensor:
        """See `Denoiser`."""
        return self.denoiser(x_BFCHW, level_BF, conditions)

    def cache_of(self, video: int, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        """A video's row of the cache that all share."""

        def open_cache() -> None:
            self._cache = self.denoiser.open_cache(num_slots, latent_size, batch=self.num_videos, **others)

        self._once(open_cache)
        return self._cache.row(video)

    def call(self, video: int, call: WindowCall) -> torch.Tensor:
        """A video's latents of the call that is made once all have asked.

        Raises:
            ConfigError: if the videos ask for different calls: their prompts change at different latents.
        """
        self._asked[video] = call
        self._once(self._call)
        assert self._answer is not None
        return self._answer[video]

    def close(self) -> None:
        """Those that wait for others wait no more."""
        self._barrier.abort()

    def _once(self, work: Any) -> None:
        """Done by one of the threads, while all wait."""
        if self._barrier.wait() == 0:
            try:
                work()
            except BaseException:
                self._barrier.abort()
                raise
        self._barrier.wait()

    @torch.inference_mode()
    def _call(self) -> None:
        calls = [self._asked[video] for video in range(self.num_videos)]
        cached = [replace(call.cached, cache=self._cache) for call in calls if isinstance(call.cached, CachedCall)]
        if any(each != cached[0] for each in cached):
            raise ConfigError(
                "videos that are made in step change their prompts at different latents",
                "make them one by one, or give them prompts in turn of the same lengths",
            )
        x_BFCHW = torch.stack([call.x_FCHW for call in calls])
        self._answer = self.denoiser.call_cached(x_BFCHW, cached[0], [call.condition for call in calls])
        self.num_calls += 1


class _Row:
    """One video's `CachedDenoiser`."""

    def __init__(self, together: TogetherDenoiser, video: int) -> None:
        self._together, self._video = together, video
        self.window, self.schedule = together.window, together.schedule

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any]) -> torch.Tensor:
        return self._together(x_BFCHW, level_BF, conditions)

    def open_cache(self, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        return self._together.cache_of(self._video, num_slots, latent_size, **others)

    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Any]) -> torch.Tensor:
        asked = WindowCall(x_BFCHW[0], torch.zeros(x_BFCHW.shape[1], dtype=torch.int64), conditions[0], cached=call)
        return self._together.call(self._video, asked)[None]


def make_together(
    denoiser: CachedDenoiser,
    config: CausalSettings,
    tracks: Sequence[PromptTrack],
    noises: Sequence[NoiseSource],
    num_latents: int,
) -> Iterator[torch.Tensor]:
    """Makes several videos of one length in step.

    Args:
        denoiser: the network.
        config: of all of them.
        tracks: prompts of each video.
        noises: of each.
        num_latents: of each.

    Yields:
        Clean latents `[B, F, C, H, W]` that follow those before.

    Raises:
        ConfigError: if the videos cannot be made in step.
    """
    together = TogetherDenoiser(denoiser, len(tracks))
    courses = [
        _course(_Row(together, video), config, track, noise, num_latents)
        for video, (track, noise) in enumerate(zip(tracks, noises, strict=True))
    ]
    states = [course.start(None) for course in courses]
    try:
        with ThreadPoolExecutor(len(courses), thread_name_prefix="miga-together") as pool:
            while states[0].num_done < num_latents:
                futures = [pool.submit(_advance, together, *each) for each in zip(courses, states, strict=True)]
                advanced = [future.result() for future in _failures_first(futures)]
                states = [state for state, _ in advanced]
                finished = [queue.x_FCHW for _, queue in advanced if queue is not None]
                if finished:
                    yield torch.stack(finished)
    finally:
        together.close()


def _advance(together: TogetherDenoiser, course: Causal, state: CausalState) -> tuple[CausalState, Any]:
    try:
        with torch.inference_mode():
            return course.advance(state)
    except BaseException:
        together.close()  # whoever waits for this video would wait for ever
        raise


def _failures_first(futures: Sequence[Future[Any]]) -> Sequence[Future[Any]]:
    """The futures; of failed ones that alone which failed by itself, and not because another did."""
    failed = [future for future in futures if isinstance(future.exception(), Exception)]
    own = [future for future in failed if not isinstance(future.exception(), threading.BrokenBarrierError)]
    return own or failed or futures


def _course(row: _Row, config: CausalSettings, track: PromptTrack, noise: NoiseSource, num_latents: int) -> Causal:
    def run(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        return [row.call_cached(call.x_FCHW[None], call.cached, [call.condition])[0] for call in calls if call.cached]

    stepper = Stepper(row.schedule, make_solver(config.solver, row.schedule), track, noise, run)
    return Causal(config, Begin(stepper, num_latents, denoiser=row))
