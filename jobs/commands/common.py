"""What several commands take and print."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Final

from jobs.shared.run_config import shipped_configs
from pipeline.config import RunConfig
from pipeline.terminal import say, show, show_json

DEFAULTS: Final = RunConfig()


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str
) -> argparse.ArgumentParser:
    """Adds a command for a run that is there, with its OUT and `--json`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("out", metavar="OUT", help="of the run")
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.set_defaults(command=run)
    return parser


def add_config_options(options: Any, help_text: str = "a TOML file, or the name of a shipped config") -> None:
    """Adds `--config` and `--set`, which `jobs.shared.run_config.read_config` reads.

    Args:
        options: a parser, or a group of its options.
        help_text: of `--config`; the names of the shipped configs are put behind it.
    """
    names = ", ".join(shipped_configs())
    options.add_argument("--config", metavar="FILE_OR_NAME", help=f"{help_text}: {names}; options given here win")
    options.add_argument(
        "--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
        help="any key of a config, such as sampler.num_steps=20 or video.crf=20; may be repeated",
    )  # fmt: skip


def add_model_options(options: Any) -> None:
    """Adds the options that say which model it is, and how it is run; `model_settings` reads them."""
    options.add_argument(
        "--model", help=f"sprites (embedded), a folder, a hub name, or package.module:factory {default_of('model')}"
    )
    options.add_argument("--revision", help="of a hub name (default: its main one)")
    options.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), help=f"of the network {default_of('dtype')}"
    )
    options.add_argument("--lora", action="append", metavar="FILE_OR_NAME[:SCALE]", help="fused in; may be repeated")
    options.add_argument("--height", type=int, help="pixels of a frame (default: the model's)")
    options.add_argument("--width", type=int, help="pixels of a frame (default: the model's)")
    options.add_argument("--attention", metavar="BACKEND", help="diffusers' attention backend (default: PyTorch's)")
    options.add_argument("--compile", action="store_true", default=None, help="compile the network's blocks")


def model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_model_options` say, by key of a config; None where they say nothing."""
    names = ("model", "revision", "dtype", "lora", "height", "width", "attention", "compile")
    return {name: getattr(options, name) for name in names}


def add_sampler_options(options: Any) -> None:
    """Adds `--profile`."""
    options.add_argument("--profile", help=f"how to sample: see `miga profiles` {default_of('profile')}")


def default_of(key: str) -> str:
    """What a config has for a key that it does not name, as it stands in the help of an option."""
    return f"(default: {getattr(DEFAULTS, key)})"


def add_failed_rows_ok(parser: Any) -> None:
    """Adds the option that makes quarantined rows no failure."""
    parser.add_argument(
        "--failed-rows-ok",
        action="store_true",
        help="end with status 0 where only rows failed (else 3, which job servers call a failure)",
    )


def say_unless(is_quiet: bool) -> Callable[[str], None]:
    """What tells of progress: nobody, where it is to be quiet."""
    return (lambda text: None) if is_quiet else say


def failure_line(failure: Mapping[str, Any]) -> str:
    """A row that was given up, in one line."""
    name = f"row {failure['row']}" + (f" ({failure['id']})" if failure["id"] != str(failure["row"]) else "")
    return f"{name}: {failure['reason']}"


def show_summary(summary: dict[str, Any]) -> None:
    """Prints the summary of a run for people."""
    show(
        f"{summary['ok']} of {summary['videos']} videos made"
        + (f", {summary['failed']} quarantined" if summary["failed"] else "")
        + (f", {summary['already_done']} of them before" if summary["already_done"] else "")
        + f", in {summary['seconds']:.0f} s"
    )
    show(*(f"  {failure_line(failure)}" for failure in summary["failures"]))
    if summary["failed"] > len(summary["failures"]):
        show(f"  and {summary['failed'] - len(summary['failures']):,} more")
    if summary["failed"]:
        show(f"  what to do about them: miga failures {summary['out']}")
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
