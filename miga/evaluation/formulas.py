"""VBench's quality dimensions as formulas: numbers of a video's frames in, its score out. No networks, no files.

A score of a stretch of frames follows from what is known of its frames, so a clip's score and the whole video's are
made of the same numbers.

Source: VBench (arXiv 2311.17982) and its program.

Legend: F frames, D entries of a feature, H, W sides; frames are uint8 RGB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[np.generic]

STRONGEST_SHARE: Final = 0.05
"""Of the magnitudes of a flow, those that dynamic degree looks at,"""
STATIC_SHARE: Final = 0.02
"""and those that the static filter does."""
_THINNED_FPS: Final = 8


class TooShortError(ValueError):
    """A video, or a clip of it, has too few frames for a score."""


class ConsistencyMeter:
    """Subject and background consistency, frame by frame in portions of any size.

    A frame's score is the mean of its cosines to the frame before and to the first one, those below 0 counting as 0.
    """

    def __init__(self) -> None:
        self._first_D: Floats | None = None
        self._before_D: Floats | None = None

    def add(self, features_FD: Array) -> Floats:
        """The scores of the next frames; the very first one has none."""
        if not len(features_FD):
            return np.empty(0)
        unit_FD = normalised(features_FD)
        if self._first_D is None or self._before_D is None:
            self._first_D = self._before_D = unit_FD[0]
            unit_FD = unit_FD[1:]
        before_FD = np.concatenate([self._before_D[None], unit_FD[:-1]]) if len(unit_FD) else unit_FD
        scores = (_cosines(unit_FD, before_FD) + np.maximum(0.0, unit_FD @ self._first_D)) / 2
        if len(unit_FD):
            self._before_D = unit_FD[-1].copy()
        return scores


def consistency_scores(features_FD: Array) -> Floats:
    """Every frame's score but the first one's, `[F - 1]`. See `ConsistencyMeter`."""
    return ConsistencyMeter().add(features_FD)


def consistency(features_FD: Array) -> float:
    """Subject or background consistency of a video: the mean over its frames but the first.

    Raises:
        TooShortError: of one frame.
    """
    return mean_of(consistency_scores(features_FD), "consistency needs two frames")


def dataset_consistency(scores: Iterable[Array]) -> float:
    """VBench's figure of a data set: the mean over all frames of all videos, so that long ones weigh more."""
    every = [np.asarray(one, np.float64) for one in scores]
    return mean_of(np.concatenate(every) if every else np.empty(0), "no video has two frames")


def normalised(features_FD: Array) -> Floats:
    """Features of length 1; one that is all zeros stays so."""
    found = np.asarray(features_FD, np.float64)
    lengths: Floats = np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
    unit: Floats = found / lengths
    return unit


def _cosines(one_FD: Floats, other_FD: Floats) -> Floats:
    found: Floats = np.maximum(0.0, (one_FD * other_FD).sum(axis=1))
    return found


def mean_of(values: Array, why_none: str) -> float:
    """The mean.

    Raises:
        TooShortError: if there are no values, saying so.
    """
    if not len(values):
        raise TooShortError(why_none)
    return float(np.asarray(values, np.float64).mean())


def difference(one_HWC: Array, other_HWC: Array) -> float:
    """Mean absolute difference of two frames, in grey levels."""
    return float(np.abs(one_HWC.astype(np.int16) - other_HWC.astype(np.int16)).mean(dtype=np.float64))


def likeness(differences: Array, why_none: str) -> float:
    """`(255 - d) / 255`, d the mean of differences: what flicker and smoothness are both told as.

    Raises:
        TooShortError: if there are none.
    """
    return (255.0 - mean_of(differences, why_none)) / 255.0


def temporal_flickering(frames_FHWC: Array) -> float:
    """Temporal flickering of a video, 1 if nothing changes.

    Raises:
        TooShortError: of one frame.
    """
    pairs = itertools.pairwise(frames_FHWC)
    return likeness(np.array([difference(one, other) for one, other in pairs]), "flicker needs two frames")


def smoothness_starts(start: int, stop: int) -> range:
    """The first frames of the triples that motion smoothness of frames `start` to `stop` looks at.

    Every second frame is kept, and those between are drawn anew from their neighbours; of an even number of frames the
    last is not used.
    """
    return range(start, stop - 2, 2)


def thinning_interval(fps: float) -> int:
    """Every so-many-th frame is looked at for dynamic degree: about eight a second."""
    return max(1, round(fps / _THINNED_FPS))


def moving_pairs(start: int, stop: int, fps: float) -> list[tuple[int, int]]:
    """The pairs of frames whose flow dynamic degree of frames `start` to `stop` looks at."""
    thinned = range(start, stop, thinning_interval(fps))
    return list(itertools.pairwise(thinned))


def strongest_motion(flow_2HW: Array, share: float = STRONGEST_SHARE) -> float:
    """Mean of the largest magnitudes of a flow, in pixels."""
    flow = np.asarray(flow_2HW)
    magnitude = np.sqrt(flow[0] ** 2 + flow[1] ** 2).ravel()
    count = int(magnitude.size * share)
    if not count:
        raise ValueError(f"a flow of {magnitude.size} pixels has no strongest {share:.0%}")
    return float(np.partition(magnitude, magnitude.size - count)[-count:].mean(dtype=np.float64))


def moving_threshold(height: int, width: int) -> float:
    """Pixels above which a pair of frames moves."""
    return 6.0 * min(height, width) / 256.0


def moving_count(num_thinned: int) -> int:
    """Pairs that have to move, of so many thinned frames."""
    return round(4 * num_thinned / 16)


def is_moving(motions: Sequence[float] | Array, num_thinned: int, height: int, width: int) -> bool:
    """Dynamic degree of a video: whether enough of its pairs move.

    Of two thinned frames no pair has to, so any video of them is moving; VBench has it so.
    """
    needed, threshold, found = moving_count(num_thinned), moving_threshold(height, width), 0
    for motion in motions:
        found += bool(motion > threshold)
        if found >= needed:
            return True
    return False


def is_static(motions: Sequence[float] | Array, num_frames: int, height: int, width: int) -> bool:
    """VBench's static filter, before temporal flickering.

    Args:
        motions: `strongest_motion` with `STATIC_SHARE` of every adjacent pair, of the first frame to the last, and of
            the last to the first.
        num_frames: of the video.
        height: of its frames.
        width: of its frames.
    """
    threshold, allowed = 3.0 * min(height, width) / 256.0, round(2 * num_frames / 16)
    inner, ends = np.asarray(motions)[:-2], np.asarray(motions)[-2:]
    return not (int((inner > threshold).sum()) > allowed or bool((ends > threshold * allowed * 2).any()))


def aesthetic_scores(features_FD: Array, weight_1D: Array, bias_1: Array) -> Floats:
    """LAION's linear head on CLIP ViT-L/14 embeddings of length 1, a tenth of its 0 to 10; it may leave them."""
    found: Floats = (normalised(features_FD) @ np.asarray(weight_1D, np.float64)[0] + float(np.asarray(bias_1)[0])) / 10
    return found


def bootstrap_interval(
    values: Sequence[float], *, share: float = 0.95, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """An interval of the mean, by drawing as many values again and again; of one value, itself."""
    known = np.asarray(values, np.float64)
    if not len(known):
        return math.nan, math.nan
    chosen = np.random.default_rng(seed).integers(0, len(known), (rounds, len(known)))
    means = known[chosen].mean(axis=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
