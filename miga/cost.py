"""How many calls of the network a video takes, and how many forwards, counted off its plan without making it.

A call is one window; where classifier-free guidance acts the network runs twice in it. The base clip counts; searches
of self-reflection depend on the video and are given per search.

A full queue does the same over and over. So the plan of a video without end is followed until it repeats itself, and
longer videos are counted by multiplying: what a method does there is not known here. Where a call shows a whole video
there is none without end, and as many calls of a long one as of a short one.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from miga.backbones.base import BackboneSpec
from miga.base_clip import PART as BASE_CLIP
from miga.config import SamplerConfig
from miga.generate import VideoState
from miga.plan import PlannedAdvance, PlannedPass, Planner, Shape, flattened, guided, num_alive, plan_video


@dataclass(frozen=True)
class CallCount:
    """Network calls of one video, by what they are for.

    Attributes:
        by_part: calls that every such video takes, by part of the method.
        per_search: calls of one search of self-reflection, of all its candidates.
        num_evaluations: evaluations of self-reflection; each but the first may start a search.
        num_candidates: candidates of one search; 0 if nothing is evaluated.
        num_guided: calls, all but searches, in which the network runs twice.
        guided_per_search: the same of one search.
        num_by_both: forwards, all but searches, that come to it because a window asks both of two networks.
        both_per_search: the same of one search.
    """

    by_part: Mapping[str, int]
    per_search: int = 0
    num_evaluations: int = 0
    num_candidates: int = 0
    num_guided: int = 0
    guided_per_search: int = 0
    num_by_both: int = 0
    both_per_search: int = 0

    @property
    def base_clip(self) -> int:
        """Calls of the base clip."""
        return self.by_part.get(BASE_CLIP, 0)

    @property
    def stage1(self) -> int:
        """Calls of the queue."""
        return self.by_part.get("stage 1", 0)

    @property
    def stage2(self) -> int:
        """Calls of the unified denoising, the second included."""
        return self.by_part.get("stage 2", 0) + self.by_part.get("second", 0)

    @property
    def forwards(self) -> int:
        """Forwards of the network, all but those of searches."""
        return self.total + self.num_guided + self.num_by_both

    @property
    def most_forwards(self) -> int:
        """All, if every evaluation that may start a search does."""
        of_search = self.guided_per_search + self.both_per_search
        return self.most + self.num_guided + self.num_by_both + of_search * max(0, self.num_evaluations - 1)

    @property
    def total(self) -> int:
        """All but searches."""
        return sum(self.by_part.values())

    @property
    def most(self) -> int:
        """All, if every evaluation that may start a search does."""
        return self.total + self.per_search * max(0, self.num_evaluations - 1)


def count_calls(config: SamplerConfig, num_latents: int, experts: Experts = ()) -> CallCount:
    """The calls that `Sampler` makes for a video of `num_latents`, exactly, but for searches.

    Args:
        config: of the sampler.
        num_latents: of the video.
        experts: of a model with two networks, which one answers for every level; empty of a model with one.
    """
    tally = _of_one_window(config, experts) if config.one_window else _counting(config, experts).of(num_latents)
    num_evaluations = tally[_EVALUATIONS]
    of_search = (_SEARCH, _SEARCH_GUIDED, _SEARCH_BOTH, _CANDIDATES)
    of_one = {name: tally[name] // max(1, num_evaluations) for name in of_search}
    return CallCount(
        by_part={part: calls for (kind, part), calls in sorted(tally.items()) if kind == "calls"},
        per_search=of_one[_SEARCH],
        num_evaluations=num_evaluations,
        num_candidates=of_one[_CANDIDATES],
        num_guided=tally[_GUIDED],
        guided_per_search=of_one[_SEARCH_GUIDED],
        num_by_both=tally[_BOTH],
        both_per_search=of_one[_SEARCH_BOTH],
    )


def windows_worth(config: SamplerConfig, spec: BackboneSpec, num_latents: int) -> float | None:
    """Of a video whose calls are no whole windows, how many calls of a whole one take as long; None where they are.

    With classifier-free guidance a call is two forwards.
    """
    forwards = forwards_worth(config, spec, num_latents)
    return None if forwards is None else forwards / (1 if config.guidance_scale == 1.0 else 2)


def forwards_worth(config: SamplerConfig, spec: BackboneSpec, num_latents: int) -> float | None:
    """The same in forwards: what is linear in the latents, and self-attention, which goes with their square."""
    work = config.work(num_latents)
    if work is None:
        return None
    shown, seen = work[0] / config.window, work[1] / config.window**2
    return (1.0 - spec.attention_share) * shown + spec.attention_share * seen


def most_latents_held(config: SamplerConfig, num_latents: int | None = None) -> int:
    """Latents that a video has in the making at most, those that a pass pushes included.

    Args:
        config: the settings.
        num_latents: length of the video; None: whatever length it has.

    Raises:
        ConfigError: if a call shows a whole video, and no length is said.
    """
    return config.latents_per_call(num_latents) if config.one_window else _most_held(config)


@functools.lru_cache(maxsize=128)
def _most_held(config: SamplerConfig) -> int:
    return _counting(config).most_held()


Experts: TypeAlias = tuple[int, ...]
"""Which of two networks answers for every level, 0 or 1; empty where there is one."""


@functools.lru_cache(maxsize=128)
def _of_one_window(config: SamplerConfig, experts: Experts) -> _Tally:
    """Of any video whose latents are all in one window."""
    tally: _Tally = Counter()
    for planned in plan_video(config, 1):
        tally = _plus(tally, _tally(config, experts, planned))
    return tally


_Tally: TypeAlias = Counter[tuple[str, str]]
"""Calls by part, and all else that is counted; whatever is counted adds up."""
_GUIDED: Final = ("guided", "")
_BOTH: Final = ("by both", "")
_EVALUATIONS: Final = ("evaluations", "")
_CANDIDATES: Final = ("candidates", "")
_SEARCH: Final = ("search", "")
_SEARCH_GUIDED: Final = ("guided in searches", "")
_SEARCH_BOTH: Final = ("by both in searches", "")


def _tally(config: SamplerConfig, experts: Experts, planned: PlannedAdvance) -> _Tally:
    tally: _Tally = Counter()
    for each in planned.passes:
        tally["calls", each.part] += len(each.windows)
    tally[_GUIDED] += _num_guided(config, planned.passes)
    tally[_BOTH] += _num_by_both(config, experts, planned.passes)
    for evaluation in planned.evaluations:
        tally[_EVALUATIONS] += 1
        tally[_CANDIDATES] += evaluation.num_candidates
        tally[_SEARCH] += evaluation.num_candidates * sum(len(each.windows) for each in evaluation.search)
        tally[_SEARCH_GUIDED] += evaluation.num_candidates * _num_guided(config, evaluation.search)
        tally[_SEARCH_BOTH] += evaluation.num_candidates * _num_by_both(config, experts, evaluation.search)
    return tally


def _num_guided(config: SamplerConfig, passes: Iterable[PlannedPass]) -> int:
    return sum(sum(guided(config, each.levels, each.windows)) for each in passes)


def _num_by_both(config: SamplerConfig, experts: Experts, passes: Iterable[PlannedPass]) -> int:
    """Forwards of second networks: of every window with levels of both, as many as the first one takes."""
    if not experts:
        return 0
    found = 0
    for each in passes:
        for window, is_guided in zip(each.windows, guided(config, each.levels, each.windows), strict=True):
            asked = {experts[each.levels[position]] for position in window.positions}
            found += (len(asked) - 1) * (1 + is_guided)
    return found


def _plus(tally: _Tally, other: _Tally, times: int = 1) -> _Tally:
    return Counter({name: tally[name] + times * other[name] for name in tally.keys() | other.keys()})


@functools.lru_cache(maxsize=128)
def _counting(config: SamplerConfig, experts: Experts = ()) -> _Counting:
    return _Counting(config, experts)


@dataclass(frozen=True)
class _Mark:
    """Where the video without end is after so many advances.

    Attributes:
        state: there.
        shape, numbers: see `miga.plan.flattened`.
        tally: of all advances so far.
        kind: a number that advances share which do the same, a repetition apart.
    """

    state: VideoState
    shape: Shape
    numbers: tuple[int, ...]
    tally: _Tally
    kind: int

    @property
    def num_finished(self) -> int:
        """Latents handed out."""
        return self.state.num_finished


@dataclass(frozen=True)
class _Period:
    """What the video without end repeats.

    Attributes:
        start: latents handed out once it is known to do so.
        num_latents: handed out in one period.
        tally: of one period.
    """

    start: int
    num_latents: int
    tally: _Tally


class _Counting:
    """Counts the videos of one config, and keeps what it has found.

    Of two videos the first advances are the same, as far as the shorter one is open (`VideoCourse.is_open`). So a video
    is followed from where it may leave the video without end, which is not before a shorter one does.
    """

    SPACING: Final = 32
    """Latents between videos that are followed on the way to a longer one, so that none is followed from far back."""

    LONGEST: Final = 10_000
    """Advances after which a video without end is taken to hold no more, whether it repeats itself or not."""

    def __init__(self, config: SamplerConfig, experts: Experts = ()) -> None:
        self._config = config
        self._experts = experts
        self._lock = threading.Lock()
        self._endless = Planner(config, None)
        state = self._endless.start()
        self._marks = [_Mark(state, *flattened(state), Counter(), 0)]
        self._kinds: dict[object, int] = {}
        self._period: _Period | None = None
        self._tallies: dict[int, _Tally] = {}
        self._lengths: list[int] = []  # of the videos followed, ascending
        self._num_shared: dict[int, int] = {}  # of each, advances that it shares with the video without end

    def of(self, num_latents: int) -> _Tally:
        """The tally of a video."""
        with self._lock:
            if num_latents not in self._tallies:
                self._tallies[num_latents] = self._multiplied(num_latents)
            return self._tallies[num_latents]

    def most_held(self) -> int:
        """The most latents that the video without end holds before it repeats itself."""
        with self._lock:
            while self._period is None and len(self._marks) <= self.LONGEST:
                self._go_on()
            most = max(
                num_alive(mark.state) + mark.num_finished - before.num_finished
                for before, mark in itertools.pairwise(self._marks)
            )
            held = len(getattr(self._marks[-1].state.method, "anchors", ()))
            return most + max(0, getattr(self._config, "most_anchors", 0) - held)  # some come later than that

    def _multiplied(self, num_latents: int) -> _Tally:
        """A long video is as many periods longer than a short one; which are long enough, two of them tell."""
        while self._period is None and self._marks[-1].num_finished < num_latents:
            self._go_on()
        if self._period is None:
            return self._followed(num_latents)
        period, least = self._period, self._period.start
        while (shorter := least + (num_latents - least) % period.num_latents) + period.num_latents < num_latents:
            tally = self._followed(shorter)
            if self._followed(shorter + period.num_latents) == _plus(tally, period.tally):
                return _plus(tally, period.tally, (num_latents - shorter) // period.num_latents)
            least *= 2
        return self._followed(num_latents)

    def _followed(self, num_latents: int) -> _Tally:
        """The tally of a video that is followed to its end."""
        if num_latents not in self._num_shared:
            nearest = bisect.bisect(self._lengths, num_latents) - 1
            shortest = self._lengths[nearest] if nearest >= 0 else 0
            for length in (*range(shortest + self.SPACING, num_latents, self.SPACING), num_latents):
                self._tallies[length] = self._follow(length)
        return self._tallies[num_latents]

    def _follow(self, num_latents: int) -> _Tally:
        place = bisect.bisect(self._lengths, num_latents)
        num_shared = self._num_shared[self._lengths[place - 1]] if place else 0
        video, mark = Planner(self._config, num_latents), self._marks[num_shared]
        state, tally, is_shared = mark.state, mark.tally, True
        while not video.is_done(state):
            state, planned = video.advance(state)
            tally = _plus(tally, _tally(self._config, self._experts, planned))
            is_shared = is_shared and video.is_open(state) and self._is_at(num_shared + 1, state)
            num_shared += is_shared
        self._lengths.insert(place, num_latents)
        self._num_shared[num_latents] = num_shared
        return tally

    def _is_at(self, number: int, state: VideoState) -> bool:
        """Whether the video without end is in that state after so many advances."""
        while len(self._marks) <= number:
            self._go_on()
        return (self._marks[number].shape, self._marks[number].numbers) == flattened(state)

    def _go_on(self) -> None:
        """One advance of the video without end."""
        before = self._marks[-1]
        state, planned = self._endless.advance(before.state)
        shape, numbers = flattened(state)
        steps = tuple(now - then for now, then in zip(numbers, before.numbers, strict=False))
        passes = tuple((each.part, each.levels, each.windows) for each in planned.passes)
        same = (shape, steps, passes, len(planned.evaluations))
        kind = self._kinds.setdefault(same, len(self._kinds))
        tally = _plus(before.tally, _tally(self._config, self._experts, planned))
        self._marks.append(_Mark(state, shape, numbers, tally, kind))
        if self._period is None:
            self._period = self._repeated()

    def _repeated(self) -> _Period | None:
        """The shortest period that the last advances went through twice, latents coming out of it."""
        last = len(self._marks) - 1
        for length in range(1, last // 2 + 1):
            if self._marks[last].kind != self._marks[last - length].kind:
                continue
            before, now = self._marks[last - length], self._marks[last]
            is_twice = all(
                self._marks[number].kind == self._marks[number - length].kind
                for number in range(last - length + 1, last + 1)
            )
            if is_twice and now.num_finished > before.num_finished:
                return _Period(
                    now.num_finished, now.num_finished - before.num_finished, _plus(now.tally, before.tally, -1)
                )
        return None
