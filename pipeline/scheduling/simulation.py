"""A cluster under a virtual clock: the very ledger that runs decide by, with workers that only take time.

Discrete events: workers load, die and come back, nodes are preempted with and without notice, videos are worked on by
their host and its helpers, write checkpoints, are suspended, decoded and uploaded. The same scenario and seed give the
same events, so two settings can be compared on the same failures.

*Work* is what a GPU of speed 1 does in a second; a video's work is its network calls times `call_s`. How fast a host
and its helpers do it together is found by making one such video in virtual time (miga/virtual_time.py). What a helper
was at when it is lost, at most a window, is not counted.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, TypeAlias

from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.errors import UsageError
from miga.sharing import SHARES, Share
from miga.virtual_time import make_virtual_video, useful_slots
from pipeline.rows import BadRow, PromptRow
from pipeline.scheduling.ledger import (
    Abort,
    Assign,
    Decision,
    Helpers,
    Ledger,
    Quarantine,
    ReadRows,
    Release,
    Retire,
    Suspend,
)

HOUR_S: Final = 3600.0
_SPEED_UP_SIZES: Final = (1, 4, 16)
MAX_BINS: Final = 512
"""Points of a timeline; it becomes coarser instead of longer."""
GIVE_UP_AFTER: Final = 100.0
"""A run that takes so many times what it would take undisturbed is given up."""


@dataclass(frozen=True, kw_only=True)
class VideoCost:
    """The network calls of a video of one length.

    Attributes:
        calls: all but searches.
        calls_per_search: of one search of self-reflection.
        num_evaluations: evaluations that may start a search.
        parallelism: workers that it is given at most, its host included.
        speed_up: (workers, how many times as fast as one they are) in order, linear between; the last holds beyond.
            Empty: as many times as there are workers.
    """

    calls: int
    calls_per_search: int = 0
    num_evaluations: int = 0
    parallelism: int = 1
    speed_up: tuple[tuple[int, float], ...] = ()

    def efficiency(self, num_workers: int) -> float:
        """Share of their time that so many workers spend in calls of the video."""
        if num_workers == 1 or not self.speed_up:
            return 1.0
        below = (1, 1.0)
        for point in self.speed_up:
            if num_workers <= point[0]:
                part = (num_workers - below[0]) / max(1, point[0] - below[0])
                return (below[1] + part * (point[1] - below[1])) / num_workers
            below = point
        return below[1] / num_workers


def video_cost(config: SamplerConfig, num_latents: int, share: Share = "windows") -> VideoCost:
    """The calls of a video of `num_latents`, for as many workers as it can use, all at full speed."""
    count = count_calls(config, num_latents)
    return VideoCost(
        calls=count.total,
        calls_per_search=count.per_search,
        num_evaluations=max(0, count.num_evaluations - 1) if count.per_search else 0,
        parallelism=useful_slots(config, num_latents, share),
    )


def measure_speed_up(
    config: SamplerConfig, num_latents: int, parallelism: int, search_rate: float, share: Share = "windows"
) -> tuple[tuple[int, float], ...]:
    """How much faster a video is with helpers, from making it in virtual time: `VideoCost.speed_up`.

    It is that of a video with the average number of searches, and is taken for all.
    """
    between = _SPEED_UP_SIZES if share == "windows" else range(2, parallelism)
    sizes = sorted({1, parallelism} | {size for size in between if size < parallelism})
    seconds = [
        make_virtual_video(config, num_latents, size, search_share=search_rate, share=share).seconds for size in sizes
    ]
    return tuple((size, seconds[0] / found) for size, found in zip(sizes, seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A cluster and a run on it. Rates are of Poisson processes.

    Attributes:
        num_gpus: of the cluster.
        gpus_per_node: that go and come together.
        speeds: speed of a node's GPUs → share of the nodes.
        num_videos: rows of the prompt file.
        costs: length of a video, in frames → its cost.
        lengths: length of a video, in frames → share of the rows.
        call_s: of one call on a GPU of speed 1.
        search_rate: share of the evaluations that start a search.
        share: what idle workers take of others' videos; the costs are to be of the same.
        load_s: from the start of a worker to its first call.
        resume_s: from assignment to the first call where there is a checkpoint.
        tail_s: of decoding and encoding after the last call, on the host.
        upload_s: of a video, in the background.
        checkpoint_every_s: between checkpoints of a video; inf: none.
        checkpoint_s: that a checkpoint keeps the host from calls.
        progress_every_s: between two signs of progress of a video, which a worker gives after each pass.
        kills_per_gpu_hour: deaths of a worker by itself.
        preemptions_per_node_hour: of nodes taken away by the cloud.
        notice_s: between the notice of a preemption and the end of the node; 0: none.
        suspend_s: from `Suspend` to the checkpoint written.
        node_return_s: until a preempted node is there again.
        max_uploads, max_videos, max_attempts, lookahead: of the ledger.
        seed: of all that is drawn.
    """

    num_gpus: int
    num_videos: int
    costs: Mapping[int, VideoCost]
    lengths: Mapping[int, float]
    gpus_per_node: int = 8
    speeds: Mapping[float, float] = field(default_factory=lambda: {1.0: 1.0})
    call_s: float = 1.4
    search_rate: float = 0.0
    share: Share = "windows"
    load_s: float = 60.0
    resume_s: float = 5.0
    tail_s: float = 2.0
    upload_s: float = 5.0
    checkpoint_every_s: float = 120.0
    checkpoint_s: float = 0.2
    progress_every_s: float = 30.0
    kills_per_gpu_hour: float = 0.0
    preemptions_per_node_hour: float = 0.0
    notice_s: float = 30.0
    suspend_s: float = 15.0
    node_return_s: float = 300.0
    max_uploads: int = 1
    max_videos: int | None = None
    max_attempts: int = 3
    lookahead: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_gpus", "num_videos", "gpus_per_node", "max_attempts"):
            _check(name, getattr(self, name), f"from 1 to {_MOST:,}", 1 <= getattr(self, name) <= _MOST)
        for name in ("checkpoint_every_s", "progress_every_s"):
            _check(name, getattr(self, name), "more than 0", getattr(self, name) > 0)
        for name in _TIMES:
            _check(name, getattr(self, name), "0 or more, and finite", 0 <= getattr(self, name) < math.inf)
        _check("share", self.share, f"one of {', '.join(SHARES)}", self.share in SHARES)
        _check("search_rate", self.search_rate, "from 0 to 1", 0 <= self.search_rate <= 1)
        _check("call_s", self.call_s, f"from 1e-9 to {_MOST:,}", 1e-9 <= self.call_s <= _MOST)
        for name in ("speeds", "lengths"):
            shares: Mapping[float, float] = getattr(self, name)
            is_good = bool(shares) and all(1e-9 <= x <= _MOST for pair in shares.items() for x in pair)
            _check(name, dict(shares), f"values and weights from 1e-9 to {_MOST:,}", is_good)
        if missing := sorted(set(self.lengths) - set(self.costs)):
            raise UsageError(f"no cost for videos of {missing} frames", "give costs for all lengths")


