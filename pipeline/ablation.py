"""An ablation: settings of the sampler side by side on the same prompts. The grid, the figures, the tables; pure.

    [settings.no-search]                      # a name; also that of its run's folder
    profile = "paper"
    sampler = { self_reflection = false }     # over the profile's

    [[tables]]
    name = "3"                                # for --tables
    title = "Core mechanisms"
    header = ["self-reflection"]
    columns = ["sc", "bc", "ms", "tf", "os"]
    rows = [{ cells = ["no"], setting = "no-search" }, { cells = ["yes"], setting = "paper" }]

Settings that resolve to the same sampler are one run. Videos of a prompt are not independent of one another, so what is
resampled for an interval is the prompt, all its seeds together.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from miga.errors import ConfigError, UsageError
from pipeline.config import Name, read_toml, refuse_dates
from pipeline.rows import canonical_json

_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

NUM_RESAMPLES: Final = 2000
LEVEL: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of a table: a sum over videos over another sum over videos.

    Attributes:
        title: as the paper's tables have it.
        numerator, denominator: names of a video's values; without a denominator the figure is the mean over the videos
            that have a value.
        scale: what it is multiplied by for people.
        digits: after the point.
        best: which end is the better one; "" if neither is.
    """

    title: str
    numerator: str
    denominator: str = ""
    scale: float = 1.0
    digits: int = 2
    best: str = "high"


COLUMNS: Final[dict[str, Column]] = {
    "sc": Column(title="S.C.", numerator="subject_consistency", scale=100),
    "bc": Column(title="B.C.", numerator="background_consistency", scale=100),
    "ms": Column(title="M.S.", numerator="motion_smoothness", scale=100),
    "tf": Column(title="T.F.", numerator="temporal_flicker", scale=100),
    "os": Column(title="O.S.", numerator="overall", scale=100),
    "os_moving": Column(title="O.S. that moves", numerator="overall_moving", scale=100),
    "dynamic": Column(title="dynamic degree", numerator="dynamic", scale=100),
    "drift": Column(title="drift of O.S.", numerator="drift", scale=100),
    "colour": Column(title="colour", numerator="colour", scale=100),
    "ground": Column(title="ground", numerator="ground", scale=100),
    "shape": Column(title="shape", numerator="shape", scale=100),
    "all_right": Column(title="all right", numerator="all_right", scale=100),
    "motion": Column(title="motion", numerator="motion", scale=100),
    "residual": Column(title="residual", numerator="residual", scale=100, best="low"),
    "identity": Column(title="identity", numerator="identity", digits=3, best="low"),
    "right_drift": Column(title="drift of all right", numerator="right_drift", scale=100),
    "r_corr": Column(
        title="R_corr", numerator="num_corrections", denominator="num_evaluations", scale=100, digits=1, best=""
    ),
    "r_succ": Column(
        title="R_succ", numerator="num_corrections", denominator="num_searches", scale=100, digits=1, best=""
    ),
    "calls": Column(title="calls a frame", numerator="network_calls", denominator="num_frames", best="low"),
    "seconds": Column(title="M_t, s a frame", numerator="seconds", denominator="num_frames", digits=3, best="low"),
    "video_seconds": Column(title="s a video", numerator="seconds", digits=1, best="low"),
    "memory": Column(title="peak memory, MiB", numerator="peak_memory_bytes", scale=1 / 2**20, digits=0, best="low"),
}
"""What tables can show. `R_corr` and `R_succ`: corrections per evaluation and per search (MIGA 4.3; decisions/0002)."""


