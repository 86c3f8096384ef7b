"""TensorBoard: event files in a folder, one for each time that the run is gone on with.

They are written by TensorBoard's own record writer, at once and in the calling thread: the writer of
`torch.utils.tensorboard` has a thread of its own, which tells a full disk by a traceback.
TensorBoard plays no videos, so a video is shown as a contact strip.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pipeline.trackers.base import SampleVideo, TrackedRun

_FILES: Final = "events.out.tfevents."
_JPEG_SIZE: Final = re.compile(rb"\xff[\xc0-\xc3]..\x08(..)(..)", re.DOTALL)


class TensorBoardTracker:
    """Writes event files.

    Args:
        folder: the log's; files of earlier sessions of the run are left as they are, and shown with the new one.
        run: whose it is.

    Raises:
        OSError: if nothing can be written there.
    """

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        self.where = f"tensorboard --logdir {folder}"
        events, records = (
            import_module(f"tensorboard.{name}") for name in ("compat.proto.event_pb2", "summary.writer.record_writer")
        )
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        self._scalar = import_module("tensorboard.plugins.scalar.summary").scalar_pb
        self._text = import_module("tensorboard.plugins.text.summary").text_pb
        self._image_metadata = import_module("tensorboard.plugins.image.metadata")
        self._to_tensor = import_module("tensorboard.util.tensor_util").make_tensor_proto
        self._new_event = events.Event
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not any(folder.glob(f"{_FILES}*"))
        self._file = (folder / f"{_FILES}{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}").open("xb")
        self._records = records.RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if is_new:
            self._hyperparameters(run)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._values((value for name, figure in values.items() for value in self._scalar(name, figure).value), step)

    def text(self, name: str, text: str, step: int) -> None:
        """See `Tracker`."""
        self._values(self._text(name, text).value, step)

    def video(self, video: SampleVideo, step: int) -> None:
        """Its contact strip, by a name of its own: of one name TensorBoard shows ten at most."""
        strip = video.strip()
        metadata = self._image_metadata.create_summary_metadata(
            display_name=None, description=video.caption, converted_to_tensor=False
        )
        tensor = self._to_tensor([*(str(size).encode() for size in _size(strip)), strip])
        name = f"videos/row {video.row.row}"
        self._values([self._summary.Summary.Value(tag=name, metadata=metadata, tensor=tensor)], step)

    def close(self) -> None:
        """See `Tracker`."""
        self._records.close()

    def _hyperparameters(self, run: TrackedRun) -> None:
        hparams = import_module("torch.utils.tensorboard.summary").hparams
        for summary in hparams(_flat(run.hyperparameters), {}):
            self._values(summary.value, 0)
        values = json.dumps(run.hyperparameters, indent=2, ensure_ascii=False)
        self.text("config", f"**{run.name}**\n\n```\n{values}\n```", 0)

    def _values(self, values: Iterable[Any], step: int) -> None:
        self._write(step=step, summary=self._summary.Summary(value=list(values)))

    def _write(self, **content: Any) -> None:
        self._records.write(self._new_event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Dotted name → what TensorBoard takes for a hyperparameter."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat


def _size(jpeg: bytes) -> tuple[int, int]:
    """Width and height of a JPEG; zeros if it does not say."""
    found = _JPEG_SIZE.search(jpeg)
    return (0, 0) if found is None else (int.from_bytes(found[2], "big"), int.from_bytes(found[1], "big"))
