"""What a person sees of a run while it goes on, counted in calls of the network.

On a terminal: a bar for the run, one for each video in the making, and before the first call what is being done, with
its seconds. In a log file or a pipe: a line for every event, and one every half minute, each with the time, how far the
run is, videos an hour and busy GPUs. The same figures go with the lease's beat (`figures`), for `miga status`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from actors.messages import Hosted, VideoResult
from pipeline.figures import count, duration, rate, share
from pipeline.rows import BadRow, PromptRow, Status
from pipeline.scheduling.time_left import CallRate, SteadyTime, VideoCost, WorkLeft
from pipeline.terminal import encodable, escaped, on_one_line, say

MAX_VIDEO_BARS: Final = 8
MAX_WORKER_LINES: Final = 8
"""Workers of whose start a log tells one by one."""
LOG_EVERY_S: Final = 30.0
DRAW_EVERY_S: Final = 0.5
_DRAWS_A_SECOND: Final = 4
_DUMB: Final = ("dumb", "unknown", "")


@dataclass(frozen=True)
class _View:
    """What is to be seen. A thread of the terminal's draws it, so it is never changed, only replaced.

    Attributes:
        steps: what is being done before the first call, and since when.
        bars: name, calls done and calls expected of videos in the making.
    """

    text: str = ""
    done: float = 0.0
    total: float | None = None
    steps: tuple[tuple[str, float], ...] = ()
    bars: tuple[tuple[str, float, float], ...] = ()
    num_more: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Making:
    row: PromptRow
    num_calls: float = 0.0


class ProgressBoard:
    """The display of a run. All of it but `figures` is for one thread.

    Args:
        num_rows: rows of the run; None if that is not known.
        quiet: whether to show nothing.
        stream: where to.
        cost_of: what a video of so many frames takes; None: then there are no calls to come, and no time left.
        clock: seconds.
    """

    def __init__(
        self,
        num_rows: int | None,
        quiet: bool = False,
        stream: TextIO | None = None,
        cost_of: Callable[[int], VideoCost] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._is_quiet = quiet
        self._num_rows = num_rows
        self._num_ok = self._num_failed = self._num_skipped = 0
        self.num_calls = 0
        self._clock = clock
        self._work = WorkLeft(num_rows, cost_of) if cost_of is not None else None
        self._rate, self._steady = CallRate(), SteadyTime()
        self._num_gpus = self._num_busy = 0
        self._started_s = self._shown_s = clock()
        self._making: dict[str, _Making] = {}
        self._steps: dict[str, float] = {}
        self._num_ready_said = 0
        self._worked_out_s: float | None = None
        self._left_s: float | None = None
        self._view = _View()
        self._live = None if quiet or not _is_terminal(self._stream) else self._start()

    def _start(self) -> Live:
        console = Console(file=_Terminal(self._stream), highlight=False, markup=False, emoji=False)  # type: ignore[arg-type]
        live = Live(
            get_renderable=self._drawn,
            console=console,
            refresh_per_second=_DRAWS_A_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        live.start()
        return live

    # ---- before the first call ----

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Says what is being done for the time of the block, with its seconds."""
        self.begun(what)
        try:
            yield
        except BaseException:
            self._steps.pop(what, None)
            raise
        self.done(what)

    def begun(self, what: str) -> None:
        """Something that a first call waits for has begun; once more while it goes on is fine."""
        if what in self._steps:
            return
        self._steps[what] = self._clock()
        if self._live is None:
            self.say(what)
        self._look()

    def done(self, what: str, about: str = "") -> None:
        """It has ended; if it never was begun nothing is said."""
        if (since_s := self._steps.pop(what, None)) is not None:
            self.say(f"{what}: done in {duration(self._clock() - since_s)}{about and f' ({about})'}")
        self._look()

    def worker_ready(self, worker: str, device: str, since_s: float) -> None:
        """A worker has loaded its model, and made its first call."""
        self._num_ready_said += 1
        if self._num_ready_said <= MAX_WORKER_LINES:
            self.say(f"{worker} is ready after {duration(self._clock() - since_s)} ({device})")

    # ---- rows ----

    def count(self, lengths: Mapping[int, int], last: Sequence[int] = ()) -> None:
        """How many rows of each length, in frames, the run has, and of what length its last are; it may come late."""
        if self._work is not None:
            self._work.count(lengths, last)

    def row_read(self, row: PromptRow | BadRow) -> None:
        """A row was read that no earlier run has settled."""
        if self._work is not None:
            self._work.read(_num_frames(row))

    def row_skipped(self, row: PromptRow | BadRow, status: Status) -> None:
        """A row was settled by an earlier run."""
        self._num_skipped += 1
        if self._work is not None:
            self._work.read(_num_frames(row) if status == "ok" else None, is_settled=True)

    def video_started(self, video: str, row: PromptRow) -> None:
        """An attempt has begun; `video` names it among those being made."""
        if self._work is not None:
            self._work.began(row.index, row.num_frames)
        self._making[video] = _Making(row)

    def video_calls(self, video: str, hosted: Hosted) -> None:
        """How far the attempt is."""
        if (making := self._making.get(video)) is not None:
            making.num_calls = max(making.num_calls, hosted.num_calls)
            if self._work is not None:
                self._work.calls(making.row.index, hosted.num_calls, hosted.num_searches, hosted.num_chances)

    def video_made(self, video: str) -> None:
        """All calls of the attempt are done."""
        if self._work is not None and (making := self._making.get(video)) is not None:
            self._work.made(making.row.index)

    def video_closed(self, video: str) -> None:
        """No worker hosts the attempt any more."""
        self._making.pop(video, None)

    def row_back(self, row: PromptRow, reason: str) -> None:
        """A row goes back to the queue."""
        if self._work is not None:
            self._work.given_back(row.index)
        self.say(f"row {row.index} ({row.id}) goes back to the queue: {reason}")

    def row_done(self, row: PromptRow, result: VideoResult) -> None:
        """A row is recorded as made."""
        self._num_ok += 1
        self.num_calls += result.num_calls
        if self._work is not None:
            searched = result.trace.searched
            self._work.settled(row.index, result.num_calls, sum(searched), max(0, len(searched) - 1))
        if self._live is None:
            frames, calls = count(result.num_frames), count(result.num_calls)
            self._say_how_far(f"{_name(row)}: {frames} frames, {calls} calls, {duration(result.denoise_s)}")

    def row_kept(self, row: PromptRow, why: str) -> None:
        """A row is recorded with the video of an earlier try."""
        self._num_ok += 1
        if self._work is not None:
            self._work.settled(row.index, None)
        self._say_how_far(f"{_name(row)}: {why}")

    def row_failed(self, row: PromptRow | BadRow, error: str) -> None:
        """A row is recorded as failed."""
        self._num_failed += 1
        if self._work is not None and isinstance(row, PromptRow):
            self._work.settled(row.index, None)
        self._say_how_far(f"{_name(row)} FAILED: {on_one_line(error)}")

    # ---- GPUs ----

    def gpus(self, num_ready: int, num_busy: int) -> None:
        """So many workers are there, and so many of them host a video or help with one."""
        self._num_gpus, self._num_busy = num_ready, num_busy
        self._rate.working(num_busy, self._clock())

    def gpu(self, process: str, num_calls: float) -> None:
        """The network calls that the process of a GPU has made so far."""
        self._rate.gpu(process, num_calls, self._clock())

    # ---- what is shown ----

    def say(self, text: str) -> None:
        """A line for the log, where it has the time before it."""
        if self._is_quiet:
            return
        if self._live is not None:
            with suppress(OSError, ValueError):
                self._live.console.print(Text(escaped(text)), soft_wrap=True)
        else:
            say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", self._stream)

    def _say_how_far(self, text: str) -> None:
        """A line for the log, where it says how far the run is, too."""
        if self._is_quiet:
            return
        if self._live is None:
            self._look()
            text = f"[{self._view.text}] {text}"
        self.say(text)

    def refresh(self) -> None:
        """Called often; shows something where time has passed."""
        now_s = self._clock()
        if now_s - self._shown_s < (DRAW_EVERY_S if self._live is not None else LOG_EVERY_S):
            if now_s - self._shown_s >= DRAW_EVERY_S:
                self._look()
            return
        self._shown_s = now_s
        self._look()
        if self._live is not None or self._is_quiet:
            return
        if self._making:
            videos = ", ".join(
                f"{_name(making.row)} {count(making.num_calls)}/{count(self._expected(making))} calls"
                for making in list(self._making.values())[:MAX_VIDEO_BARS]
            )
            more = len(self._making) - MAX_VIDEO_BARS
            self._say_how_far(videos + (f", and {more} more" if more > 0 else ""))
        elif self._steps:
            self.say(", ".join(f"{what} ({duration(now_s - since_s)})" for what, since_s in self._steps.items()))

    def figures(self) -> Mapping[str, Any]:
        """How far the run is, as plain values; any thread may ask."""
        return self._view.figures

    def close(self) -> None:
        """Takes the bars down."""
        self._making.clear()
        self._steps.clear()
        if self._live is not None:
            self._look()
            live, self._live = self._live, None
            with suppress(OSError, ValueError):
                live.stop()
            self._is_quiet = True  # the terminal is the next one's

    def _look(self) -> None:
        """Works out anew what is to be seen."""
        settled = self._num_ok + self._num_failed + self._num_skipped
        parts = [f"{count(settled)}/{'?' if self._num_rows is None else count(self._num_rows)} videos"]
        figures: dict[str, Any] = {
            "settled": settled,
            "failed": self._num_failed,
            "gpus": self._num_gpus,
            "gpus_busy": self._num_busy,
            "doing": list(self._steps),
        }
        done, total = float(settled), None if self._num_rows is None else float(self._num_rows)
        if self._work is not None:
            done = self._work.num_done
            total = done + self._work.num_left
            about = "" if self._work.is_exact else "about "
            parts.append(f"{share(done, total)} of {about}{count(total)} calls")
            figures |= {"calls_done": round(done), "calls": round(total), "calls_are_exact": self._work.is_exact}
            self._add_rate(parts, figures)
        if self._num_failed:
            parts.append(f"{count(self._num_failed)} failed")
        making = list(self._making.values())
        self._view = _View(
            text=", ".join(parts),
            done=done,
            total=total,
            steps=tuple(self._steps.items()),
            bars=tuple((_name(each.row), each.num_calls, self._expected(each)) for each in making[:MAX_VIDEO_BARS]),
            num_more=max(0, len(making) - MAX_VIDEO_BARS),
            figures=figures,
        )

    def _expected(self, making: _Making) -> float:
        """Calls of a video in the making, when it is made."""
        return making.num_calls if self._work is None else self._work.expected(making.row.index, making.num_calls)

    def _add_rate(self, parts: list[str], figures: dict[str, Any]) -> None:
        assert self._work is not None
        each = self._rate.calls_a_second
        mean = self._work.mean_calls
        if each is not None and mean and self._num_busy:
            videos_a_second = each * self._num_busy / mean
            parts.append(rate(videos_a_second, "videos"))
            figures |= {"calls_per_s": each * self._num_busy, "videos_per_hour": videos_a_second * 3600}
        if self._num_gpus:
            parts.append(f"{self._num_busy} of {self._num_gpus} GPUs busy")
        left_s = self._time_left(each)
        if left_s is not None:
            is_over = self._work.num_left < 0.5
            parts.append("storing the last videos" if is_over else f"{duration(left_s)} left")
            figures["left_s"] = left_s

    def _time_left(self, calls_a_second: float | None) -> float | None:
        """Seconds, worked out anew now and then: of many GPUs it takes milliseconds."""
        assert self._work is not None
        now_s = self._clock()
        if self._worked_out_s is None or now_s - self._worked_out_s >= DRAW_EVERY_S:
            self._worked_out_s = now_s
            estimate_s = (
                self._work.seconds(calls_a_second, self._num_gpus) if calls_a_second and self._num_gpus else None
            )
            self._left_s = self._steady.show(estimate_s)
        return self._left_s

    def _drawn(self) -> RenderableType:
        """The bars; called in a thread of the terminal's."""
        view, now_s = self._view, self._clock()
        lines: list[RenderableType] = []
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=26)
        table.add_column(width=24)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, num_done, expected in view.bars:
            calls = f"{count(num_done)}/{count(expected)} calls"
            table.add_row(Text(name), ProgressBar(total=max(1.0, expected), completed=num_done), Text(calls))
        whole = Table.grid(padding=(0, 1))
        whole.add_column(width=24)
        whole.add_column()
        whole.add_row(ProgressBar(total=max(1.0, view.total or 1.0), completed=view.done), Text(view.text))
        lines.append(whole)
        lines += [Text(f"{what} … {duration(now_s - since_s)}") for what, since_s in view.steps]
        if view.bars:
            lines.append(table)
        if view.num_more:
            lines.append(Text(f"and {view.num_more} more"))
        return Group(*lines)


class _Terminal:
    """A terminal's stream as rich takes it: what its encoding lacks is escaped, and one that is gone is no fault."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(encodable(text, self._stream))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_terminal(stream: TextIO) -> bool:
    """Whether bars can be drawn there."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in _DUMB
    except ValueError:  # closed
        return False


def _num_frames(row: PromptRow | BadRow) -> int | None:
    return row.num_frames if isinstance(row, PromptRow) else None


def _name(row: PromptRow | BadRow) -> str:
    """A row's name, short and on one line: ids are the user's and may hold anything."""
    text = f"row {row.index}" if row.id == str(row.index) else row.id
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "·" for character in text)
    return text if len(text) <= 24 else text[:23] + "…"
