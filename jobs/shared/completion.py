"""Scripts by which shells complete the commands, made of the parser itself (shtab)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Final

import shtab

from jobs.shared.run_config import shipped_configs
from pipeline.config import RunConfig

_FILES: Final = ("PROMPTS", "FILE", "CKPT", "FILE.jsonl", "FILE.md", "OUT.mp4", "FILE_OR_NAME[:SCALE]", "PATH")
_FOLDERS: Final = ("OUT", "FOLDER", "OUT_DIR", "DEST")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for "bash" or "zsh". The parser is marked with what its arguments are, and is of no other use then."""
    configs = " ".join(shipped_configs())
    preamble = {
        "bash": f'_miga_configs() {{ compgen -W \'{configs}\' -- "$1"; compgen -f -- "$1"; }}\n'
        f"_miga_keys() {{ compgen -W '{' '.join(config_keys())}' -- \"$1\"; }}",
        "zsh": "",
    }
    by_metavar = {
        **dict.fromkeys(_FILES, shtab.FILE),
        **dict.fromkeys(_FOLDERS, shtab.DIRECTORY),
        "FILE_OR_NAME": {
            "bash": "_miga_configs",
            "zsh": f"{{compadd -- {configs}; _files}}",
        },
        "KEY=VALUE": {
            "bash": "_miga_keys",
            "zsh": f"(({' '.join(config_keys())}))",
        },
    }
    for action in _actions(parser):
        if action.help == argparse.SUPPRESS and isinstance(action, argparse._SubParsersAction):
            action.help = "command"  # shtab leaves out what the help leaves out
        if isinstance(action.metavar, str) and action.metavar in by_metavar:
            action.complete = by_metavar[action.metavar]  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell=shell, root_prefix="miga", preamble=preamble)
    return script


def config_keys() -> list[str]:
    """The beginnings of `--set`: every key of a config with its `=`, and `sampler.`, which holds many more."""
    keys: list[str] = []
    for field in fields(RunConfig):
        value = getattr(RunConfig(), field.name)
        if is_dataclass(value):
            keys += [f"{field.name}.{inner.name}=" for inner in fields(value)]
        else:
            keys.append("sampler." if field.name == "sampler" else f"{field.name}=")
    return keys


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in dict.fromkeys(action.choices.values()):
                yield from _actions(inner)
