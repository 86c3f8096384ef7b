"""All results as one table, as VBench's JSON, and as figures of the data set."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miga.errors import InputError
from miga.evaluation.clips import mean_over_clips, mean_over_videos
from miga.evaluation.formulas import bootstrap_interval
from miga.evaluation.measures import MEASURES
from miga.evaluation.totals import QUALITY, SEMANTIC, overall_score, quality_total, semantic_total, total
from miga.evaluation.weights import WEIGHTS
from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.evaluation.records import EvaluatedRow
from pipeline.evaluation.scores import Result

RESULTS: Final = "results.parquet"
_HUNDREDS: Final = frozenset({"imaging_quality"})
"""Dimensions whose videos have 0 to 100 and whose data set has 0 to 1, as VBench has it."""
_BATCH: Final = 5000

SCHEMA: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("path", pa.string()),
        ("prompts", pa.list_(pa.string())),
        ("seed", pa.uint64()),
        ("sha256", pa.string()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("long", pa.float64()),
        ("clips", pa.list_(pa.float64())),
        ("clip_to_clip", pa.float64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("end_less_start", pa.float64()),
        ("start_end_contrast", pa.float64()),
        ("drift_error", pa.float64()),
        ("drift_error_normalised", pa.float64()),
        ("ends_cosine", pa.float64()),
        ("curve_distances", pa.list_(pa.int32())),
        ("curve_cosines", pa.list_(pa.float64())),
        ("made_of", pa.string()),
        ("non_commercial", pa.bool_()),
        ("note", pa.string()),
        ("error", pa.string()),
    ]
)


def is_non_commercial(measure: str) -> bool:
    """Whether a measure was made with weights that forbid commercial use."""
    networks = MEASURES[measure].networks if measure in MEASURES else ()
    return any(WEIGHTS[name].is_non_commercial for name in networks)


def table_rows(row: EvaluatedRow) -> Iterator[dict[str, Any]]:
    """A line for each measure of a video; one with an error where it could not be evaluated at all."""
    form = row.form
    of_video = {
        "row": row.video.row,
        "id": row.video.id,
        "path": row.video.path,
        "prompts": list(row.video.prompts),
        "seed": row.video.seed,
        "sha256": row.sha256 or None,
        "num_frames": form.num_frames if form else None,
        "fps": form.fps if form else None,
        "height": form.height if form else None,
        "width": form.width if form else None,
        "note": row.note,
    }
    if row.error:
        yield {**of_video, "measure": None, "error": f"{row.error_type}: {row.error}"}
    for name, result in row.results.items():
        yield {**of_video, "measure": name, **_columns(name, result)}


def _columns(name: str, result: Result) -> dict[str, Any]:
    has_ends = result.start is not None and result.end is not None
    change = result.end - result.start if has_ends else None  # type: ignore[operator]
    distances = sorted(distance for distance in result.curve if distance > 0)
    return {
        "value": result.value,
        "long": result.long,
        "clips": list(result.clips),
        "clip_to_clip": result.clip_to_clip,
        "start": result.start,
        "end": result.end,
        "end_less_start": change,
        "start_end_contrast": None if change is None else abs(change),
        "drift_error": result.drift_error,
        "drift_error_normalised": result.drift_error_normalised,
        "ends_cosine": result.curve.get(0),
        "curve_distances": distances,
        "curve_cosines": [result.curve[distance] for distance in distances],
        "made_of": result.made_of,
        "non_commercial": is_non_commercial(name),
        "error": result.error,
    }


def write_results(rows: Iterable[EvaluatedRow], path: Path) -> int:
    """Writes the table; returns its lines."""
    count = 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        waiting: list[dict[str, Any]] = []
        for row in rows:
            waiting += table_rows(row)
            if len(waiting) >= _BATCH:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                count, waiting = count + len(waiting), []
        if waiting or not count:
            writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
    return count + len(waiting)


@dataclass(frozen=True)
class Figure:
    """A measure over all videos.

    Attributes:
        measure: its name.
        mean: over videos, of the whole video's value.
        interval: 95 % of the mean, by bootstrap over videos.
        count: videos that have it.
        missing: videos that have not.
        vbench: as VBench gives a data set's: weighted by frames where it does that, 0 to 1.
        over_clips: VBench-Long's: the plain mean over all clips; None where it has none.
        over_videos: the mean over videos of each one's mean over clips.
        contrast: mean start-end contrast; None where there is none.
        change: mean of end less start.
        drift_error: mean normalised video drift error.
        ends_cosine: mean cosine of the two ends.
        is_non_commercial: whether weights that forbid commercial use were used.
    """

    measure: str
    mean: float
    interval: tuple[float, float]
    count: int
    missing: int
    vbench: float
    over_clips: float | None
    over_videos: float | None
    contrast: float | None
    change: float | None
    drift_error: float | None
    ends_cosine: float | None
    is_non_commercial: bool


@dataclass
class _Column:
    values: list[float]
    weights: list[int]
    clips: list[list[float]]
    changes: list[float]
    errors: list[float]
    cosines: list[float]
    missing: int = 0
    videos_of: Counter[tuple[str, ...]] = field(default_factory=Counter)
    clips_of: Counter[tuple[str, ...]] = field(default_factory=Counter)


class Totals:
    """Figures of the data set, row by row; it keeps numbers alone."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self.num_videos = 0
        self.failed: list[tuple[int, str, str]] = []

    def add(self, row: EvaluatedRow) -> None:
        """Takes the next video."""
        self.num_videos += 1
        if row.error:
            self.failed.append((row.video.row, row.video.id, row.error))
        for name, result in row.results.items():
            column = self._columns.setdefault(name, _Column([], [], [], [], [], []))
            most = MEASURES[name].most_of_a_prompt if name in MEASURES else None
            prompt = row.video.prompts or (f"row {row.video.row}",)
            clips = [clip for clip in result.clips if clip is not None]
            if most is not None:  # clips count there by themselves, those of a video that does not count too
                column.clips.append(_first_of(prompt, clips, most, column.clips_of))
            if result.value is None or (most is not None and not _first_of(prompt, [1.0], most, column.videos_of)):
                column.missing += 1
                continue
            column.values.append(result.value)
            column.weights.append(max(1, (row.form.num_frames if row.form else 1) - 1))
            if most is None:
                column.clips.append(clips)
            if result.start is not None and result.end is not None:
                column.changes.append(result.end - result.start)
            if result.drift_error_normalised is not None:
                column.errors.append(result.drift_error_normalised)
            if 0 in result.curve:
                column.cosines.append(result.curve[0])

    def figures(self) -> list[Figure]:
        """Of every measure, VBench's first and in its order."""
        order = {name: place for place, name in enumerate(MEASURES)}
        names = sorted(self._columns, key=lambda name: (order.get(name, len(order)), name))
        return [_figure(name, self._columns[name]) for name in names]

    def summary(self, semantic: Mapping[str, float] | None = None) -> dict[str, Any]:
        """VBench's quality score and O.S.; with the nine semantic dimensions of another file, its total too."""
        figures = {figure.measure: figure for figure in self.figures()}
        vbench = {name: figure.vbench for name, figure in figures.items() if name in QUALITY and figure.count}
        long = {
            name: figure.over_clips
            for name, figure in figures.items()
            if name in QUALITY and figure.over_clips is not None
        }
        known = {name: value for name, value in (semantic or {}).items() if name in SEMANTIC}
        return {
            "overall_score": overall_score(vbench),
            "overall_score_long": overall_score(long),
            "dynamic_degree": vbench.get("dynamic_degree"),
            "dynamic_degree_long": long.get("dynamic_degree"),
            "quality": quality_total(vbench),
            "semantic": semantic_total(known),
            "total": total({**known, **vbench}),
        }


