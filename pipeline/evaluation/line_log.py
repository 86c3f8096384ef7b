"""A file of JSON lines that is only ever added to, and that a kill leaves usable.

A line is on the disk when `append` returns. A write that was cut off leaves a line that is not whole: it is kept, said
and left out, and what comes next begins on a line of its own. One process writes at a time: the system takes the lock
back when its holder dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from miga.errors import InputError, OutputError
from miga.outside_data import OutsideDataError, decode, parse_json_object

_MOST_BYTES: Final = 2 << 30
_MOST_LINE_BYTES: Final = 8 << 20


class Line(NamedTuple):
    """A line that can be read; lines count from 1."""

    number: int
    values: dict[str, Any]


class Lines(NamedTuple):
    """What a file holds, and in words what of it cannot be read."""

    found: list[Line]
    faults: list[str]


def read_lines(path: str | Path) -> Lines:
    """The lines of a file; none if there is no file.

    Raises:
        InputError: if it cannot be read at all.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise InputError(f"{path} is larger than any file of answers", "check the path")
            return parse_lines(file.read())
    except FileNotFoundError:
        return Lines([], [])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def parse_lines(data: bytes) -> Lines:
    """The lines of a file's content."""
    found: list[Line] = []
    faults: list[str] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Line(number, parse_json_object(decode(line), max_bytes=_MOST_LINE_BYTES)))
        except OutsideDataError as error:
            is_cut = number == len(lines)  # no end of line behind it
            why = "it is not whole: its write was cut off" if is_cut else str(error)
            faults.append(f"line {number} is left out: {why}")
    return Lines(found, faults)


class LineLog:
    """The file, held for writing until `close`.

    Args:
        path: of the file; made when it is not there. Its folder must be.

    Attributes:
        lines: what it held when it was opened.

    Raises:
        InputError: if it cannot be read.
        OutputError: if it cannot be written, or another process is writing it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}", "name a file in a folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.lines = read_lines(self.path)
            size = os.fstat(self._file).st_size
            self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
            _sync_folder(self.path.parent)
        except BlockingIOError as error:
            os.close(self._file)
            raise OutputError(
                f"another process is writing {path}", "wait for it to end, or name another file"
            ) from error
        except BaseException:
            os.close(self._file)
            raise

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds a line; it is on the disk when this returns.

        Raises:
            OutputError: if it is not.
        """
        data = json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock:
            if self._is_torn:
                data = b"\n" + data
            self._is_torn = True  # until all of it is there
            try:
                while data:
                    data = data[os.write(self._file, data) :]
                os.fsync(self._file)
            except OSError as error:
                raise OutputError(
                    f"{self.path} cannot be written: {error.strerror}", "make room on the disk, then go on"
                ) from error
            self._is_torn = False

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """Has the name of a new file on the disk, too."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
