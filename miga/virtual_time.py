"""How long one video takes on so many GPUs, found by making it in virtual time: nothing sleeps, nothing is drawn.

The sampler and the wavefront are the real ones, on tiny latents; calls take the time they are said to take.

Legend: B windows in a batch, F latents, C channels, H, W cells.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from bisect import bisect
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import torch

from miga.cached_call import CachedCall
from miga.config import SamplerConfig
from miga.consistency import Evaluation, Judge
from miga.cost import count_calls
from miga.denoise_pass import WindowCall, run_call
from miga.generate import Sampler
from miga.methods import methods
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.schedule import schedule_for
from miga.sharing import Share, WaitingCalls, slots_of

_Task: TypeAlias = tuple[WindowCall, "Future[torch.Tensor]"]


class VirtualExecutor:
    """A `WindowExecutor` with a clock of its own, which moves only in `advance`: the same course every time.

    One slot is the host's, the others are its helpers'; who takes which call is decided as on a cluster (`sharing.py`).

    Args:
        num_gpus: the host's own, and one of each helper.
        run: computes a call; takes no virtual time.
        call_s: virtual seconds of a call.
        share: what helpers take.

    Attributes:
        busy_s: of all slots together.
    """

    def __init__(
        self,
        num_gpus: int,
        run: Callable[[WindowCall], torch.Tensor],
        call_s: Callable[[WindowCall], float],
        share: Share = "windows",
    ) -> None:
        self.num_gpus = num_gpus
        self.now_s = 0.0
        self.busy_s = 0.0
        self._share = share
        self._run = run
        self._call_s = call_s
        self._order = itertools.count()
        self._waiting: WaitingCalls[_Task] = WaitingCalls(share)
        self._running: list[tuple[float, int, bool, _Task]] = []
        self._num_running = {True: 0, False: 0}  # on the host, and on helpers

    @property
    def num_slots(self) -> int:
        """See `WindowExecutor`."""
        return slots_of(self._share, self.num_gpus - 1)[0]

    @property
    def num_general_slots(self) -> int:
        """See `WindowExecutor`."""
        return slots_of(self._share, self.num_gpus - 1)[1]

    def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
        """See `WindowExecutor.submit`."""
        future: Future[torch.Tensor] = Future()
        self._waiting.put((call, future), priority, is_candidate=is_candidate)
        self._start()
        return future

    def advance(self) -> None:
        """To the next moment at which a call ends; all that end then have ended."""
        assert self._running, "nothing runs, so nothing that is waited for can come"
        self.now_s = self._running[0][0]
        ended = []
        while self._running and self._running[0][0] <= self.now_s:
            _, _, on_host, task = heapq.heappop(self._running)
            self._num_running[on_host] -= 1
            ended.append(task)
        self._start()
        for call, future in ended:
            try:
                future.set_result(self._run(call))
            except Exception as error:
                future.set_exception(error)

    def _start(self) -> None:
        while (taken := self._take()) is not None:
            on_host, (call, future) = taken
            if future.set_running_or_notify_cancel():
                seconds = self._call_s(call)
                self.busy_s += seconds
                self._num_running[on_host] += 1
                heapq.heappush(self._running, (self.now_s + seconds, next(self._order), on_host, (call, future)))

    def _take(self) -> tuple[bool, _Task] | None:
        """The next call that can start, and whether on the host."""
        num_idle_helpers = max(0, self.num_gpus - 1 - self._num_running[False])
        if num_idle_helpers and (task := self._waiting.take_for_helper()) is not None:
            return False, task
        if not self._num_running[True] and (task := self._waiting.take_for_host(num_idle_helpers)) is not None:
            return True, task
        return None


@dataclass(frozen=True)
class VirtualVideo:
    """How the making of one video went.

    Attributes:
        seconds: from start to the last latent, in virtual time.
        busy_s: of all slots together.
        num_calls: network calls (a guided call counts once).
        num_searches: searches of self-reflection.
    """

    seconds: float
    busy_s: float
    num_calls: int
    num_searches: int

    def busy_share(self, num_slots: int) -> float:
        """Share of the slots' time in which they worked."""
        return self.busy_s / (num_slots * self.seconds)


def make_virtual_video(
    config: SamplerConfig,
    num_latents: int,
    num_slots: int,
    *,
    forward_s: float = 0.5,
    search_share: float = 0.0,
    has_branches: bool = True,
    share: Share = "windows",
    judge: Judge | None = None,
) -> VirtualVideo:
    """Makes a video of tiny latents in virtual time.

    Args:
        config: the sampler's settings.
        num_latents: length of the video.
        num_slots: GPUs: the host's, and one of each helper.
        forward_s: of one forward over a whole window; a guided call is two. Shorter windows take less in proportion.
        search_share: share of self-reflection's evaluations that start a search (each finds a better tail).
        has_branches: whether the two forwards of a guided call may run on two GPUs.
        share: what helpers take.
        judge: answers self-reflection's evaluations in place of one that starts `search_share` of the searches.
    """
    denoiser: _PlainDenoiser = _BranchedDenoiser(config) if has_branches else _PlainDenoiser(config)

    def call_s(call: WindowCall) -> float:
        num_forwards = 1 if call.branch is not None else denoiser.num_forwards(call.level_F)
        return num_forwards * forward_s * len(call.level_F) / config.window

    executor = VirtualExecutor(num_slots, lambda call: run_call(denoiser, call), call_s, share)
    prompts, noise = PromptTrack([0.0]), NamedNoise(0, _TINY)
    judge = judge or ScriptedJudge(search_share)
    sampler = Sampler(denoiser, config, prompts, noise, num_latents, executor=executor, judge=judge)
    state, finished = sampler.start(), []
    while not sampler.is_done(state):
        state, queue = sampler.advance_queue(state)
        finished += [] if queue is None else [queue]
    for queue in finished:
        _ = queue.x_FCHW  # waits for it
    video = VirtualVideo(executor.now_s, executor.busy_s, sampler.num_calls, sum(state.trace.searched))
    sampler.close()
    return video


