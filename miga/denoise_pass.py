"""One pass: every latent of a queue one level down. Source: MIGA Alg. 3 and 7, decisions/0001.

A pass reads a snapshot: all windows see the latents and levels from before it, and only then is anything written. So
the windows are independent, and whoever runs them (`RunWindows`) may batch them or send them to other GPUs.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from miga.backbones.base import BranchedDenoiser, Condition, Denoiser
from miga.consistency import Judge, judge_consistency
from miga.image_condition import WindowPictures
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.schedule import NoiseSchedule
from miga.solvers.base import Solver
from miga.windows import Window


@dataclass(frozen=True)
class WindowCall:
    """One call of the network: at most `f0` latents, the level of each, one condition.

    Attributes:
        branch: which forward of a guided call, where one alone is wanted (`BranchedDenoiser`); None: the whole call.
    """

    x_FCHW: torch.Tensor
    level_F: torch.Tensor
    condition: Condition
    branch: int | None = None


def run_call(denoiser: Denoiser, call: WindowCall) -> torch.Tensor:
    """Runs one call: predicted clean latents `[F, C, H, W]`, or what the network returned in the branch asked for.

    On a GPU it is done when this returns: other threads read it on streams of their own.
    """
    x_1FCHW, level_1F, conditions = call.x_FCHW[None], call.level_F[None], [call.condition]
    if call.branch is None:
        output_FCHW = denoiser(x_1FCHW, level_1F, conditions)[0]
    else:
        assert isinstance(denoiser, BranchedDenoiser), "only such a denoiser is asked for a branch"
        output_FCHW = denoiser.predict_branch(x_1FCHW, level_1F, conditions, call.branch)[0]
    if output_FCHW.is_cuda:
        torch.cuda.current_stream(output_FCHW.device).synchronize()
    return output_FCHW


RunWindows: TypeAlias = Callable[[Sequence[WindowCall]], list[torch.Tensor]]
"""Runs independent calls; returns each one's predicted clean latents `[F, C, H, W]`, in order."""