# ---- the grid ----


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to sample.

    Attributes:
        profile: named settings of the sampler.
        sampler: settings over the profile's; judged where the model is known.
        where_possible: whether it is left out, with its rows, on a model or at a length that it cannot be.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    profile: Name
    sampler: dict[str, Any] = field(default_factory=dict)
    where_possible: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        cells: what stands under the table's header.
        setting: whose figures stand under its columns.
        x: where a figure draws it; without one, as a line across.
        paper_os: what the paper has for O.S., if it has this row.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    cells: tuple[str, ...]
    setting: str
    x: float | None = None
    paper_os: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of a table's rows.

    Attributes:
        file: its name, without ".png".
        x_label: of the axis of the rows' `x`.
        x_column: a column to draw against in place of `x`.
        left, right: columns on the left and the right axis.
        log_x: whether the axis is logarithmic.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,60}$")]
    x_label: str = ""
    x_column: str = ""
    left: tuple[str, ...]
    right: tuple[str, ...] = ()
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in the paper's layout.

    Attributes:
        name: for `--tables`.
        title: says what varies.
        header: of the cells that tell the rows apart.
        columns: names of `COLUMNS`; those that no row has a value for are left out.
        rows: the first is what the others are compared with.
        note: what else is to be known.
        plot: a figure of it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Name
    title: str
    header: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    plot: Plot | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Everything an ablation compares."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    settings: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")], Setting]
    tables: tuple[Table, ...]

    def select(self, names: Sequence[str] | None) -> Grid:
        """The tables of those names (case does not matter; None means all), and the settings that they show.

        Raises:
            UsageError: if there is no such table.
        """
        wanted = {name.casefold() for name in names} if names is not None else None
        known = [table.name for table in self.tables]
        if wanted is not None and (unknown := sorted(wanted - {name.casefold() for name in known})):
            raise UsageError(f"there is no table {unknown[0]!r} in the grid", f"its tables: {', '.join(known)}")
        tables = tuple(table for table in self.tables if wanted is None or table.name.casefold() in wanted)
        shown = {row.setting for table in tables for row in table.rows}
        return Grid(settings={name: self.settings[name] for name in self.settings if name in shown}, tables=tables)

    def without(self, settings: Mapping[str, str]) -> Grid:
        """The grid without these settings and their rows; tables say why.

        Args:
            settings: setting → why it is left out.
        """
        tables = []
        for table in self.tables:
            gone = {row.setting: " ".join(row.cells) for row in table.rows if row.setting in settings}
            notes = [table.note, *(f"Not here: {cells} ({settings[name]})." for name, cells in gone.items())]
            rows = tuple(row for row in table.rows if row.setting not in gone)
            if rows:
                tables.append(replace(table, rows=rows, note=" ".join(filter(None, notes))))
        kept = {name: setting for name, setting in self.settings.items() if name not in settings}
        return Grid(settings=kept, tables=tuple(tables))


_ADAPTER: Final = TypeAdapter(Grid)


def load_grid(path: str | Path) -> Grid:
    """The grid in a TOML file.

    Raises:
        ConfigError: if it cannot be read, or is not one; it says what is wrong where.
    """
    return parse_grid(read_toml(path, "grid", "or leave --grid out"), f"grid {path}")


def parse_grid(values: Mapping[str, Any], origin: str) -> Grid:
    """The grid that plain values say.

    Raises:
        ConfigError: as `load_grid`.
    """
    refuse_dates(values, origin)
    try:
        grid = _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(fault) for fault in error.errors(include_url=False))
        raise ConfigError(
            f"{origin}: " + "; ".join(lines), "jobs/configs/ablate.toml is a grid to start from"
        ) from error
    for problem, hint in _faults(grid):
        raise ConfigError(f"{origin}: {problem}", hint)
    return grid