_MOST: Final = 100_000_000
_TIMES: Final = (
    "load_s", "resume_s", "tail_s", "upload_s", "checkpoint_s", "notice_s", "suspend_s", "node_return_s",
    "kills_per_gpu_hour", "preemptions_per_node_hour",
)  # fmt: skip


def _check(name: str, value: Any, wanted: str, is_good: bool) -> None:
    if not is_good:
        raise UsageError(f"{name} {value!r} must be {wanted}", "correct that value")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a scenario. Shares are of GPU time weighted by speed, from the first video's start.

    Attributes:
        makespan_s: from the start of the workers to the last video stored.
        ideal_s: what all useful work takes on all GPUs without a moment lost, after loading.
        first_video_s: when the first video was begun.
        tail_start_s: when the first worker found no row left; None if that never was.
        busy_before_tail, busy_share: share that was in calls, decoding, writing or reading checkpoints, of all that
            the nodes offered.
        useful_before_tail, useful_share: share that went into calls of videos that were not done again.
        computed_h, lost_h: GPU hours of calls made, and of those whose result was lost.
        loss_per_kill_s: work lost to a kill of a host, on average.
        num_ok, num_quarantined: rows.
        num_kills, num_preemptions, num_suspensions, num_retired: of workers, nodes, videos, places.
        num_attempts, num_checkpoints: of all videos.
        num_events: that the ledger was told.
        num_calls: decisions that are calls of actors or writes: all but reading rows.
        peak_events_per_s: most events that a second of virtual time held, on average over a bin of the timeline.
        ledger_s: processor time that the ledger took for all events, here.
        abort_reason: why the run ended early, if it did.
        timeline: (time, busy share, useful-so-far share, videos in flight, events a second) by bins of equal length.
    """

    scenario: Scenario
    makespan_s: float
    ideal_s: float
    first_video_s: float
    tail_start_s: float | None
    busy_before_tail: float
    busy_share: float
    useful_before_tail: float
    useful_share: float
    computed_h: float
    lost_h: float
    loss_per_kill_s: float
    num_ok: int
    num_quarantined: int
    num_kills: int
    num_preemptions: int
    num_suspensions: int
    num_retired: int
    num_attempts: int
    num_checkpoints: int
    num_events: int
    num_calls: int
    peak_events_per_s: float
    ledger_s: float
    abort_reason: str | None
    timeline: list[tuple[float, float, float, float, float]]

    @property
    def lost_share(self) -> float:
        """Of the calls made, the share whose result was lost."""
        return self.lost_h / self.computed_h if self.computed_h else 0.0

    @property
    def tail_s(self) -> float:
        """From the first worker without a row to the end."""
        return 0.0 if self.tail_start_s is None else self.makespan_s - self.tail_start_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without scenario and timeline."""
        plain = {name: value for name, value in vars(self).items() if name not in ("scenario", "timeline")}
        return plain | {
            "num_gpus": self.scenario.num_gpus,
            "num_videos": self.scenario.num_videos,
            "seed": self.scenario.seed,
            "lost_share": self.lost_share,
            "tail_s": self.tail_s,
            "makespan_of_ideal": self.makespan_s / self.ideal_s,
            "events_per_s": self.num_events / self.makespan_s,
            "calls_per_s": self.num_calls / self.makespan_s,
            "ledger_events_per_s": self.num_events / self.ledger_s if self.ledger_s else 0.0,
        }


