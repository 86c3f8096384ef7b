"""`miga status`: how far a run is."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import show_values

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga status out/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    status = commands.add_parser("status", help="how far a run is")
    status.add_argument("out", metavar="OUT", help="of the run")
    status.add_argument("--json", action="store_true", help="print for machines")
    status.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.status import status

    show_values(status(options.out), options.json)
    return 0
