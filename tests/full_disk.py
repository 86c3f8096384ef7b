"""A disk that is full as file systems are: there are names and empty files, and no block for content."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pipeline.storage import local as storage_local


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every local storage finds it full from now on."""
    new = storage_local._new
    monkeypatch.setattr(storage_local, "_new", lambda *how, **also: _NoRoom(new(*how, **also)))


class _NoRoom:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        if len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return 0

    def __enter__(self) -> _NoRoom:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
