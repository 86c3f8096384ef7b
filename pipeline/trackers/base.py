"""What a tracker takes, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.rows import ManifestRow
from pipeline.video import contact_strip


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """How a run is named in a tracker.

    Attributes:
        name: for people.
        id: the same whenever the run is gone on with, and no other run's.
        hyperparameters: plain values by name; sections are mappings of their own.
    """

    name: str
    id: str
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class SampleVideo:
    """A finished video that is shown.

    Attributes:
        row: of the manifest.
        file: its MP4, which is there until the call that it was given to returns.
    """

    row: ManifestRow
    file: Path

    @property
    def caption(self) -> str:
        """Row, id and prompts, on one line."""
        name = f"row {self.row.row}" + ("" if self.row.id == str(self.row.row) else f" ({self.row.id})")
        return " ".join(f"{name}: {' / '.join(self.row.prompts)}".split())

    def strip(self) -> bytes:
        """Frames of it side by side, a JPEG.

        Raises:
            WorkerError: if it has no frames.
        """
        return contact_strip(self.file, self.row.num_frames or 1)


class Tracker(Protocol):
    """Where a run is shown. One thread calls it, and any method may raise whatever its package raises."""

    @property
    def where(self) -> str:
        """What to do to look at it."""
        ...

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds figures by name.

        Args:
            values: a name is a path, such as "run/videos_done".
            step: rows of the run that are settled.
        """
        ...

    def text(self, name: str, text: str, step: int) -> None:
        """Adds a text, of Markdown at most."""
        ...

    def video(self, video: SampleVideo, step: int) -> None:
        """Shows a video, or frames of it where the tracker plays none."""
        ...

    def close(self) -> None:
        """Writes what is not written yet. Nothing is called after it."""
        ...
