"""Stage 2: all latents at one level, taken down the rest together - as a stream.

Source: MIGA Alg. 5 and 8, decisions/0003.

Pass `p` of a window needs only the latents it sees to have finished pass `p - 1`. So the passes run as a wavefront
behind whatever hands latents over, and hand out finished ones at once, whatever the length of the video. For a known
number of latents the windows, and so the result, are exactly those of passes over the whole queue.

Between calls at most `P * (f0 - 1)` latents are alive, `P` the number of passes: each waits for less than a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.windows import Window, plan_streamed

_T = TypeVar("_T")


@dataclass(frozen=True)
class StreamedPass:
    """One pass of the wavefront.

    Attributes:
        offset: border offset of its windows.
        renoise_to: level that its latents, clean by then, are first noised to again; None for none.
        purpose: what its noise is named by, where levels are passed twice.
    """

    offset: int = 0
    renoise_to: int | None = None
    purpose: str = ""


@dataclass(frozen=True)
class UnifiedState:
    """Where the wavefront stands.

    Attributes:
        waiting: per pass, the latents from the first that the next window sees on; None before any has come.
        num_done: per pass, windows done.
    """

    waiting: tuple[FrameQueue | None, ...]
    num_done: tuple[int, ...]

    @property
    def num_alive(self) -> int:
        """Latents held."""
        return sum(len(queue) for queue in self.waiting if queue is not None)


@dataclass(frozen=True)
class Unified:
    """Stage 2 of one video.

    Attributes:
        num_latents: how many the video has; None if it has no end.
        passes: the passes, in order.
    """

    config: SamplerConfig
    stepper: Stepper
    num_latents: int | None
    passes: Sequence[StreamedPass]

    def start(self) -> UnifiedState:
        """Nothing handed over yet."""
        return UnifiedState((None,) * len(self.passes), (0,) * len(self.passes))

    def advance(self, state: UnifiedState, arrived: FrameQueue) -> tuple[UnifiedState, FrameQueue | None]:
        """Takes what is handed over as far as it can go.

        Returns:
            The state, and the latents that have finished the last pass (None if there are none).
        """
        for number in range(len(self.passes)):
            state, finished = self._run_pass(state, number, arrived)
            if finished is None:
                return state, None
            arrived = finished
        return state, arrived

    def is_open(self, state: UnifiedState) -> bool:
        """Whether the windows done so far, and where the next ones begin, are those of any longer video too."""
        for number, num_done in enumerate(state.num_done):
            ours = list(itertools.islice(self._windows_from(number, 0), num_done + 1))
            endless = list(itertools.islice(replace(self, num_latents=None)._windows_from(number, 0), num_done + 1))
            if ours[:num_done] != endless[:num_done] or len(ours) <= num_done:
                return False
            if num_done and ours[num_done].positions[0] != endless[num_done].positions[0]:
                return False
        return True

    def _run_pass(
        self, state: UnifiedState, number: int, arrived: FrameQueue
    ) -> tuple[UnifiedState, FrameQueue | None]:
        stepper = self.stepper.named(self.passes[number].purpose)
        level = self.passes[number].renoise_to
        if level is not None:
            arrived = stepper.renoised(arrived.x_FCHW, level, arrived.first)
        held = state.waiting[number]
        waiting = arrived if held is None else held.append(arrived)
        ready: list[Window] = []
        next_start = 0
        for window in self._windows_from(number, state.num_done[number]):
            next_start = window.positions[0]
            if window.stop > waiting.first + len(waiting):
                break
            ready.append(window)
        else:
            next_start = waiting.first + len(waiting)
        stepped = None
        if ready:
            plan = [window.shifted(-waiting.first) for window in ready]
            stepped = stepper.pass_over(waiting, plan)
            waiting = waiting[next_start - waiting.first :]
        return (
            UnifiedState(
                _with(state.waiting, number, waiting.compact()),
                _with(state.num_done, number, state.num_done[number] + len(ready)),
            ),
            stepped,
        )

    def _windows_from(self, number: int, first: int) -> Iterator[Window]:
        """A pass's windows from the given one on, counted from the video's first latent."""
        windows = plan_streamed(
            self.num_latents,
            self.config.window,
            self.config.unified_stride,
            self.passes[number].offset,
            self.config.lead,
        )
        return itertools.islice(windows, first, None)


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

    needs_base_clip = False
    config: SamplerConfig
    stepper: Stepper
    num_latents: int | None

    @property
    def unified(self) -> Unified:
        """All `T` passes."""
        return Unified(self.config, self.stepper, self.num_latents, [StreamedPass()] * self.config.num_steps)

    def start(self, clean_FCHW: object = None) -> UnifiedOnlyState:
        """No noise yet; a base clip is of no use."""
        return UnifiedOnlyState(self.unified.start())

    def advance(self, state: UnifiedOnlyState) -> tuple[UnifiedOnlyState, FrameQueue | None]:
        """A stride of noise enters; the wavefront goes as far as it can."""
        count = self.config.unified_stride
        if self.num_latents is not None:
            count = min(count, self.num_latents - state.num_pushed)
        pushed = self.stepper.noise_queue(state.num_pushed, count, self.config.num_steps, "push")
        unified, finished = self.unified.advance(state.unified, pushed)
        return UnifiedOnlyState(unified, state.num_pushed + count), finished

    def is_open(self, state: UnifiedOnlyState) -> bool:
        """While whole strides have entered, and no pass has come near the end."""
        return state.num_pushed % self.config.unified_stride == 0 and self.unified.is_open(state.unified)


def _with(values: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*values[:index], value, *values[index + 1 :])
