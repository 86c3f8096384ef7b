"""How much of a run is done, and how long the rest takes: counted in calls of the network. Pure arithmetic.

What a video takes is counted before it is made (`miga/cost.py`), but for searches of self-reflection: of these it is
known what one costs, and how many there may be. How many there will be is told by those seen in this run, of videos
made and in the making: as large a share of the evaluations to come. A row that goes back to the queue takes its calls
back with it: they are to be made again, and what a checkpoint has saved of them counts again once it is gone on with.

The rate is of the last minutes, and of a GPU that has work: calls, as the GPUs themselves count them, over the seconds
in which they hosted a video or helped with one. So a GPU more or less shows at once, and one that nothing is left for
does not make the others look slower.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 180.0
"""The rate is one of so many seconds,"""
MIN_CALLS: Final = 20
"""and of as many calls at least, however long they took."""
FIRST_SHARE: Final = 0.1
"""Of evaluations that may start a search, how many are expected to before any is seen (docs/log.md: 1 to 18 in 100)."""
_FIRST_CALLS: Final = 3
"""Calls before which nothing is said."""
_SAMPLE_S: Final = 1.0
TOLERANCE: Final = 0.15
"""A time left that is shown is not raised for less than this share of it:"""
TOLERANCE_S: Final = 5.0
"""and so many seconds."""
_TASKS_PER_GROUP: Final = 4


@dataclass(frozen=True)
class VideoCost:
    """What a video takes.

    Attributes:
        least: network calls without searches.
        per_search: calls of a search of self-reflection.
        num_possible: searches that there may be.
        slots: GPUs that it can use at a time, its host's included.
    """

    least: int
    per_search: int = 0
    num_possible: int = 0
    slots: int = 1


@dataclass
class _Video:
    num_frames: int
    num_calls: float = 0.0
    num_searches: int = 0
    num_chances: int = 0
    is_made: bool = False


class WorkLeft:
    """The calls of a run: done, and to be done.

    Args:
        num_rows: of the run; None if that is not known.
        cost_of: what a video of so many frames takes.
    """

    def __init__(self, num_rows: int | None, cost_of: Callable[[int], VideoCost]) -> None:
        self._num_rows, self._cost_of = num_rows, cost_of
        self._costs: dict[int, VideoCost] = {}
        self._lengths: Counter[int] | None = None  # of all rows
        self._last: Sequence[int] = ()
        self._read: Counter[int] = Counter()  # lengths of rows read so far
        self._num_read = 0
        self._waiting: Counter[int] = Counter()  # of rows read that no worker has
        self._videos: dict[int, _Video] = {}
        self._settled = 0.0
        self._num_searches = self._num_chances = 0  # of videos settled

    def count(self, lengths: Mapping[int, int], last: Sequence[int] = ()) -> None:
        """What the rows are like; without it those unread are taken to be like those read.

        Args:
            lengths: how many there are of each length, in frames.
            last: the lengths of the last ones, in order: which of them come late makes a run's end long or short.
        """
        self._lengths, self._last = Counter(lengths), tuple(last)

    # ---- rows ----

    def read(self, num_frames: int | None, is_settled: bool = False) -> None:
        """A row was read.

        Args:
            num_frames: of its video; None for one that cannot be made.
            is_settled: whether an earlier run has settled it.
        """
        self._num_read += 1
        if num_frames is None:
            return
        self._read[num_frames] += 1
        if is_settled:
            self._settled += self._expected(num_frames)
        else:
            self._waiting[num_frames] += 1

    def began(self, row: int, num_frames: int) -> None:
        """A worker has taken a row."""
        self._waiting[num_frames] -= 1
        self._videos[row] = _Video(num_frames)

    def calls(self, row: int, num_calls: float, num_searches: int = 0, num_chances: int = 0) -> None:
        """How far a video in the making is.

        Args:
            row: whose.
            num_calls: that have ended.
            num_searches: of self-reflection so far.
            num_chances: evaluations so far that might have started one.
        """
        if (video := self._videos.get(row)) is not None and not video.is_made:
            video.num_calls = max(video.num_calls, num_calls)
            video.num_searches, video.num_chances = num_searches, num_chances

    def made(self, row: int) -> None:
        """A video's last call has ended; it is still to be stored."""
        if (video := self._videos.get(row)) is not None:
            video.is_made = True

    def given_back(self, row: int) -> None:
        """A row waits again."""
        if (video := self._videos.pop(row, None)) is not None:
            self._waiting[video.num_frames] += 1

    def settled(self, row: int, num_calls: int | None, num_searches: int = 0, num_chances: int = 0) -> None:
        """A row is made with so many calls, searches and chances of one, or is given up (None)."""
        video = self._videos.pop(row, None)
        if num_calls is not None and video is not None:
            self._settled += num_calls
            self._num_searches += num_searches
            self._num_chances += num_chances

    # ---- calls ----

    @property
    def num_done(self) -> float:
        """Calls done: of all rows that are settled, and of those in the making."""
        return self._settled + sum(
            max(video.num_calls, self._cost(video.num_frames).least) if video.is_made else video.num_calls
            for video in self._videos.values()
        )

    @property
    def num_left(self) -> float:
        """Calls to come."""
        _, waiting = self._not_begun()
        return waiting + sum(self._left_of(video) for video in self._videos.values())

    def expected(self, row: int, num_calls: float) -> float:
        """Calls of a video that is in the making, once it is made; of one that is not, those it has."""
        video = self._videos.get(row)
        return num_calls if video is None else self._expected_of(video)

    @property
    def is_exact(self) -> bool:
        """Whether all lengths are known, and no video may search."""
        is_counted = self._lengths is not None or self._num_read == self._num_rows
        costs = map(self._cost, self._lengths or self._read)
        return is_counted and all(cost.per_search * cost.num_possible == 0 for cost in costs)

    @property
    def mean_calls(self) -> float | None:
        """Calls of a video, on the mean of those known; None while there is none."""
        lengths = self._lengths or self._read
        count = sum(lengths.values())
        return sum(self._expected(frames) * number for frames, number in lengths.items()) / count if count else None

    def seconds(self, calls_a_second: float, num_gpus: int) -> float:
        """How long the rest takes.

        Videos are dealt out to groups of as many GPUs as one video can use, each to the group that is free first: where
        GPUs help each other that is one group, or a few, and at a run's end fewer GPUs are at work where they do not.

        Args:
            calls_a_second: of a GPU that has work.
            num_gpus: that there are.
        """
        num_waiting, waiting = self._not_begun()
        of_videos = sorted((left for video in self._videos.values() if (left := self._left_of(video))), reverse=True)
        slots = max((cost.slots for cost in self._costs.values()), default=1)
        num_groups = max(1, math.ceil(num_gpus / slots))
        num_dealt = min(num_waiting, _TASKS_PER_GROUP * num_groups)
        dealt = [self._expected(frames) for frames in self._last[-num_dealt:]] if num_dealt else []
        if len(dealt) < num_dealt:
            dealt = [waiting / num_waiting] * num_dealt
        groups = [max(0.0, waiting - sum(dealt)) / num_groups] * num_groups
        for left in (*of_videos, *dealt):
            heapq.heapreplace(groups, groups[0] + left)
        return max(groups) / (calls_a_second * max(1, num_gpus) / num_groups)

    def _not_begun(self) -> tuple[int, float]:
        """Rows that no worker has yet, read or not, and their calls."""
        num_waiting = sum(self._waiting.values())
        calls = sum(self._expected(frames) * number for frames, number in self._waiting.items() if number)
        unread = max(0, (self._num_rows or 0) - self._num_read)
        if not unread:
            return num_waiting, calls
        if self._lengths is not None:
            rest = self._lengths - self._read
            return num_waiting + rest.total(), calls + sum(self._expected(frames) * n for frames, n in rest.items())
        return num_waiting + unread, calls + unread * (self.mean_calls or 0.0)

    def _cost(self, num_frames: int) -> VideoCost:
        if num_frames not in self._costs:
            self._costs[num_frames] = self._cost_of(num_frames)
        return self._costs[num_frames]

    def _expected(self, num_frames: int) -> float:
        cost = self._cost(num_frames)
        return cost.least + self._search_share() * cost.per_search * cost.num_possible

    def _search_share(self) -> float:
        """Of the evaluations that may start a search, how many do: of those seen, and of one that is made up."""
        videos = self._videos.values()
        searches = self._num_searches + sum(video.num_searches for video in videos)
        return (searches + FIRST_SHARE) / (self._num_chances + sum(video.num_chances for video in videos) + 1)

    def _expected_of(self, video: _Video) -> float:
        return video.num_calls + self._left_of(video)

    def _left_of(self, video: _Video) -> float:
        if video.is_made:
            return 0.0
        cost = self._cost(video.num_frames)
        num_plain = video.num_calls - video.num_searches * cost.per_search
        num_chances = max(0, cost.num_possible - video.num_chances)
        return max(0.0, cost.least - num_plain) + self._search_share() * cost.per_search * num_chances


