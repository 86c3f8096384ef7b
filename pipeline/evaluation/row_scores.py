"""The scores that rows of a run have: what the manifest says, and what `miga evaluate` has found of their videos."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from miga.errors import OutputError
from pipeline.records.scores import MANIFEST_SCORES, Better, manifest_scores
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage

RESULTS_PATH: Final = "evaluation/results.parquet"
"""Where `miga evaluate` puts its table in OUT. Of its columns these are read: `row` (position in the prompt file),
`sha256` (of the video that was judged), `measure` (a name; null where the video could not be judged), `value`, and if
they are there `start_end_contrast` and `long`."""

_WANTED: Final = ("row", "sha256", "measure", "value")
_DERIVED: Final = (("start_end_contrast", "start-end contrast"), ("long", "VBench-Long"))
_MOST_BYTES: Final = 2 << 30

_OF_VIDEOS: Final[Mapping[str, Better]] = {
    "subject_consistency": "higher",
    "background_consistency": "higher",
    "temporal_flickering": "higher",
    "temporal_flickering_static": "higher",
    "subject_consistency_long": "higher",
    "motion_smoothness": "higher",
    "dynamic_degree": "higher",
    "aesthetic_quality": "higher",
    "imaging_quality": "higher",
    "colour": "higher",
    "ground": "higher",
    "shape": "higher",
    "motion": "higher",
    "all_right": "higher",
    "right_drift": "higher",
    "residual": "lower",
}


def better(metric: str) -> Better:
    """Which way a metric is better; "neither" also where it is not known."""
    name, _, derived = metric.partition(", ")
    if derived == "start-end contrast":
        return "lower"
    return (
        MANIFEST_SCORES.get(name) or _OF_VIDEOS.get(name.removeprefix("sprites_").removeprefix("sprites.")) or "neither"
    )


def evaluation_scores(storage: Storage, rows: Iterable[ManifestRow]) -> dict[int, dict[str, float]]:
    """Row → what `miga evaluate` has found of its video, by measure; empty where it was not run.

    What it found of another video than the row has now is left out, and so is what it could not judge.

    Args:
        storage: of the run.
        rows: those that are wanted.

    Raises:
        OutputError: if its table cannot be read.
    """
    digests = {row.row: row.sha256 for row in rows}
    try:
        data = storage.read_bytes(RESULTS_PATH, _MOST_BYTES)
    except FileNotFoundError:
        return {}
    found: dict[int, dict[str, float]] = {}
    for line in _lines(data, storage.uri(RESULTS_PATH)):
        number, measure, sha256 = line["row"], line["measure"], line["sha256"]
        if number not in digests or not isinstance(measure, str) or sha256 != digests[number]:
            continue
        scores = found.setdefault(number, {})
        for column, suffix in (("value", ""), *_DERIVED):
            value = line.get(column)
            if isinstance(value, int | float) and not math.isnan(value):
                scores[f"{measure}, {suffix}" if suffix else measure] = float(value)
    return found


def _lines(data: bytes, uri: str) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
            names = file.schema_arrow.names
            if lacking := [name for name in _WANTED if name not in names]:
                raise ValueError(f"it has no column {', '.join(lacking)}")
            wanted = [*_WANTED, *(name for name, _ in _DERIVED if name in names)]
            lines: list[dict[str, Any]] = file.read(wanted, use_threads=False).to_pylist()
            return lines
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise OutputError(f"{uri} cannot be used: {text}", "delete it, and run `miga evaluate` again") from error


def scores_of(storage: Storage, rows: Iterable[ManifestRow]) -> dict[int, dict[str, float]]:
    """Row → all its scores, the manifest's first."""
    rows = list(rows)
    evaluated = evaluation_scores(storage, rows)
    return {row.row: manifest_scores(row) | evaluated.get(row.row, {}) for row in rows}
