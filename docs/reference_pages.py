"""The pages of the site that are made of the program itself: its commands, its config's keys, its manifest's columns.

They are made anew with every build of the site (`conf.py`), so they cannot fall behind.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints


def write_pages(folder: Path) -> None:
    """Writes them into a folder, which is made."""
    folder.mkdir(exist_ok=True)
    for name, text in {"commands": commands_page(), "config": config_page(), "manifest": manifest_page()}.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


# ---- commands ----


def commands_page() -> str:
    """Every command of `miga`, with all that its help says."""
    from jobs.cli import build_parser

    parser = build_parser()
    parts = ["# Commands", _paragraphs(parser.epilog or "")]
    for name, command, summary in _commands(parser, "miga"):
        parts += [f"## `{name}`", summary or command.description or "", f"```text\n{_usage(command, name)}\n```"]
        rows = [_option_row(action) for action in command._actions if action.help != argparse.SUPPRESS]
        rows = [row for row in rows if row is not None]
        if rows:
            parts.append("\n".join(["| option | what it is |", "| --- | --- |", *rows]))
        if command.description and command.description != summary:
            parts.append(_paragraphs(command.description))
        if command.epilog:
            parts.append(f"```text\n{inspect.cleandoc(command.epilog)}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Those without commands of their own, with the line that lists them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, command in action.choices.items():
                if any(isinstance(inner, argparse._SubParsersAction) for inner in command._actions):
                    yield from _commands(command, f"{name} {word}")
                else:
                    yield f"{name} {word}", command, _sentence(helps.get(word, ""))


def _usage(command: argparse.ArgumentParser, name: str) -> str:
    formatter = argparse.HelpFormatter(name, width=88)
    formatter.add_usage(None, command._actions, command._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def _option_row(action: argparse.Action) -> str | None:
    if isinstance(action, argparse._HelpAction):
        return None
    names = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
    text = action.help or ""
    text %= {**vars(action), "prog": ""} if "%(" in text else {}
    if action.choices:
        text += f" ({', '.join(f'`{choice}`' for choice in action.choices)})"
    return f"| {names} | {_cell(text)} |"


# ---- the config ----


def config_page() -> str:
    """Every key of a run's config, with type, default and meaning."""
    from pipeline import config

    parts = ["# Config keys", _paragraphs(config.__doc__ or "")]
    sections: list[tuple[str, Any]] = [("", config.RunConfig)]
    hints = get_type_hints(config.RunConfig)
    sections += [(name, kind) for name, kind in hints.items() if is_dataclass(kind)]
    for name, kind in sections:
        about, meanings = _attributes(kind)
        parts += [f"## `[{name}]`" if name else "## At the top", about]
        rows = [
            _row(f"`{entry.name}`", f"`{_type_text(kind, entry)}`", _default(entry), meanings[entry.name])
            for entry in fields(kind)
            if not is_dataclass(hints.get(entry.name)) or name
        ]
        parts.append("\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]))
    parts += [
        "## `[sampler]`",
        "What each key is, method by method. `miga profiles` shows the values of every profile.",
    ]
    return "\n\n".join([*parts, *_sampler_sections()]) + "\n"


def _sampler_sections() -> Iterator[str]:
    from miga.config import SamplerConfig
    from miga.methods import methods

    shared, meanings = _attributes(SamplerConfig)
    del shared
    known = {entry.name for entry in fields(SamplerConfig)}
    rows = [f"| `{name}` | {_cell(meanings[name])} |" for name in meanings if name in known and name != "profile"]
    yield "\n".join(["### Of all methods", "", "| key | meaning |", "| --- | --- |", *rows])
    for method in methods().values():
        said: dict[str, str] = {}
        for kind in reversed(method.settings.__mro__):
            if is_dataclass(kind) and kind is not SamplerConfig:
                said |= _attributes(kind)[1]
        own = [entry.name for entry in fields(method.settings) if entry.name not in known]
        if own:
            rows = [f"| `{name}` | {_cell(said[name])} |" for name in own]
            yield "\n".join([f"### Of `{method.name}`", "", "| key | meaning |", "| --- | --- |", *rows])


def _attributes(kind: Any) -> tuple[str, dict[str, str]]:
    """What a docstring says of a record, and of each attribute."""
    about, _, text = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.split("\n"):
        if begun := re.match(r"    ([a-z_0-9, ]+): (.*)", line):
            names = [name.strip() for name in begun[1].split(",")]
            found |= dict.fromkeys(names, begun[2])
        elif line.startswith("        ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return about.strip(), found


def _type_text(kind: Any, entry: Field[Any]) -> str:
    from pipeline.rows import SEED_LIMIT

    text = str(entry.type).replace("SEED_LIMIT", f"2**{SEED_LIMIT.bit_length() - 1}")
    if choices := re.match(r"Literal\[(.*?)\](.*)", text):
        return choices[1].replace("'", '"').replace(", ", " | ") + choices[2]
    names = {
        "Positive": "int above 0",
        "Seconds": "float above 0",
        "Name": "str",
        "Share": '"windows" | "candidates" | "nothing"',
    }
    if limits := re.match(r"Annotated\[(\w+), Field\((.*?)\)\](.*)", text):
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        bounds = [f"{signs[sign]} {value}" for sign, value in re.findall(r"(ge|gt|le|lt)=([\w.*]+)", limits[2])]
        text = f"{limits[1]} {', '.join(bounds)}{limits[3]}"
    return re.sub(r"\b(Positive|Seconds|Name|Share)\b", lambda found: names[found[1]], text)


def _default(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        return "`none`" if entry.default is None else f"`{_toml(entry.default)}`"
    return "empty"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else "[]" if value == () else repr(value)


# ---- the manifest ----


def manifest_page() -> str:
    """Every column of the manifest."""
    from pipeline.records import manifest

    rows = [
        f"| `{column.name}` | `{column.type}` | {_cell(column.metadata[b'description'].decode())} |"
        for column in manifest.SCHEMA
    ]
    table = "\n".join(["| column | type | what it holds |", "| --- | --- | --- |", *rows])
    about = "One row for every row of the prompt file, in `manifest/shard-*.parquet`: see [Storage](../storage.md)."
    return f"# The manifest's columns\n\n{about}\n\n{table}\n"


# ---- text ----


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _paragraphs(text: str) -> str:
    """Text of a docstring, its indented parts as code."""
    parts = []
    for block in inspect.cleandoc(text).split("\n\n"):
        is_code = all(line.startswith("    ") for line in block.split("\n"))
        parts.append(f"```toml\n{inspect.cleandoc(block)}\n```" if is_code else block)
    return "\n\n".join(parts)