def _first_of(prompt: tuple[str, ...], values: list[float], most: int, taken: Counter[tuple[str, ...]]) -> list[float]:
    """The values that still count of a prompt of which so many do."""
    kept = values[: max(0, most - taken[prompt])]
    taken[prompt] += len(kept)
    return kept


def _figure(name: str, column: _Column) -> Figure:
    scale = 0.01 if name in _HUNDREDS else 1.0
    is_weighted = name in ("subject_consistency", "background_consistency")
    if column.values:
        weights = column.weights if is_weighted else None
        vbench = scale * float(np.average(column.values, weights=weights))
    else:
        vbench = math.nan
    has_clips = any(column.clips)
    return Figure(
        measure=name,
        mean=float(np.mean(column.values)) if column.values else math.nan,
        interval=bootstrap_interval(column.values),
        count=len(column.values),
        missing=column.missing,
        vbench=vbench,
        over_clips=scale * mean_over_clips(column.clips) if has_clips else None,
        over_videos=scale * mean_over_videos(column.clips) if has_clips else None,
        contrast=_mean([abs(change) for change in column.changes]),
        change=_mean(column.changes),
        drift_error=_mean(column.errors),
        ends_cosine=_mean(column.cosines),
        is_non_commercial=is_non_commercial(name),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def vbench_json(rows: Iterable[EvaluatedRow]) -> dict[str, Any]:
    """VBench's result file: dimension → [score of the data set, [{video_path, video_results}]]."""
    totals = Totals()
    videos: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        totals.add(row)
        for name, result in row.results.items():
            if name in QUALITY and result.value is not None:
                value: float | bool = bool(result.value) if name == "dynamic_degree" else result.value
                videos.setdefault(name, []).append({"video_path": row.video.path, "video_results": value})
    scores = {figure.measure: figure.vbench for figure in totals.figures()}
    return {name: [scores[name], videos[name]] for name in QUALITY if name in videos}


def read_vbench_json(path: Path) -> dict[str, float]:
    """The scores of a result file of VBench's or VBench-Long's, by dimension.

    Raises:
        InputError: if it is none.
    """
    try:
        values = parse_json_object(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (OSError, OutsideDataError) as error:
        raise InputError(f"{path} is no result file of VBench: {error}") from error
    known = {name.replace(" ", "_"): value for name, value in values.items()}
    found: dict[str, float] = {}
    for name, value in known.items():
        score = value[0] if isinstance(value, list) and value else None
        if name not in (*QUALITY, *SEMANTIC):
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(f"{path} is no result file of VBench: {name} has no score", "it is [score, [...]] there")
        found[name] = float(score)
    if not found:
        raise InputError(f"{path} is no result file of VBench: it names none of its dimensions")
    return found


def dumped(values: Any) -> bytes:
    """JSON for people and programs."""
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
