"""A config's values as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.config import NONE


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as a TOML document: first those of the top, then each mapping as a section. None is "none"."""
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for name, section in values.items():
        if isinstance(section, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """JSON, which is TOML for all that a config holds, but for None, mappings and one control character."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_value(item)}" for name, item in value.items()) + "}"
    text = json.dumps(NONE if value is None else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
