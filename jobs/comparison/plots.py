"""The plot of a comparison, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence

from pipeline.evaluation.comparison import Difference

_COLOURS = ("#1f5fa8", "#c4561b", "#3b8a3e", "#7a4ba0")
_HEIGHT = 0.42


def draw_differences(differences: Sequence[Difference], first: str) -> bytes | None:
    """Differences with their 95 % intervals as a PNG, each metric on an axis of its own; None if there are none.

    Args:
        differences: metric by metric.
        first: what the others are compared with.
    """
    drawn = [found for found in differences if not math.isnan(found.difference.mean)]
    metrics = list(dict.fromkeys(found.metric for found in drawn))
    if not metrics:
        return None
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    systems = list(dict.fromkeys(found.system for found in drawn))
    height = 0.9 + len(metrics) * (_HEIGHT + 0.2 * len(systems))
    canvas = Figure(figsize=(7.0, height), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(len(metrics), 1, squeeze=False)
    for axes, metric in zip(grid[:, 0], metrics, strict=True):
        for found in (found for found in drawn if found.metric == metric):
            place = systems.index(found.system)
            value, colour = found.difference, _COLOURS[place % len(_COLOURS)]
            axes.plot([value.mean], [-place], "o", color=colour, markersize=4, label=found.system)
            if not math.isnan(value.low):
                axes.plot([value.low, value.high], [-place, -place], color=colour, linewidth=1.4)
        axes.axvline(0.0, color="#888888", linewidth=0.8)
        axes.set_yticks([])
        axes.set_ylim(-len(systems) + 0.5, 0.5)
        axes.set_ylabel(metric, rotation=0, ha="right", va="center", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.25, axis="x")
    grid[0, 0].set_title(f"Difference from {first}, pair by pair (95 % bootstrap over prompts)", fontsize=9)
    canvas.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    sink = io.BytesIO()
    canvas.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()
