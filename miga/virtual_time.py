"""How long one video takes on so many GPUs, found by making it in virtual time: nothing sleeps, nothing is drawn.

The sampler and the wavefront are the real ones, on tiny latents; calls take the time they are said to take.

Legend: B windows in a batch, F latents, C channels, H, W cells.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import WindowCall, run_call
from miga.generate import Sampler
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import SelfReflection
from miga.schedule import NoiseSchedule, ddim_schedule, few_step_schedule, flow_euler_schedule, flow_unipc_schedule
from miga.two_stage import TwoStage


class VirtualExecutor:
    """A `WindowExecutor` with a clock of its own, which moves only in `advance`: the same course every time.

    Args:
        num_slots: calls that run at once.
        run: computes a call; takes no virtual time.
        call_s: virtual seconds of a call.
    """

    def __init__(
        self, num_slots: int, run: Callable[[WindowCall], torch.Tensor], call_s: Callable[[WindowCall], float]
    ) -> None:
        self.num_slots = num_slots
        self.now_s = 0.0
        self.busy_s = 0.0
        self._run = run
        self._call_s = call_s
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, WindowCall, Future[torch.Tensor]]] = []
        self._running: list[tuple[float, int, WindowCall, Future[torch.Tensor]]] = []

    def submit(self, call: WindowCall, priority: int) -> Future[torch.Tensor]:
        """See `WindowExecutor.submit`."""
        future: Future[torch.Tensor] = Future()
        heapq.heappush(self._waiting, (priority, next(self._order), call, future))
        self._start()
        return future

    def advance(self) -> None:
        """To the next moment at which a call ends; all that end then have ended."""
        assert self._running, "nothing runs, so nothing that is waited for can come"
        self.now_s = self._running[0][0]
        ended = []
        while self._running and self._running[0][0] <= self.now_s:
            ended.append(heapq.heappop(self._running))
        self._start()
        for _, _, call, future in ended:
            try:
                future.set_result(self._run(call))
            except Exception as error:
                future.set_exception(error)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self.num_slots:
            _, number, call, future = heapq.heappop(self._waiting)
            if future.set_running_or_notify_cancel():
                seconds = self._call_s(call)
                self.busy_s += seconds
                heapq.heappush(self._running, (self.now_s + seconds, number, call, future))


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
) -> VirtualVideo:
    """Makes a video of tiny latents in virtual time.

    Args:
        config: the sampler's settings.
        num_latents: length of the video.
        num_slots: GPUs.
        forward_s: of one forward over a whole window; a guided call is two. Shorter windows take less in proportion.
        search_share: share of self-reflection's evaluations that start a search (each finds a better tail).
        has_branches: whether the two forwards of a guided call may run on two GPUs.
    """
    denoiser: _PlainDenoiser = _BranchedDenoiser(config) if has_branches else _PlainDenoiser(config)

    def call_s(call: WindowCall) -> float:
        num_forwards = 1 if call.branch is not None else denoiser.num_forwards(call.level_F)
        return num_forwards * forward_s * len(call.level_F) / config.window

    executor = VirtualExecutor(num_slots, lambda call: run_call(denoiser, call), call_s)
    sampler = Sampler(denoiser, config, PromptTrack([0.0]), NamedNoise(0, _TINY), num_latents, executor=executor)
    if isinstance(sampler.method, TwoStage) and sampler.method.zigzag.reflection is not None:
        scripted = ScriptedReflection(config, sampler.stepper, None, _Script(config, search_share))
        sampler.method.zigzag = replace(sampler.method.zigzag, reflection=scripted)
    state, finished = sampler.start(), []
    while not sampler.is_done(state):
        state, queue = sampler.advance_queue(state)
        finished += [] if queue is None else [queue]
    for queue in finished:
        _ = queue.x_FCHW  # waits for it
    video = VirtualVideo(executor.now_s, executor.busy_s, sampler.num_calls, sum(state.trace.searched))
    sampler.close()
    return video


_TINY = (1, 1, 2)


class _PlainDenoiser:
    """A network that costs nothing; what it predicts depends on what it is shown."""

    def __init__(self, config: SamplerConfig) -> None:
        self.window = config.window
        self.schedule = _any_schedule(config)
        self._scale = config.guidance_scale
        self._levels = (config.guidance_low_level, config.guidance_high_level)

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any]) -> torch.Tensor:
        """See `miga.backbones.base.Denoiser`."""
        return 0.5 * x_BFCHW + 0.1 * x_BFCHW.mean(1, keepdim=True)

    def num_forwards(self, level: torch.Tensor) -> int:
        """Of a call over latents of these levels."""
        is_guided = (self._levels[0] <= level) & (level <= self._levels[1])
        return 2 if self._scale != 1.0 and bool(is_guided.any()) else 1


class _BranchedDenoiser(_PlainDenoiser):
    """The same as a `BranchedDenoiser`."""

    def num_branches(self, level_BF: torch.Tensor) -> int:
        return self.num_forwards(level_BF)

    def predict_branch(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any], branch: int
    ) -> torch.Tensor:
        return self(x_BFCHW, level_BF, conditions)

    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return predictions[0]


class _Script:
    """Scores that start a search as often as asked for, evenly: an evaluation that is to be searched falls by far, and
    the first candidate of its search is as good as what was before."""

    def __init__(self, config: SamplerConfig, share: float) -> None:
        self._share = share
        self._fall = -1.0 - config.reflection_threshold
        self._num_candidates = config.num_candidates
        self._num_evaluations = self._num_to_come = 0

    def next(self) -> float:
        if self._num_to_come:
            self._num_to_come -= 1
            return 0.0
        before = math.floor(self._num_evaluations * self._share)
        self._num_evaluations += 1
        if math.floor(self._num_evaluations * self._share) == before or self._num_evaluations == 1:
            return 0.0
        self._num_to_come = self._num_candidates
        return self._fall


@dataclass(frozen=True)
class ScriptedReflection(SelfReflection):
    """Self-reflection that looks at what it judges, and finds what it is told."""

    script: _Script | None = None

    def judge(self, judged: FrameQueue, reference: FrameQueue) -> float:
        """See `SelfReflection.judge`."""
        assert self.script is not None
        _ = judged.x_FCHW, reference.x_FCHW  # waits for them
        return self.script.next()


def _any_schedule(config: SamplerConfig) -> NoiseSchedule:
    """One that the solver can step through; which, takes no time."""
    if config.solver == "ddim":
        return ddim_schedule(config.num_steps)
    if config.timesteps:
        return few_step_schedule(config.timesteps, config.flow_shift)
    make = flow_unipc_schedule if config.solver == "unipc" else flow_euler_schedule
    return make(config.num_steps, config.flow_shift)
