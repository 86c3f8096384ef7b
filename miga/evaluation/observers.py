"""What looks at a video as it streams by, and notes numbers of its frames.

Frames come in portions of any size. What goes through a network goes in batches of a fixed size, so the numbers are the
same bit for bit whatever the portions are. An observer remembers a few frames at most.

Legend: F frames, H height, W width, D numbers that are noted of a frame; frames are uint8 RGB `[F, H, W, 3]`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miga.evaluation.formulas import STRONGEST_SHARE, Floats, difference, strongest_motion
from miga.evaluation.preprocessing import Frames, as_tensor, padded

Interpolate = Callable[[Frames, Frames], Frames]
"""The frames in the middle of pairs, all `[N, H, W, 3]`."""
Flow = Callable[[Frames, Frames], npt.NDArray[np.float32]]
"""The flows of pairs, `[N, 2, H, W]`, at the size that sides are padded to."""
Embed = Callable[[Frames], npt.NDArray[np.floating]]
"""Numbers of frames, `[N, D]`."""


@dataclass(frozen=True)
class Noted:
    """Numbers `[N, D]` of the frames (or pairs, or triples, by their first frame) with these positions `[N]`."""

    index_N: npt.NDArray[np.int64]
    values_ND: npt.NDArray[np.floating]


class Observer(Protocol):
    """Looks at one video."""

    def add(self, frames_FHWC: Frames) -> Iterable[Noted]:
        """Takes the next frames; what is known by now."""
        ...

    def finish(self) -> Iterable[Noted]:
        """The video has ended; what is left."""
        ...


class FrameObserver:
    """Notes numbers of single frames.

    Args:
        embed: makes them, in batches.
        batch: its size.
        only: positions of the frames looked at; None: all.
    """

    def __init__(self, embed: Embed, batch: int = 8, only: Collection[int] | None = None) -> None:
        self._embed, self._batch = embed, batch
        self._only = None if only is None else frozenset(only)
        self._seen = 0
        self._waiting: list[tuple[int, Frames]] = []

    def add(self, frames_FHWC: Frames) -> Iterable[Noted]:
        """See `Observer`."""
        for frame_HWC in frames_FHWC:
            if self._only is None or self._seen in self._only:
                self._waiting.append((self._seen, frame_HWC))
            self._seen += 1
            if len(self._waiting) == self._batch:
                yield self._note()

    def finish(self) -> Iterable[Noted]:
        """See `Observer`."""
        if self._waiting:
            yield self._note()

    def _note(self) -> Noted:
        index, frames = zip(*self._waiting, strict=True)
        self._waiting = []
        return Noted(np.array(index, np.int64), self._embed(np.stack(frames)))


class DifferenceObserver:
    """Notes the mean absolute difference of each frame to the next, in grey levels."""

    def __init__(self) -> None:
        self._before: Frames | None = None
        self._seen = 0

    def add(self, frames_FHWC: Frames) -> Iterable[Noted]:
        """See `Observer`."""
        for frame_HWC in frames_FHWC:
            if self._before is not None:
                yield _single(self._seen - 1, difference(frame_HWC, self._before))
            self._before = frame_HWC.copy()
            self._seen += 1

    def finish(self) -> Iterable[Noted]:
        """See `Observer`."""
        return ()


class _SpanObserver:
    """Looks at frames that belong together, such as a pair of some distance; subclasses say what they note.

    Args:
        starts: positions of first frames.
        length: frames from the first to the last.
        batch: so many at once.
    """

    def __init__(self, starts: Collection[int], length: int, batch: int) -> None:
        self._starts, self._batch = frozenset(starts), batch
        self._near: deque[Frames] = deque(maxlen=length)
        self._seen = 0
        self._waiting: list[tuple[int, tuple[Frames, ...]]] = []

    def add(self, frames_FHWC: Frames) -> Iterable[Noted]:
        """See `Observer`."""
        for frame_HWC in frames_FHWC:
            self._near.append(frame_HWC.copy())
            self._seen += 1
            start = self._seen - (self._near.maxlen or 0)
            if start in self._starts:
                self._waiting.append((start, tuple(self._near)))
            if len(self._waiting) == self._batch:
                yield self._note()

    def finish(self) -> Iterable[Noted]:
        """See `Observer`."""
        if self._waiting:
            yield self._note()

    def _note(self) -> Noted:
        index, spans = zip(*self._waiting, strict=True)
        self._waiting = []
        values = self._values([np.stack(frames) for frames in zip(*spans, strict=True)])
        return Noted(np.array(index, np.int64), values[:, None])

    def _values(self, frames: Sequence[Frames]) -> Floats:
        """A number of each span: its first frames, its second ones, …"""
        raise NotImplementedError


class InterpolationObserver(_SpanObserver):
    """Notes how far the middle frame of three is from one drawn of the other two, in grey levels.

    Args:
        interpolate: draws it.
        starts: positions of the first frames of triples.
        batch: triples at once.
    """

    def __init__(self, interpolate: Interpolate, starts: Collection[int], batch: int = 1) -> None:
        super().__init__(starts, 3, batch)
        self._interpolate = interpolate

    def _values(self, frames: Sequence[Frames]) -> Floats:
        first, middle, last = frames
        drawn = self._interpolate(first, last)
        return np.array([difference(one, other) for one, other in zip(middle, drawn, strict=True)])


class MotionObserver(_SpanObserver):
    """Notes the mean of the strongest of the flow's magnitudes between two frames, in pixels.

    Args:
        flow: finds it.
        starts: positions of the first frames of pairs.
        interval: frames from the first to the second.
        batch: pairs at once.
        share: of the magnitudes that are the strongest.
    """

    def __init__(
        self, flow: Flow, starts: Collection[int], interval: int, batch: int = 1, share: float = STRONGEST_SHARE
    ) -> None:
        super().__init__(starts, interval + 1, batch)
        self._flow, self._share = flow, share

    def _values(self, frames: Sequence[Frames]) -> Floats:
        return np.array([strongest_motion(flow, self._share) for flow in self._flow(frames[0], frames[-1])])


class EndsMotionObserver:
    """Notes the same of both ends of stretches of frames: of number k at 2k from first to last, at 2k + 1 back.

    Args:
        flow: finds it.
        spans: stretches as (start, stop), by their stops.
        batch: pairs at once.
        share: of the magnitudes that are the strongest.
    """

    def __init__(self, flow: Flow, spans: Sequence[tuple[int, int]], batch: int, share: float) -> None:
        self._flow, self._spans, self._batch, self._share = flow, spans, batch, share
        self._starts = {start for start, _ in spans}
        self._firsts: dict[int, Frames] = {}
        self._seen, self._next = 0, 0
        self._waiting: list[tuple[int, Frames, Frames]] = []

    def add(self, frames_FHWC: Frames) -> Iterable[Noted]:
        """See `Observer`."""
        for frame_HWC in frames_FHWC:
            if self._seen in self._starts:
                self._firsts[self._seen] = frame_HWC.copy()
            self._seen += 1
            while self._next < len(self._spans) and self._spans[self._next][1] == self._seen:
                first, last = self._firsts[self._spans[self._next][0]], frame_HWC.copy()
                self._waiting += [(2 * self._next, first, last), (2 * self._next + 1, last, first)]
                self._next += 1
                wanted = {start for start, _ in self._spans[self._next :]}
                self._firsts = {start: frame for start, frame in self._firsts.items() if start in wanted}
                yield from self._note(self._batch)

    def finish(self) -> Iterable[Noted]:
        """See `Observer`."""
        yield from self._note(1)

    def _note(self, least: int) -> Iterable[Noted]:
        while len(self._waiting) >= least:
            index, firsts, lasts = zip(*self._waiting[: self._batch], strict=True)
            self._waiting = self._waiting[self._batch :]
            values = [strongest_motion(flow, self._share) for flow in self._flow(np.stack(firsts), np.stack(lasts))]
            yield Noted(np.array(index, np.int64), np.array(values)[:, None])


def _single(index: int, value: float) -> Noted:
    return Noted(np.array([index], np.int64), np.array([[value]]))


# ---- networks as what observers call -------------------------------------------------------------------------------


def embedding(network: torch.nn.Module, prepare: Callable[[Tensor], Tensor], device: torch.device) -> Embed:
    """Features by a network of what `prepare` makes of frames."""

    @torch.inference_mode()
    def embed(frames_FHWC: Frames) -> npt.NDArray[np.floating]:
        values: Tensor = network(prepare(as_tensor(frames_FHWC, device)))
        found: npt.NDArray[np.floating] = values.float().cpu().numpy().reshape(len(frames_FHWC), -1)
        return found

    return embed


def interpolation(network: torch.nn.Module, device: torch.device) -> Interpolate:
    """Middle frames by AMT: sides padded to multiples of 16, values cut to whole grey levels, as VBench has it."""

    @torch.inference_mode()
    def interpolate(first_FHWC: Frames, last_FHWC: Frames) -> Frames:
        height, width = first_FHWC.shape[1:3]
        first, (left, _, top, _) = padded(as_tensor(first_FHWC, device) / 255.0, 16)
        last, _ = padded(as_tensor(last_FHWC, device) / 255.0, 16)
        drawn: Tensor = network(first, last).frame_NCHW[..., top : top + height, left : left + width]
        found: Frames = (drawn * 255.0).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return found

    return interpolate


def optical_flow(network: torch.nn.Module, device: torch.device) -> Flow:
    """Flows by RAFT, sides padded to multiples of 8."""

    @torch.inference_mode()
    def flow(first_FHWC: Frames, second_FHWC: Frames) -> npt.NDArray[np.float32]:
        first, _ = padded(as_tensor(first_FHWC, device), 8)
        second, _ = padded(as_tensor(second_FHWC, device), 8)
        found: npt.NDArray[np.float32] = network(first, second)[1].float().cpu().numpy()
        return found

    return flow
