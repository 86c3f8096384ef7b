"""What several commands take and print."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from pipeline.terminal import say, show, show_json


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str
) -> argparse.ArgumentParser:
    """Adds a command for a run that is there, with its OUT and `--json`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("out", metavar="OUT", help="of the run")
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.set_defaults(command=run)
    return parser


def say_unless(is_quiet: bool) -> Callable[[str], None]:
    """What tells of progress: nobody, where it is to be quiet."""
    return (lambda text: None) if is_quiet else say


def show_summary(summary: dict[str, Any]) -> None:
    """Prints the summary of a run for people."""
    show(
        f"{summary['ok']} of {summary['videos']} videos made"
        + (f", {summary['failed']} quarantined (their reasons are in the manifest)" if summary["failed"] else "")
        + (f", {summary['already_done']} of them before" if summary["already_done"] else "")
        + f", in {summary['seconds']:.0f} s"
    )
    show(f"videos:   {summary['out']}/video/")
    for uri in summary["manifest"]:
        show(f"manifest: {uri}")
    if summary["report"]:
        show(f"page:     {summary['report']}")
    else:
        show(f"look at it in a browser: miga serve {summary['out']}")


def show_values(values: dict[str, Any], as_json: bool) -> None:
    """Prints values by name, for people or for machines."""
    if as_json:
        show_json(values)
        return
    width = max(len(name) for name in values)
    for name, value in values.items():
        if isinstance(value, dict):
            show(f"{name}:", *(f"  {key}: {item}" for key, item in value.items()))
        else:
            show(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