def simulate(scenario: Scenario) -> Outcome:
    """Plays a scenario to its end.

    Raises:
        UsageError: if failures are so frequent that the run gets nowhere.
    """
    return _Cluster(scenario).play()


# ---- the parts ----


@dataclass
class _Node:
    gpus: list[_Gpu]
    is_up: bool = True
    is_draining: bool = False


@dataclass
class _Gpu:
    """A place of a worker; `life` counts the actors that it has had."""

    name: str
    node: _Node
    speed: float
    state: str = "loading"  # loading, ready, gone
    is_retired: bool = False
    life: int = 0
    video: _Video | None = None
    host: _Gpu | None = None


@dataclass
class _Row:
    """The true work of a row, and how much of it the last checkpoint holds."""

    work: float
    cost: VideoCost
    saved: float = 0.0


@dataclass
class _Video:
    """An attempt. `done` is right at `since_s`, and grows at `rate`; `version` outdates milestones."""

    decision: Assign
    row: _Row
    host: _Gpu
    done: float
    since_s: float
    next_checkpoint_s: float
    helpers: list[_Gpu] = field(default_factory=list)
    rate: float = 0.0
    busy: float = 0.0
    version: int = 0
    phase: str = "starting"  # starting, working, decoding, ended
    is_paused: bool = False

    @property
    def name(self) -> tuple[int, int, str]:
        """Row, attempt and worker, as the ledger is told."""
        return self.decision.row.index, self.decision.attempt, self.host.name


@dataclass
class _Meter:
    """Sums that change in steps, and their integrals over time."""

    now_s: float = 0.0
    capacity: float = 0.0
    busy: float = 0.0
    rate: float = 0.0
    flight: int = 0
    capacity_sum: float = 0.0
    busy_sum: float = 0.0
    rate_sum: float = 0.0
    bin_s: float = 1.0
    bins: list[list[float]] = field(default_factory=lambda: [[0.0] * 5])

    def advance(self, now_s: float) -> None:
        """Time passes."""
        step_s = now_s - self.now_s
        if step_s <= 0:
            return
        self.capacity_sum += step_s * self.capacity
        self.busy_sum += step_s * self.busy
        self.rate_sum += step_s * self.rate
        at_s = self.now_s
        while (end_s := len(self.bins) * self.bin_s) < now_s:
            self._add(end_s - at_s)
            self._add_bin()
            at_s = end_s
        self._add(now_s - at_s)
        self.now_s = now_s

    def _add(self, step_s: float) -> None:
        """To the last bin."""
        for number, value in enumerate((self.capacity, self.busy, self.rate, self.flight)):
            self.bins[-1][number] += step_s * value

    def count_event(self) -> None:
        """The ledger is told something."""
        self.bins[-1][4] += 1

    def _add_bin(self) -> None:
        if len(self.bins) >= MAX_BINS:
            self.bin_s *= 2
            pairs = zip(self.bins[::2], self.bins[1::2], strict=True)
            self.bins = [[a + b for a, b in zip(left, right, strict=True)] for left, right in pairs]
        self.bins.append([0.0] * 5)

    def timeline(self) -> list[tuple[float, float, float, float, float]]:
        """Middle of the bin, busy share, share in calls, videos in flight, events a second."""
        points = []
        for number, (capacity, busy, rate, flight, events) in enumerate(self.bins):
            width_s = min(self.bin_s, self.now_s - number * self.bin_s)
            if width_s > 0 and capacity > 0:
                middle_s = number * self.bin_s + width_s / 2
                points.append((middle_s, busy / capacity, rate / capacity, flight / width_s, events / width_s))
        return points


