"""What follows from pixels alone: temporal flicker and motion smoothness, frame by frame.

Source: VBench (arXiv 2311.17982), which MIGA's section 4.1 scores by. Temporal flicker is VBench's. Motion smoothness
is VBench's but for how dropped frames are rebuilt: there by an interpolation network, here by blocks that move evenly.

Legend: F frames, H height, W width, C = 3 (RGB); `frame_HWC` uint8; `small_HWC` float32 in the same units, 0 to 255.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MAX_SIDE: Final = 128
"""Frames are reduced until their shorter side has at most so many pixels, before motion is looked for."""
BLOCK: Final = 8
"""Side of a block that moves as one, in pixels of the reduced frame."""
REACH: Final = 4
"""Furthest that a block moves from one frame to the next, in pixels of the reduced frame, in each direction."""

_MOVES: Final = sorted(
    ((y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)),
    key=lambda move: (np.hypot(*move), move),
)


class FlickerMeter:
    """Temporal flicker: `(255 - d) / 255`, `d` the mean absolute difference of adjacent frames.

    Source: VBench, "temporal flickering"; MIGA's T.F.
    """

    def __init__(self) -> None:
        self._before_HWC: Frame | None = None
        self._sum = 0.0
        self._count = 0

    def add(self, frame_HWC: Frame) -> None:
        """Takes the next frame."""
        if self._before_HWC is not None:
            self._sum += float(np.abs(frame_HWC.astype(np.int16) - self._before_HWC).mean())
            self._count += 1
        self._before_HWC = frame_HWC

    @property
    def score(self) -> float:
        """In [0, 1]; NaN for fewer than two frames."""
        return (255.0 - self._sum / self._count) / 255.0 if self._count else float("nan")


class SmoothnessMeter:
    """Motion smoothness: every second frame is dropped and rebuilt from its neighbours; `(255 - d) / 255`.

    `d` is the mean absolute difference between the dropped frames and `interpolate`'s, at the reduced size. Motion that
    is even over three frames is rebuilt; jitter, jumps and flicker are not. Fractions of a pixel cost a little.

    Source: VBench, "motion smoothness", which uses a network (AMT) in the place of `interpolate`; MIGA's M.S.
    """

    def __init__(self) -> None:
        self._before_HWC: Floats | None = None
        self._dropped_HWC: Floats | None = None
        self._sum = 0.0
        self._count = 0

    def add(self, frame_HWC: Frame) -> None:
        """Takes the next frame."""
        small_HWC = reduce_frame(frame_HWC)
        if self._before_HWC is None:
            self._before_HWC = small_HWC
        elif self._dropped_HWC is None:
            self._dropped_HWC = small_HWC
        else:
            rebuilt_HWC = interpolate(self._before_HWC, small_HWC)
            self._sum += float(np.abs(self._dropped_HWC - rebuilt_HWC).mean())
            self._count += 1
            self._before_HWC, self._dropped_HWC = small_HWC, None

    @property
    def score(self) -> float:
        """In [0, 1]; NaN for fewer than three frames."""
        return (255.0 - self._sum / self._count) / 255.0 if self._count else float("nan")


class MovementMeter:
    """How much of a video moves: the share of moments at which many pixels differ from `SPAN` frames before.

    A stand-in for VBench's dynamic degree, which asks a network for optical flow. Whatever moves counts, a camera too;
    noise and slow drifts of colour do not.
    """

    SPAN: Final = 12
    """Frames between the two that are compared: enough for what moves slowly, too few for most of what comes back."""
    CHANGE: Final = 25
    """Of 255, by how much a pixel must differ in some channel."""
    SHARE: Final = 0.01
    """Of a frame's pixels, how many must."""

    def __init__(self) -> None:
        self._before: deque[Frame] = deque(maxlen=self.SPAN)
        self._count = self._num_moving = 0

    def add(self, frame_HWC: Frame) -> None:
        """Takes the next frame."""
        if len(self._before) == self.SPAN:
            changed_HW = np.abs(frame_HWC.astype(np.int16) - self._before[0]).max(axis=2) > self.CHANGE
            self._num_moving += bool(changed_HW.mean() > self.SHARE)
            self._count += 1
        self._before.append(frame_HWC)

    @property
    def score(self) -> float:
        """In [0, 1]; NaN for no more than `SPAN` frames."""
        return self._num_moving / self._count if self._count else float("nan")


def interpolate(before_HWC: Floats, after_HWC: Floats) -> Floats:
    """The frame in the middle of two, if every block moves evenly between them.

    A block of it is the mean of a block of the frame before, displaced by `-v`, and one of the frame after, displaced
    by `+v`; of all `v` within `REACH`, the one under which those two differ least, the smallest of several. (Known in
    frame-rate conversion as bilateral motion estimation.) Beyond the edges, edge pixels go on.
    """
    height, width, _ = before_HWC.shape
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    pad = ((REACH, rows * BLOCK - height + REACH), (REACH, columns * BLOCK - width + REACH), (0, 0))
    before, after = np.pad(before_HWC, pad, "edge"), np.pad(after_HWC, pad, "edge")

    def moved(frame: Floats, y: int, x: int) -> Floats:
        return frame[REACH + y : REACH + y + rows * BLOCK, REACH + x : REACH + x + columns * BLOCK]

    best = np.full((rows, columns), np.inf, np.float32)
    rebuilt = np.empty_like(moved(before, 0, 0))
    for y, x in _MOVES:
        source, target = moved(before, -y, -x), moved(after, y, x)
        cost = np.abs(source - target).sum(axis=2).reshape(rows, BLOCK, columns, BLOCK).sum(axis=(1, 3))
        better = cost < best
        if better.any():
            best = np.where(better, cost, best)
            mask = better.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
            rebuilt[mask] = (source[mask] + target[mask]) / 2
    return rebuilt[:height, :width]


def reduce_frame(frame_HWC: Frame) -> Floats:
    """The frame by means over squares of whole pixels, small enough for `MAX_SIDE`; what is left at the edge is cut."""
    height, width, channels = frame_HWC.shape
    factor = -(-min(height, width) // MAX_SIDE)
    if factor == 1:
        return frame_HWC.astype(np.float32)
    rows, columns = height // factor, width // factor
    squares = frame_HWC[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, channels)
    small_HWC: Floats = squares.mean(axis=(1, 3), dtype=np.float32)
    return small_HWC
