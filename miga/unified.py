"""Stage 2: all latents at one level, taken down the rest together - as a stream.

Source: MIGA Alg. 5 and 8, decisions/0003.

Pass `p` of a window needs only the latents it sees to have finished pass `p - 1`. So the passes run as a wavefront
behind whatever hands latents over, and hand out finished ones at once, whatever the length of the video. For a known
number of latents the windows, and so the result, are exactly those of passes over the whole queue.

Between calls at most `P * (f0 - 1)` latents are alive, `P` the number of passes: each waits for less than a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.queue import FrameQueue
from miga.windows import Window, plan_streamed

_T = TypeVar("_T")


@dataclass(frozen=True)
class StreamedPass:
    """One pass of the wavefront.

    Attributes:
        offset: border offset of its windows.
        renoise_to: level that its latents, clean by then, are first noised to again; None for none.
        purpose: what its noise is named by, where levels are passed twice.
        part: which part of the method it is.
    """

    offset: int = 0
    renoise_to: int | None = None
    purpose: str = ""
    part: str = "stage 2"


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
        window: latents of the video that a window shows, `f0` but for a picture's place.
        stride: `S`, latents kept of every window but a pass's last.
        lead: latents of context before every window but the first.
        stepper: takes the steps.
        num_latents: how many the video has; None if it has no end.
        passes: the passes, in order.
    """

    window: int
    stride: int
    lead: int
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
        return all(
            self._is_open(streamed.offset, num_done)
            for streamed, num_done in zip(self.passes, state.num_done, strict=True)
        )

    def _is_open(self, offset: int, num_done: int) -> bool:
        """The same of one pass. Borders are a stride apart: those of the first and the last window tell of all."""
        if not num_done:
            return True
        ours, endless = (
            [next(self._windows(num_latents, offset, number), None) for number in (0, num_done - 1, num_done)]
            for num_latents in (self.num_latents, None)
        )
        if ours[:2] != endless[:2] or ours[2] is None or endless[2] is None:
            return False
        return ours[2].positions[0] == endless[2].positions[0]

    def _run_pass(
        self, state: UnifiedState, number: int, arrived: FrameQueue
    ) -> tuple[UnifiedState, FrameQueue | None]:
        stepper = self.stepper.named(self.passes[number].purpose).in_part(self.passes[number].part)
        level = self.passes[number].renoise_to
        if level is not None:
            arrived = stepper.renoised(arrived.x_FCHW, level, arrived.first)
        held = state.waiting[number]
        waiting = arrived if held is None else held.append(arrived)
        ready: list[Window] = []
        next_start = 0
        for window in self._windows(self.num_latents, self.passes[number].offset, state.num_done[number]):
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

    def _windows(self, num_latents: int | None, offset: int, skip: int) -> Iterator[Window]:
        """A pass's windows from the given one on, counted from the video's first latent."""
        return plan_streamed(num_latents, self.window, self.stride, offset, self.lead, skip=skip)


def implied_stride(values: Mapping[str, Any]) -> int:
    """Stage 2's stride where it is not said: Stage 1's, and one more where context takes a window's position 0."""
    stride: int = values.get("stride", values["window"] // 2)
    return stride + bool(values.get("position_0_context"))


def require_strides(config: SamplerConfig, lead: int, **strides: int) -> None:
    """Refuses strides that leave a window no room for its context.

    Raises:
        ConfigError: naming the stride.
    """
    room = config.room - lead
    for name, stride in strides.items():
        held = 1 <= stride <= room
        config.require(held, name, f"1 to {room}: a window must hold what it keeps beside its context")


def _with(values: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*values[:index], value, *values[index + 1 :])
