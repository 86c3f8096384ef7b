"""What the manifest's columns say of how good a video is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from pipeline.rows import ManifestRow

Better: TypeAlias = Literal["higher", "lower", "neither"]

MANIFEST_SCORES: Final[Mapping[str, Better]] = {
    "final_consistency": "higher",
    "lowest_consistency": "higher",
    "searches": "neither",
    "corrections": "neither",
    "network_calls": "lower",
    "gpu_s": "lower",
}
"""Scores that `manifest_scores` gives, and which way they are better."""


def manifest_scores(row: ManifestRow) -> dict[str, float]:
    """What the manifest knows of a row that was made, by metric; those that it has no value for are left out.

    `final_consistency` is the mean over the video of the sampler's own score of finished latents, `lowest_consistency`
    its least value.
    """
    final = [score for score in row.final_consistency if not math.isnan(score)]
    values: dict[str, float | None] = {
        "final_consistency": math.fsum(final) / len(final) if final else None,
        "lowest_consistency": min(final) if final else None,
        "searches": float(row.num_searches) if row.num_evaluations else None,
        "corrections": float(row.num_corrections) if row.num_evaluations else None,
        "network_calls": None if row.network_calls is None else float(row.network_calls),
        "gpu_s": row.gpu_s,
    }
    return {name: value for name, value in values.items() if value is not None}