_Action: TypeAlias = Callable[[Any, int], None]


class _Cluster:
    """The coordinator, the workers and the cloud."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        rng = random.Random(scenario.seed)
        self._failures, self._choice = (random.Random(rng.random()) for _ in range(2))
        self._meter = _Meter()
        self._nodes = list(self._make_nodes(random.Random(rng.random())))
        self._gpus = [gpu for node in self._nodes for gpu in node.gpus]
        self._speed = sum(gpu.speed for gpu in self._gpus)
        self._by_name = {gpu.name: gpu for gpu in self._gpus}
        self._rows = self._draw_rows(random.Random(rng.random()))
        self._open: dict[int, _Row] = {}
        self._ledger = Ledger(
            prompts_per_shard=1000,
            max_attempts=scenario.max_attempts,
            lookahead=scenario.lookahead,
            work_of=lambda row: self._open[row.index].work,
            parallelism_of=lambda row: 1 if scenario.share == "nothing" else scenario.costs[row.num_frames].parallelism,
            max_videos=scenario.max_videos,
            max_uploads=scenario.max_uploads,
        )
        self._now_s = 0.0
        self._events: list[tuple[float, int, _Action, Any, int]] = []
        self._num_scheduled = 0
        self._todo: deque[Decision] = deque()
        self._is_working_off = False
        self._total_work = 0.0
        self._lost = self._lost_to_kills = 0.0
        self._first_s: float | None = None
        self._first_sums = (0.0, 0.0)
        self._tail_s: float | None = None
        self._tail_sums = (0.0, 0.0, 0.0, 0.0)
        self._count = dict.fromkeys(
            ("events", "calls", "kills", "hosts_killed", "preemptions", "suspensions", "retired", "attempts",
             "checkpoints"), 0,
        )  # fmt: skip
        self._ledger_s = 0.0

    # ---- setting up ----

    def _make_nodes(self, rng: random.Random) -> Iterator[_Node]:
        draw = _Draw(self._scenario.speeds, rng)
        for first in range(0, self._scenario.num_gpus, self._scenario.gpus_per_node):
            speed = draw()
            node = _Node([])
            last = min(first + self._scenario.gpus_per_node, self._scenario.num_gpus)
            node.gpus += [_Gpu(f"worker-{number}", node, speed) for number in range(first, last)]
            self._meter.capacity += speed * len(node.gpus)
            yield node

    def _draw_rows(self, rng: random.Random) -> Iterator[PromptRow]:
        scenario = self._scenario
        draw = _Draw(scenario.lengths, rng)
        for index in range(scenario.num_videos):
            num_frames = int(draw())
            cost = scenario.costs[num_frames]
            searches = sum(rng.random() < scenario.search_rate for _ in range(cost.num_evaluations))
            work = (cost.calls + searches * cost.calls_per_search) * scenario.call_s
            self._open[index] = _Row(work, cost)
            self._total_work += work
            yield PromptRow(index=index, id="", prompts=("",), negative_prompt=None, seed=index, num_frames=num_frames)

    # ---- the clock ----

    def play(self) -> Outcome:
        """All of it."""
        for gpu in self._gpus:
            self._load(gpu)
        self._schedule_failure(self._kill, self._scenario.kills_per_gpu_hour * len(self._gpus))
        self._schedule_failure(self._preempt, self._scenario.preemptions_per_node_hour * len(self._nodes))
        ledger = self._ledger
        num_events = 0
        while not ledger.is_complete and not (ledger.abort_reason and ledger.is_idle):
            if not self._events:
                break  # all places are retired
            self._now_s, _, action, subject, version = heapq.heappop(self._events)
            self._meter.advance(self._now_s)
            action(subject, version)
            num_events += 1
            if num_events % 10_000 == 0:
                self._check_that_it_ends()
        return self._outcome()

    def _at(self, delay_s: float, action: _Action, subject: Any, version: int = 0) -> None:
        self._num_scheduled += 1
        heapq.heappush(self._events, (self._now_s + delay_s, self._num_scheduled, action, subject, version))

    def _check_that_it_ends(self) -> None:
        if not self._open:
            return
        longest_s = max(row.work for row in self._open.values())
        undisturbed_s = self._scenario.load_s + longest_s + self._total_work / self._speed
        if self._now_s > GIVE_UP_AFTER * undisturbed_s:
            raise UsageError(
                f"no end in sight: {self._ledger.num_done} of {self._scenario.num_videos} videos after "
                f"{self._now_s / HOUR_S:.0f} h of virtual time; failures are too frequent for videos of this length",
                "lower the rates, or write checkpoints more often",
            )

    # ---- the coordinator ----

    def _tell(self, event: Callable[..., list[Decision]], *values: Any, **named: Any) -> None:
        """Tells the ledger of an event, and carries out what it decides."""
        started_s = time.process_time()
        decisions = event(*values, **named)
        self._ledger_s += time.process_time() - started_s
        self._count["events"] += 1
        self._meter.count_event()
        self._todo.extend(decisions)
        if self._is_working_off:
            return
        self._is_working_off = True
        while self._todo:
            self._carry_out(self._todo.popleft())
        self._is_working_off = False
        self._note_tail()

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, ReadRows):
            self._read(decision.count)
            return
        self._count["calls"] += 1
        match decision:
            case Assign():
                self._start(decision)
            case Helpers(worker, helpers):
                self._set_helpers(self._by_name[worker], [self._by_name[name] for name in helpers])
            case Suspend(worker):
                video = self._by_name[worker].video
                self._at(self._scenario.suspend_s, self._suspend, video)
            case Release(worker):
                self._end_actor(self._by_name[worker])
            case Retire(worker):
                self._count["retired"] += 1
                self._by_name[worker].is_retired = True
            case Quarantine(row) if not isinstance(row, BadRow):
                self._lost += self._open.pop(row.index).saved
            case Abort():
                pass

    def _read(self, count: int) -> None:
        for _ in range(count):
            row = next(self._rows, None)
            if row is None:
                self._tell(self._ledger.rows_exhausted, self._now_s)
                return
            self._tell(self._ledger.row_read, row, self._now_s)

    def _note_tail(self) -> None:
        """The tail begins with the first worker that no row is left for."""
        ledger = self._ledger
        if self._tail_s is None and ledger.is_in_tail:
            self._tail_s = self._now_s
            meter = self._meter
            self._tail_sums = (meter.capacity_sum, meter.busy_sum, meter.rate_sum, self._lost)

    # ---- a video ----

    def _start(self, decision: Assign) -> None:
        if self._first_s is None:
            self._first_s = self._now_s
            self._first_sums = (self._meter.capacity_sum, self._meter.busy_sum)
        scenario, now_s = self._scenario, self._now_s
        gpu, row = self._by_name[decision.worker], self._open[decision.row.index]
        video = _Video(decision, row, gpu, row.saved, now_s, now_s + scenario.checkpoint_every_s)
        gpu.video = video
        self._count["attempts"] += 1
        self._meter.flight += 1
        if decision.checkpoint is None:
            video.phase = "working"
        else:
            self._at(scenario.resume_s, self._resume, video)
        self._change_rate(video)
        self._at(min(scenario.progress_every_s, scenario.checkpoint_every_s), self._report, video)

    def _resume(self, video: _Video, _: int) -> None:
        if video.phase == "starting":
            video.phase = "working"
            self._change_rate(video)

    def _settle(self, video: _Video) -> None:
        video.done = min(video.row.work, video.done + video.rate * (self._now_s - video.since_s))
        video.since_s = self._now_s

    def _change_rate(self, video: _Video) -> None:
        """Puts rate and busy speed right, and schedules the end of the last call."""
        self._settle(video)
        rate, busy = 0.0, video.host.speed
        if video.phase == "working" and not video.is_paused:
            speed = video.host.speed + sum(gpu.speed for gpu in video.helpers)
            rate = busy = speed * video.row.cost.efficiency(1 + len(video.helpers))
        elif video.phase == "ended":
            busy = 0.0
        self._meter.rate += rate - video.rate
        self._meter.busy += busy - video.busy
        video.rate, video.busy = rate, busy
        video.version += 1
        if rate:
            self._at((video.row.work - video.done) / rate, self._end_calls, video, video.version)

    def _end_calls(self, video: _Video, version: int) -> None:
        if version != video.version or video.phase != "working":
            return
        video.done, video.since_s = video.row.work, self._now_s  # free of rounding
        video.phase = "decoding"
        self._change_rate(video)
        self._at(self._scenario.tail_s, self._make, video)

    def _make(self, video: _Video, _: int) -> None:
        if video.phase != "decoding":
            return
        gpu = video.host
        self._close(video)
        self._at(self._scenario.upload_s, self._upload, video, gpu.life)
        self._tell(self._ledger.made, *video.name, self._now_s)

    def _upload(self, video: _Video, life: int) -> None:
        if life == video.host.life:
            self._open.pop(video.decision.row.index)
            self._tell(self._ledger.finished, *video.name, self._now_s)

    def _close(self, video: _Video) -> None:
        video.phase = "ended"
        self._change_rate(video)
        video.host.video = None
        self._meter.flight -= 1

    def _report(self, video: _Video, _: int) -> None:
        """A sign of progress, or a checkpoint where one is due."""
        if video.phase == "ended":
            return
        scenario = self._scenario
        self._settle(video)
        share = video.done / video.row.work
        if self._now_s >= video.next_checkpoint_s and video.phase == "working":
            self._checkpoint(video)
            video.next_checkpoint_s = self._now_s + scenario.checkpoint_every_s
            if scenario.checkpoint_s:
                video.is_paused = True
                self._change_rate(video)
                self._at(scenario.checkpoint_s, self._go_on, video)
        else:
            self._tell(self._ledger.progress, *video.name, self._now_s, share=share)
        until_s = video.next_checkpoint_s - self._now_s
        self._at(min(scenario.progress_every_s, until_s if until_s > 0 else math.inf), self._report, video)

    def _go_on(self, video: _Video, _: int) -> None:
        video.is_paused = False
        if video.phase == "working":
            self._change_rate(video)

    def _checkpoint(self, video: _Video) -> None:
        self._count["checkpoints"] += 1
        video.row.saved = video.done
        share = video.done / video.row.work
        self._tell(self._ledger.checkpointed, *video.name, self._now_s, checkpoint="saved", share=share)

    def _suspend(self, video: _Video, _: int) -> None:
        if video.phase == "ended":
            return
        self._settle(video)
        self._checkpoint(video)
        self._count["suspensions"] += 1
        self._close(video)
        self._tell(self._ledger.suspended, *video.name, self._now_s)

    def _set_helpers(self, host: _Gpu, helpers: list[_Gpu]) -> None:
        video = host.video
        if video is not None:
            for gpu in helpers:
                gpu.host = host
            video.helpers = helpers
            self._change_rate(video)

    # ---- the cloud ----

    def _load(self, gpu: _Gpu) -> None:
        gpu.state = "loading"
        self._ledger.worker_expected(gpu.name)
        self._at(self._scenario.load_s, self._loaded, gpu, gpu.life)

    def _loaded(self, gpu: _Gpu, life: int) -> None:
        if life == gpu.life and gpu.state == "loading":
            gpu.state = "ready"
            self._tell(self._ledger.worker_ready, gpu.name, self._now_s, node="node", speed=gpu.speed)

    def _end_actor(self, gpu: _Gpu) -> float:
        """The process is gone, and what it was making and uploading; returns the work that is lost with it."""
        gpu.life += 1
        gpu.state = "gone"
        lost = 0.0
        if (video := gpu.video) is not None:
            self._settle(video)
            lost = video.done - video.row.saved
            self._close(video)
        return lost

    def _lose(self, gpu: _Gpu, reason: str, *, is_free: bool) -> float:
        uploading = (self._open[index] for index, _ in self._ledger.uploading(gpu.name))
        lost_uploads = sum(row.work - row.saved for row in uploading)
        lost = self._end_actor(gpu)
        self._lost += lost + lost_uploads
        self._tell(self._ledger.worker_lost, gpu.name, reason, self._now_s, is_free=is_free)
        return lost

    def _schedule_failure(self, action: _Action, per_hour: float) -> None:
        if per_hour:
            self._at(self._failures.expovariate(per_hour / HOUR_S), action, per_hour)

    def _kill(self, per_hour: float, _: int) -> None:
        self._schedule_failure(self._kill, per_hour)
        gpu = self._choice.choice(self._gpus)
        if gpu.state == "gone":
            return
        self._count["kills"] += 1
        if gpu.video is not None:
            self._count["hosts_killed"] += 1
        self._lost_to_kills += self._lose(gpu, "killed", is_free=False)
        if not gpu.is_retired and not gpu.node.is_draining:
            self._load(gpu)

    def _preempt(self, per_hour: float, _: int) -> None:
        self._schedule_failure(self._preempt, per_hour)
        node = self._choice.choice(self._nodes)
        if not node.is_up or node.is_draining:
            return
        self._count["preemptions"] += 1
        node.is_draining = True
        if self._scenario.notice_s:
            for gpu in node.gpus:
                if gpu.state != "gone":
                    self._tell(self._ledger.worker_draining, gpu.name, self._now_s)
        self._at(self._scenario.notice_s, self._take_node, node)

    def _take_node(self, node: _Node, _: int) -> None:
        node.is_up = False
        self._meter.capacity -= sum(gpu.speed for gpu in node.gpus)
        for gpu in node.gpus:
            if gpu.state != "gone":
                self._lose(gpu, "its node is gone", is_free=True)
        self._at(self._scenario.node_return_s, self._return_node, node)

    def _return_node(self, node: _Node, _: int) -> None:
        node.is_up, node.is_draining = True, False
        self._meter.capacity += sum(gpu.speed for gpu in node.gpus)
        for gpu in node.gpus:
            if not gpu.is_retired:
                self._load(gpu)

    # ---- the end ----

    def _outcome(self) -> Outcome:
        meter, count, scenario = self._meter, self._count, self._scenario
        timeline = meter.timeline()
        sums = (meter.capacity_sum, meter.busy_sum, meter.rate_sum, self._lost)
        first_capacity, first_busy = self._first_sums
        tail_capacity, tail_busy, tail_rate, tail_lost = sums if self._tail_s is None else self._tail_sums
        capacity = max(sums[0] - first_capacity, 1e-9)
        before = max(tail_capacity - first_capacity, 1e-9)
        return Outcome(
            scenario=scenario,
            makespan_s=self._now_s,
            ideal_s=scenario.load_s + self._total_work / self._speed,
            first_video_s=self._first_s or 0.0,
            tail_start_s=self._tail_s,
            busy_before_tail=(tail_busy - first_busy) / before,
            busy_share=(sums[1] - first_busy) / capacity,
            useful_before_tail=(tail_rate - tail_lost) / before,
            useful_share=(sums[2] - self._lost) / capacity,
            computed_h=sums[2] / HOUR_S,
            lost_h=self._lost / HOUR_S,
            loss_per_kill_s=self._lost_to_kills / max(1, count["hosts_killed"]),
            num_ok=self._ledger.num_done,
            num_quarantined=self._ledger.num_dead,
            num_kills=count["kills"],
            num_preemptions=count["preemptions"],
            num_suspensions=count["suspensions"],
            num_retired=count["retired"],
            num_attempts=count["attempts"],
            num_checkpoints=count["checkpoints"],
            num_events=count["events"],
            num_calls=count["calls"],
            peak_events_per_s=max((point[4] for point in timeline), default=0.0),
            ledger_s=self._ledger_s,
            abort_reason=self._ledger.abort_reason,
            timeline=timeline,
        )


class _Draw:
    """Draws keys of a mapping by their weights."""

    def __init__(self, weights: Mapping[float, float] | Mapping[int, float], rng: random.Random) -> None:
        self._keys = list(weights)
        self._sums = list(accumulate(weights.values()))
        self._rng = rng

    def __call__(self) -> float:
        if len(self._keys) == 1:
            return self._keys[0]
        return self._keys[bisect(self._sums, self._rng.random() * self._sums[-1], hi=len(self._keys) - 1)]
