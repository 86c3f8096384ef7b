"""`miga failures`: which rows a run gave up, why, and what to do."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_command, failure_line
from pipeline.terminal import show, show_json

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga failures out/ --rows 0",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    failures = add_command(commands, "failures", _run, "which rows a run gave up, why, and what to do")
    failures.add_argument(
        "--rows", type=int, default=10, metavar="N", help="rows shown of each reason; 0: all (default: %(default)s)"
    )


def _run(options: argparse.Namespace) -> int:
    from jobs.run.failures import failures
    from miga.errors import UsageError

    if options.rows < 0:
        raise UsageError(f"--rows is {options.rows}", "say how many rows to show of each reason, or 0 for all")
    groups = failures(options.out)
    num_failed = sum(len(group.failures) for group in groups)
    if options.json:
        show_json({"failed": num_failed, "reasons": [group.to_dict() for group in groups]})
        return 0
    if not groups:
        show("no row was given up")
        return 0
    kinds = "one kind of reason" if len(groups) == 1 else f"{len(groups)} kinds of reason"
    show(f"{num_failed:,} row{'s were' if num_failed > 1 else ' was'} given up, for {kinds}")
    for group in groups:
        show("", f"{len(group.failures):,} x {group.error_type}: {group.reason}")
        show(f"  what to do: {group.hint.replace('OUT`', f'{options.out}`')}")
        shown = group.failures[: options.rows or None]
        show(*(f"  {failure_line(failure.to_dict())}" for failure in shown))
        if len(shown) < len(group.failures):
            show(f"  and {len(group.failures) - len(shown):,} more: --rows 0 shows all, --json too")
    return 0
