"""The one way by which commands print. Whatever a file, a name or an error holds, a terminal shows it and does no more.

Characters that would move the cursor, colour, reorder or end a line are escaped, and so is what the stream's encoding
does not have: a result that was worked for is not lost for an `ü`. JSON stays JSON. A reader that has seen enough
(`| head`) is no fault; a device that takes nothing more is one.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

from miga.errors import MigaError

_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL and C1 controls, what ends or reorders lines, and halves of surrogate pairs, which no encoding has."""

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class PrintError(MigaError):
    """Standard output takes nothing more."""


def escaped(text: str) -> str:
    """`text` on one line, without anything that a terminal would act on."""
    return _UNSAFE.sub(lambda match: _SHORT.get(match[0]) or _escape(match[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a path that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def on_one_line(text: str) -> str:
    """An error with its hint, such as many are listed of, on one line."""
    return "; ".join(line.strip().removeprefix("hint: ") for line in text.split("\n"))


def show(*lines: str) -> None:
    """Prints results to standard output, each argument a line.

    Raises:
        PrintError: if it cannot be written to.
    """
    _write("".join(f"{escaped(line)}\n" for line in lines))


def show_text(text: str) -> None:
    """Prints a text of several lines, such as a table, to standard output.

    Raises:
        PrintError: as `show`.
    """
    show(*text.split("\n"))


def show_json(value: Any, indent: int | None = None) -> None:
    """Prints a value for machines: one JSON document, in which numbers that are not finite are null.

    Raises:
        PrintError: as `show`.
    """
    value = _finite(value)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    text = _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)
    if encodable(text, sys.stdout) != text:
        text = json.dumps(value, allow_nan=False, indent=indent)
    _write(f"{text}\n")


def say(text: str, stream: TextIO | None = None) -> None:
    """Tells the user something while a command works, or why it does not: to standard error, or to `stream`.

    Where that is gone, nobody is there to be told, and the work goes on. A line after the first is indented, so that no
    text can be mistaken for another message.
    """
    first, *rest = text.split("\n")
    lines = [escaped(first), *(f"{'' if line.startswith('  ') else '  '}{escaped(line)}" for line in rest)]
    stream = stream or sys.stderr
    if stream is None:
        return
    with suppress(OSError, ValueError):  # full, hung up, or closed
        stream.write(encodable("\n".join(lines), stream) + "\n")
        stream.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(text: str) -> None:
    stream = sys.stdout
    if stream is None:  # it was closed before this process began
        return
    try:
        stream.write(encodable(text, stream))
        stream.flush()
    except BrokenPipeError:
        _leave(stream)
    except OSError as error:
        _leave(stream)
        raise PrintError(f"cannot print: {error.strerror or error}") from None


def encodable(text: str, stream: TextIO | None) -> str:
    """`text` with what the stream's encoding does not have as Python's escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _leave(stream: TextIO) -> None:
    """Nothing more goes there, not even what is in the buffer when the process ends."""
    with suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
