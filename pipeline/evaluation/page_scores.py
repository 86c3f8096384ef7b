"""What the page of a run shows of its evaluation: every measure's value, and one that videos are sorted by."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.base import Storage

RESULTS_OF_A_RUN: Final = "evaluation/results.parquet"
_COLUMNS: Final = pa.schema(
    [("row", pa.int64()), ("sha256", pa.string()), ("measure", pa.string()), ("value", pa.float64())]
)
SORTED_BY: Final = (
    "sprites.all_right",
    "subject_consistency",
    "background_consistency",
    "imaging_quality",
    "aesthetic_quality",
    "motion_smoothness",
    "temporal_flickering",
)
"""The first of these that a run has is what its page is sorted by, the least first."""


@dataclass(frozen=True)
class PageScores:
    """The scores of a run's videos.

    Attributes:
        by: the measure that they are sorted by; empty where there are none.
        values: (row, SHA-256 of its video) → measure → value.
    """

    by: str = ""
    values: dict[tuple[int, str], dict[str, float]] = field(default_factory=dict)

    def of(self, row: int, sha256: str | None) -> dict[str, Any]:
        """The columns of a row; empty of a video that was not evaluated, or made anew since."""
        found = self.values.get((row, sha256 or ""))
        return {} if found is None else {"scores": found, "score": found.get(self.by)}


def read_scores(storage: Storage) -> PageScores:
    """The scores of a run; none where it was not evaluated, or its table cannot be read.

    Args:
        storage: of the run.
    """
    try:
        data = storage.read_bytes(RESULTS_OF_A_RUN)
    except FileNotFoundError:
        return PageScores()
    try:
        table = pq.read_table(io.BytesIO(data), columns=_COLUMNS.names).cast(_COLUMNS)
        lines = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError):  # pyarrow raises of all these
        return PageScores()
    values: dict[tuple[int, str], dict[str, float]] = {}
    for line in lines:
        if line["value"] is not None and line["measure"] is not None:
            values.setdefault((line["row"], line["sha256"] or ""), {})[line["measure"]] = line["value"]
    measures = {measure for of_row in values.values() for measure in of_row}
    return PageScores(next((name for name in SORTED_BY if name in measures), ""), values)
