"""How far a video drifts from its beginning to its end.

Source: start-end contrast of FramePack (arXiv 2504.12626); video drift error of BlockVid, here also
over the sum of its weights, for it grows with the number of clips; the curve of cosines over distances.

Legend: F frames, D entries of a feature.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from miga.evaluation.formulas import Array, Floats, normalised

END_SHARE: Final = 0.15
DISTANCES: Final = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""In frames, as far as a video reaches."""


@dataclass(frozen=True)
class StartEnd:
    """Means of a score over the first and the last 15 % of its values."""

    start: float
    end: float

    @property
    def signed(self) -> float:
        """End less start: below 0 the video got worse."""
        return self.end - self.start

    @property
    def absolute(self) -> float:
        """Start-end contrast. It does not see a dip in the middle, and hardly a change of the last frames alone."""
        return abs(self.signed)


def end_length(count: int) -> int:
    """Values of each end: 15 %, at least one."""
    return max(1, int(END_SHARE * count))


def start_end(values: Sequence[float] | Array) -> StartEnd | None:
    """The two ends of a score; None of fewer than two values."""
    known = np.asarray(values, np.float64)
    if len(known) < 2:
        return None
    length = end_length(len(known))
    return StartEnd(float(known[:length].mean()), float(known[-length:].mean()))


def video_drift_error(clips: Sequence[float], weights: str = "linear") -> float:
    """BlockVid's: relative distances of the clips to the first, the early ones weighing most.

    Args:
        clips: a score of each clip.
        weights: "linear" (N - i + 1 of clip i = 2 … N) or "log" (its logarithm).

    Returns:
        Infinite or no number if the first clip's score is 0; 0 of one clip.
    """
    first, shares = (clips[0] if len(clips) else math.nan), _drift_weights(len(clips), weights)
    changes = [abs(value - first) for value in clips[1:]]
    total = math.fsum(share * change for share, change in zip(shares, changes, strict=True))
    if first == 0:
        return math.inf if total else math.nan
    return total / first


def normalised_drift_error(clips: Sequence[float], weights: str = "linear") -> float:
    """`video_drift_error` over the sum of its weights: a weighted mean, comparable between lengths."""
    total = math.fsum(_drift_weights(len(clips), weights))
    return video_drift_error(clips, weights) / total if total else math.nan


def _drift_weights(num_clips: int, weights: str) -> list[float]:
    counts = range(num_clips - 1, 0, -1)
    return [math.log(count) if weights == "log" else float(count) for count in counts]


class DistanceCurve:
    """Mean cosine of frames so far apart, in portions; it remembers as many features as the furthest distance.

    Args:
        distances: in frames.
    """

    def __init__(self, distances: Iterable[int] = DISTANCES) -> None:
        self._sums = dict.fromkeys(sorted(distances), 0.0)
        self._counts = dict.fromkeys(self._sums, 0)
        self._before: deque[Floats] = deque(maxlen=max(self._sums))

    def add(self, features_FD: Array) -> None:
        """Takes the next frames' features."""
        for unit_D in normalised(features_FD):
            for distance in self._sums:
                if distance > len(self._before):
                    break
                self._sums[distance] += float(unit_D @ self._before[-distance])
                self._counts[distance] += 1
            self._before.append(unit_D)

    @property
    def values(self) -> dict[int, float]:
        """Distance → mean cosine, of the distances that the video has."""
        return {distance: self._sums[distance] / count for distance, count in self._counts.items() if count}


class EndFeatures:
    """The cosine between the mean features of the first and the last 15 % of frames, in portions.

    Args:
        num_frames: of the video.
    """

    def __init__(self, num_frames: int) -> None:
        self._length, self._num_frames, self._seen = end_length(num_frames), num_frames, 0
        self._sums: list[Floats | None] = [None, None]

    def add(self, features_FD: Array) -> None:
        """Takes the next frames' features."""
        index = np.arange(self._seen, self._seen + len(features_FD))
        self._seen += len(features_FD)
        for end, inside in enumerate((index < self._length, index >= self._num_frames - self._length)):
            if inside.any():
                part = normalised(features_FD[inside]).sum(axis=0)
                before = self._sums[end]
                self._sums[end] = part if before is None else before + part

    @property
    def cosine(self) -> float:
        """Between -1 and 1; no number of fewer than two frames."""
        first, last = self._sums
        if first is None or last is None or self._num_frames < 2:
            return math.nan
        return float(normalised(first[None])[0] @ normalised(last[None])[0])
