"""`miga judge`: people compare the videos of runs, two at a time, in the browser of this machine."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import say_unless
from pipeline.terminal import show, show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = (
    "miga judge out-miga/ out-fifo/",
    "miga judge out-a/ out-b/ out-c/ --per-person 24 --answers study.jsonl",
    "miga judge --report --answers study.jsonl",
)
ANSWERS: Final = "judgements.jsonl"


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "let people compare the videos of runs, two at a time, in the browser of this machine"
    judge = commands.add_parser("judge", help=text, description=text)
    judge.add_argument("outs", metavar="OUT", nargs="*", help="of the runs; wins are counted for the first")
    judge.add_argument(
        "--answers",
        metavar="FILE.jsonl",
        default=ANSWERS,
        help=f"where the answers are; a study goes on with what is there (default: {ANSWERS})",
    )
    judge.add_argument("--report", action="store_true", help="print what the answers say, and serve nothing")
    judge.add_argument("--port", type=int, help="of 127.0.0.1 (default: any that is free)")
    judge.add_argument("--seed", type=int, default=0, help="of order and sides (default: 0)")
    judge.add_argument("--per-person", type=int, metavar="N", help="pairs that each person gets (default: all)")
    judge.add_argument(
        "--checks", type=float, metavar="SHARE", default=0.08,
        help="pairs whose answer is known, as a share of a person's; at least two, 0: none (default: 0.08)",
    )  # fmt: skip
    judge.add_argument(
        "--repeats", type=float, metavar="SHARE", default=0.05,
        help="pairs that are shown again, swapped; at least one, 0: none (default: 0.05)",
    )  # fmt: skip
    judge.add_argument("--json", action="store_true", help="print for machines")
    judge.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    if options.report:
        return _report(options)
    from jobs.judging.make import serve_study
    from miga.errors import UsageError

    for name, low, high in (("port", 0, 65535), ("per_person", 1, None), ("checks", 0, 1), ("repeats", 0, 1)):
        value = getattr(options, name)
        if value is not None and (not low <= value or (high is not None and not value <= high)):
            bound = f"{low} to {high}" if high is not None else f"{low} or more"
            raise UsageError(f"--{name.replace('_', '-')} {value} cannot be", f"give {bound}")
    serve_study(
        options.outs,
        options.answers,
        seed=options.seed,
        per_person=options.per_person,
        checks=options.checks,
        repeats=options.repeats,
        port=options.port,
        say=say_unless(options.json),
        told=lambda server: _tell(server, options),
    )
    return 0


def _tell(server: Any, options: argparse.Namespace) -> None:
    if options.json:
        show_json({"page": server.invitation, "answers": options.answers})
        return
    show(f"page: {server.invitation}", f"answers: {options.answers}")
    say_unless(False)("the address lets one browser in; the next one is said then. Ctrl-C ends this")


def _report(options: argparse.Namespace) -> int:
    from jobs.judging.report import read_study, report_text, report_values

    answers = read_study(options.answers)
    if options.json:
        show_json(report_values(answers))
    else:
        show_text(report_text(answers))
    return 0