_MEASURED_LATENTS: Final = (8, 16, 32, 64, 128, 256)
"""Lengths whose chain is found in virtual time, in a second or two at most; between and beyond them it is linear."""


@functools.cache
def useful_slots(config: SamplerConfig, num_latents: int, share: Share) -> int:
    """GPUs that a video can use, its host's included; more would gain little, or nothing.

    Where helpers take any window, as many as all forwards of the video are times those that must follow one another:
    with so many GPUs the work of each is as long as that chain. Searches are left out. Where helpers take candidates
    alone, one for each candidate.
    """
    if methods()[config.method].needs_cache:
        return 1  # its calls follow one another, and the cache is where the first one ran
    if config.one_window:  # calls follow one another; the two forwards of a guided one may run side by side
        return 1 if share != "windows" or config.guidance_scale == 1.0 else 2
    if share == "windows":
        chain = max(1.0, _chain_forwards(config, num_latents))
        return max(1, math.ceil(count_calls(config, num_latents).forwards / chain))
    count = count_calls(config, num_latents)
    may_search = count.per_search > 0 and count.num_evaluations > 1
    return 1 + count.num_candidates if share == "candidates" and may_search else 1


def _chain_forwards(config: SamplerConfig, num_latents: int) -> float:
    """Forwards of a video that must follow one another."""
    place = bisect(_MEASURED_LATENTS, num_latents, 1, len(_MEASURED_LATENTS) - 1)
    before, behind = _MEASURED_LATENTS[place - 1 : place + 1]
    first, last = _measured_chain(config, before), _measured_chain(config, behind)
    return first + (last - first) * (num_latents - before) / (behind - before)


@functools.cache
def _measured_chain(config: SamplerConfig, num_latents: int) -> float:
    rising = itertools.count(0.0, 1e6)  # starts no search, and waits for nothing
    return make_virtual_video(config, num_latents, _NO_END, forward_s=1.0, judge=lambda _: next(rising)).seconds


_NO_END: Final = 100_000
"""GPUs; more than any video has windows at a time."""

_TINY = (1, 1, 2)


class _PlainDenoiser:
    """A network that costs nothing; what it predicts depends on what it is shown, but for positions."""

    takes_positions = True

    def __init__(self, config: SamplerConfig) -> None:
        self.window = config.window
        self.schedule = schedule_for(config)
        self._scale = config.guidance_scale
        self._levels = (config.guidance_low_level, config.guidance_high_level)
        self.frame_attention, self.time_rotation = config.frame_attention, config.time_rotation

    def __call__(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[Any],
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `miga.backbones.base.PositionedDenoiser`."""
        return 0.5 * x_BFCHW + 0.1 * x_BFCHW.mean(1, keepdim=True)

    def open_cache(self, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        """Nothing is kept."""
        return SimpleNamespace(blend=lambda *_: None)

    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Any]) -> torch.Tensor:
        """See `miga.backbones.base.CachedDenoiser`."""
        return 0.5 * x_BFCHW

    def num_forwards(self, level: torch.Tensor) -> int:
        """Of a call over latents of these levels."""
        is_guided = (self._levels[0] <= level) & (level <= self._levels[1])
        return 2 if self._scale != 1.0 and bool(is_guided.any()) else 1


class _BranchedDenoiser(_PlainDenoiser):
    """The same as a `BranchedDenoiser`."""

    def num_branches(self, level_BF: torch.Tensor) -> int:
        return self.num_forwards(level_BF)

    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[Any],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self(x_BFCHW, level_BF, conditions)

    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return predictions[0]


class ScriptedJudge:
    """Looks at what it judges, and finds what starts as many searches as asked for, evenly; each finds a better tail.

    An evaluation that is to be searched falls by far, and every candidate of its search is as good as what was before.

    Args:
        share: of the evaluations.
        looks: whether it waits for the latents that it judges.
    """

    def __init__(self, share: float, *, looks: bool = True) -> None:
        self._share = share
        self._looks = looks
        self._num_evaluations = 0

    def __call__(self, evaluation: Evaluation) -> float:
        """See `miga.consistency.Judge`."""
        if self._looks:
            _ = evaluation.judged.x_FCHW, evaluation.reference.x_FCHW  # waits for them
        if evaluation.candidate:
            return 0.0
        before = math.floor(self._num_evaluations * self._share)
        self._num_evaluations += 1
        is_searched = math.floor(self._num_evaluations * self._share) > before and self._num_evaluations > 1
        return -math.inf if is_searched else 0.0