def _explain(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown key {path!r}"
    return f"{path}: {fault['msg']}"


def _faults(grid: Grid) -> Iterable[tuple[str, str]]:
    """What pydantic cannot see: (problem, hint), one after the other."""
    if not grid.tables:
        yield "there is no [[tables]]", "a grid needs at least one table"
    names = [table.name.casefold() for table in grid.tables]
    plots = [table.plot.file for table in grid.tables if table.plot]
    for kind, found in (("table", names), ("plot", plots)):
        if twice := sorted({name for name in found if found.count(name) > 1}):
            yield f"two {kind}s are named {twice[0]!r}", "give each a name of its own"
    for table in grid.tables:
        yield from _table_faults(table, grid.settings)


def _table_faults(table: Table, settings: Mapping[str, Setting]) -> Iterable[tuple[str, str]]:
    where = f"table {table.name!r}"
    if not table.rows:
        yield f"{where} has no rows", "a table needs at least one row"
    drawn = (*table.plot.left, *table.plot.right, *filter(None, [table.plot.x_column])) if table.plot else ()
    for column in (*table.columns, *drawn):
        if column not in COLUMNS:
            yield (
                f"{where} has the unknown column {column!r}",
                f"{_alike(column, COLUMNS)}columns: {', '.join(COLUMNS)}",
            )
    for number, row in enumerate(table.rows, 1):
        if row.setting not in settings:
            hint = _alike(row.setting, settings)
            yield (
                f"row {number} of {where} names the setting {row.setting!r}, which is not there",
                hint or (f"add [settings.{row.setting}]"),
            )
        if len(row.cells) != len(table.header):
            yield (
                f"row {number} of {where} has {len(row.cells)} cells under {len(table.header)} headers",
                ("write one cell per header"),
            )


def _alike(name: str, known: Iterable[str]) -> str:
    alike = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {alike[0]!r}? " if alike else ""


def merge_settings(resolved: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Setting → the setting whose run it shares: the first with an equal sampler, whatever their profiles are called.

    Args:
        resolved: setting → its resolved `SamplerConfig` as plain values.
    """
    first: dict[str, str] = {}
    runs = {}
    for name, sampler in resolved.items():
        key = canonical_json({field: value for field, value in sampler.items() if field != "profile"})
        runs[name] = first.setdefault(key, name)
    return runs


# ---- figures ----


@dataclass(frozen=True, kw_only=True)
class ScoredVideo:
    """What is known of one video of one setting.

    Attributes:
        prompt: what was resampled together: equal for all seeds of a prompt.
        seed: of the video.
        values: name → value; one that a video has none of is absent or NaN.
    """

    prompt: str
    seed: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its 95 % bootstrap interval.

    Attributes:
        value: over all videos.
        low, high: ends of the interval.
        num_videos: videos that had a value.
    """

    value: float
    low: float
    high: float
    num_videos: int


def figure(videos: Sequence[ScoredVideo], column: Column) -> Figure | None:
    """A column's figure over videos, prompts resampled; None if no video has a value."""
    sums, count = _sums(videos, column, _prompts(videos))
    if not sums[:, 1].sum():
        return None
    draws = _draws(sums)
    low, high = _interval(draws)
    return Figure(value=_ratio(sums), low=low, high=high, num_videos=count)


def paired_difference(videos: Sequence[ScoredVideo], reference: Sequence[ScoredVideo], column: Column) -> Figure | None:
    """By how much a setting's figure exceeds another's on the videos both have, prompts resampled for both at once.

    The same prompts and seeds vary the same way in both, so this tells apart what two separate intervals cannot.
    """
    common = {(video.prompt, video.seed) for video in videos} & {(video.prompt, video.seed) for video in reference}
    mine, theirs = (
        [video for video in side if (video.prompt, video.seed) in common and _has_value(video, column)]
        for side in (videos, reference)
    )
    both = {(v.prompt, v.seed) for v in mine} & {(v.prompt, v.seed) for v in theirs}
    mine, theirs = ([v for v in side if (v.prompt, v.seed) in both] for side in (mine, theirs))
    prompts = _prompts(mine)
    (my_sums, count), (their_sums, _) = _sums(mine, column, prompts), _sums(theirs, column, prompts)
    if not my_sums[:, 1].sum() or not their_sums[:, 1].sum():
        return None
    low, high = _interval(_draws(my_sums) - _draws(their_sums))
    return Figure(value=_ratio(my_sums) - _ratio(their_sums), low=low, high=high, num_videos=count)


def _prompts(videos: Iterable[ScoredVideo]) -> list[str]:
    return sorted({video.prompt for video in videos})


def _has_value(video: ScoredVideo, column: Column) -> bool:
    names = [column.numerator, *filter(None, [column.denominator])]
    return all(np.isfinite(video.values.get(name, np.nan)) for name in names)


def _sums(videos: Iterable[ScoredVideo], column: Column, prompts: Sequence[str]) -> tuple[npt.NDArray[np.float64], int]:
    """Numerator and denominator summed by prompt `[P, 2]`, and how many videos entered."""
    index = {prompt: number for number, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), 2))
    count = 0
    for video in videos:
        if _has_value(video, column):
            below = video.values[column.denominator] if column.denominator else 1.0
            sums[index[video.prompt]] += video.values[column.numerator], below
            count += 1
    return sums, count


def _ratio(sums: npt.NDArray[np.float64]) -> float:
    above, below = sums.sum(axis=0)
    return float(above / below)


