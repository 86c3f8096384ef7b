"""The plan of a video: pass by pass, which windows there are, at which levels, and what is judged. Integers only.

No method says it twice. A video is made by `generate.VideoCourse`; here the same course runs on queues of which only
levels and places are known, under a stepper that takes no step and notes what it was asked for.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias, cast

import torch

from miga.anchors import Anchors
from miga.cached_call import CachedCall
from miga.config import SamplerConfig
from miga.consistency import Evaluation
from miga.denoise_pass import Pass, Stepper, WindowCall, run_steps
from miga.generate import VideoCourse, VideoState
from miga.methods.base import Begin
from miga.prompts import PromptTrack
from miga.queue import FrameQueue, map_queues
from miga.reflection import SEARCH, ReflectionTrace
from miga.schedule import NoiseSchedule
from miga.windows import Window


@dataclass(frozen=True)
class PlannedPass:
    """One pass, or the part of one whose windows are handed over together.

    Attributes:
        part: which part of the method it is.
        first: index in the video of the first latent of the queue; those before the video are below 0.
        levels: of every latent of the queue, from before the pass.
        windows: in order; their positions count from the queue's first latent.
        anchors: index in the video of the latents beside the queue.
    """

    part: str
    first: int
    levels: tuple[int, ...]
    windows: tuple[Window, ...]
    anchors: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlannedEvaluation:
    """One evaluation of self-reflection. All but a video's first may start a search.

    Attributes:
        judged, reference: index in the video of the latents that are judged, and of those they are compared with.
        search: the passes that grow one candidate.
        num_candidates: that a search grows.
    """

    judged: range
    reference: range
    search: tuple[PlannedPass, ...]
    num_candidates: int


@dataclass(frozen=True)
class PlannedAdvance:
    """What one `VideoCourse.advance` does.

    Attributes:
        passes: in order; those of a search are with the evaluation that may start it.
        evaluations: in order.
        finished: index in the video of the latents that are handed out.
    """

    passes: tuple[PlannedPass, ...]
    evaluations: tuple[PlannedEvaluation, ...]
    finished: range


@functools.lru_cache(maxsize=4096)
def guided(config: SamplerConfig, levels: tuple[int, ...], windows: tuple[Window, ...]) -> tuple[bool, ...]:
    """Of every window of a pass, whether it shows a latent at which classifier-free guidance acts: two forwards."""
    if config.guidance_scale == 1.0:
        return (False,) * len(windows)
    acts = [config.guidance_low_level <= level <= config.guidance_high_level for level in levels]
    return tuple(any(map(acts.__getitem__, window.positions)) for window in windows)


def plan_video(config: SamplerConfig, num_latents: int | None) -> Iterator[PlannedAdvance]:
    """The plan of a video, advance by advance; without end if `num_latents` is None."""
    planner = Planner(config, num_latents)
    state = planner.start()
    while not planner.is_done(state):
        state, planned = planner.advance(state)
        yield planned


class PlannedQueue(FrameQueue):
    """A `FrameQueue` of which only levels and place are known: its latents have no channels."""

    def __init__(self, level_F: torch.Tensor, first: int) -> None:
        object.__setattr__(self, "level_F", level_F)
        object.__setattr__(self, "first", first)

    @property
    def x_FCHW(self) -> torch.Tensor:  # noqa: N802 (the field's name)
        """Nothing of every latent."""
        return torch.empty(len(self), 0, 1, 1)

    @property
    def history(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def __getitem__(self, part: slice) -> PlannedQueue:
        start, stop, step = part.indices(len(self))
        assert step == 1, "a queue has no gaps"
        return PlannedQueue(self.level_F[start:stop], self.first + start)

    def append(self, tail: FrameQueue) -> PlannedQueue:
        """See `FrameQueue.append`."""
        assert tail.first == self.first + len(self), f"{tail.first} does not follow {self.first} + {len(self)}"
        return PlannedQueue(torch.cat([self.level_F, tail.level_F]), self.first)

    def at_level(self, level_F: torch.Tensor) -> PlannedQueue:
        """See `FrameQueue.at_level`."""
        return PlannedQueue(level_F, self.first)

    def compact(self) -> PlannedQueue:
        """Itself."""
        return self


@dataclass
class _Notes:
    """What was asked for since the notes were last taken."""

    passes: list[PlannedPass] = field(default_factory=list)
    evaluations: list[PlannedEvaluation] = field(default_factory=list)

    def judge(self, evaluation: Evaluation) -> float:
        """Notes an evaluation, and the search that it may start; all are answered alike."""
        if evaluation.search is not None and not evaluation.candidate:
            num_before = len(self.passes)
            run_steps(evaluation.search())
            judged, reference = evaluation.judged.indices, evaluation.reference.indices
            search = tuple(self.passes[num_before:])
            del self.passes[num_before:]
            self.evaluations.append(PlannedEvaluation(judged, reference, search, evaluation.num_candidates))
        return 0.0

    def take(self, finished: range) -> PlannedAdvance:
        """All notes. A search that ran all the same, because no fall of the score was needed, is left out."""
        passes = tuple(planned for planned in self.passes if planned.part != SEARCH)
        planned = PlannedAdvance(passes, tuple(self.evaluations), finished)
        self.passes.clear()
        self.evaluations.clear()
        return planned


@dataclass(frozen=True, kw_only=True)
class PlanningStepper(Stepper):
    """A stepper that takes no step: it notes the windows, and says that their latents are a level further down."""

    notes: _Notes

    @classmethod
    def of(cls, config: SamplerConfig) -> PlanningStepper:
        """One that has noted nothing. Of the schedule only the number of levels is known."""
        levels = torch.zeros(config.num_steps + 1, dtype=torch.float64)
        unknown, notes = cast(Any, None), _Notes()
        return cls(
            schedule=NoiseSchedule(levels + 1.0, levels, levels),
            solver=unknown,
            prompts=PromptTrack([None]),
            noise=unknown,
            run_windows=lambda calls: [call.x_FCHW for call in calls],
            judge=notes.judge,
            notes=notes,
        )

    def pass_over(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors = ()) -> FrameQueue:
        """See `Stepper.pass_over`."""
        self._note(queue, plan, anchors)
        return self.step(queue[plan[0].keep_start : plan[-1].keep_stop], queue.x_FCHW)

    def pass_cached(self, queue: FrameQueue, cached: CachedCall | None, next_sigmas: Sequence[float]) -> FrameQueue:
        """See `Stepper.pass_cached`."""
        self.show_cached(queue, cached)
        return PlannedQueue(queue.level_F - 1, queue.first)

    def show_cached(self, queue: FrameQueue, cached: CachedCall | None) -> None:
        """See `Stepper.show_cached`."""
        self._note(queue, [Window((), 0, len(queue), 0, len(queue))], ())

    def pass_over_all(self, passes: Sequence[Pass]) -> list[FrameQueue]:
        """See `Stepper.pass_over_all`."""
        for each in passes:
            cast(PlanningStepper, each.stepper)._note(each.queue, [*each.unkept, *each.plan], each.anchors)
        return [self.step(each.queue[each.plan[0].keep_start : each.plan[-1].keep_stop]) for each in passes]

    def calls(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors = ()) -> list[WindowCall]:
        """See `Stepper.calls`."""
        self._note(queue, plan, anchors)
        return [WindowCall(queue.x_FCHW[window.positions], queue.level_F[window.positions], None) for window in plan]

    def step(self, queue: FrameQueue, clean_FCHW: torch.Tensor | None = None) -> FrameQueue:
        """See `Stepper.step`."""
        return PlannedQueue(queue.level_F - 1, queue.first)

    def fresh(self, x_FCHW: torch.Tensor, level_F: torch.Tensor, first: int) -> FrameQueue:
        """See `Stepper.fresh`."""
        return PlannedQueue(level_F, first)

    def noise_queue(self, first: int, count: int, level: int, purpose: str) -> FrameQueue:
        """See `Stepper.noise_queue`."""
        return PlannedQueue(torch.full((count,), level), first)

    def push_noise(self, queue: FrameQueue, count: int, level: int, purpose: str) -> FrameQueue:
        """See `Stepper.push_noise`."""
        return queue.append(self.noise_queue(queue.first + len(queue), count, level, purpose))

    def push_renoised(
        self, queue: FrameQueue, clean_1CHW: torch.Tensor, count: int, level: int, purpose: str
    ) -> FrameQueue:
        """See `Stepper.push_renoised`."""
        return self.push_noise(queue, count, level, purpose)

    def renoised(self, clean_FCHW: torch.Tensor, level: int | torch.Tensor, first: int) -> FrameQueue:
        """See `Stepper.renoised`."""
        return PlannedQueue(torch.as_tensor(level).expand(len(clean_FCHW)).clone(), first)

    def _note(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors) -> None:
        beside = tuple(anchor.first for anchor in anchors)
        planned = PlannedPass(self.part, queue.first, tuple(queue.level_F.tolist()), tuple(plan), beside)
        self.notes.passes.append(planned)


class Planner:
    """The plan of one video, from state to state: those of the sampler, but that latents in them have no channels.

    Args:
        config: the settings.
        num_latents: of the video; None if it has no end.
    """

    def __init__(self, config: SamplerConfig, num_latents: int | None) -> None:
        stepper = PlanningStepper.of(config)
        self._notes = stepper.notes
        self._course = VideoCourse(config, Begin(stepper, num_latents))
        self.start, self.is_done, self.is_open = self._course.start, self._course.is_done, self._course.is_open

    def advance(self, state: VideoState) -> tuple[VideoState, PlannedAdvance]:
        """The next state, and what leads there."""
        now, finished = self._course.advance(state)
        return now, self._notes.take(range(state.num_finished, now.num_finished) if finished else range(0))


Shape: TypeAlias = tuple[Any, ...]


def flattened(state: Any) -> tuple[Shape, tuple[int, ...]]:
    """A state as what two states at the same point of a repetition share, and the integers in which they differ.

    Shared are classes, lengths and levels; they differ in places and counts. What self-reflection did is left out: no
    plan knows that.
    """
    shape: list[Any] = []
    numbers: list[int] = []
    _flatten(state, shape, numbers)
    return tuple(shape), tuple(numbers)


def _flatten(value: Any, shape: list[Any], numbers: list[int]) -> None:
    if isinstance(value, FrameQueue):
        shape.append(tuple(value.level_F.tolist()))
        numbers.append(value.first)
    elif isinstance(value, torch.Tensor):
        shape.append(tuple(value.shape))
    elif type(value) is int:
        shape.append(int)
        numbers.append(value)
    elif isinstance(value, tuple):
        shape.append(len(value))
        for item in value:
            _flatten(item, shape, numbers)
    elif is_dataclass(value) and not isinstance(value, ReflectionTrace):
        shape.append(type(value))
        for each in fields(value):
            _flatten(getattr(value, each.name), shape, numbers)
    elif not isinstance(value, ReflectionTrace):
        shape.append(value)


def num_alive(state: VideoState) -> int:
    """Latents that a state holds."""
    lengths: list[int] = []

    def look(queue: FrameQueue) -> FrameQueue:
        lengths.append(len(queue))
        return queue

    map_queues(state, look)
    return sum(lengths)
