"""MIGA as its authors' two programs do it, where that differs from the paper; their faults apart.

The queue is initialised by copies of the last base latent, borders of windows move from pass to pass, latents are
denoised, noised again and denoised once more, and self-reflection acts during initialisation alone.

Source: the behaviour of the programs, described in decisions/0009. None of their code is used.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from miga.config import SamplerConfig
from miga.consistency import consistency_score
from miga.denoise_pass import Pass, PassSteps, Stepper, run_steps, run_steps_together
from miga.errors import ConfigError
from miga.queue import FrameQueue
from miga.reflection import CandidateTask, GrowAll, ReflectionTrace
from miga.unified import StreamedPass, Unified, UnifiedState
from miga.windows import Window, plan_pass


@dataclass(frozen=True)
class Branch:
    """What the two programs do differently.

    Attributes:
        clean_level: level at which a latent is clean and Stage 2 ends.
        pushes_base: whether Stage 1, too, pushes the noised last base latent; else pure noise.
        reads_snapshot: whether the windows of a pass of Stage 1 see the queue from before it; else they see what the
            windows before them have written, as they do during initialisation.
        averages_latents: whether the consistency score compares means over latents.
    """

    clean_level: int
    pushes_base: bool
    reads_snapshot: bool
    averages_latents: bool


BRANCHES: Final = {
    "wan": Branch(clean_level=0, pushes_base=True, reads_snapshot=True, averages_latents=False),
    "videocrafter2": Branch(clean_level=1, pushes_base=False, reads_snapshot=False, averages_latents=True),
}
"""By `SamplerConfig.released_branch`."""


@dataclass(frozen=True)
class ReleasedState:
    """One video of `Released`.

    Attributes:
        queue: of initialisation and Stage 1.
        last_base_1CHW: the base clip's last latent, clean.
        unified: wavefront of Stage 2 and the second denoising.
        num_passes: of Stage 1 so far; 0 during initialisation.
        trace: what self-reflection did (of a video without end, the last evaluation alone).
    """

    queue: FrameQueue
    last_base_1CHW: torch.Tensor
    unified: UnifiedState
    num_passes: int = 0
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


class Released:
    """MIGA of one video as the authors' program makes it.

    Args:
        config: the settings.
        stepper: takes the steps.
        num_latents: of the video; None if it has no end.
        grow_all: grows the candidates of a search elsewhere; None: here, side by side.

    Raises:
        ConfigError: if the schedule is not the branch's kind.
    """

    needs_base_clip = True

    def __init__(
        self, config: SamplerConfig, stepper: Stepper, num_latents: int | None, grow_all: GrowAll | None = None
    ) -> None:
        self.config = config
        self.stepper = stepper
        self.num_latents = num_latents
        self.branch = BRANCHES[config.released_branch]
        sigma = stepper.schedule.sigma
        if sigma[self.branch.clean_level] != sigma[0]:
            raise ConfigError(
                f"sampler.released_branch = {config.released_branch!r} takes level {self.branch.clean_level} for "
                f"clean, where this model's schedule has sigma {float(sigma[self.branch.clean_level]):.3g}",
                "leave it out, so that it is the branch of the model's own family",
            )
        self.num_groups = None if num_latents is None else config.num_groups_asked(num_latents)
        num_popped = None if self.num_groups is None else self.num_groups * config.zigzag_width
        self.unified = Unified(config, stepper, num_popped, _unified_passes(config, self.branch))
        self.reflection = ReleasedReflection(config, stepper, grow_all) if config.self_reflection else None

    def start(self, clean_FCHW: torch.Tensor) -> ReleasedState:
        """The base clip, its groups noised to levels `T - n_zig ... T - 1`."""
        config = self.config
        level = config.num_steps - config.num_base_groups + torch.arange(config.window) // config.zigzag_width
        queue = self.stepper.renoised(clean_FCHW, level, first=0)
        return ReleasedState(queue, clean_FCHW[-1:].clone(), self.unified.start())

    def advance(self, state: ReleasedState) -> tuple[ReleasedState, FrameQueue | None]:
        """One pass of initialisation or Stage 1, and as much of Stage 2 as that allows.

        Returns:
            The state, and the latents that are clean by now (None if there are none).
        """
        if self._is_initialising(state):
            queue = self._push(state.queue, state.last_base_1CHW, is_noised_base=True)
            state = replace(state, queue=queue)
            if int(queue.level_F[0]) > self.config.handoff_level + 2:
                return self._initialise(state), None
        return self._stage1(state)

    def is_open(self, state: ReleasedState) -> bool:
        """While initialisation is not cut short by the end, and Stage 2 has not come near it (see `Method`)."""
        if self.num_groups is None:
            return False
        config = self.config
        if state.num_passes == 0:
            return config.num_steps - config.num_base_groups - int(state.queue.level_F[0]) <= self.num_groups
        return self.num_groups > config.num_initial_passes and self.unified.is_open(state.unified)

    def _is_initialising(self, state: ReleasedState) -> bool:
        """Until Stage 1 begins, but for at most as many passes as groups are asked for, dropped ones included."""
        if state.num_passes or self.num_groups is None:
            return state.num_passes == 0
        num_done = self.config.num_steps - self.config.num_base_groups - int(state.queue.level_F[0])
        return num_done < self.num_groups

    def _initialise(self, state: ReleasedState) -> ReleasedState:
        """A pass in place, then self-reflection."""
        config = self.config
        offset = _remainder(config, len(state.queue), config.window - config.num_guidance_latents)
        queue = self.stepper.pass_in_place(state.queue, self._plan(len(state.queue), offset))
        trace = state.trace
        if self.reflection is not None:
            queue, trace = self.reflection.reflect(queue, trace, state.last_base_1CHW)
        return replace(state, queue=queue.compact(), trace=trace.tail() if self.num_latents is None else trace)

    def _stage1(self, state: ReleasedState) -> tuple[ReleasedState, FrameQueue | None]:
        """A pass; a group leaves at level `e`; a group is pushed behind a full queue (one that drains gets none)."""
        config, num_latents = self.config, len(state.queue)
        offset = state.num_passes % config.stride
        if num_latents - offset < config.window - config.num_guidance_latents:
            offset = 0
        run = self.stepper.pass_over if self.branch.reads_snapshot else self.stepper.pass_in_place
        queue = run(state.queue, self._plan(num_latents, offset))
        popped = None
        if int(queue.level_F[0]) == config.handoff_level:
            popped, queue = queue.pop(config.zigzag_width)
        is_full = len(queue) > 0 and int(queue.level_F[-1]) >= config.num_steps - 1
        if is_full and int(queue.level_F[0]) == config.handoff_level + 1:
            queue = self._push(queue, state.last_base_1CHW, is_noised_base=self.branch.pushes_base)
        state = replace(state, queue=queue.compact(), num_passes=state.num_passes + 1)
        return (state, None) if popped is None else self._stage2(state, popped)

    def _stage2(self, state: ReleasedState, popped: FrameQueue) -> tuple[ReleasedState, FrameQueue | None]:
        """A group more for Stage 2, in which the solver starts afresh; what comes out, less what is not asked for."""
        arrived = self.stepper.fresh(popped.x_FCHW, popped.level_F, popped.first)
        unified, finished = self.unified.advance(state.unified, arrived)
        if finished is not None and self.num_latents is not None:
            finished = finished[: self.num_latents - finished.first]
        return replace(state, unified=unified), finished

    def _plan(self, num_latents: int, offset: int) -> list[Window]:
        config = self.config
        return plan_pass(
            num_latents, config.window, config.stride, config.num_guidance_latents, config.zigzag_width, offset
        )

    def _push(self, queue: FrameQueue, last_base_1CHW: torch.Tensor, is_noised_base: bool) -> FrameQueue:
        if is_noised_base:
            return _push_base(self.stepper, queue, last_base_1CHW, self.config, "push")
        return self.stepper.push_noise(queue, self.config.zigzag_width, self.config.num_steps, "push")


@dataclass(frozen=True)
class ReleasedTask(CandidateTask):
    """One candidate to grow.

    Attributes:
        last_base_1CHW: the base clip's last latent, clean.
    """

    last_base_1CHW: torch.Tensor


@dataclass(frozen=True)
class ReleasedReflection:
    """Alg. 6 after the passes of initialisation, with candidates that are stepped as often as pushed to."""

    config: SamplerConfig
    stepper: Stepper
    grow_all: GrowAll | None = None

    def judged_position(self, queue: FrameQueue) -> int | None:
        """Position of the first judged latent; None while the whole base clip does not stand before it."""
        config = self.config
        position = len(queue) - config.judged_group * config.zigzag_width
        return position if position >= max(config.window, config.num_reflection_guidance_latents) else None

    def reflect(
        self, queue: FrameQueue, trace: ReflectionTrace, last_base_1CHW: torch.Tensor
    ) -> tuple[FrameQueue, ReflectionTrace]:
        """Evaluates the queue, and corrects its tail if a search finds a better one.

        Returns:
            The queue, its tail (solver history too) replaced where that raised the score, and the longer trace.
        """
        position = self.judged_position(queue)
        if position is None:
            return queue, trace
        config, latent = self.config, queue.first + position
        reference_FCHW = queue[position - config.num_reference_latents : position].x_FCHW
        score = self._score(queue[position:], reference_FCHW)
        if not trace.scores or trace.scores[-1] - score <= config.reflection_threshold:
            return queue, trace.add(latent, score, searched=False, corrected=False)
        guidance = queue[position - config.num_reflection_guidance_latents : position]
        levels = tuple(queue.level_F[position:].tolist())
        numbers = range(1, config.num_candidates + 1)
        tasks = [ReleasedTask(guidance, number, levels, last_base_1CHW) for number in numbers]
        candidates = self.grow_all(tasks, self.grow) if self.grow_all else self.grow_together(tasks)
        scores = [self._score(candidate, reference_FCHW) for candidate in candidates]
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] > score:
            queue = queue[:position].append(candidates[best])
            return queue, trace.add(latent, scores[best], searched=True, corrected=True)
        return queue, trace.add(latent, score, searched=True, corrected=False)

    def grow(self, task: CandidateTask) -> FrameQueue:
        """One candidate for the tail, at the tail's levels, grown from noise beside its fixed guidance."""
        return run_steps(self._grow(task))

    def grow_together(self, tasks: Sequence[CandidateTask]) -> list[FrameQueue]:
        """All candidates side by side: pass by pass, the windows of all of them are one list of calls."""
        return run_steps_together([self._grow(task) for task in tasks])

    def _grow(self, task: CandidateTask) -> PassSteps:
        assert isinstance(task, ReleasedTask), "a candidate of this branch is pushed copies of the base clip's end"
        config, guidance, num_held = self.config, task.guidance, len(task.guidance)
        purpose = f"search@{guidance.first + num_held}"
        stepper = self.stepper.named(f"{purpose}/", task.number)
        queue = guidance
        for _ in range(config.judged_group):
            queue = _push_base(stepper, queue, task.last_base_1CHW, config, purpose)
            offset = _remainder(config, len(queue), config.window)
            plan = plan_pass(len(queue), config.window, config.stride, offset=offset)
            first = next(number for number, window in enumerate(plan) if window.keep_stop > num_held)
            stepping = [replace(window, keep_start=max(window.keep_start, num_held)) for window in plan[first:]]
            queue = guidance.append((yield Pass(stepper, queue, stepping, unkept=plan[:first])))
        candidate = queue[num_held:]
        assert tuple(candidate.level_F.tolist()) == task.tail_levels, "a candidate must end at the tail's levels"
        return candidate

    def _score(self, judged: FrameQueue, reference_FCHW: torch.Tensor) -> float:
        judged_FCHW = judged[: self.config.num_eval_latents].x_FCHW
        averages = BRANCHES[self.config.released_branch].averages_latents
        return consistency_score(judged_FCHW, reference_FCHW, average_latents=averages)


