"""`miga compare`: the videos of runs against those of the first, pair by pair."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import say_unless
from jobs.commands.report import seconds_of
from jobs.shared.table import format_table
from pipeline.terminal import show, show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = (
    "miga compare out-fifo/ out-miga/",
    "miga compare out-a/ out-b/ out-c/ --metrics final_consistency --to page/",
)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "compare the videos of runs with those of the first, pair by pair of one prompt and seed"
    compare = commands.add_parser("compare", help=text, description=text)
    compare.add_argument("outs", metavar="OUT", nargs="+", help="of the runs; the others are compared with the first")
    compare.add_argument(
        "--to", metavar="FOLDER", default="comparison", help="where page and plot go (default: comparison)"
    )
    compare.add_argument(
        "--metrics", metavar="NAME", nargs="+", help="those that are compared (default: all there are)"
    )
    compare.add_argument(
        "--presign", metavar="TIME", help="videos in object storage play in the page for so long, such as 12h or 7d"
    )
    compare.add_argument("--json", action="store_true", help="print for machines")
    compare.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.comparison.make import compare_runs

    values, table = compare_runs(
        options.outs,
        options.to,
        metrics=options.metrics,
        valid_s=None if options.presign is None else seconds_of(options.presign, "--presign"),
        say=say_unless(options.json),
    )
    if options.json:
        show_json(values)
        return 0
    show(f"{values['pairs']} pairs of the same prompt and seed; [low, high] is 95 %, prompts drawn anew")
    show_text(format_table(table))
    show(f"page  {values['page']}", *([f"plot  {values['plot']}"] if "plot" in values else []))
    return 0
