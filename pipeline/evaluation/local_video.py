"""A video of a run as a file of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miga.errors import OutputError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage


@contextmanager
def local_video(storage: Storage, path: str) -> Iterator[Path]:
    """The file itself where the run is in a folder, else a copy that goes at the end.

    Raises:
        OutputError: if it is not there, or cannot be read.
    """
    try:
        if isinstance(storage, LocalStorage):
            storage.stat(path)
            yield Path(storage.uri(path))
            return
        with tempfile.TemporaryDirectory(prefix="miga-video-") as folder:
            copy = Path(folder) / "video.mp4"
            storage.get_file(path, copy)
            yield copy
    except FileNotFoundError as error:
        raise OutputError(f"{storage.uri(path)} is not there", "see `miga verify OUT`") from error
