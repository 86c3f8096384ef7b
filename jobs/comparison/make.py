"""A comparison of runs, printed and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.comparison.plots import draw_differences
from miga.errors import OutputError, UsageError
from pipeline.evaluation.comparison import Compared, Difference, as_values, compare_systems
from pipeline.evaluation.comparison_page import PLOT_NAME, write_comparison
from pipeline.evaluation.paired import Interval
from pipeline.evaluation.pairs import System, open_systems, pair_up
from pipeline.report.links import Links
from pipeline.storage.local import LocalStorage, checked_root

_DIGITS = 4


def compare_runs(
    outs: Sequence[str], folder: str, *, metrics: Sequence[str] | None, valid_s: int | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compares runs with the first, and writes the plot and the page.

    Args:
        outs: the runs.
        folder: where plot and page go.
        metrics: their names; None: all there are.
        valid_s: for so many seconds, links to videos in object storage are signed addresses that play.
        say: is told what is left out.

    Returns:
        What was found as values, and the table's rows.

    Raises:
        UsageError: if nothing can be compared, or a metric is named that no video has.
        OutputError: if a run cannot be read, or the page not be written.
    """
    if "://" in folder or not folder.strip():
        raise UsageError(f"--to {folder!r} is no folder of this machine", "name one")
    systems = open_systems(outs)
    pairing = pair_up(systems)
    for text in pairing.left_out:
        say(f"left out: {text}")
    if not pairing.asked:
        raise UsageError(
            "these runs have no videos of the same prompt, seed, length and size",
            "make them of one prompt file with one seed",
        )
    compared = compare_systems(systems, pairing, metrics)
    _check_metrics(compared, metrics)
    root = Path(checked_root(folder))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--to {folder} cannot be made: {error.strerror}", "name another folder") from error
    links = {system.name: _links(system, root, valid_s) for system in systems}
    table = [_row(found, systems[0].name) for found in compared.differences]
    plot = draw_differences(compared.differences, systems[0].name)
    page = write_comparison(compared, root, links, table, plot)
    files = {"page": str(page)} | ({"plot": os.path.join(root, PLOT_NAME)} if plot else {})
    return as_values(compared) | files, table


def _check_metrics(compared: Compared, metrics: Sequence[str] | None) -> None:
    known = sorted({name for scores in compared.scores for name in scores})
    if unknown := [name for name in metrics or () if name not in known]:
        raise UsageError(
            f"no video of these runs has {', '.join(unknown)}",
            f"there are: {', '.join(known) or 'none'}; `miga evaluate OUT` finds more",
        )


def _links(system: System, page_folder: Path, valid_s: int | None) -> Links:
    if valid_s is None or isinstance(system.storage, LocalStorage):
        return Links(system.storage.root, page_folder)
    return Links(system.storage.root, page_folder, signed=lambda path: system.storage.signed_address(path, valid_s))


def _row(found: Difference, first: str) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "system": found.system,
        "pairs": found.num_pairs,
        first: _text(found.means[0]),
        "mean": _text(found.means[1]),
        "difference": _text(found.difference, "+"),
        "verdict": found.verdict,
    }


def _text(interval: Interval, sign: str = "") -> str:
    mean, low, high = (f"{value:{sign}.{_DIGITS}g}" for value in (interval.mean, interval.low, interval.high))
    if mean.strip("+-") == "nan":
        return "-"
    return mean if low.strip("+-") == "nan" else f"{mean} [{low}, {high}]"
