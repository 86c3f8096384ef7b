"""Local folders for videos in the making; what killed processes have left is removed by whoever starts next."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "miga-"


def new_folder() -> Path:
    """An empty folder of this process."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_process_space()}-{os.getpid()}-"))


def remove_abandoned() -> None:
    """Removes the folders of processes that are gone; those of other containers' processes are not judged."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{_process_space()}-*-*"):
        pid = folder.name.split("-")[2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _process_space() -> str:
    """Names the numbering of processes that this one belongs to: containers have their own, and may share a folder."""
    try:
        return "".join(filter(str.isdecimal, os.readlink("/proc/self/ns/pid")))
    except OSError:
        return "0"
