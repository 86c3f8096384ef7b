"""`miga repair`: a run's records put right from what is there."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from jobs.commands.common import add_command, say_unless
from jobs.shared.exit_status import EXIT_FAILED, EXIT_OK
from pipeline.records.run_folder import read_run
from pipeline.storage.open import open_storage
from pipeline.terminal import show, show_json

GROUP: Final = "keep a run in order"
EXAMPLES: Final = ("miga repair out/ --dry-run",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    repair = add_command(commands, "repair", _run, "put a run's records right from what is there; no video is made")
    repair.add_argument("--prompts", metavar="PATH", help="where the prompt file lies now, if it was moved")
    repair.add_argument("--trust", action="store_true", help="read the prompt file wherever run.json says it lies")
    repair.add_argument("--quick", action="store_true", help="believe videos whose size is right")
    repair.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    repair.add_argument(
        "--yes", action="store_true", help="do it without asking; it is needed where nobody can be asked"
    )
    repair.add_argument("--quiet", action="store_true", help="no progress")


def _run(options: argparse.Namespace) -> int:
    from pipeline.upkeep.repair import Repairs, repair

    can_ask = sys.stdin.isatty() and not options.json
    is_dry = options.dry_run or not (options.yes or can_ask)

    def agreed(repairs: Repairs) -> bool:
        if options.yes:
            return True
        _print_steps(repairs)
        return input("do this? [y/N] ").strip().lower() in ("y", "yes")

    storage = open_storage(options.out)
    repairs = repair(
        storage,
        prompts=options.prompts or (read_run(storage).prompts.path if options.trust else None),
        quick=options.quick,
        dry_run=is_dry,
        agreed=agreed,
        say=say_unless(options.quiet or options.json),
    )
    is_right = not repairs.left and (repairs.is_done or not repairs.steps)
    if options.json:
        show_json(repairs.to_dict())
        return EXIT_OK if is_right else EXIT_FAILED
    if options.yes or is_dry:
        _print_steps(repairs)
    for text in repairs.left:
        show(f"left: {text}")
    if not repairs.steps:
        show("there is nothing to do" + (" that could be done" if repairs.left else ""))
    elif repairs.is_done:
        show("done; a copy of what was replaced is in aside/")
        if repairs.to_make:
            show(f"{len(repairs.to_make)} rows are to be made anew: run the same `miga generate` command again")
    else:
        show("nothing was changed" + ("" if options.dry_run or can_ask else ": --yes does it"))
    return EXIT_OK if is_right else EXIT_FAILED


def _print_steps(repairs: Any) -> None:
    for text in repairs.steps:
        show(text)
