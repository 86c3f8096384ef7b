"""How a training goes: a line a step in `progress.jsonl`, and curves of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

PROGRESS: Final = "progress.jsonl"
CURVES: Final = "curves.png"
_SMOOTHED: Final = 50
"""Steps that a curve is a mean over; fewer where there are few."""
_RMS: Final = {
    "injected_condition_rms": ("injected into the condition", "#c4561b"),
    "injected_latent_rms": ("injected into latents", "#1f5fa8"),
    "residual_rms": ("residual of a step", "#8a8a8a"),
    "hand_over_rms": ("measured at a clip's end", "#3b8a3e"),
}


def averaged(of_processes: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Figures of steps, the mean over processes; of what only some have, over those."""
    found = []
    for of_step in zip(*of_processes, strict=True):
        line: dict[str, Any] = {"step": of_step[0]["step"]}
        for name in dict.fromkeys(name for figures in of_step for name in figures if name != "step"):
            values = [figures[name] for figures in of_step if name in figures]
            mean = np.mean(np.asarray(values, dtype=np.float64), axis=0)
            line[name] = [float(f"{value:.6g}") for value in mean] if mean.ndim else float(f"{float(mean):.8g}")
        found.append(line)
    return found


def read_progress(out: Path, before: int | None = None) -> list[dict[str, Any]]:
    """The lines of steps before that one; a line that was cut off while it was written ends them."""
    lines: list[dict[str, Any]] = []
    file = out / PROGRESS
    if not file.exists():
        return lines
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if before is None or line["step"] < before:
            lines.append(line)
    return lines


def begin_progress(out: Path, step: int) -> None:
    """Leaves the lines of steps before that one: those behind it are taken again."""
    lines = read_progress(out, step)
    unfinished = out / f".{PROGRESS}"
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(unfinished, out / PROGRESS)


def add_progress(out: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines."""
    with (out / PROGRESS).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def draw_curves(out: Path) -> None:
    """A PNG: the loss, what is injected beside what the model gets wrong itself, and the bank."""
    lines = read_progress(out)
    if not lines:
        return
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10.0, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(canvas)
    loss, rms, bank = canvas.subplots(1, 3)
    loss.plot(*_smooth(lines, "loss"), color="#1f5fa8")
    loss.set_title("loss")
    for name, (label, colour) in _RMS.items():
        steps, values = _smooth(lines, name)
        if len(steps):
            rms.plot(steps, values, label=label, color=colour)
    rms.set_title("r.m.s. of errors")
    rms.legend(fontsize=7)
    held = [line for line in lines if "bank_samples" in line]
    bank.plot([line["step"] for line in held], [line["bank_samples"] for line in held], color="#7a4ba0")
    bank.set_title("samples in the bank")
    for axes in (loss, rms, bank):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
    unfinished = out / f".{CURVES}"
    canvas.savefig(unfinished, format="png", metadata={"Software": None})
    os.replace(unfinished, out / CURVES)


def _smooth(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and a running mean of what they have of that name."""
    pairs = np.asarray([(line["step"], line[name]) for line in lines if name in line], dtype=np.float64)
    if not len(pairs):
        return np.empty(0), np.empty(0)
    width = max(1, min(_SMOOTHED, len(pairs) // 8))
    sums = np.cumsum(np.concatenate([[0.0], pairs[:, 1]]))
    return pairs[width - 1 :, 0], (sums[width:] - sums[:-width]) / width
