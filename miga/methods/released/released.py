"""MIGA as its authors' two programs do it, where that differs from the paper; their faults apart.

The queue is initialised by copies of the last base latent, borders of windows move from pass to pass, latents are
denoised, noised again and denoised once more, and self-reflection acts during initialisation alone.

Source: the behaviour of the programs, described in decisions/0009. None of their code is used.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from miga.anchors import Anchors
from miga.errors import ConfigError
from miga.long_range import LongRange
from miga.methods.base import Begin
from miga.methods.released.branches import BRANCHES, Branch, remainder
from miga.methods.released.reflection import ReleasedReflection
from miga.methods.released.settings import ReleasedSettings
from miga.queue import ADDED_LATER, FrameQueue
from miga.reflection import ReflectionTrace
from miga.unified import StreamedPass, Unified, UnifiedState


@dataclass(frozen=True)
class ReleasedState:
    """One video of `Released`.

    Attributes:
        queue: of initialisation and Stage 1.
        last_base_1CHW: the base clip's last latent, clean.
        unified: wavefront of Stage 2 and the second denoising.
        num_passes: of Stage 1 so far; 0 during initialisation.
        trace: what self-reflection did (of a video without end, the last evaluation alone).
        anchors: finished latents that initialisation and Stage 1 are guided by.
    """

    queue: FrameQueue
    last_base_1CHW: torch.Tensor
    unified: UnifiedState
    num_passes: int = 0
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)
    anchors: Anchors = field(default=(), metadata=ADDED_LATER)


class Released:
    """MIGA of one video as the authors' program makes it.

    Args:
        config: the settings.
        begin: what the video begins with.

    Raises:
        ConfigError: if the schedule is not the branch's kind.
    """

    def __init__(self, config: ReleasedSettings, begin: Begin) -> None:
        stepper, num_latents = begin.stepper, begin.num_latents
        self.config = config
        self.stepper = config.guided_stepper(stepper.in_part("stage 1"))
        self.long_range = LongRange(config, stepper.prompts)
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
        self.unified = Unified(
            config.window, config.stride, 0, stepper, num_popped, _unified_passes(config, self.branch)
        )
        self.reflection = None
        if config.self_reflection:
            self.reflection = ReleasedReflection(config, self.stepper, begin.grow_all)

    def start(self, clean_FCHW: torch.Tensor) -> ReleasedState:
        """The base clip, its groups noised to levels `T - n_zig ... T - 1`."""
        config = self.config
        level = config.num_steps - config.num_base_groups + torch.arange(config.window) // config.zigzag_width
        queue = self.stepper.renoised(clean_FCHW, level, first=0)
        anchors = self.long_range.begin(clean_FCHW, self.stepper)
        return ReleasedState(queue, clean_FCHW[-1:].clone(), self.unified.start(), anchors=anchors)

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
        offset = remainder(len(state.queue), config.window - config.num_guidance_latents, config.stride)
        plan = self.long_range.plan(state.queue, state.anchors, offset)
        queue = self.stepper.pass_in_place(state.queue, plan, state.anchors)
        trace = state.trace
        if self.reflection is not None:
            queue, trace = self.reflection.reflect(queue, trace, state.last_base_1CHW, state.anchors)
        return replace(state, queue=queue.compact(), trace=trace.tail() if self.num_latents is None else trace)

    def _stage1(self, state: ReleasedState) -> tuple[ReleasedState, FrameQueue | None]:
        """A pass; a group leaves at level `e`; a group is pushed behind a full queue (one that drains gets none)."""
        config, num_latents = self.config, len(state.queue)
        offset = state.num_passes % config.stride
        if num_latents - offset < config.window - config.num_guidance_latents:
            offset = 0
        run = self.stepper.pass_over if self.branch.reads_snapshot else self.stepper.pass_in_place
        queue = run(state.queue, self.long_range.plan(state.queue, state.anchors, offset), state.anchors)
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
        return replace(state, unified=unified, anchors=self.long_range.after(state.anchors, finished)), finished

    def _push(self, queue: FrameQueue, last_base_1CHW: torch.Tensor, is_noised_base: bool) -> FrameQueue:
        count, level = self.config.zigzag_width, self.config.num_steps
        if is_noised_base:
            return self.stepper.push_renoised(queue, last_base_1CHW, count, level, "push")
        return self.stepper.push_noise(queue, count, level, "push")


def _unified_passes(config: ReleasedSettings, branch: Branch) -> list[StreamedPass]:
    """From level `e` to clean, then noised again and taken down once more in `e` passes; borders move in both."""
    level = config.handoff_level
    once = [StreamedPass(offset=number % config.stride) for number in range(level - branch.clean_level)]
    again = [StreamedPass(offset=number % config.stride, purpose="second/", part="second") for number in range(level)]
    return [*once, replace(again[0], renoise_to=level + branch.clean_level), *again[1:]]
