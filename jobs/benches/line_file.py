"""A file of JSON lines that several processes and runs fill together, no line made twice.

A line is made under a lock of its own, one byte of a lock file beside it, which the system takes back when its holder
dies. So a bench that was killed leaves nothing to tidy up, and two that share a file share the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from miga.errors import InputError

Key = tuple[str, ...]


class LineFile:
    """The lines in a file, by key.

    Args:
        path: the file; made, with its folder, when the first line is.
        key_names: fields that tell one line from another.
    """

    def __init__(self, path: Path, key_names: Sequence[str]) -> None:
        self.path = path
        self.key_names = tuple(key_names)
        self._lock: int | None = None

    def key(self, fields: Mapping[str, Any]) -> Key:
        """What tells this line from others."""
        return tuple(json.dumps(fields[name]) for name in self.key_names)

    def read(self) -> dict[Key, dict[str, Any]]:
        """All finished lines; one that is cut off at the end is left out.

        Raises:
            InputError: if another line is not JSON or lacks a field.
        """
        lines: dict[Key, dict[str, Any]] = {}
        text = self.path.read_text() if self.path.exists() else ""
        finished, _, _ = text.rpartition("\n")
        for number, line in enumerate(finished.splitlines(), start=1):
            try:
                fields = json.loads(line)
                lines[self.key(fields)] = fields
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path}, line {number} is none of this bench's: {error!r}", "name another file with --out"
                ) from None
        return lines

    def make(self, wanted: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> bool:
        """Makes a line and adds it, unless it is there or someone else is making it.

        Args:
            wanted: the fields of the key.
            make: computes the others.

        Returns:
            Whether this call has made it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        key = self.key(wanted)
        offset = int.from_bytes(hashlib.sha256("\n".join(key).encode()).digest()[:7], "big")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError:
            return False
        try:
            if key in self.read():
                return False
            self._append(json.dumps({**wanted, **make()}, allow_nan=False) + "\n")
            return True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, offset)

    def _append(self, line: str) -> None:
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(file.read().rfind(b"\n") + 1)  # a line that a killed process has left half written
            file.seek(0, os.SEEK_END)
            file.write(line.encode())
