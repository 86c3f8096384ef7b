"""Self-reflection: judge the noisy tail of the queue, and where its consistency falls, search for a better one.

Source: MIGA section 3.3, Alg. 6; decisions/0002 (its indices, and what a candidate is grown from).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

import torch

from miga.anchors import Anchors
from miga.consistency import Evaluation
from miga.denoise_pass import Pass, PassSteps, Stepper, run_steps, run_steps_together
from miga.long_range import LongRange
from miga.queue import FrameQueue

if TYPE_CHECKING:
    from miga.methods.queue_settings import QueueSettings

SEARCH: Final = "search"
"""Part of a method that grows candidates: it is made for those evaluations alone that ask for it."""


@dataclass(frozen=True)
class ReflectionTrace:
    """What self-reflection has done so far in a video, one entry per evaluation.

    Attributes:
        latents: index in the video of the first judged latent.
        scores: the consistency score that was kept: after a correction, the better one.
        searched: whether a search ran.
        corrected: whether its best candidate replaced the tail.
    """

    latents: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    searched: tuple[bool, ...] = ()
    corrected: tuple[bool, ...] = ()

    def add(self, latent: int, score: float, searched: bool, corrected: bool) -> ReflectionTrace:
        """The trace with one more evaluation."""
        return ReflectionTrace(
            (*self.latents, latent), (*self.scores, score), (*self.searched, searched), (*self.corrected, corrected)
        )

    def tail(self) -> ReflectionTrace:
        """The last entry alone: all that the next evaluation needs."""
        return ReflectionTrace(self.latents[-1:], self.scores[-1:], self.searched[-1:], self.corrected[-1:])

    @property
    def correction_rate(self) -> float:
        """`R_corr`, corrections per evaluation (section 4.3); NaN before the first."""
        return sum(self.corrected) / len(self.scores) if self.scores else float("nan")

    @property
    def success_rate(self) -> float:
        """`R_succ`, corrections per search; NaN before the first."""
        return sum(self.corrected) / sum(self.searched) if any(self.searched) else float("nan")


@dataclass(frozen=True)
class CandidateTask:
    """One candidate to grow: what it starts from, which noise it gets, what it must end as.

    Attributes:
        guidance: the latents before the judged one, held fixed.
        number: of the candidate, from 1 (the tail that is there is number 0).
        tail_levels: levels of the tail it would replace.
        last_base_1CHW: the base clip's last latent, clean, where candidates are pushed copies of it.
        held: latents beside the guidance that windows are shown (`LongRange.held_for`).
    """

    guidance: FrameQueue
    number: int
    tail_levels: tuple[int, ...]
    last_base_1CHW: torch.Tensor | None = None
    held: Anchors = ()


GrowAll: TypeAlias = Callable[[Sequence[CandidateTask], Callable[[CandidateTask], FrameQueue]], list[FrameQueue]]
"""Grows independent candidates elsewhere: on other GPUs, in any order; returns them in the order of the tasks."""


@dataclass(frozen=True)
class SelfReflection:
    """Alg. 6 over one queue.

    Attributes:
        grow_all: grows the candidates of a search elsewhere; None: here, side by side.
        lead: latents of context before a plain window's kept ones.
    """

    config: QueueSettings
    stepper: Stepper
    grow_all: GrowAll | None = None
    lead: int = 0

    averages_latents: ClassVar[bool] = False
    """See `miga.consistency.consistency_score`."""

    @functools.cached_property
    def long_range(self) -> LongRange:
        """The guidance of the queue."""
        return LongRange(self.config, self.stepper.prompts, self.lead)

    def judged_position(self, queue: FrameQueue) -> int | None:
        """`J`, position of the first judged latent; None while too few latents stand before or behind it."""
        position = len(queue) - self.config.judged_group * self.config.zigzag_width
        enough_before = position >= self.config.num_reflection_guidance_latents
        return position if enough_before and position + self.config.num_eval_latents <= len(queue) else None

    def reflect(
        self,
        queue: FrameQueue,
        trace: ReflectionTrace,
        last_base_1CHW: torch.Tensor | None = None,
        anchors: Anchors = (),
    ) -> tuple[FrameQueue, ReflectionTrace]:
        """Evaluates the queue, and corrects its tail if a search finds a better one.

        Args:
            queue: to be evaluated.
            trace: of the evaluations before.
            last_base_1CHW: see `CandidateTask`.
            anchors: those kept beside the queue.

        Returns:
            The queue, its tail (solver history too) replaced where that raised the score, and the longer trace.
        """
        position = self.judged_position(queue)
        if position is None:
            return queue, trace
        config, latent = self.config, queue.first + position
        guidance = queue[position - config.num_reflection_guidance_latents : position]
        tail_levels = tuple(queue.level_F[position:].tolist())
        numbers = range(1, config.num_candidates + 1)
        held = self.long_range.held_for(queue, position, anchors)
        tasks = [CandidateTask(guidance, number, tail_levels, last_base_1CHW, held) for number in numbers]
        score = self._score(queue[position:], tasks[0], anchors, candidate=0)
        if not trace.scores or trace.scores[-1] - score <= config.reflection_threshold:
            return queue, trace.add(latent, score, searched=False, corrected=False)
        candidates = self.grow_all(tasks, self.grow) if self.grow_all else self.grow_together(tasks)
        scores = [self._score(candidate, tasks[0], anchors, number) for number, candidate in enumerate(candidates, 1)]
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] > score:
            queue = queue[:position].append(candidates[best])
            return queue, trace.add(latent, scores[best], searched=True, corrected=True)
        return queue, trace.add(latent, score, searched=True, corrected=False)

    def grow(self, task: CandidateTask) -> FrameQueue:
        """One candidate for the tail, at the tail's levels, grown from noise beside its fixed guidance."""
        return run_steps(self.steps(task))

    def grow_together(self, tasks: Sequence[CandidateTask]) -> list[FrameQueue]:
        """All candidates side by side: pass by pass, the windows of all of them are one list of calls."""
        return run_steps_together([self.steps(task) for task in tasks])

    def steps(self, task: CandidateTask) -> PassSteps:
        """The passes that grow one candidate."""
        config, guidance = self.config, task.guidance
        purpose = f"search@{guidance.first + len(guidance)}"
        stepper = self.stepper.named(f"{purpose}/", task.number).in_part(SEARCH)
        queue = guidance
        for _ in range(config.judged_group):
            queue = stepper.push_noise(queue, config.zigzag_width, config.num_steps, purpose)
            if int(queue.level_F[len(guidance)]) == task.tail_levels[0]:
                break  # the tail group is still untouched: the last push goes without a pass
            plan = self.long_range.candidate_plan(queue, task.held)
            kept = [window.keeping_from(len(guidance)) for window in plan if window.keep_stop > len(guidance)]
            queue = guidance.append((yield Pass(stepper, queue, kept, anchors=task.held)))
        return candidate_of(task, queue)

    def _score(self, judged: FrameQueue, task: CandidateTask, anchors: Anchors, candidate: int) -> float:
        """How well latents go on from those before the judged one."""
        return self.stepper.judge(
            Evaluation(
                judged[: self.config.num_eval_latents],
                task.guidance[-self.config.num_reference_latents :],
                self.averages_latents,
                candidate,
                lambda: self.steps(task),
                self.config.num_candidates,
                anchors if self.config.reflection_judge == "still" else None,
            )
        )


def candidate_of(task: CandidateTask, grown: FrameQueue) -> FrameQueue:
    """What was grown behind a task's guidance, which must have come to the tail's levels."""
    candidate = grown[len(task.guidance) :]
    assert tuple(candidate.level_F.tolist()) == task.tail_levels, "a candidate must end at the tail's levels"
    return candidate
