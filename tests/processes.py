"""What processes there are, and waiting for what they do."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.pace import Limit

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 150.0, what: str = "that", every_s: float = 0.02) -> T:
    """The first true value of `condition`; polled.

    Args:
        condition: an OSError of it counts as not yet.
        seconds: of an idle machine.
        what: is waited for.
        every_s: how often it is asked.
    """
    limit = Limit(seconds)
    while not limit.is_over:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(every_s)
    raise AssertionError(f"it did not come to {what} in {seconds:g} s of an idle machine")


def output_of(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What a process wrote to its pipes, once it has ended.

    Raises:
        subprocess.TimeoutExpired: if that takes more than so many seconds of an idle machine.
    """
    limit = Limit(seconds)
    while True:
        try:
            return process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            if limit.is_over:
                raise


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended; one that was killed may need a moment for that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> dict[int, str]:
    """Process → its command line, of everything a process has started."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            children.setdefault(parent, []).append(int(folder.name))
    found, todo = {}, [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found[child] = names[child]
            todo.append(child)
    return found
