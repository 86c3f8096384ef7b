"""The `miga` command.

Exit status: 0 all rows made; 3 some rows quarantined (0 with --failed-rows-ok); 2 wrong usage or input; 1 the run
itself failed, or a run that is looked at has faults.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, Final

from jobs.commands import (
    ablate,
    bench,
    convert,
    export,
    extend,
    failures,
    gc,
    generate,
    plan,
    profiles,
    repair,
    report,
    retry_failed,
    simulate,
    status,
    verify,
)
from jobs.shared.exit_status import EXIT_FAILED, EXIT_WRONG
from miga import __version__
from miga.errors import InputError, MigaError, ModelError, OutputError, UsageError
from pipeline.storage.addresses import without_secrets
from pipeline.terminal import say, show_text

TRACEBACK_VARIABLE: Final = "MIGA_TRACEBACK"

Command = Callable[[argparse.Namespace], int]

COMMANDS: Final = (
    generate,
    ablate,
    status,
    failures,
    report,
    verify,
    repair,
    gc,
    retry_failed,
    export,
    extend,
    convert,
    profiles,
    plan,
    simulate,
    bench,
)
"""In the order of `miga --help`."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; errors become one message and an exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        options = build_parser().parse_args(arguments)
        command: Command = options.command
        return command(options)
    except MigaError as error:
        say(f"miga: {error}")
        is_wrong = isinstance(error, UsageError | InputError | OutputError | ModelError)
        return EXIT_WRONG if is_wrong else EXIT_FAILED
    except KeyboardInterrupt:
        say("miga: stopped; the same command goes on from here")
        return EXIT_FAILED
    except Exception as error:  # a fault of this program: said in a sentence all the same
        say(f"miga: {unexpected(error)}")
        return EXIT_FAILED


def unexpected(error: Exception) -> MigaError:
    """What a user is told of an exception that should have been one of the project's own."""
    trace = without_secrets("".join(traceback.format_exception(error)))
    about = f"unexpected {type(error).__name__}: {without_secrets((str(error) or 'no message').splitlines()[0])}"
    ask = "this is a fault of miga, not yours: please report it with"
    if os.environ.get(TRACEBACK_VARIABLE):
        return MigaError(about, f"{ask} this traceback\n{trace}")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="miga-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(trace)
    except OSError:  # no room, or no such folder
        return MigaError(about, f"{ask} the traceback, which {TRACEBACK_VARIABLE}=1 in the environment prints")
    return MigaError(about, f"{ask} its traceback, {file.name}")


class Parser(argparse.ArgumentParser):
    """Prints as all commands do."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is sys.stdout:
            show_text(message.removesuffix("\n"))
        elif message:
            say(message.removesuffix("\n"))


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(prog="miga", description="Datasets of long videos from short-clip video models.", epilog=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
