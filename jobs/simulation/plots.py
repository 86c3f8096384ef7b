"""The figures of a simulation, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, Final

from pipeline.scheduling.simulation import HOUR_S, Outcome

_COLOURS: Final = ("#1f5fa8", "#c4561b", "#3b8a3e", "#7a4ba0")
_MARKS: Final = ("o", "s", "^", "D")
_MINUTE_S: Final = 60.0


def draw_utilisation(outcomes: Sequence[Outcome]) -> bytes:
    """Shares of the GPUs that are busy, and that make calls, over time; the tail's start as a line across."""
    canvas, axes = _canvas("time, h", "share of GPUs, %", "Utilisation")
    for number, outcome in enumerate(outcomes):
        colour = _COLOURS[number % len(_COLOURS)]
        hours = [point[0] / HOUR_S for point in outcome.timeline]
        axes.plot(hours, [100 * point[1] for point in outcome.timeline], color=colour, label=f"{_name(outcome)}: busy")
        calls = [100 * point[2] for point in outcome.timeline]
        axes.plot(hours, calls, color=colour, linewidth=0.8, linestyle="--", label=f"{_name(outcome)}: in calls")
        if outcome.tail_start_s is not None:
            axes.axvline(outcome.tail_start_s / HOUR_S, color=colour, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 103)
    return _png(canvas, axes)


def draw_tail(outcomes: Sequence[Outcome]) -> bytes:
    """Videos in flight, as a share of the GPUs, and busy GPUs, over the minutes before the end."""
    canvas, axes = _canvas("minutes before the end", "% of GPUs", "Tail")
    longest_s = max((outcome.tail_s for outcome in outcomes), default=0.0)
    for number, outcome in enumerate(outcomes):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [point for point in outcome.timeline if outcome.makespan_s - point[0] <= 1.5 * longest_s]
        minutes = [(point[0] - outcome.makespan_s) / _MINUTE_S for point in points]
        flight = [100 * point[3] / outcome.scenario.num_gpus for point in points]
        axes.plot(minutes, [100 * point[1] for point in points], color=colour, label=f"{_name(outcome)}: busy")
        label = f"{_name(outcome)}: videos in flight"
        axes.plot(minutes, flight, color=colour, linewidth=0.8, linestyle="--", label=label)
    axes.set_ylim(0, 103)
    return _png(canvas, axes)


def draw_lost_work(outcomes: Sequence[Outcome]) -> bytes:
    """Work lost to kills over the interval of checkpoints, a line a rate; dotted: rate x interval / 2."""
    canvas, axes = _canvas("seconds between checkpoints", "work lost, %", "Lost work (dotted: rate x interval / 2)")
    rates = list(dict.fromkeys(outcome.scenario.kills_per_gpu_hour for outcome in outcomes))
    for number, rate in enumerate(rates):
        found = [outcome for outcome in outcomes if outcome.scenario.kills_per_gpu_hour == rate]
        places = [outcome.scenario.checkpoint_every_s for outcome in found]
        style: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKS[number % len(_MARKS)]}
        label = f"{rate:g} kills a GPU hour"
        axes.plot(places, [100 * outcome.lost_share for outcome in found], markersize=4, label=label, **style)
        expected = [100 * rate / HOUR_S * interval_s / 2 for interval_s in places]
        axes.plot(places, expected, color=style["color"], linewidth=0.8, linestyle=":")
    intervals = sorted({outcome.scenario.checkpoint_every_s for outcome in outcomes})
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_xticks(intervals, [f"{interval_s:g}" for interval_s in intervals])
    axes.minorticks_off()
    return _png(canvas, axes)


def _name(outcome: Outcome) -> str:
    scenario = outcome.scenario
    return f"{scenario.num_gpus:,} GPUs, {scenario.checkpoint_every_s:g} s"


def _canvas(x_label: str, y_label: str, title: str) -> tuple[Any, Any]:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.25)
    return canvas, axes


def _png(canvas: Any, axes: Any) -> bytes:
    axes.legend(fontsize=8, loc="best")
    sink = io.BytesIO()
    canvas.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()
