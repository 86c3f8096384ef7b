"""VBench's totals over dimensions, and the MIGA paper's overall score.

Source: VBench's `cal_final_score`; MIGA (arXiv 2605.18233) section 4.1, Tables 1 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

QUALITY: Final = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
SEMANTIC: Final = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
OVERALL: Final = ("subject_consistency", "background_consistency", "motion_smoothness", "temporal_flickering")
"""The four that O.S. is the mean of. A still image scores about 100 in all of them."""

_RANGES: Final = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
_WEIGHTS: Final = {"dynamic_degree": 0.5}


def scaled(dimension: str, value: float) -> float:
    """A dimension on VBench's common scale, where 0 to 1 is what it found among videos; not clipped."""
    low, high = _RANGES.get(dimension, (0.0, 1.0))
    return (value - low) / (high - low)


def quality_total(values: Mapping[str, float]) -> float | None:
    """VBench's quality score; None if one of the seven is missing (VBench counts it as 0)."""
    return _weighted(values, QUALITY)


def semantic_total(values: Mapping[str, float]) -> float | None:
    """VBench's semantic score; None if one of the nine is missing."""
    return _weighted(values, SEMANTIC)


def total(values: Mapping[str, float]) -> float | None:
    """VBench's total: four parts quality, one part semantic; None if either is."""
    quality, semantic = quality_total(values), semantic_total(values)
    return None if quality is None or semantic is None else (4 * quality + semantic) / 5


def overall_score(values: Mapping[str, float]) -> float | None:
    """O.S. of the MIGA paper: the plain mean of S.C., B.C., M.S. and T.F.; None if one is missing."""
    if any(_is_missing(values, name) for name in OVERALL):
        return None
    return math.fsum(values[name] for name in OVERALL) / len(OVERALL)


def _weighted(values: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    if any(_is_missing(values, name) for name in names):
        return None
    weights = [_WEIGHTS.get(name, 1.0) for name in names]
    scores = (weight * scaled(name, values[name]) for name, weight in zip(names, weights, strict=True))
    return math.fsum(scores) / math.fsum(weights)


def _is_missing(values: Mapping[str, float], name: str) -> bool:
    return name not in values or not math.isfinite(values[name])
