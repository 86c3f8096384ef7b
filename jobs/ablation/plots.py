"""The figures of an ablation, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import os
from typing import Any

from pipeline.ablation import COLUMNS, Figure, FilledRow, FilledTable

_COLOURS = ("#1f5fa8", "#c4561b", "#3b8a3e", "#7a4ba0")
_MARKS = ("o", "s", "^", "D")


def draw_plot(filled: FilledTable) -> bytes | None:
    """The table's plot as a PNG; None if there is nothing to draw.

    Rows with a place on the x axis are points with their 95 % intervals (joined, unless the axis is a column of its
    own), others lines across.
    """
    plot = filled.table.plot
    assert plot is not None, "the table has a plot"
    drawn = [name for name in (*plot.left, *plot.right) if any(name in row.figures for row in filled.rows)]
    if not drawn:
        return None
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    left = canvas.add_subplot()
    right = left.twinx() if any(name in plot.right for name in drawn) else None
    for number, name in enumerate(drawn):
        axes = right if right is not None and name in plot.right else left
        _draw_column(axes, filled, name, number, is_first=number == 0)
    left.set_xlabel(plot.x_label or (COLUMNS[plot.x_column].title if plot.x_column else ""))
    if plot.log_x:
        left.set_xscale("log")
    for axes, names in ((left, plot.left), (right, plot.right)):
        if axes is not None:
            axes.set_ylabel(", ".join(COLUMNS[name].title for name in names if name in drawn))
    left.set_title(filled.table.title)
    left.grid(alpha=0.25)
    lines = [
        line
        for axes in (left, right)
        if axes is not None
        for line in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    left.legend(*zip(*lines, strict=True), fontsize=8, loc="best")
    sink = io.BytesIO()
    canvas.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def _draw_column(axes: Any, filled: FilledTable, name: str, number: int, *, is_first: bool) -> None:
    plot = filled.table.plot
    assert plot is not None
    scale, title = COLUMNS[name].scale, COLUMNS[name].title
    colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
    placed = [(x, row) for row in filled.rows if name in row.figures and (x := _place(row, plot.x_column)) is not None]
    placed.sort(key=lambda pair: pair[0])
    if placed:
        figures = [row.figures[name] for _, row in placed]
        axes.errorbar(
            [x for x, _ in placed],
            [found.value * scale for found in figures],
            yerr=_bars(figures, scale),
            label=title,
            color=colour,
            marker=mark,
            linestyle="none" if plot.x_column else "-",
            capsize=2,
            elinewidth=0.8,
            markersize=4,
        )
    if plot.x_column:
        for x, row in placed if is_first else ():
            text = row.row.cells[0] if row.row.cells else row.row.setting
            axes.annotate(
                text, (x, row.figures[name].value * scale), fontsize=6, xytext=(4, 3), textcoords="offset points"
            )
        return
    for row in filled.rows:
        if row.row.x is None and name in row.figures and is_first:
            label = f"{title}, {' '.join(row.row.cells)}"
            axes.axhline(row.figures[name].value * scale, color=colour, linewidth=0.8, linestyle=":", label=label)


def _place(row: FilledRow, x_column: str) -> float | None:
    if not x_column:
        return row.row.x
    return row.figures[x_column].value * COLUMNS[x_column].scale if x_column in row.figures else None


def _bars(figures: list[Figure], scale: float) -> list[list[float]]:
    """Lengths of the intervals below and above; the value may lie a rounding error outside."""
    below = [max(0.0, found.value - found.low) * scale for found in figures]
    return [below, [max(0.0, found.high - found.value) * scale for found in figures]]
