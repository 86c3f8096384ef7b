"""Seeded damage to a file's bytes: what disks, transfers, editors and ill-meaning people do to it.

    for data in mutations(original, count=500, seed=7): ...

The same seed gives the same sequence. Half of the mutations of a JSON document keep its form and change its meaning:
other types, sizes, keys. The others damage the bytes of whatever it is.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    "", "x", "0", "1.5", "null", "nan", "../../etc/passwd", "/", "a\0b", "\u202e", "\x1b[31m", "\U0001f600", "x" * 5000,
    "file:///etc/passwd", "os:system", "2026-11-21T00:00:00", [], {}, [[]], [None], {"": 0}, [0] * 100, {"a": {}},
)  # fmt: skip
"""Values of every JSON type, at the ends of what types hold."""

RAW_VALUES: Final = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "[" * 2000, '{"a":' * 2000, "[" * 90 + "]" * 90,
    '"\\ud800"', '"\\u0000"', "'x'", "{}{}", "01", ".5", "tru",
)  # fmt: skip
"""What stands for a value in a text and is none, or one that few expect."""

_BYTES: Final = (
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3\x28", b"\r", b"\n\n", b"\x1a", b'"', b"'", b"{", b"[", b"]",
    b",", b":", b"=", b"#", b"\\", b"\xed\xa0\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0" * 64,
)  # fmt: skip


def mutations(original: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of a file.

    Args:
        original: a sound one.
        count: how many copies.
        seed: of the sequence.
    """
    draw = random.Random(seed)
    value = _json_value(original)
    for _ in range(count):
        data = original
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            kinds: tuple[Callable[[bytes, random.Random], bytes], ...] = _OF_BYTES
            if value is not None and data is original and draw.random() < 0.5:
                data = _changed_json(value, draw)
                continue
            if draw.random() < 0.3:
                kinds = _OF_TEXT
            data = draw.choice(kinds)(data, draw)
        yield data


def _json_value(data: bytes) -> Any:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _changed_json(value: Any, draw: random.Random) -> bytes:
    """The document with one value, key or nesting changed."""
    copy = json.loads(json.dumps(value))
    places = list(_places(copy))
    if not places:
        return json.dumps(draw.choice(ODD_VALUES)).encode()
    holder, key = draw.choice(places)
    match draw.randrange(7):
        case 0 | 1 | 2:
            holder[key] = draw.choice(ODD_VALUES)
        case 3:
            del holder[key]
        case 4:
            other, other_key = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[other_key]))
        case 5 if isinstance(holder, dict):
            holder[draw.choice(("", "x", "__class__", "self", str(key).upper(), f"{key} "))] = draw.choice(ODD_VALUES)
        case _:
            marker = "a place for the raw value"
            holder[key] = marker
            return json.dumps(copy).replace(json.dumps(marker), draw.choice(RAW_VALUES), 1).encode()
    if draw.random() < 0.02:
        copy = draw.choice(ODD_VALUES)
    return json.dumps(copy).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value within another."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return b"\0"
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _cut_front(data: bytes, draw: random.Random) -> bytes:
    return data[draw.randrange(len(data) + 1) :]


def _slice(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 2, 4, 8, 64, 1024)))


def _remove(data: bytes, draw: random.Random) -> bytes:
    start, stop = _slice(data, draw)
    return data[:start] + data[stop:]


def _double(data: bytes, draw: random.Random) -> bytes:
    start, stop = _slice(data, draw)
    return data[:stop] + data[start:stop] * draw.choice((1, 2, 50)) + data[stop:]


def _insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(_BYTES) + data[at:]


def _overwrite(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    what = draw.choice((*_BYTES, draw.randbytes(4), draw.randbytes(16)))
    return data[:at] + what + data[at + len(what) :]


def _front(data: bytes, draw: random.Random) -> bytes:
    marks = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"PK\x03\x04", b"\x1f\x8b", b"<html>", b"\n", b"PAR1")
    return draw.choice(marks) + data


def _other_encoding(data: bytes, draw: random.Random) -> bytes:
    encoding = draw.choice(("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "latin-1"))
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def _number(data: bytes, draw: random.Random) -> bytes:
    """One number of a text becomes another."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
    if not numbers:
        return _flip(data, draw)
    found = draw.choice(numbers)
    new = draw.choice(
        (
            b"-1",
            b"0",
            b"1e999",
            b"nan",
            b"1.5",
            b"9" * 25,
            b"9" * 5000,
            b"0x10",
            b"2147483648",
            b"18446744073709551616",
        )
    )
    return data[: found.start()] + new + data[found.end() :]


def _word(data: bytes, draw: random.Random) -> bytes:
    """One word of a text becomes another of it."""
    words = list(re.finditer(rb"[A-Za-z_]+", data[:100_000]))
    if len(words) < 2:
        return _flip(data, draw)
    one, other = draw.choice(words), draw.choice(words)
    return data[: one.start()] + other[0] + data[one.end() :]


def _deep(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice((b"[", b'{"a":', b"{a=", b"[[", b"a.")) * draw.choice((80, 3000)) + data[at:]


_OF_BYTES: Final = (_flip, _flip, _flip, _cut, _cut_front, _remove, _double, _insert, _overwrite, _overwrite)
_OF_TEXT: Final = (_front, _other_encoding, _number, _number, _word, _deep)
