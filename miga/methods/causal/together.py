"""Several videos in step: each as if it were alone, the network called once for those that ask for the same.

A causal call is small (three latents), so a card that has room for several caches makes several videos faster than one
after the other. Each video keeps its own noise, prompts, cache and state, and runs in a thread of its own; what they
share is the settings. They meet where the network is called (`Lockstep`): calls that do the same at the moment are made
as one, and who is behind goes first, so that all of them come into step. A video may come, go, fail, or change its
prompt whenever it likes: the others go on.

Legend: B videos, F latents, C channels, H, W cells.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch

from miga.backbones.base import CachedDenoiser
from miga.cached_call import CachedCall
from miga.denoise_pass import Stepper, WindowCall
from miga.methods.base import Begin
from miga.methods.causal.course import Causal, CausalState
from miga.methods.causal.settings import CausalSettings
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.solvers import make_solver

FIRST_PATIENCE_S: Final = 0.05
"""How long a call waits for those of other videos before it is known how long a call takes: then as long as that."""
LONGEST_WAIT_S: Final = 20.0
"""A call that others had to go before for so long is made."""

TimedCall: TypeAlias = Callable[[torch.Tensor, CachedCall, Sequence[Any]], tuple[torch.Tensor, float]]
"""`CachedDenoiser.call_cached`, and the seconds that the network took; complete when it returns."""


@dataclass(eq=False)
class _Asked:
    """A call that waits to be made.

    Attributes:
        answer: what it gave, or raised.
    """

    video: VideoInStep
    x_FCHW: torch.Tensor
    call: CachedCall
    condition: Any
    since_s: float = field(default_factory=time.monotonic)
    answer: Future[torch.Tensor] = field(default_factory=Future)

    @property
    def place(self) -> tuple[int, float]:
        """How far the video is: the block, and in it the step, from noise to clean."""
        return self.call.first, -self.call.timesteps[0]

    def waits_for(self, other: _Asked) -> bool:
        """Whether the other is behind, and comes this far."""
        length = other.video.num_latents
        return other.place < self.place and (length is None or length > self.call.first)


class Lockstep:
    """Where the calls of several videos meet.

    Calls are made one at a time, by the threads that ask. One is made once every video has asked, or after waiting for
    the others for as long as the last call took: who is missing then is not waited for until it asks again. It is the
    call of the video that is furthest behind, together with all that do the same. A video waits for another only if
    that one will come so far; of several that wait for none, who asked first goes first.

    Args:
        denoiser: the network.
        call: calls it; by default just that.
        longest_wait_s: a call that others had to go before for so long is made.
        patience_s: how long those that have asked wait for the others; None: as long as the last call took.
    """

    def __init__(
        self,
        denoiser: CachedDenoiser,
        call: TimedCall | None = None,
        longest_wait_s: float = LONGEST_WAIT_S,
        patience_s: float | None = None,
    ) -> None:
        self.denoiser = denoiser
        self._call = call or self._timed
        self._longest_wait_s = longest_wait_s
        self._changed = threading.Condition()
        self._awaited: set[VideoInStep] = set()
        self._asked: list[_Asked] = []
        self._is_calling = False
        self._ready_s = 0.0  # since when a call could be made
        self._has_patience = patience_s is not None
        self._patience_s = FIRST_PATIENCE_S if patience_s is None else patience_s
        self._joined: tuple[list[Any], Any] | None = None

    def join(self, num_latents: int | None) -> VideoInStep:
        """A further video, of so many latents (None: without end), as its own denoiser."""
        video = VideoInStep(self, num_latents)
        self.expect([video])
        return video

    def expect(self, videos: Sequence[VideoInStep]) -> None:
        """These are going to ask, and are waited for."""
        with self._changed:
            self._awaited |= set(videos)

    def leave(self, video: VideoInStep) -> None:
        """A video asks for nothing any more; a call of it that waits is cancelled."""
        with self._changed:
            self._awaited.discard(video)
            for asked in [each for each in self._asked if each.video is video]:
                self._asked.remove(asked)
                asked.answer.set_exception(CancelledError())
            self._joined = None  # its cache may be among them
            self._changed.notify_all()

    def rest(self, video: VideoInStep) -> None:
        """The video is not waited for until it asks again."""
        with self._changed:
            self._awaited.discard(video)
            self._changed.notify_all()

    def ask(self, video: VideoInStep, x_FCHW: torch.Tensor, call: CachedCall, condition: Any) -> torch.Tensor:
        """A video's latents `[F, C, H, W]` of a call, made when its turn comes.

        Raises:
            Whatever the network raised for this video.
            CancelledError: if the video left meanwhile.
        """
        if x_FCHW.is_cuda:  # another thread, on another stream, may make the call
            torch.cuda.current_stream(x_FCHW.device).synchronize()
        asked = _Asked(video, x_FCHW, call, condition)
        with self._changed:
            if not self._asked and not self._is_calling:
                self._ready_s = asked.since_s
            self._asked.append(asked)
            self._awaited.add(video)
            self._changed.notify_all()
        while not asked.answer.done():
            if group := self._begun(asked):
                self._answer(group)
        return asked.answer.result()

    # ---- whose turn it is ----

    def _begun(self, asked: _Asked) -> list[_Asked]:
        """Calls that this thread is to make now; none if another makes some, or all wait."""
        with self._changed:
            if asked.answer.done():
                return []
            now_s = time.monotonic()
            wait_s = self._ready_s + self._patience_s - now_s
            missing = self._awaited - {each.video for each in self._asked}
            if self._is_calling or (missing and wait_s > 0):
                self._changed.wait(None if self._is_calling or math.isinf(wait_s) else wait_s)
                return []
            self._awaited -= missing
            group = next_group(self._asked, now_s, self._longest_wait_s)
            assert group, "who waits is among those that wait"
            self._asked = [each for each in self._asked if each not in group]
            self._is_calling = True
            return group

    def _answer(self, group: Sequence[_Asked]) -> None:
        started_s = time.monotonic()
        try:
            self._make(group)
        finally:
            with self._changed:
                self._is_calling = False
                self._ready_s = time.monotonic()
                if not self._has_patience:
                    self._patience_s = self._ready_s - started_s
                self._changed.notify_all()

    # ---- calls ----

    def _make(self, group: Sequence[_Asked]) -> None:
        """Makes the calls of a group as one; if that fails one by one, so that it is known whose fault it is."""
        try:
            outputs = self._outputs(group)
        except BaseException as error:
            is_one = len(group) == 1 or not isinstance(error, Exception)
            is_lost = isinstance(error, torch.OutOfMemoryError) or group[0].call.compression is not None
            if is_one or is_lost:  # a compression that was begun cannot be done again
                for asked in group:
                    _fail(asked, error)
                return
            for asked in group:
                self._make([asked])
            return
        for asked, output_FCHW in zip(group, outputs, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(output_FCHW)

    def _outputs(self, group: Sequence[_Asked]) -> Sequence[torch.Tensor]:
        call = group[0].call
        if len(group) > 1:
            cache = self._joined_of([asked.call.cache for asked in group])
            if cache is None:  # such caches cannot be read together
                return [output for asked in group for output in self._outputs([asked])]
            call = replace(call, cache=cache)
        with torch.inference_mode():
            x_BFCHW = torch.stack([asked.x_FCHW for asked in group])
            output_BFCHW, seconds = self._call(x_BFCHW, call, [asked.condition for asked in group])
        for asked in group:
            asked.video.busy_s += seconds / len(group)
            asked.video.num_shared += len(group) > 1
        return output_BFCHW.unbind()

    def _joined_of(self, caches: list[Any]) -> Any:
        """One cache of several, the same as long as they are the same."""
        joined = self._joined
        if joined is None or not _are_same(joined[0], caches):
            join = getattr(caches[0], "joined", None)
            if join is None:
                return None
            self._joined = joined = caches, join(caches[1:])
        return joined[1]

    def _timed(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Any]) -> tuple[torch.Tensor, float]:
        started_s = time.monotonic()
        output_BFCHW = self.denoiser.call_cached(x_BFCHW, call, conditions)
        if output_BFCHW.is_cuda:
            torch.cuda.current_stream(output_BFCHW.device).synchronize()
        return output_BFCHW, time.monotonic() - started_s


class VideoInStep:
    """What one of several videos takes for its denoiser: see `CachedDenoiser`.

    Args:
        lockstep: where their calls meet.
        num_latents: of the video; None if it has no end.

    Attributes:
        busy_s: seconds of calls, a call of several videos shared out evenly among them.
        num_shared: calls that were made together with others'.
    """

    def __init__(self, lockstep: Lockstep, num_latents: int | None) -> None:
        denoiser = lockstep.denoiser
        self.window, self.schedule = denoiser.window, denoiser.schedule
        self.takes_positions = getattr(denoiser, "takes_positions", False)
        self.num_latents = num_latents
        self.busy_s = 0.0
        self.num_shared = 0
        self._lockstep = lockstep

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any]) -> torch.Tensor:
        """See `Denoiser`."""
        return self._lockstep.denoiser(x_BFCHW, level_BF, conditions)

    def open_cache(self, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        """See `CachedDenoiser`."""
        return self._lockstep.denoiser.open_cache(num_slots, latent_size, **others)

    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Any]) -> torch.Tensor:
        """See `CachedDenoiser`; of this one video."""
        (x_FCHW,), (condition,) = x_BFCHW, conditions
        return self._lockstep.ask(self, x_FCHW, call, condition)[None]

    def leave(self) -> None:
        """It asks for nothing any more."""
        self._lockstep.leave(self)

    def rest(self) -> None:
        """It is not waited for until it asks again."""
        self._lockstep.rest(self)


def next_group(waiting: Sequence[_Asked], now_s: float, longest_wait_s: float) -> list[_Asked]:
    """Of calls that wait, those to be made next, as one.

    The one that asked first of those that wait for no other (or for too long), and all that do the same.
    """
    free = [
        asked
        for asked in waiting
        if now_s - asked.since_s >= longest_wait_s or not any(asked.waits_for(other) for other in waiting)
    ]
    first = min(free, key=lambda asked: asked.since_s)
    return [asked for asked in waiting if asked.call.is_like(first.call)]


def make_together(
    denoiser: CachedDenoiser,
    config: CausalSettings,
    tracks: Sequence[PromptTrack],
    noises: Sequence[NoiseSource],
    num_latents: int,
) -> Iterator[torch.Tensor]:
    """Makes several videos of one length in step; their prompts may change where they like.

    Args:
        denoiser: the network.
        config: of all of them.
        tracks: prompts of each video.
        noises: of each.
        num_latents: of each.

    Yields:
        Clean latents `[B, F, C, H, W]` that follow those before.

    Raises:
        MigaError: if one of the videos cannot be made.
    """
    lockstep = Lockstep(denoiser, patience_s=math.inf)  # who does not ask says so
    videos = [lockstep.join(num_latents) for _ in tracks]
    courses = [
        _course(video, config, track, noise, num_latents)
        for video, track, noise in zip(videos, tracks, noises, strict=True)
    ]
    states = [course.start(None) for course in courses]
    try:
        with ThreadPoolExecutor(len(courses), thread_name_prefix="miga-together") as pool:
            while states[0].num_done < num_latents:
                lockstep.expect(videos)
                futures = [pool.submit(_advance, *each) for each in zip(videos, courses, states, strict=True)]
                advanced = [future.result() for future in futures]
                states = [state for state, _ in advanced]
                finished = [queue.x_FCHW for _, queue in advanced if queue is not None]
                if finished:
                    yield torch.stack(finished)
    finally:
        for video in videos:
            video.leave()


def _advance(video: VideoInStep, course: Causal, state: CausalState) -> tuple[CausalState, Any]:
    try:
        with torch.inference_mode():
            return course.advance(state)
    finally:
        video.rest()


def _course(
    video: VideoInStep, config: CausalSettings, track: PromptTrack, noise: NoiseSource, num_latents: int
) -> Causal:
    def run(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        return [video.call_cached(call.x_FCHW[None], call.cached, [call.condition])[0] for call in calls if call.cached]

    stepper = Stepper(video.schedule, make_solver(config.solver, video.schedule), track, noise, run)
    return Causal(config, Begin(stepper, num_latents, denoiser=video))


def _are_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _fail(asked: _Asked, error: BaseException) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(error)