def run_in_batches(denoiser: Denoiser, windows_per_batch: int = 1) -> RunWindows:
    """Runs the calls here, in order; so many windows of the same length together.

    At 1 the order of arithmetic is the same on every machine. In larger batches, results may differ in the last bits
    from those of other batch sizes.
    """

    def run(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        outputs: dict[int, torch.Tensor] = {}
        for numbers in _batches(calls, windows_per_batch):
            batch = [calls[number] for number in numbers]
            clean_BFCHW = denoiser(
                torch.stack([call.x_FCHW for call in batch]),
                torch.stack([call.level_F for call in batch]),
                [call.condition for call in batch],
            )
            outputs |= dict(zip(numbers, clean_BFCHW, strict=True))
        return [outputs[number] for number in range(len(calls))]

    return run


def _batches(calls: Sequence[WindowCall], size: int) -> Iterator[list[int]]:
    """Numbers of the calls, those of one length side by side, `size` at a time."""
    by_length: dict[int, list[int]] = {}
    for number, call in enumerate(calls):
        by_length.setdefault(len(call.level_F), []).append(number)
    for numbers in by_length.values():
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


@dataclass(frozen=True)
class Stepper:
    """What a pass needs beside queue and plan: schedule, solver, prompts, noise, and who runs the windows.

    Attributes:
        purpose: what its noise is named by, beside the step: searches and second denoisings meet a latent at a level
            where another pass has met it.
        candidate: which candidate of a search its noise is for.
        part: which part of the method its passes are, for whoever reads the plan (`plan.py`).
        judge: answers the evaluations of searches.
        pictures: what windows show of given pictures; None if there are none.
    """

    schedule: NoiseSchedule
    solver: Solver
    prompts: PromptTrack
    noise: NoiseSource
    run_windows: RunWindows
    purpose: str = ""
    candidate: int = 0
    part: str = "passes"
    judge: Judge = judge_consistency
    pictures: WindowPictures | None = None

    def in_part(self, part: str) -> Stepper:
        """The same, its passes those of another part."""
        return replace(self, part=part)

    def named(self, purpose: str, candidate: int = 0) -> Stepper:
        """The same, its noise under another name."""
        return replace(self, purpose=purpose, candidate=candidate)

    def pass_over(self, queue: FrameQueue, plan: Sequence[Window]) -> FrameQueue:
        """Takes what `plan` keeps one level down.

        Args:
            queue: the latents, with whatever context the windows see before and behind those they keep.
            plan: windows, in order, whose kept ranges follow one another without a gap.

        Returns:
            The kept latents after their step; context is left out.
        """
        return self.apply(queue, plan, self.run_windows(self.calls(queue, plan)))

    def pass_over_all(self, passes: Sequence[Pass]) -> list[FrameQueue]:
        """What several passes keep, each of its own stepper; their windows are handed over as one list."""
        calls = [each.stepper.calls(each.queue, [*each.unkept, *each.plan]) for each in passes]
        outputs = iter(self.run_windows([call for of_pass in calls for call in of_pass]))
        kept = []
        for each, of_pass in zip(passes, calls, strict=True):
            of_plan = list(itertools.islice(outputs, len(of_pass)))[len(each.unkept) :]
            kept.append(each.stepper.apply(each.queue, each.plan, of_plan))
        return kept

    def pass_in_place(self, queue: FrameQueue, plan: Sequence[Window]) -> FrameQueue:
        """The same, but every window sees what the ones before it have written, levels too: one after the other."""
        for window in plan:
            kept = slice(window.keep_start, window.keep_stop)
            stepped = self.pass_over(queue, [window])
            queue = queue[: kept.start].append(stepped).append(queue[kept.stop :])
        return queue[plan[0].keep_start : plan[-1].keep_stop]

    def calls(self, queue: FrameQueue, plan: Sequence[Window]) -> list[WindowCall]:
        """The calls of a pass."""
        return [
            self.call_of(
                queue.x_FCHW[window.positions] if window.guidance else queue.x_FCHW[window.start : window.stop],
                queue,
                window,
            )
            for window in plan
        ]

    def call_of(self, x_FCHW: torch.Tensor, queue: FrameQueue, window: Window) -> WindowCall:
        """The call of one window, whose latents these are."""
        level_F = queue.level_F[window.positions]
        if self.pictures is not None:
            x_FCHW, level_F = self.pictures.show(x_FCHW, level_F, window.indices(queue.first))
        return WindowCall(x_FCHW, level_F, self.prompts.at(queue.first + window.keep_start))

    def kept_of(self, output_FCHW: torch.Tensor, queue: FrameQueue, window: Window) -> torch.Tensor:
        """The clean latents that a window keeps of the result of its call."""
        if self.pictures is not None:
            output_FCHW = self.pictures.keep(output_FCHW, window.indices(queue.first))
        return output_FCHW[window.kept]

    def apply(self, queue: FrameQueue, plan: Sequence[Window], outputs: Sequence[torch.Tensor]) -> FrameQueue:
        """What a pass keeps after its step, from the results of its calls."""
        clean = torch.cat([self.kept_of(output, queue, window) for output, window in zip(outputs, plan, strict=True)])
        return self.step(queue[plan[0].keep_start : plan[-1].keep_stop], clean)

    def step(self, queue: FrameQueue, clean_FCHW: torch.Tensor) -> FrameQueue:
        """Steps every latent of `queue` from its own level towards its predicted clean latent."""
        assert len(clean_FCHW) == len(queue), f"{len(clean_FCHW)} predictions for {len(queue)} latents"
        x, history = self.solver.step(queue.x_FCHW, queue.level_F, clean_FCHW, queue.history, self._step_noise(queue))
        return FrameQueue(x, queue.level_F - 1, history, queue.first)

    def fresh(self, x_FCHW: torch.Tensor, level_F: torch.Tensor, first: int) -> FrameQueue:
        """Latents that no step has been taken on."""
        return FrameQueue(x_FCHW, level_F, self.solver.fresh_history(x_FCHW), first)

    def noise_queue(self, first: int, count: int, level: int, purpose: str) -> FrameQueue:
        """`count` latents of pure noise, from index `first` in the video on."""
        noise = self.noise(purpose, range(first, first + count), self.candidate)
        return self.fresh(noise, torch.full((count,), level), first)

    def push_noise(self, queue: FrameQueue, count: int, level: int, purpose: str) -> FrameQueue:
        """The queue with `count` latents of pure noise behind it."""
        first = queue.first + len(queue)
        noise = self.noise(purpose, range(first, first + count), self.candidate).to(queue.like)
        return queue.append(self.fresh(noise, torch.full((count,), level), first))

    def push_renoised(
        self, queue: FrameQueue, clean_1CHW: torch.Tensor, count: int, level: int, purpose: str
    ) -> FrameQueue:
        """The queue with `count` copies of a clean latent behind it, each brought to a level by noise of its own."""
        first, level_F = queue.first + len(queue), torch.full((count,), level)
        noise_FCHW = self.noise(purpose, range(first, first + count), self.candidate).to(queue.like)
        x_FCHW = self.schedule.add_noise(clean_1CHW.to(queue.like), noise_FCHW, level_F)
        return queue.append(self.fresh(x_FCHW, level_F, first))

    def renoised(self, clean_FCHW: torch.Tensor, level: int | torch.Tensor, first: int) -> FrameQueue:
        """Clean latents brought to a level (or to one each), no step taken on them. Source: MIGA Eq. A1."""
        level_F = torch.as_tensor(level).expand(len(clean_FCHW))
        indices = range(first, first + len(clean_FCHW))
        noise = self.noise(f"{self.purpose}renoise", indices, self.candidate).to(clean_FCHW)
        return self.fresh(self.schedule.add_noise(clean_FCHW, noise, level_F), level_F.clone(), first)

    def _step_noise(self, queue: FrameQueue) -> torch.Tensor | None:
        if not self.solver.is_stochastic:
            return None
        levels = queue.level_F.tolist()
        groups = [list(group) for _, group in itertools.groupby(range(len(queue)), key=levels.__getitem__)]
        drawn = [
            self.noise(f"{self.purpose}step@{levels[group[0]]}", [queue.first + i for i in group], self.candidate)
            for group in groups
        ]
        return torch.cat(drawn).to(queue.x_FCHW)


@dataclass(frozen=True)
class Pass:
    """One pass that somebody else is to run.

    Attributes:
        stepper, queue, plan: what `Stepper.pass_over` takes.
        unkept: windows that are run beside those of the plan, for nothing.
    """

    stepper: Stepper
    queue: FrameQueue
    plan: Sequence[Window]
    unkept: Sequence[Window] = ()


PassSteps: TypeAlias = Generator[Pass, FrameQueue, FrameQueue]
"""A computation of several passes that yields each, is sent what it keeps, and returns a queue: whoever drives it may
drive several side by side."""


def run_steps(steps: PassSteps) -> FrameQueue:
    """Drives one computation to its end."""
    return run_steps_together([steps])[0]


def run_steps_together(all_steps: Sequence[PassSteps]) -> list[FrameQueue]:
    """Drives several computations side by side: the windows of all their passes of a round run together."""
    results: dict[int, FrameQueue] = {}
    answers: dict[int, FrameQueue | None] = dict.fromkeys(range(len(all_steps)))
    while answers:
        asked: dict[int, Pass] = {}
        for number, answer in answers.items():
            try:
                asked[number] = next(all_steps[number]) if answer is None else all_steps[number].send(answer)
            except StopIteration as stop:
                results[number] = stop.value
        if asked:
            passes = list(asked.values())
            answers = dict(zip(asked, passes[0].stepper.pass_over_all(passes), strict=True))
        else:
            answers = {}
    return [results[number] for number in range(len(all_steps))]
