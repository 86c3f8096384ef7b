"""What a person sees while a run goes on: a bar for the run, and one per video in the making.

On a terminal these are live bars; in a log file, a line for every settled row and one every half minute.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from actors.messages import VideoProgress, VideoResult
from pipeline.rows import BadRow, PromptRow
from pipeline.terminal import escaped, say

MAX_VIDEO_BARS = 8
LOG_EVERY_S = 30.0
DRAW_EVERY_S = 0.1


class ProgressBoard:
    """The display of a run.

    Args:
        num_rows: rows of the run; None if that is not known.
        quiet: whether to show nothing.
        stream: where to.
    """

    def __init__(self, num_rows: int | None, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_live = self._stream.isatty() and not quiet
        self._is_quiet = quiet
        self._num_rows = num_rows
        self._num_ok = self._num_failed = self._num_skipped = 0
        self.num_calls = 0
        self._started_s = self._shown_s = time.monotonic()
        self._videos: dict[str, tqdm] = {}
        self._states: dict[str, str] = {}
        self._run = tqdm(
            total=num_rows, desc="videos", unit="video", file=self._stream, disable=not self._is_live, position=0
        )

    def video_started(self, worker: str, row: PromptRow, num_latents: int) -> None:
        """An attempt has begun."""
        self._states[worker] = f"{_name(row)} 0/{num_latents}"
        if self._is_live and len(self._videos) < MAX_VIDEO_BARS:
            taken = {bar.pos for bar in self._videos.values()}
            place = next(number for number in range(1, MAX_VIDEO_BARS + 2) if -number not in taken)
            self._videos[worker] = tqdm(
                total=num_latents, desc=f"  {_name(row)}", unit="latent", file=self._stream, position=place, leave=False
            )

    def video_progress(
        self, worker: str, row: PromptRow, progress: VideoProgress | VideoResult | None, num_latents: int
    ) -> None:
        """An attempt is further: latents done of N, network calls; the bar adds the time left."""
        if not isinstance(progress, VideoProgress):
            return
        self._states[worker] = f"{_name(row)} {progress.num_latents_done}/{num_latents} ({progress.num_calls} calls)"
        if bar := self._videos.get(worker):
            bar.set_postfix_str(f"{progress.num_calls} calls", refresh=False)
            bar.update(progress.num_latents_done - bar.n)

    def video_closed(self, worker: str) -> None:
        """An attempt is over."""
        self._states.pop(worker, None)
        if bar := self._videos.pop(worker, None):
            bar.close()

    def row_done(self, row: PromptRow, result: VideoResult) -> None:
        """A row is recorded as made."""
        self._num_ok += 1
        self.num_calls += result.num_calls
        self._settled(f"{_name(row)}: {result.num_frames} frames, {result.num_calls} calls, {result.denoise_s:.1f} s")

    def row_failed(self, row: PromptRow | BadRow, error: str) -> None:
        """A row is recorded as failed."""
        self._num_failed += 1
        self._settled(f"{_name(row)} FAILED: {error}", always=True)

    def row_skipped(self, status: str) -> None:
        """A row was settled by an earlier run."""
        self._num_skipped += 1
        self._run.update()

    def say(self, text: str) -> None:
        """A line for the log."""
        if self._is_live:
            self._run.write(escaped(text), file=self._stream)
        elif not self._is_quiet:
            say(text, self._stream)

    def refresh(self) -> None:
        """Called often; shows something where time has passed."""
        now_s = time.monotonic()
        if now_s - self._shown_s < (DRAW_EVERY_S if self._is_live else LOG_EVERY_S):
            return
        if self._is_live:
            self._shown_s = now_s
            self._run.refresh()
        elif self._states:
            self._shown_s = now_s
            self.say(f"[{self._summary(now_s)}] " + ", ".join(list(self._states.values())[:MAX_VIDEO_BARS]))

    def close(self) -> None:
        """Takes the bars down."""
        for worker in list(self._videos):
            self.video_closed(worker)
        self._run.close()

    def _settled(self, text: str, always: bool = False) -> None:
        self._run.set_postfix_str(f"{self.num_calls} calls, {self._num_failed} failed", refresh=False)
        self._run.update()
        if always or not self._is_live:
            self.say(f"[{self._summary(time.monotonic())}] {text}" if not self._is_live else text)

    def _summary(self, now_s: float) -> str:
        settled = self._num_ok + self._num_failed + self._num_skipped
        text = f"{settled}/{self._num_rows if self._num_rows is not None else '?'}"
        made = self._num_ok + self._num_failed
        if made and self._num_rows is not None:
            left_s = (now_s - self._started_s) / made * (self._num_rows - settled)
            text += f", {left_s / 60:.1f} min left"
        return text


def _name(row: PromptRow | BadRow) -> str:
    """A row's name, short and on one line: ids are the user's and may hold anything."""
    text = row.id
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "·" for character in text)
    return text if len(text) <= 24 else text[:23] + "…"
