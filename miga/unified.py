"""Stage 2: all latents at one level, taken down the rest together - as a stream. Source: MIGA Alg. 5, decisions/0003.

Pass `p` of a window needs only the latents it sees to have finished pass `p - 1`. So the passes run as a wavefront
behind Stage 1 and hand out finished latents at once, whatever the length of the video. For a known number of latents
the windows, and so the result, are exactly those of passes over the whole queue.

Between calls at most `R * (f0 - 1)` latents are alive, `R` the number of passes: each waits for less than a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.windows import Window, tile

_T = TypeVar("_T")


@dataclass(frozen=True)
class UnifiedState:
    """Where the wavefront stands: per pass, the latents that wait for it, and how many windows it has done.

    Attributes:
        waiting: per pass, the latents from the next window's first on; None before any has come.
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
    """

    config: SamplerConfig
    stepper: Stepper
    num_latents: int | None

    @property
    def num_passes(self) -> int:
        """`R`, steps that Stage 1 leaves."""
        return self.config.handoff_level - 1

    def start(self) -> UnifiedState:
        """Nothing handed over yet."""
        return UnifiedState((None,) * self.num_passes, (0,) * self.num_passes)

    def advance(self, state: UnifiedState, arrived: FrameQueue) -> tuple[UnifiedState, FrameQueue | None]:
        """Takes what Stage 1 hands over as far as it can go.

        Returns:
            The state, and the latents that have reached level 0 (None if there are none).
        """
        for number in range(self.num_passes):
            state, finished = self._run_pass(state, number, arrived)
            if finished is None:
                return state, None
            arrived = finished
        return state, arrived

    def _run_pass(
        self, state: UnifiedState, number: int, arrived: FrameQueue
    ) -> tuple[UnifiedState, FrameQueue | None]:
        held = state.waiting[number]
        waiting = arrived if held is None else held.append(arrived)
        stepped: FrameQueue | None = None
        num_done = state.num_done[number]
        for start, stop, keep_stop in self._windows_from(num_done):
            if stop > waiting.first + len(waiting):
                break
            part = waiting[start - waiting.first :]
            done = self.stepper.pass_over(part, [Window((), 0, stop - start, 0, keep_stop - start)])
            stepped = done if stepped is None else stepped.append(done)
            waiting = waiting[keep_stop - waiting.first :]
            num_done += 1
        return (
            UnifiedState(_with(state.waiting, number, waiting.compact()), _with(state.num_done, number, num_done)),
            stepped,
        )

    def _windows_from(self, number: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, keep_stop) of a pass's windows from the given one on, counted from the video's first latent."""
        window, stride, total = self.config.window, self.config.stride, self.num_latents
        if total is None:
            return ((start, start + window, start + stride) for start in itertools.count(number * stride, stride))
        if total <= window:
            return iter([(0, total, total)][number:])
        windows = itertools.islice(tile(total, window, stride), number, None)
        return ((start, start + window, keep_stop) for start, _, keep_stop in windows)


def _with(values: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*values[:index], value, *values[index + 1 :])
