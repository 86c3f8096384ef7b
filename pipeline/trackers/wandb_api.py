"""Weights & Biases, and trackio, which has the same functions.

The step is a figure of its own, `videos`, against which all others are drawn: both packages count their calls of `log`
themselves, and drop what comes with a step that is not greater than the last.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

from miga.errors import ConfigError
from pipeline.trackers.base import SampleVideo, TrackedRun

STEP: Final = "videos"


class WandbTracker:
    """Logs to a run of the package.

    Args:
        package: which of the two.
        project: that the run belongs to.
        run: whose log it is. One that is there is gone on with.

    Raises:
        ConfigError: if nobody is logged in at Weights & Biases, which would ask at the terminal.
        Exception: whatever the package raises.
    """

    def __init__(self, package: Literal["wandb", "trackio"], project: str, run: TrackedRun) -> None:
        self._module: Any = import_module(package)
        known = {"project": project, "resume": "allow", "config": dict(run.hyperparameters)}
        with contextlib.redirect_stdout(sys.stderr):  # a command's output is for its summary
            if package == "wandb":
                _refuse_unknown_user(self._module)
                settings = self._module.Settings(console="off")
                self._run = self._module.init(
                    **known, name=run.name, id=run.id, allow_val_change=True, settings=settings
                )
                self._run.define_metric(STEP)
                for names in ("run/*", "video/*"):
                    self._run.define_metric(names, step_metric=STEP)
                self.where = f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else self._run.url
            else:  # which knows its runs by name
                self._run = self._module.init(**known, name=f"{run.name}-{run.id[:8]}", embed=False)
                self.where = f"trackio show --project {project}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log({**values, STEP: step})

    def text(self, name: str, text: str, step: int) -> None:
        """See `Tracker`."""
        self._run.log({name: text, STEP: step})

    def video(self, video: SampleVideo, step: int) -> None:
        """See `Tracker`."""
        shown = self._module.Video(str(video.file), caption=video.caption, format="mp4")
        self._run.log({"sample": shown, STEP: step})

    def close(self) -> None:
        """See `Tracker`."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def _refuse_unknown_user(wandb: Any) -> None:
    is_asked = sys.stdin is not None and sys.stdin.isatty() and os.environ.get("WANDB_MODE", "online") == "online"
    if is_asked and not wandb.login(prompt=False):
        raise ConfigError(
            "nobody is logged in at Weights & Biases",
            "wandb login, or set WANDB_API_KEY; WANDB_MODE=offline writes a folder, for `wandb sync` later",
        )
