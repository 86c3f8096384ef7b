"""`miga demo`: the example videos, made by a run as any other."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import show_summary
from pipeline.terminal import show_json

GROUP: Final = "make videos"
EXAMPLES: Final = ("miga demo demo-out/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "make five example videos with the embedded model: no GPU, no download, a minute"
    demo = commands.add_parser("demo", help=text, description=text)
    demo.add_argument("out", metavar="OUT", nargs="?", default="demo-out", help="a new folder (default: demo-out)")
    demo.add_argument("--json", action="store_true", help="print the summary for machines")
    demo.add_argument("--quiet", action="store_true", help="no progress")
    demo.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.check import check_out
    from jobs.run.make import generate
    from jobs.run.plan import make_plan
    from jobs.shared.examples import DEMO_PROMPTS
    from jobs.shared.run_config import read_config

    plan = make_plan(str(DEMO_PROMPTS), options.out, read_config("demo"))
    check_out(plan)
    summary = generate(plan, quiet=options.quiet)
    show_json(summary) if options.json else show_summary(summary)
    return int(summary["exit_status"])
