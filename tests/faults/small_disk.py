"""A small disk that can be filled and freed again: a tmpfs, so writing fails there as it does on a real one."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

SIZE_MIB: Final = 96


class DiskError(Exception):
    """What `mount` says."""


class SmallDisk:
    """The disk; `with SmallDisk() as disk`. It takes root.

    Attributes:
        folder: where it is mounted.

    Raises:
        DiskError: if it cannot be.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mgd"))
        self._ballast = self.folder / "ballast"

    def __enter__(self) -> SmallDisk:
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "miga-test-disk", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.folder.rmdir()
            raise DiskError(done.stderr.strip())
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        self.folder.rmdir()

    def fill(self) -> None:
        """To the last byte."""
        with suppress(OSError), self._ballast.open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(1 << 16))

    def free(self) -> None:
        """Removes what filled it."""
        self._ballast.unlink(missing_ok=True)


def why_not() -> str | None:
    """Why there can be none here; None if there can."""
    try:
        with SmallDisk():
            return None
    except DiskError as error:
        return str(error)
