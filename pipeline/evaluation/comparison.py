"""Runs against the first of them, video by video: what is asked for by the same prompts and seed is compared.

The same prompt and seed vary the same way in both, so differences within pairs tell apart what two means cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.paired import Interval, mean_interval, paired_difference, verdict
from pipeline.evaluation.pairs import Asked, Pairing, System
from pipeline.evaluation.row_scores import better, scores_of
from pipeline.records.scores import Better

Scores = Mapping[str, Mapping[Asked, float]]
"""Metric → asked for → value."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of a system against the first one's, on the videos that both have it of.

    Attributes:
        metric: its name.
        system: the other one's name.
        num_pairs: videos.
        means: of the first system and of this one, each with its interval.
        difference: this one less the first.
        better: which way the metric is better.
        verdict: "better", "worse", "not worse" or "unknown"; of metrics without a better side "more", "less" or "same".
    """

    metric: str
    system: str
    num_pairs: int
    means: tuple[Interval, Interval]
    difference: Interval
    better: Better
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison has found.

    Attributes:
        systems: the first is what the others are compared with.
        pairing: which videos.
        scores: by system, in the order of `systems`.
        differences: metric by metric, and in each system by system.
    """

    systems: tuple[System, ...]
    pairing: Pairing
    scores: tuple[Scores, ...]
    differences: tuple[Difference, ...]


def compare_systems(systems: Sequence[System], pairing: Pairing, metrics: Sequence[str] | None = None) -> Compared:
    """Compares every system with the first one.

    Args:
        systems: two or more.
        pairing: the videos.
        metrics: their names; None: all that any video has.

    Raises:
        OutputError: if what `miga evaluate` has written cannot be read.
    """
    scores = tuple(_scores(system, pairing.asked) for system in systems)
    names = list(dict.fromkeys(name for each in scores for name in each)) if metrics is None else list(metrics)
    found = [
        _difference(name, system.name, scores[0].get(name, {}), mine.get(name, {}))
        for name in names
        for system, mine in zip(systems[1:], scores[1:], strict=True)
    ]
    return Compared(systems=tuple(systems), pairing=pairing, scores=scores, differences=tuple(found))


def _scores(system: System, asked: Sequence[Asked]) -> Scores:
    by_row = scores_of(system.storage, [system.rows[each] for each in asked])
    found: dict[str, dict[Asked, float]] = {}
    for each in asked:
        for name, value in by_row[system.rows[each].row].items():
            found.setdefault(name, {})[each] = value
    return found


def _difference(metric: str, system: str, first: Mapping[Asked, float], mine: Mapping[Asked, float]) -> Difference:
    both = [each for each in first if each in mine and math.isfinite(first[each]) and math.isfinite(mine[each])]
    a, b = ({each: side[each] for each in both} for side in (first, mine))
    difference = paired_difference(b, a)
    way = better(metric)
    return Difference(
        metric=metric,
        system=system,
        num_pairs=len(both),
        means=(mean_interval(a), mean_interval(b)),
        difference=difference,
        better=way,
        verdict=_verdict(difference, way),
    )


def _verdict(difference: Interval, way: Better) -> str:
    said = verdict(difference, way != "lower")
    if way != "neither":
        return said
    return {"better": "more", "worse": "less", "not worse": "same"}.get(said, said)


def as_values(compared: Compared) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "systems": [system.name for system in compared.systems],
        "pairs": len(compared.pairing.asked),
        "left_out": list(compared.pairing.left_out),
        "differences": [
            {
                "metric": found.metric,
                "system": found.system,
                "against": compared.systems[0].name,
                "pairs": found.num_pairs,
                "mean": _values(found.means[1]),
                "mean_against": _values(found.means[0]),
                "difference": _values(found.difference),
                "better": found.better,
                "verdict": found.verdict,
            }
            for found in compared.differences
        ],
    }


def _values(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]