def _unified_passes(config: SamplerConfig, branch: Branch) -> list[StreamedPass]:
    """From level `e` to clean, then noised again and taken down once more in `e` passes; borders move in both."""
    level = config.handoff_level
    once = [StreamedPass(offset=number % config.stride) for number in range(level - branch.clean_level)]
    again = [StreamedPass(offset=number % config.stride, purpose="second/") for number in range(level)]
    return [*once, replace(again[0], renoise_to=level + branch.clean_level), *again[1:]]


def _remainder(config: SamplerConfig, num_latents: int, capacity: int) -> int:
    """Border offset that puts the remainder window first, so that every other one keeps a whole stride."""
    return (num_latents - capacity) % config.stride


def _push_base(
    stepper: Stepper, queue: FrameQueue, last_base_1CHW: torch.Tensor, config: SamplerConfig, purpose: str
) -> FrameQueue:
    """The queue with a group of copies of the last base latent behind it, each noised to level `T` by its own noise."""
    first, count = queue.first + len(queue), config.zigzag_width
    level_F = torch.full((count,), config.num_steps)
    noise_FCHW = stepper.noise(purpose, range(first, first + count), stepper.candidate).to(queue.like)
    x_FCHW = stepper.schedule.add_noise(last_base_1CHW.to(queue.like), noise_FCHW, level_F)
    return queue.append(stepper.fresh(x_FCHW, level_F, first))
