"""A clock that jumps and a disk that is full, in every Python process that has this folder on its PYTHONPATH.

Python imports a module of this name when it starts, so the driver, the actors and Ray's own processes are all under it.

    MIGA_TEST_CLOCK    a file: the seconds that it holds are added to the time of day, from the moment it holds them
    MIGA_TEST_DISK     a folder: it has no space left while MIGA_TEST_FULL names a file that exists; what that file
                       holds is how names in the folder begin that are struck, such as "done/" (nothing: all)
    MIGA_TEST_FULL

`datetime.now` and the kernel's times of files are left as they are. What is written to a full disk gets there by half,
as it does when the last blocks of a real one are used up.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import time
from collections.abc import Callable
from typing import Any


def _jump(clock: str) -> None:
    """Adds what the file holds to the time of day."""
    time_ns = time.time_ns

    def offset_ns() -> int:
        try:
            return int(float(_read(clock)) * 1e9)
        except (OSError, ValueError):  # none yet, or it is being written
            return 0

    def jumping_time_ns() -> int:
        return time_ns() + offset_ns()

    def jumping_time() -> float:
        return jumping_time_ns() / 1e9

    time.time_ns, time.time = jumping_time_ns, jumping_time


def _read(path: str) -> str:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 100).decode()
    finally:
        os.close(handle)


def _fill(disk: str, flag: str) -> None:
    """Lets writes into the folder fail while the flag is there."""
    disk = os.path.join(os.path.realpath(disk), "")

    def check(path: Any) -> None:
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if not path.startswith(disk):
            return
        try:
            struck = _read(flag)
        except OSError:
            return
        if path.removeprefix(disk).startswith(struck):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    class File(io.FileIO):
        """A file in that folder."""

        def write(self, data: Any) -> int:
            try:
                check(self.name)
            except OSError:
                super().write(bytes(data)[: len(data) // 2])
                raise
            return super().write(data)

    open_any = builtins.open

    def open_guarded(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        is_written = isinstance(file, str | os.PathLike) and set(mode) & set("wxa+")
        if not is_written or not os.path.abspath(file).startswith(disk):
            return open_any(file, mode, *arguments, **options)
        buffered = io.BufferedWriter(File(os.fspath(file), mode.replace("t", "")))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8")

    builtins.open = io.open = open_guarded
    for name in ("link", "replace", "rename"):
        setattr(os, name, _checked(getattr(os, name), check, 1))
    os.mkdir = _checked(os.mkdir, check, 0)


def _checked(call: Callable[..., Any], check: Callable[[Any], None], which: int) -> Callable[..., Any]:
    """The call, which first looks whether there is space at the place that one of its arguments names."""

    def checked(*arguments: Any, **options: Any) -> Any:
        check(arguments[which])
        return call(*arguments, **options)

    return checked


if "MIGA_TEST_CLOCK" in os.environ:
    _jump(os.environ["MIGA_TEST_CLOCK"])
if "MIGA_TEST_DISK" in os.environ:
    _fill(os.environ["MIGA_TEST_DISK"], os.environ["MIGA_TEST_FULL"])
