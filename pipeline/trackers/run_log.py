"""What a run tells a tracker: its figures now and then, every row that is settled, and a sample of its videos.

The step is the number of rows settled, those of earlier sessions included, so that a run that is gone on with goes on
in the same log where it was. A row is told once, when it is recorded.

All that the tracker does happens in a thread of its own, behind a queue of bounded length. A tracker that fails (its
server is gone, its disk is full), or does not keep up, is said once; from then on nothing more is told to it, and the
run goes on as ever.
"""

from __future__ import annotations

import math
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from miga.errors import MigaError
from pipeline.config import LogsConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import path_in_out
from pipeline.report.cards import mean_score
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage
from pipeline.terminal import on_one_line
from pipeline.trackers.base import SampleVideo, Tracker

MAX_WAITING: Final = 20_000
"""Entries that wait for a slow tracker."""
CLOSE_S: Final = 30.0
"""How long the end of a run waits for what its tracker has not written yet."""
_FIGURES: Final = ("videos_per_hour", "calls_done", "calls", "gpus", "left_s")
"""Of the driver's figures those that are written as they are."""
_COLUMNS: Final = (
    "num_frames", "num_searches", "num_corrections", "network_calls", "helper_calls", "denoise_s", "decode_s",
    "encode_video_s", "upload_s", "queue_wait_s", "gpu_s", "peak_memory_bytes",
)  # fmt: skip
"""Of the manifest those that are written of every finished video."""


class RunLog:
    """The log of one session of a run. All methods are for one thread, the coordinator's.

    Args:
        tracker: where to.
        logs: of the run's config.
        storage: of OUT, where the videos are.
        num_ok: rows that earlier sessions have made.
        num_failed: rows that they gave up.
        clock: seconds.
    """

    def __init__(
        self,
        tracker: Tracker,
        logs: LogsConfig,
        storage: Storage,
        num_ok: int = 0,
        num_failed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker, self._logs, self._storage, self._clock = tracker, logs, storage, clock
        self._num_ok, self._num_failed = num_ok, num_failed
        self._looked_s, self._looked_at = clock(), (0.0, 0.0)
        self._fault = ""
        self._is_said = False
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._serve, name="miga-log", daemon=True)
        self._thread.start()

    @property
    def is_due(self) -> bool:
        """Whether it is time for `look`."""
        return self._clock() - self._looked_s >= self._logs.every_s

    @property
    def _step(self) -> int:
        return self._num_ok + self._num_failed

    def row_settled(self, row: ManifestRow) -> None:
        """A row is recorded."""
        if row.status == "ok":
            self._num_ok += 1
        else:
            self._num_failed += 1
        step = self._step
        if row.status != "ok":
            text = f"row {row.row} ({row.id}): {row.error_type}: {on_one_line(row.error or '')}"
            self._put(partial(self._tracker.text, "failed rows", text, step))
            return
        self._put(partial(self._tracker.scalars, scores_of(row), step))
        if self._num_ok <= self._logs.first_videos or self._num_ok % self._logs.every_videos == 0:
            self._put(partial(self._show, row, step))

    def look(self, figures: Mapping[str, Any], num_calls: float, busy_s: float, say: Callable[[str], None]) -> None:
        """Writes the run's figures; to be called whenever it is due, and at the end.

        Args:
            figures: the driver's (`ProgressBoard.figures`).
            num_calls: network calls that GPUs have made in this session.
            busy_s: seconds that they were in them.
            say: is told of a tracker that has failed.
        """
        now_s = self._clock()
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        (calls_before, busy_before_s), self._looked_at = self._looked_at, (num_calls, busy_s)
        calls, seconds = num_calls - calls_before, busy_s - busy_before_s
        values: dict[str, float] = {"run/videos_done": self._num_ok, "run/videos_failed": self._num_failed}
        values |= {f"run/{name}": float(figures[name]) for name in _FIGURES if figures.get(name) is not None}
        if calls > 0:
            values["run/seconds_per_call"] = seconds / calls
        if (gpus := figures.get("gpus")) and passed_s > 0:
            values["run/gpus_busy_share"] = min(1.0, seconds / (passed_s * gpus))
        self._put(partial(self._tracker.scalars, values, self._step))
        self._tell(say)

    def close(self, say: Callable[[str], None], patience_s: float = CLOSE_S) -> None:
        """Has the tracker write what it has not written yet, for as long as there is patience.

        Args:
            say: is told if something is missing there.
            patience_s: seconds.
        """
        self._put(self._tracker.close)
        with suppress(queue.Full):
            self._waiting.put(None, timeout=patience_s)
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._fail(f"it has not written everything within {patience_s:g} s of the run's end")
        self._tell(say)

    def _put(self, entry: Callable[[], None]) -> None:
        if self._fault:
            return
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._fail(f"it does not keep up: {MAX_WAITING:,} entries wait for it")

    def _fail(self, why: str) -> None:
        self._fault = self._fault or why

    def _tell(self, say: Callable[[str], None]) -> None:
        if self._fault and not self._is_said:
            self._is_said = True
            say(f"the log in {self._logs.tracker} ends here, the run goes on: {self._fault}")

    # ---- in the tracker's thread ----

    def _serve(self) -> None:
        while (entry := self._waiting.get()) is not None:
            if self._fault:
                continue
            try:
                entry()
            except Exception as error:
                self._fail(f"{type(error).__name__}: {on_one_line(str(error))}")

    def _show(self, row: ManifestRow, step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="miga-log-") as folder:
            video = SampleVideo(row, Path(folder) / "video.mp4")
            try:
                self._storage.get_file(path_in_out(row.uri or ""), video.file)
            except (FileNotFoundError, MigaError) as error:  # the storage's fault, not the tracker's
                self._tracker.text("not shown", f"{video.caption}: {on_one_line(str(error))}", step)
            else:
                self._tracker.video(video, step)


def scores_of(row: ManifestRow) -> dict[str, float]:
    """What is written of a finished video: its scores, its searches, and what it took."""
    values = {"video/row": float(row.row)}
    if (consistency := mean_score(row.final_consistency or row.consistency)) is not None:
        values["video/consistency"] = consistency
    for name in _COLUMNS:
        value = getattr(row, name)
        if value is not None and math.isfinite(value):
            values[f"video/{name}"] = float(value)
    return values


def settled_before(manifest: Manifest, retry_failed: bool) -> tuple[int, int]:
    """How many rows earlier sessions have made and given up, as this one sees it.

    Args:
        manifest: of the run.
        retry_failed: whether those given up are made again.

    Raises:
        OutputError: if a file of the manifest is broken.
    """
    statuses = [status for shard in manifest.shards() for status in manifest.statuses(shard).values()]
    num_ok = statuses.count("ok")
    return num_ok, 0 if retry_failed else len(statuses) - num_ok
