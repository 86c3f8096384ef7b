"""`miga report`: the page of a run."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import show_values

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga report out/ --to page/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    report = commands.add_parser("report", help="write the page of a run: report.html")
    report.add_argument("out", metavar="OUT", help="of the run")
    report.add_argument("--json", action="store_true", help="print for machines")
    report.add_argument("--to", metavar="FOLDER", help="where the page goes (default: OUT)")
    report.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.report import make_report
    from pipeline.storage.open import open_storage

    page = make_report(open_storage(options.out), options.to)
    show_values({"page": str(page)}, options.json)
    return 0