def _draws(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ratio in every resample; the same resamples for every table of as many prompts."""
    picks = np.random.default_rng(0).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    above, below = np.moveaxis(sums[picks].sum(axis=1), 1, 0)
    draws: npt.NDArray[np.float64] = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return draws


def _interval(draws: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# ---- tables ----


@dataclass(frozen=True, kw_only=True)
class FilledRow:
    """A row with its figures.

    Attributes:
        row: what it is.
        figures: column → figure, for columns that have one.
        differences: column → how much more it is than the table's first row, on the same videos; none in that row.
    """

    row: Row
    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure]


@dataclass(frozen=True, kw_only=True)
class FilledTable:
    """A table with its figures; `columns` are those that some row has a figure for."""

    table: Table
    columns: tuple[str, ...]
    rows: tuple[FilledRow, ...]


def fill_table(table: Table, videos_of: Mapping[str, Sequence[ScoredVideo]]) -> FilledTable:
    """The table's figures.

    Args:
        table: which rows and columns.
        videos_of: setting → its videos.
    """
    plot = table.plot
    drawn = (*plot.left, *plot.right, *filter(None, [plot.x_column])) if plot else ()
    reference = videos_of[table.rows[0].setting]
    rows = []
    for row in table.rows:
        videos = videos_of[row.setting]
        names = dict.fromkeys((*table.columns, *drawn))
        figures = {name: figure(videos, COLUMNS[name]) for name in names}
        differences = {
            name: paired_difference(videos, reference, COLUMNS[name])
            for name in names
            if row.setting != table.rows[0].setting
        }
        rows.append(FilledRow(row=row, figures=_present(figures), differences=_present(differences)))
    columns = tuple(name for name in table.columns if any(name in row.figures for row in rows))
    return FilledTable(table=table, columns=columns, rows=tuple(rows))


def _present(figures: Mapping[str, Figure | None]) -> dict[str, Figure]:
    return {name: found for name, found in figures.items() if found is not None}


def to_markdown(filled: FilledTable) -> str:
    """The table for people: figures with intervals, the best of each column bold."""
    table = filled.table
    has_paper = any(row.paper_os is not None for row in table.rows)
    has_difference = "os" in filled.columns and any("os" in row.differences for row in filled.rows)
    head = [*table.header, *(COLUMNS[name].title for name in filled.columns)]
    head += ["O.S. against the first row"] * has_difference + ["O.S. in the paper"] * has_paper
    best = {name: _best(filled.rows, name) for name in filled.columns}
    lines = []
    for row in filled.rows:
        cells = [*row.row.cells, *(_cell(row.figures.get(name), name, best[name]) for name in filled.columns)]
        if has_difference:
            cells.append(_difference_cell(row.differences.get("os"), "os"))
        if has_paper:
            cells.append("" if row.row.paper_os is None else f"{row.row.paper_os:.2f}")
        lines.append(cells)
    text = f"### Table {table.name}: {table.title}\n\n" + aligned(head, lines)
    return text + (f"\n\n{table.note}" if table.note else "") + "\n"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns also line up as plain text."""
    rows = [[cell.replace("|", r"\|") for cell in line] for line in [head, *lines]]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def _number(value: float, name: str) -> str:
    column = COLUMNS[name]
    return f"{value * column.scale:.{column.digits}f}"


def _best(rows: Sequence[FilledRow], name: str) -> str:
    """The best figure of a column as it is printed; "" where there is no choice."""
    values = [row.figures[name].value for row in rows if name in row.figures]
    if len(values) < 2 or not COLUMNS[name].best or len({_number(value, name) for value in values}) == 1:
        return ""
    return _number(max(values) if COLUMNS[name].best == "high" else min(values), name)


def _cell(found: Figure | None, name: str, best: str) -> str:
    if found is None:
        return ""
    text = _number(found.value, name)
    bold = f"**{text}**" if text == best else text
    return f"{bold} [{_number(found.low, name)}, {_number(found.high, name)}]"


def _difference_cell(found: Figure | None, name: str) -> str:
    if found is None:
        return ""
    value, low, high = (_signed(part, name) for part in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _signed(value: float, name: str) -> str:
    text = _number(value, name)
    return text if text.startswith("-") else f"+{text}"


def table_as_dict(filled: FilledTable) -> dict[str, Any]:
    """The table for machines, unscaled: shares and cosines in [0, 1]."""
    return {
        "name": filled.table.name,
        "title": filled.table.title,
        "header": list(filled.table.header),
        "columns": list(filled.columns),
        "note": filled.table.note,
        "rows": [
            {
                "cells": list(row.row.cells),
                "setting": row.row.setting,
                "x": row.row.x,
                "paper_os": row.row.paper_os,
                "figures": {name: asdict(found) for name, found in row.figures.items()},
                "against_first_row": {name: asdict(found) for name, found in row.differences.items()},
            }
            for row in filled.rows
        ],
    }
