"""A log of TensorBoard's, read back by TensorBoard itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_back(folder: Path) -> dict[str, list[Any]]:
    """Tag → its events of all sessions, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "tensors", "images"), 0)
    found = EventAccumulator(str(folder), size_guidance=everything)
    found.Reload()
    return {tag: found.Tensors(tag) for tag in found.Tags()["tensors"]}
