"""What came out of a simulation: a table, figures in a folder, and all of it for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.shared.table import format_table
from jobs.simulation.scenarios import simulate_all, sweep_of
from miga.errors import OutputError
from pipeline.scheduling.simulation import Outcome


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """A row per scenario, and why runs ended before all their rows were settled."""
    stopped = [
        f"{outcome.scenario.num_gpus} GPUs, checkpoints every {outcome.scenario.checkpoint_every_s:g} s: "
        f"the run stops: {outcome.abort_reason}"
        for outcome in outcomes
        if outcome.abort_reason
    ]
    return "\n".join([format_table([_row(outcome) for outcome in outcomes]), *stopped])


def _row(outcome: Outcome) -> dict[str, Any]:
    scenario, values = outcome.scenario, outcome.to_dict()
    return {
        "GPUs": scenario.num_gpus,
        "videos": scenario.num_videos,
        "checkpoint, s": f"{scenario.checkpoint_every_s:g}",
        "hours": f"{outcome.makespan_s / 3600:.2f}",
        "of ideal": f"{values['makespan_of_ideal']:.3f}",
        "busy before tail": f"{outcome.busy_before_tail:.2%}",
        "busy": f"{outcome.busy_share:.2%}",
        "useful": f"{outcome.useful_share:.2%}",
        "lost work": f"{outcome.lost_share:.3%}",
        "tail, min": f"{outcome.tail_s / 60:.1f}",
        "ok": outcome.num_ok,
        "quarantined": outcome.num_quarantined,
        "kills": outcome.num_kills,
        "preemptions": outcome.num_preemptions,
        "events/s": f"{values['events_per_s']:.1f}",
        "calls/s": f"{values['calls_per_s']:.2f}",
        "ledger here, events/s": f"{values['ledger_events_per_s']:,.0f}",
    }


def check_out(out: str) -> None:
    """Makes the folder of the plots, before any time is spent.

    Raises:
        OutputError: if it cannot be made.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a NUL, or half of a surrogate pair
        raise OutputError(f"--out {out} cannot be made: {error}", "name a folder that can be written") from error


def write_plots(outcomes: Sequence[Outcome], out: str, *, quiet: bool) -> list[str]:
    """Draws utilisation, tail and lost work, this from a sweep of its own; returns the files.

    Raises:
        OutputError: if the folder cannot be written.
    """
    from jobs.simulation.plots import draw_lost_work, draw_tail, draw_utilisation

    sweep = simulate_all(sweep_of(outcomes[0].scenario), quiet=quiet)
    plots = {
        "utilisation.png": draw_utilisation(outcomes),
        "tail.png": draw_tail(outcomes),
        "lost-work.png": draw_lost_work(sweep),
    }
    folder = Path(out)
    try:
        for name, data in plots.items():
            (folder / name).write_bytes(data)
        text = json.dumps([as_json(outcome) for outcome in [*outcomes, *sweep]], indent=1)
        (folder / "simulation.json").write_text(text + "\n")
    except OSError as error:
        raise OutputError(f"--out {out} cannot be written: {error}", "name a folder that can be written") from error
    return [str(folder / name) for name in [*plots, "simulation.json"]]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome and the settings it came from; without checkpoints their interval is None."""
    scenario = outcome.scenario
    settings = {name: value for name, value in vars(scenario).items() if isinstance(value, int | float | str)}
    if scenario.checkpoint_every_s == math.inf:
        settings["checkpoint_every_s"] = None
    return {
        "settings": settings,
        "num_frames": {str(frames): share for frames, share in scenario.lengths.items()},
        "speeds": {str(speed): share for speed, share in scenario.speeds.items()},
        **outcome.to_dict(),
    }
