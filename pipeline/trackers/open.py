"""The tracker that a config names."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from miga.errors import ConfigError
from pipeline.config import LogsConfig
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.trackers.base import TrackedRun, Tracker
from pipeline.trackers.tensorboard import TensorBoardTracker
from pipeline.trackers.wandb_api import WandbTracker

FOLDER: Final = "logs"
"""Of TensorBoard's files in OUT."""


def check_tracker(logs: LogsConfig, out: str) -> None:
    """Returns if the tracker's package is there, and TensorBoard has a folder to write into. Nothing is imported.

    Args:
        logs: of the run's config.
        out: of the run.

    Raises:
        ConfigError: saying what is missing, and how to get it.
    """
    if logs.tracker is None:
        return
    if find_spec(logs.tracker) is None:
        raise ConfigError(
            f"tracker = {logs.tracker!r} needs the package {logs.tracker}, which is not installed",
            f"{sys.executable} -m pip install {logs.tracker}, or leave the tracker out",
        )
    if logs.tracker == "tensorboard":
        _folder(logs, open_storage(out))


def open_tracker(logs: LogsConfig, storage: Storage, run: TrackedRun) -> Tracker | None:
    """Begins the run's log, or goes on with it; None where the config names no tracker.

    Args:
        logs: of the run's config.
        storage: of OUT.
        run: whose log it is.

    Raises:
        ConfigError: if it cannot be begun, saying why.
    """
    if logs.tracker is None:
        return None
    try:
        if logs.tracker == "tensorboard":
            return TensorBoardTracker(_folder(logs, storage), run)
        return WandbTracker(logs.tracker, logs.project, run)
    except ConfigError:
        raise
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"the log in {logs.tracker} cannot be begun: {text}", "put that right, or leave the tracker out"
        ) from error


def _folder(logs: LogsConfig, storage: Storage) -> Path:
    """TensorBoard's folder.

    Raises:
        ConfigError: if it is no local one.
    """
    if logs.folder is None and isinstance(storage, LocalStorage):
        folder = Path(storage.root) / FOLDER
        if folder.is_symlink():  # links within OUT are foreign
            raise ConfigError(f"{folder} is a link", "name the folder that is meant: --set logs.folder=/path/to/logs")
        return folder
    if logs.folder is None or "://" in logs.folder:
        raise ConfigError(
            f"TensorBoard's files are written into a local folder, and {logs.folder or storage.root} is none",
            "name one: --set logs.folder=/path/to/logs; trackio and wandb need none",
        )
    return Path(logs.folder)
