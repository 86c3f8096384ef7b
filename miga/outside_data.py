"""The one way to read data from outside: JSON, TOML and text whose writer may be anybody, or whose file is damaged.

What comes out is plain values: dicts, lists, text, numbers, booleans, None. Whatever is wrong with the data is an
`OutsideDataError` with a sentence for the user; the caller adds which file it was, and what to do. No other exception
leaves this module, and nothing takes long or much memory: sizes are looked at before values are made.

    values = parse_json_object(read_file(path, what="the config"))
    claim = validated(Claim, values)
"""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

MAX_BYTES: Final = 64 * 2**20
"""Of a JSON document. A model's largest index has about 200 kB, a tokenizer 17 MB."""
MAX_TOML_BYTES: Final = 2**20
MAX_DEPTH: Final = 64
"""Lists and objects within one another. What is deeper would overflow whoever walks it by recursion."""
INTEGERS: Final = range(-(2**63), 2**64)
"""What files of this project hold; prompts' own columns may hold more."""

_MARKS: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class OutsideDataError(ValueError):
    """The data is not what it should be; the text says how, and names neither the file nor a remedy."""


def read_file(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A whole file, if it is a regular one of at most `max_bytes`.

    Raises:
        FileNotFoundError: if there is none at all.
        OutsideDataError: if it is a link to nothing, no regular file, too large, or cannot be read.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OutsideDataError("it is a folder" if stat.S_ISDIR(found.st_mode) else "it is no regular file")
        if found.st_size > max_bytes:
            raise OutsideDataError(f"it has {found.st_size:,} bytes, and at most {max_bytes:,} are read")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        if os.path.islink(path):
            raise OutsideDataError(f"it is a link to {os.readlink(path)!r}, which is not there") from None
        raise
    except OutsideDataError:
        raise
    except OSError as error:
        raise OutsideDataError(f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise OutsideDataError(f"it cannot be read: {error}") from error
    if len(data) > max_bytes:
        raise OutsideDataError(f"it has more than {max_bytes:,} bytes")
    return data


def decode(data: bytes) -> str:
    """UTF-8 text, without a byte order mark at its start.

    Raises:
        OutsideDataError: if it is not UTF-8, naming the place, or what it seems to be instead.
    """
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
    else:
        for mark, name in _MARKS.items():
            if data.startswith(mark):
                raise OutsideDataError(f"it is {name}, not UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OutsideDataError(f"it is not UTF-8: byte 0x{data[error.start]:02x} in line {line}") from None


def parse_json(
    data: bytes | str,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    integers: range | None = INTEGERS,
    finite: bool = True,
) -> Any:
    """The value that a JSON document holds.

    Args:
        data: the document; bytes are UTF-8, with or without a byte order mark.
        max_bytes: of the document.
        max_depth: of lists and objects within one another.
        integers: those that may stand in it; None takes any that Python reads.
        finite: whether `NaN`, `Infinity` and numbers that no float holds (1e999) are refused.

    Raises:
        OutsideDataError: if it is no JSON, too large, too deep, says a key twice, or holds a number or a text that
            cannot be written again (a lone surrogate).
    """
    if len(data) > max_bytes:
        raise OutsideDataError(f"it has {len(data):,} bytes, and at most {max_bytes:,} are read")
    text = decode(data) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    if not text.strip():
        raise OutsideDataError("it is empty")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant if finite else float)
    except OutsideDataError:
        raise
    except RecursionError:
        raise OutsideDataError(f"it is nested deeper than {max_depth} levels") from None
    except json.JSONDecodeError as error:
        raise OutsideDataError(f"it is no JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError:  # Python's own limit of digits
        raise OutsideDataError("it holds a number of thousands of digits") from None
    check_plain(value, max_depth=max_depth, integers=integers, finite=finite)
    return value


def parse_json_object(data: bytes | str, **limits: Any) -> dict[str, Any]:
    """The object that a JSON document holds; `limits` as `parse_json`.

    Raises:
        OutsideDataError: as `parse_json`, or if it is another value.
    """
    value = parse_json(data, **limits)
    if not isinstance(value, dict):
        raise OutsideDataError(f"it holds {kind_of(value)}, not an object")
    return value


def parse_toml(data: bytes, *, max_bytes: int = MAX_TOML_BYTES, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The values of a TOML document; dates and times stay what they are.

    Raises:
        OutsideDataError: if it is no TOML, too large, too deep, or holds a number beyond 64 bits.
    """
    if len(data) > max_bytes:
        raise OutsideDataError(f"it has {len(data):,} bytes, and at most {max_bytes:,} are read")
    text = decode(data)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise OutsideDataError(f"it is nested deeper than {max_depth} levels") from None
    except tomllib.TOMLDecodeError as error:
        raise OutsideDataError(f"it is no TOML: {error}") from None
    except (ValueError, OverflowError) as error:  # what `int`, `float` and `datetime` refuse
        raise OutsideDataError(f"it holds a value that cannot be read: {str(error).splitlines()[0]}") from None
    check_plain(values, max_depth=max_depth, finite=False)
    return values


def check_plain(
    value: Any, *, max_depth: int = MAX_DEPTH, integers: range | None = INTEGERS, finite: bool = True
) -> None:
    """Looks at every value within `value`, without recursion; the arguments are as in `parse_json`.

    Raises:
        OutsideDataError: naming the first that is too deep, or a number or text that cannot be written again.
    """
    waiting: list[tuple[Any, int, str]] = [(value, 0, "")]
    while waiting:
        item, depth, place = waiting.pop()
        if isinstance(item, dict | list):
            if depth >= max_depth:
                raise OutsideDataError(f"it is nested deeper than {max_depth} levels")
            waiting.extend((inner, depth + 1, where) for inner, where in _inside(item, place))
        elif isinstance(item, str):
            _check_text(item, place)
        elif isinstance(item, float):
            if finite and not math.isfinite(item):
                raise OutsideDataError(f"{place or 'it'} is a number that is not finite")
        elif isinstance(item, int) and integers is not None and item not in integers:
            raise OutsideDataError(f"{place or 'it'} is a whole number of more than 64 bits")


def _inside(item: dict[str, Any] | list[Any], place: str) -> Iterator[tuple[Any, str]]:
    if isinstance(item, list):
        for index, inner in enumerate(item):
            yield inner, f"{place}[{index}]"
        return
    for key, inner in item.items():
        _check_text(key, place)
        yield inner, f"{place}.{key}" if place else key


def _check_text(text: str, place: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise OutsideDataError(f"{place or 'it'} holds half of a surrogate pair, which is no text") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise OutsideDataError(f"the key {shown(twice)} stands there twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise OutsideDataError(f"it holds {name}, which is no number of JSON")


def validated(kind: type[T], values: Any) -> T:
    """A `kind` (a dataclass, or any type that pydantic knows) made from plain values of JSON, without coercion.

    Lists become tuples where the type says tuple, text that is a time of ISO 8601 becomes one; "3" is no number, 1 no
    boolean, 3.0 no whole number, and unknown keys are refused as the type's own config says (`extra="forbid"`).

    Raises:
        OutsideDataError: naming up to five places with what was wanted there and what stands there.
    """
    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        lines = [_fault(fault) for fault in faults[:5]]
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise OutsideDataError("; ".join(dict.fromkeys(lines)) + more) from None
    except (TypeError, ValueError, RecursionError) as error:  # values that are no JSON
        raise OutsideDataError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _fault(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "it"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}" + (
        "" if fault["type"] == "missing" else f" ({shown(fault['input'])})"
    )


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: its JSON, cut, without anything that a terminal would act on."""
    if isinstance(value, dict | list):
        return kind_of(value)
    text = json.dumps(value) if value is None or isinstance(value, str | bool) else ascii(value)
    return text if len(text) <= most else f"{text[:most]}…"


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
