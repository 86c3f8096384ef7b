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

from miga.anchors import Anchors
from miga.backbones.base import BranchedDenoiser, CachedDenoiser, Condition, Denoiser
from miga.cached_call import CachedCall
from miga.consistency import Judge, judge_consistency
from miga.guidance import is_contiguous, told_positions
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
        position_F: where each latent stands in time, int64, on the CPU (`PositionedDenoiser`); None: at 0, 1, 2, …
        cached: what of a cache the latents see (`CachedDenoiser`); None: the window is all.
    """

    x_FCHW: torch.Tensor
    level_F: torch.Tensor
    condition: Condition
    branch: int | None = None
    position_F: torch.Tensor | None = None
    cached: CachedCall | None = None


def run_call(denoiser: Denoiser, call: WindowCall) -> torch.Tensor:
    """Runs one call: predicted clean latents `[F, C, H, W]`, or what the network returned in the branch asked for.

    On a GPU it is done when this returns: other threads read it on streams of their own.
    """
    x_1FCHW, level_1F, conditions = call.x_FCHW[None], call.level_F[None], [call.condition]
    if call.cached is not None:
        assert isinstance(denoiser, CachedDenoiser), "only such a denoiser has a cache"
        output_FCHW = denoiser.call_cached(x_1FCHW, call.cached, conditions)[0]
    elif call.branch is None:
        output_FCHW = denoiser(x_1FCHW, level_1F, conditions, **positions_of([call]))[0]
    else:
        assert isinstance(denoiser, BranchedDenoiser), "only such a denoiser is asked for a branch"
        output_FCHW = denoiser.predict_branch(x_1FCHW, level_1F, conditions, call.branch, **positions_of([call]))[0]
    if output_FCHW.is_cuda:
        torch.cuda.current_stream(output_FCHW.device).synchronize()
    return output_FCHW


def positions_of(calls: Sequence[WindowCall]) -> dict[str, torch.Tensor]:
    """What a denoiser is told of the positions of a batch of calls of one length: nothing where all are contiguous."""
    if all(call.position_F is None for call in calls):
        return {}
    usual_F = torch.arange(len(calls[0].level_F))
    return {"position_BF": torch.stack([usual_F if call.position_F is None else call.position_F for call in calls])}


RunWindows: TypeAlias = Callable[[Sequence[WindowCall]], list[torch.Tensor]]
"""Runs independent calls; returns each one's predicted clean latents `[F, C, H, W]`, in order."""


