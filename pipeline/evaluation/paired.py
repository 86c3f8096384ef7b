"""Means and paired differences over prompts, with bootstrap intervals.

Videos of one prompt are alike, so prompts are resampled, all videos of a prompt together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

K = TypeVar("K", bound=tuple[Hashable, Hashable])
"""A prompt, and what tells its videos apart."""

NUM_RESAMPLES: Final = 10_000
COVERAGE: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval of `COVERAGE`.

    The mean is NaN where there is nothing to average, the interval where there is one prompt alone: it says nothing
    about others.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def signed(self) -> str:
        """The same, as a difference."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def mean_interval(values: Mapping[K, float]) -> Interval:
    """The mean over videos.

    Args:
        values: by (prompt, seed); NaN where a video has none.
    """
    sums: dict[Hashable, float] = {}
    counts: dict[Hashable, int] = {}
    for (prompt, _), value in values.items():
        if not math.isnan(value):
            sums[prompt] = sums.get(prompt, 0.0) + value
            counts[prompt] = counts.get(prompt, 0) + 1
    if not sums:
        return Interval(math.nan, math.nan, math.nan)
    sum_P = np.asarray([sums[prompt] for prompt in sums])
    count_P = np.asarray([counts[prompt] for prompt in sums])
    if len(sum_P) == 1:
        return Interval(float(sum_P[0] / count_P[0]), math.nan, math.nan)
    drawn_RP = np.random.default_rng(0).multinomial(len(sum_P), np.full(len(sum_P), 1 / len(sum_P)), NUM_RESAMPLES)
    means_R = (drawn_RP @ sum_P) / (drawn_RP @ count_P)
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(means_R, [tail, 1.0 - tail])
    return Interval(float(sum_P.sum() / count_P.sum()), float(low), float(high))


def paired_difference(values: Mapping[K, float], against: Mapping[K, float]) -> Interval:
    """The mean of `values - against` over the videos (prompt, seed) that both have."""
    return mean_interval({key: value - against[key] for key, value in values.items() if key in against})


def verdict(difference: Interval, higher_is_better: bool) -> str:
    """What a paired difference says: better or worse where its interval lies to one side of 0, else not worse.

    Returns:
        "better", "worse", "not worse", or "unknown" where there is no interval.
    """
    if math.isnan(difference.low):
        return "unknown"
    if difference.low <= 0.0 <= difference.high:
        return "not worse"
    return "better" if (difference.mean > 0.0) == higher_is_better else "worse"
