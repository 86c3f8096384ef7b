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
from collections.abc import Callable, Sequence
from typing import Any, Final

from jobs.commands import (
    ablate,
    bench,
    compare,
    completion,
    config,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    extend,
    failures,
    gc,
    generate,
    judge,
    narrlv,
    plan,
    profiles,
    prompts,
    repair,
    report,
    retry_failed,
    sample,
    serve,
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

_OWN_PACKAGES: Final = ("jobs", "actors", "pipeline", "miga")

Command = Callable[[argparse.Namespace], int]

COMMANDS: Final = (
    demo,
    sample,
    generate,
    ablate,
    prompts,
    evaluate,
    status,
    failures,
    report,
    serve,
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
    compare,
    judge,
    narrlv,
    config,
    doctor,
    completion,
)
"""In the order of `miga --help`; each says its `GROUP` there, and `EXAMPLES` for its own help."""

GROUPS: Final = (
    "make videos",
    "look at a run",
    "keep a run in order",
    "models and settings",
    "measure",
    "this machine",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; errors become one message and an exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        parser = build_parser()
        if not (sys.argv[1:] if arguments is None else arguments):
            parser.print_help()
            return EXIT_WRONG
        options = parser.parse_args(arguments)
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
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _OWN_PACKAGES:
        return MigaError(
            f"the program's own code is not there any more: {error.name} cannot be found",
            "a job's code lies in Ray's folder on its machine: have one `ray start` a machine, and nothing that clears "
            "the folder for temporary files; then the same command goes on",
        )
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


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and says the default of every option that has one and does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        is_said = not action.help or "(default" in action.help or not action.option_strings
        if is_said or default in (None, False, argparse.SUPPRESS) or default == []:
            return action.help
        several = isinstance(default, list | tuple)
        return f"{action.help} (default: {' '.join(map(str, default)) if several else default})".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Prints as all commands do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": HelpFormatter, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is sys.stdout:
            show_text(message.removesuffix("\n"))
        elif message:
            say(message.removesuffix("\n"))


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    about = "Datasets of long videos from short-clip video models."
    parser = Parser(prog="miga", usage="miga [-h] [--version] COMMAND ...")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(prog="miga", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    listed: dict[str, list[str]] = {group: [] for group in GROUPS}
    for command in COMMANDS:
        before = set(commands.choices)
        command.add(commands)
        (name,) = commands.choices.keys() - before
        _add_examples(commands.choices[name], command.EXAMPLES)
        listed[command.GROUP].append(name)
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    lines = [about, ""]
    for group, names in listed.items():
        lines += [f"{group}:", *(f"  {name:<14}{helps[name]}" for name in names), ""]
    parser.description = "\n".join([*lines, "`miga COMMAND --help` says more, with an example."])
    parser.set_defaults(root=parser)
    parser.epilog = (__doc__ or "").partition("\n\n")[2].rstrip()
    return parser


def _add_examples(parser: argparse.ArgumentParser, examples: Sequence[str]) -> None:
    title = "example:" if len(examples) == 1 else "examples:"
    parser.epilog = "\n".join([title, *(f"  {example}" for example in examples)])


if __name__ == "__main__":
    raise SystemExit(main())
