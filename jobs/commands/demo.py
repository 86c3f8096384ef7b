"""`miga demo`: the example videos, made by a run as any other, and evaluated."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import say_unless, show_summary
from jobs.commands.evaluate import show_evaluation
from pipeline.terminal import show_json

GROUP: Final = "make videos"
EXAMPLES: Final = ("miga demo demo-out/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "make five example videos with the embedded model, and evaluate them: no GPU, no download, a minute"
    demo = commands.add_parser("demo", help=text, description=text)
    demo.add_argument("out", metavar="OUT", nargs="?", default="demo-out", help="a new folder (default: demo-out)")
    demo.add_argument("--json", action="store_true", help="print the summaries for machines")
    demo.add_argument("--quiet", action="store_true", help="no progress")
    demo.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.evaluation.make import Wanted, evaluate
    from jobs.run.check import check_out
    from jobs.run.make import generate
    from jobs.run.plan import make_plan
    from jobs.shared.examples import DEMO_PROMPTS
    from jobs.shared.run_config import read_config

    plan = make_plan(str(DEMO_PROMPTS), options.out, read_config("demo"))
    check_out(plan)
    summary = generate(plan, quiet=options.quiet)
    if not options.json:
        show_summary(summary)
    found = None
    if summary["ok"]:  # the same call goes on with what was interrupted, so there may be none
        found = evaluate(Wanted(out=options.out, weights={}), say_unless(options.quiet or options.json))
    if options.json:
        show_json({**summary, "evaluation": found})
    elif found is not None:
        show_evaluation(found)
    return max(int(summary["exit_status"]), 0 if found is None else int(found["exit_status"]))
