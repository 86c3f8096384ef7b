"""What the fuzz tests are told of a reader of outside data.

A part of the project lists its readers in `tests/fuzz/readers_<part>.py`, as `READERS: list[Reader]`; the tests find
every such file. A reader is given a folder of its own, made once by `prepare` (which returns one or more sound files'
bytes), and reads each damaged copy: it writes the bytes where the code expects them, and calls that code.

    def _prepare(folder: Path) -> list[bytes]:
        return [b'{"a": 1}']

    def _read(folder: Path, data: bytes) -> None:
        (folder / "run.json").write_bytes(data)
        read_run(open_storage(folder))

    READERS = [Reader("run.json", _prepare, _read)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A way in for outside data.

    Attributes:
        name: for the test's name.
        prepare: makes what the reader needs beside the file in an empty folder; returns sound files, which `read` must
            take without an error.
        read: reads one file's bytes; whatever is raised must be a `MigaError`.
    """

    name: str
    prepare: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], object]
