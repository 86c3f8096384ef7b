"""`miga report`: the page of a run."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

from jobs.commands.common import say_unless, show_values
from miga.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 7 * 86_400
"""Servers take no signature that is valid for longer."""

GROUP: Final = "look at a run"
EXAMPLES: Final = ("miga report out/ --to page/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    report = commands.add_parser("report", help="write the page of a run: report.html")
    report.add_argument("out", metavar="OUT", help="of the run")
    report.add_argument("--json", action="store_true", help="print for machines")
    report.add_argument("--to", metavar="FOLDER", help="where the page goes (default: OUT)")
    report.add_argument(
        "--presign",
        metavar="TIME",
        help="for an OUT in object storage: videos play in the page for so long, such as 12h or 7d",
    )
    report.add_argument(
        "--strips",
        type=int,
        metavar="N",
        help="videos that get a contact strip (default: 200 in object storage, else none)",
    )
    report.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.report import make_report
    from pipeline.storage.open import open_storage

    page = make_report(
        open_storage(options.out),
        options.to,
        valid_s=None if options.presign is None else seconds_of(options.presign, "--presign"),
        num_strips=checked_strips(options.strips),
        say=say_unless(options.json),
    )
    show_values({"page": str(page)}, options.json)
    return 0


def checked_strips(number: int | None) -> int | None:
    """What `--strips` says.

    Raises:
        UsageError: if it is less than none.
    """
    if number is not None and number < 0:
        raise UsageError(f"--strips {number} is less than none", "give 0 or more")
    return number


def seconds_of(text: str, option: str) -> int:
    """The seconds of a time such as `90s`, `30m`, `12h` or `7d`.

    Raises:
        UsageError: if it is none, or longer than a signature can be valid.
    """
    found = re.fullmatch(r"(\d{1,7})([smhd])", text.strip(), re.ASCII)
    length_s = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < length_s <= _LONGEST_S:
        raise UsageError(
            f"{option} {text!r} is no time that a link can be valid for", "such as 30m, 12h or 7d, the most"
        )
    return length_s