def run_in_batches(denoiser: Denoiser, windows_per_batch: int = 1) -> RunWindows:
    """Runs the calls here, in order; so many windows of the same length together.

    At 1 the order of arithmetic is the same on every machine. In larger batches, results may differ in the last bits
    from those of other batch sizes.
    """

    def run(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        if any(call.cached is not None for call in calls):  # each writes what the next one reads
            return [run_call(denoiser, call) for call in calls]
        outputs: dict[int, torch.Tensor] = {}
        for numbers in _batches(calls, windows_per_batch):
            batch = [calls[number] for number in numbers]
            clean_BFCHW = denoiser(
                torch.stack([call.x_FCHW for call in batch]),
                torch.stack([call.level_F for call in batch]),
                [call.condition for call in batch],
                **positions_of(batch),
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
class Shown:
    """What a window shows of a queue and beside it.

    Attributes:
        level_F: of every latent, anchors first.
        position_F: see `WindowCall`.
        anchors: those it shows, each with the level that it is shown at; a picture before all others.
        at_level: brings one there.
    """

    level_F: torch.Tensor
    position_F: torch.Tensor | None
    anchors: Sequence[tuple[FrameQueue, int]]
    at_level: Callable[[FrameQueue, int], torch.Tensor]

    def before(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """The latents of a window with its anchors before them."""
        if not self.anchors:
            return x_FCHW
        return torch.cat([*(self.at_level(anchor, level) for anchor, level in self.anchors), x_FCHW])


@dataclass(frozen=True)
class Stepper:
    """What a pass needs beside queue and plan: schedule, solver, prompts, noise, and who runs the windows.

    Attributes:
        purpose: what its noise is named by, beside the step: searches and second denoisings meet a latent at a level
            where another pass has met it.
        candidate: which candidate of a search its noise is for.
        part: which part of the method its passes are, for whoever reads the plan (`plan.py`).
        judge: answers the evaluations of searches.
        max_gap: see `miga.guidance.told_positions`; at 1 positions are contiguous.
        noises_anchors: whether clean anchors are shown at the level of the cleanest latent that the window takes from
            the queue; else at level 0.
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
    max_gap: int = 1
    noises_anchors: bool = False
    pictures: WindowPictures | None = None

    def in_part(self, part: str) -> Stepper:
        """The same, its passes those of another part."""
        return replace(self, part=part)

    def named(self, purpose: str, candidate: int = 0) -> Stepper:
        """The same, its noise under another name."""
        return replace(self, purpose=purpose, candidate=candidate)

    def pass_over(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors = ()) -> FrameQueue:
        """Takes what `plan` keeps one level down.

        Args:
            queue: the latents, with whatever context the windows see before and behind those they keep.
            plan: windows, in order, whose kept ranges follow one another without a gap.
            anchors: latents beside the queue that windows are shown (`Window.anchors`).

        Returns:
            The kept latents after their step; context is left out.
        """
        return self.apply(queue, plan, self.run_windows(self.calls(queue, plan, anchors)))

    def pass_cached(self, queue: FrameQueue, cached: CachedCall | None, next_sigmas: Sequence[float]) -> FrameQueue:
        """Latents of a cache's call one level down: predicted clean, and noised afresh to their next noise scales.

        Args:
            queue: the latents of the call.
            cached: what they see.
            next_sigmas: of every latent; 0: it is clean then.
        """
        call = WindowCall(queue.x_FCHW, queue.level_F, self.prompts.at(queue.first), cached=cached)
        clean_FCHW = self.run_windows([call])[0]
        sigma_F = torch.tensor(next_sigmas, dtype=torch.float32, device=clean_FCHW.device)[:, None, None, None]
        noise_FCHW = torch.zeros_like(clean_FCHW)
        for level, group in itertools.groupby(range(len(queue)), key=queue.level_F.tolist().__getitem__):
            places = list(group)
            if next_sigmas[places[0]] > 0.0:
                latents = [queue.first + place for place in places]
                noise_FCHW[places] = self.noise(f"step@{level}", latents).to(noise_FCHW)
        x_FCHW = (1.0 - sigma_F) * clean_FCHW + sigma_F * noise_FCHW
        return FrameQueue(x_FCHW, queue.level_F - 1, {}, queue.first)

    def show_cached(self, queue: FrameQueue, cached: CachedCall | None) -> None:
        """A cache's call whose prediction nobody reads: its keys and values are what it is for."""
        self.run_windows([WindowCall(queue.x_FCHW, queue.level_F, self.prompts.at(queue.first), cached=cached)])

    def pass_over_all(self, passes: Sequence[Pass]) -> list[FrameQueue]:
        """What several passes keep, each of its own stepper; their windows are handed over as one list."""
        calls = [each.stepper.calls(each.queue, [*each.unkept, *each.plan], each.anchors) for each in passes]
        outputs = iter(self.run_windows([call for of_pass in calls for call in of_pass]))
        kept = []
        for each, of_pass in zip(passes, calls, strict=True):
            of_plan = list(itertools.islice(outputs, len(of_pass)))[len(each.unkept) :]
            kept.append(each.stepper.apply(each.queue, each.plan, of_plan))
        return kept

    def pass_in_place(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors = ()) -> FrameQueue:
        """The same, but every window sees what the ones before it have written, levels too: one after the other."""
        for window in plan:
            kept = slice(window.keep_start, window.keep_stop)
            stepped = self.pass_over(queue, [window], anchors)
            queue = queue[: kept.start].append(stepped).append(queue[kept.stop :])
        return queue[plan[0].keep_start : plan[-1].keep_stop]

    def calls(self, queue: FrameQueue, plan: Sequence[Window], anchors: Anchors = ()) -> list[WindowCall]:
        """The calls of a pass."""
        calls = []
        for window in plan:
            x_FCHW = queue.x_FCHW[window.positions] if window.guidance else queue.x_FCHW[window.start : window.stop]
            calls.append(self.call_of(x_FCHW, queue.first, window, self.shown(queue, window, anchors)))
        return calls

    def shown(self, queue: FrameQueue, window: Window, anchors: Anchors) -> Shown:
        """What a window shows, levels and positions; no latent is looked at."""
        level_F = queue.level_F[window.positions]
        chosen = [anchors[number] for number in window.anchors]
        cleanest = int(level_F.min())
        told = cleanest if self.noises_anchors else 0  # of clean ones
        levels = [told if self._is_clean(anchor) else int(anchor.level_F[0]) for anchor in chosen]
        places = [*(anchor.first for anchor in chosen), *window.indices(queue.first)]
        before_1CHW = None if self.pictures is None else self.pictures.before(places)
        if before_1CHW is not None:
            picture = FrameQueue(before_1CHW.to(queue.like), torch.zeros(1, dtype=torch.int64), {})
            chosen, levels, places = [picture, *chosen], [cleanest, *levels], [picture.first, *places]
        position_F = None
        if self.max_gap > 1:
            positions = told_positions(places, self.max_gap)
            position_F = None if is_contiguous(positions) else torch.tensor(positions)
        if chosen:
            level_F = torch.cat([torch.tensor(levels), level_F])
        return Shown(level_F, position_F, [*zip(chosen, levels, strict=True)], self.at_level)

    def at_level(self, anchor: FrameQueue, level: int) -> torch.Tensor:
        """An anchor `[1, C, H, W]` as a window shows it: as it is, or, if it is clean, noised to a level.

        Its noise is the same at whatever level and in whatever pass.
        """
        if level in (0, int(anchor.level_F[0])):
            return anchor.x_FCHW
        noise_1CHW = self.noise("anchor", [anchor.first]).to(anchor.like)
        return self.schedule.add_noise(anchor.x_FCHW, noise_1CHW, torch.tensor([level]))

    def _is_clean(self, anchor: FrameQueue) -> bool:
        """Whether no step could take noise off it any more; some schedules have two such levels (decisions/0009)."""
        return bool(self.schedule.sigma[anchor.level_F[0]] == self.schedule.sigma[0])

    def call_of(self, x_FCHW: torch.Tensor, first: int, window: Window, shown: Shown) -> WindowCall:
        """The call of one window, whose latents these are, of a queue whose head is latent `first` of the video."""
        x_FCHW, level_F = shown.before(x_FCHW), shown.level_F
        if self.pictures is not None:
            beside = [anchor.first for anchor, _ in shown.anchors]
            x_FCHW, level_F = self.pictures.show(x_FCHW, level_F, [*beside, *window.indices(first)])
        return WindowCall(x_FCHW, level_F, self.prompts.at(first + window.keep_start), position_F=shown.position_F)

    def kept_of(self, output_FCHW: torch.Tensor, first: int, window: Window) -> torch.Tensor:
        """The clean latents that a window keeps of the result of its call."""
        own_FCHW = output_FCHW[len(output_FCHW) - len(window.positions) :]  # beside them stand anchors, and a picture
        if self.pictures is not None:
            own_FCHW = self.pictures.keep(own_FCHW, window.indices(first))
        return own_FCHW[window.kept]

    def apply(self, queue: FrameQueue, plan: Sequence[Window], outputs: Sequence[torch.Tensor]) -> FrameQueue:
        """What a pass keeps after its step, from the results of its calls."""
        pairs = zip(outputs, plan, strict=True)
        clean = torch.cat([self.kept_of(output, queue.first, window) for output, window in pairs])
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
        anchors: latents beside the queue.
    """

    stepper: Stepper
    queue: FrameQueue
    plan: Sequence[Window]
    unkept: Sequence[Window] = ()
    anchors: Anchors = ()


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
