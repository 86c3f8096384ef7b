"""Values as a page holds them: JSON that a script element may hold, and text in which nothing is hidden."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from markupsafe import Markup

_MAX_EXACT_INT: Final = 2**53 - 1  # JavaScript's numbers are doubles: a 64-bit seed must travel as text
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def embedded_json(value: Any) -> Markup:
    r"""JSON that may stand inside a `<script>` element whatever it holds: ASCII only, and no `<`, `>` or `&`.

    Control characters, U+2028 and lone surrogates are `\u` escapes; NaN and infinities have become null.
    """
    return Markup(script_json(plain(value)))


def script_json(value: Any) -> str:
    """The same of a value that is plain already."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def visible(value: Any) -> str:
    """A value as text in which nothing is hidden: control characters become their pictures (U+2400 onwards)."""
    if value is None:
        return "–"
    return _CONTROL.sub(lambda found: _picture(ord(found[0])), str(value))


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def plain(value: Any) -> Any:
    """Values as JSON has them; integers that JavaScript would round become text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _MAX_EXACT_INT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as `a.b` lines; lists stay in one line."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in flatten(item, f"{prefix}.{key}" if prefix else key)]
    return [(visible(prefix), json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)]


def number(row: Mapping[str, Any], column: str) -> float:
    """A column's number; 0 where there is none."""
    value = row.get(column)
    return value if value is not None and math.isfinite(value) else 0.0


def items(row: Mapping[str, Any], column: str) -> list[Any]:
    """A column's list; empty where there is none."""
    value = row.get(column)
    return [] if value is None else list(value)
