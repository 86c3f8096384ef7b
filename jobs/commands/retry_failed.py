"""`miga retry-failed`: makes the rows again that a run gave up."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_command, add_failed_rows_ok, show_summary
from pipeline.terminal import show_json

GROUP: Final = "make videos"
EXAMPLES: Final = ("miga retry-failed out/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    retry = add_command(commands, "retry-failed", _run, "make the rows again that a run gave up")
    retry.add_argument("--prompts", metavar="PATH", help="where the prompt file lies now, if it was moved")
    retry.add_argument("--model", help="the run's, where run.json names code or what would be downloaded")
    retry.add_argument(
        "--trust", action="store_true", help="take all that run.json names: it is your own, or known to you"
    )
    retry.add_argument("--num-actors", type=int, help="backbone actors (default: as the run)")
    retry.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    add_failed_rows_ok(retry)
    retry.add_argument("--quiet", action="store_true", help="no progress")


def _run(options: argparse.Namespace) -> int:
    from jobs.run.retry import retry_failed

    summary = retry_failed(
        options.out,
        prompts=options.prompts,
        model=options.model,
        trust=options.trust,
        num_actors=options.num_actors,
        address=options.address,
        quiet=options.quiet,
        failed_rows_ok=options.failed_rows_ok,
    )
    if options.json:
        show_json(summary)
    else:
        show_summary(summary)
    return int(summary["exit_status"])