class CallRate:
    """Calls a second of a GPU that has work, over the last minutes."""

    def __init__(self) -> None:
        self._last_told: dict[str, float] = {}
        self._num_calls = 0.0
        self._worked_s = 0.0
        self._num_working = 0
        self._at_s: float | None = None
        self._samples: deque[tuple[float, float, float]] = deque()  # when, calls, seconds of GPUs that had work

    def working(self, num_working: int, now_s: float) -> None:
        """So many GPUs host a video or help with one from now on."""
        self._go_on(now_s)
        self._num_working = num_working

    def gpu(self, process: str, num_calls: float, now_s: float) -> None:
        """What a GPU's process has counted since it began. Its first word is where counting starts."""
        self._go_on(now_s)
        before = self._last_told.get(process)
        self._last_told[process] = num_calls
        if before is not None and num_calls > before:
            self._num_calls += num_calls - before
            self._sample(now_s)
        elif not self._samples and self._num_working:
            self._sample(now_s)

    @property
    def num_calls(self) -> float:
        """Calls counted."""
        return self._num_calls

    @property
    def calls_a_second(self) -> float | None:
        """Of one GPU; None while too few calls have ended."""
        if len(self._samples) < 2:
            return None
        (_, first, from_s), (_, last, to_s) = self._samples[0], self._samples[-1]
        return (last - first) / (to_s - from_s) if last - first >= _FIRST_CALLS and to_s > from_s else None

    def _go_on(self, now_s: float) -> None:
        if self._at_s is not None:
            self._worked_s += self._num_working * max(0.0, now_s - self._at_s)
        self._at_s = now_s

    def _sample(self, now_s: float) -> None:
        sample = (now_s, self._num_calls, self._worked_s)
        if len(self._samples) > 1 and now_s - self._samples[-2][0] < _SAMPLE_S:
            self._samples[-1] = sample
        else:
            self._samples.append(sample)
        while len(self._samples) > 2 and self._is_enough(self._samples[1]):
            self._samples.popleft()

    def _is_enough(self, sample: tuple[float, float, float]) -> bool:
        then_s, num_calls, _ = sample
        now_s, now, _ = self._samples[-1]
        return now_s - then_s >= WINDOW_S and now - num_calls >= MIN_CALLS


class SteadyTime:
    """A time left that does not flicker: it falls with every lower estimate, and rises only where it was wrong."""

    def __init__(self) -> None:
        self._shown_s: float | None = None

    def show(self, estimate_s: float | None) -> float | None:
        """What to show after an estimate; None while there is none."""
        if estimate_s is None:
            return self._shown_s
        shown_s = self._shown_s
        if shown_s is None or estimate_s < shown_s or estimate_s > shown_s * (1 + TOLERANCE) + TOLERANCE_S:
            self._shown_s = estimate_s
        return self._shown_s
