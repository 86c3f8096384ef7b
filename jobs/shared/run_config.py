"""The config that a command line says: a config by path or by name, `--set KEY=VALUE` over it, options over both."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from miga.errors import ConfigError, UsageError
from miga.outside_data import OutsideDataError, parse_toml
from pipeline.config import RunConfig, override, parse_config, read_toml

FOLDER: Final = Path(__file__).parent.parent / "configs"
GRIDS: Final = ("ablate", "ablate-guidance", "ablate-flex")
"""Files there that are grids of `miga ablate`, and no configs of a run."""

_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
NO_TOML: Final = "it is no TOML"
_OTHERWISE: Final = "or leave --config out"


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.toml")) if file.stem not in GRIDS}


def find_config(name: str) -> str:
    """The path of a config that is named by its path, or, if it is shipped, by its name. A file that is there wins.

    Raises:
        ConfigError: if it is neither, naming those that are shipped.
    """
    shipped = shipped_configs()
    if name in shipped and not os.path.isfile(name):
        return str(shipped[name])
    if re.fullmatch(r"[\w.-]+", name) and not os.path.lexists(name):
        raise ConfigError(
            f"config {name} cannot be read: it does not exist, and no config of that name is shipped",
            f"name a file, one of these: {', '.join(shipped)}, {_OTHERWISE}",
        )
    return name


def read_config(config: str | None, settings: Sequence[str] = (), **options: Any) -> RunConfig:
    """The config of a command line.

    Args:
        config: the file of `--config`, or the name of a shipped one; None: the defaults.
        settings: the texts of `--set`, `KEY=VALUE`; of one key the last holds.
        **options: what other options say, by key; None means not said. A section takes a mapping of its own keys.

    Raises:
        ConfigError: as `load_config`; of `--set`, with "--set" for the file.
        UsageError: if `--set` and an option say the same key.
    """
    values: dict[str, Any] = {}
    if config is not None:
        path = find_config(config)
        values = read_toml(path, "config", _OTHERWISE)
        parse_config(values, path)  # what is wrong in the file is said of the file
    said = parse_settings(settings)
    _refuse_both(said, options)
    return override(parse_config(_merged(values, said), "--set" if said else "defaults"), **options)


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """What texts of the form `KEY=VALUE` say, as a TOML file would.

    The key is dotted (`sampler.num_steps`), the value TOML. Text needs no quotes, unless it begins as other TOML does.

    Raises:
        ConfigError: naming the text that has another form.
    """
    said: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(f"--set {text}: this is not KEY=VALUE", "write --set sampler.num_steps=20")
        entry: Any = _parse_value(text, value)
        for name in reversed(key.split(".")):
            entry = {name: entry}
        said = _merged(said, entry)
    return said


def _parse_value(text: str, value: str) -> Any:
    try:
        parsed = parse_toml(f"value = {value}\n".encode())
        if parsed.keys() == {"value"}:
            return parsed["value"]
        fault = "it is more than one value"
    except (OutsideDataError, UnicodeEncodeError) as error:
        fault = str(error)
        if fault.startswith(NO_TOML) and value[:1] not in ("'", '"', "[", "{") and value.isprintable():
            return value
    raise ConfigError(
        f"--set {text}: {fault}",
        "write --set seed=7, --set video.preset=slow, or in the shell's quotes --set 'lora=[\"a.safetensors\"]'",
    )


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `over` on top, sections key by key."""
    merged = dict(values)
    for key, value in over.items():
        there = merged.get(key)
        merged[key] = _merged(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return merged


def _refuse_both(said: Mapping[str, Any], options: Mapping[str, Any], section: str = "") -> None:
    for key, value in options.items():
        if value is None or key not in said:
            continue
        if isinstance(value, Mapping) and isinstance(said[key], Mapping):
            _refuse_both(said[key], value, f"{section}{key}.")
        else:
            raise UsageError(
                f"{section}{key} is said twice: by --set and by --{key.replace('_', '-')}", "leave one of them out"
            )
