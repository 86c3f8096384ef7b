"""One pass: every latent of a queue one level down. Source: MIGA Alg. 3 and 7, decisions/0001.

A pass reads a snapshot: all windows see the latents and levels from before it, and only then is anything written. So
the windows are independent, and whoever runs them (`RunWindows`) may batch them or send them to other GPUs.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from miga.backbones.base import Condition, Denoiser
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.schedule import NoiseSchedule
from miga.solvers.base import Solver
from miga.windows import Window


@dataclass(frozen=True)
class WindowCall:
    """One call of the network: at most `f0` latents, the level of each, one condition."""

    x_FCHW: torch.Tensor
    level_F: torch.Tensor
    condition: Condition


RunWindows: TypeAlias = Callable[[Sequence[WindowCall]], list[torch.Tensor]]
"""Runs independent calls; returns each one's predicted clean latents `[F, C, H, W]`, in order."""


def run_one_by_one(denoiser: Denoiser) -> RunWindows:
    """Runs the calls here, one after the other: the order of arithmetic is the same on every machine."""

    def run(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        return [denoiser(call.x_FCHW[None], call.level_F[None], [call.condition])[0] for call in calls]

    return run


@dataclass(frozen=True)
class Stepper:
    """What a pass needs beside queue and plan: schedule, solver, prompts, noise, and who runs the windows."""

    schedule: NoiseSchedule
    solver: Solver
    prompts: PromptTrack
    noise: NoiseSource
    run_windows: RunWindows

    def pass_over(self, queue: FrameQueue, plan: Sequence[Window]) -> FrameQueue:
        """Takes what `plan` keeps one level down.

        Args:
            queue: the latents, with whatever context the windows see before and behind those they keep.
            plan: windows, in order, whose kept ranges follow one another without a gap.

        Returns:
            The kept latents after their step; context is left out.
        """
        calls = [
            WindowCall(
                x_FCHW=queue.x_FCHW[window.positions],
                level_F=queue.level_F[window.positions],
                condition=self.prompts.at(queue.first + window.keep_start),
            )
            for window in plan
        ]
        outputs = self.run_windows(calls)
        clean = torch.cat([output[window.kept] for output, window in zip(outputs, plan, strict=True)])
        return self.step(queue[plan[0].keep_start : plan[-1].keep_stop], clean)

    def step(self, queue: FrameQueue, clean_FCHW: torch.Tensor) -> FrameQueue:
        """Steps every latent of `queue` from its own level towards its predicted clean latent."""
        assert len(clean_FCHW) == len(queue), f"{len(clean_FCHW)} predictions for {len(queue)} latents"
        x, history = self.solver.step(queue.x_FCHW, queue.level_F, clean_FCHW, queue.history, self._step_noise(queue))
        return FrameQueue(x, queue.level_F - 1, history, queue.first)

    def fresh(self, x_FCHW: torch.Tensor, level_F: torch.Tensor, first: int) -> FrameQueue:
        """Latents that no step has been taken on."""
        return FrameQueue(x_FCHW, level_F, self.solver.fresh_history(x_FCHW), first)

    def push_noise(self, queue: FrameQueue, count: int, level: int, purpose: str, candidate: int = 0) -> FrameQueue:
        """The queue with `count` latents of pure noise behind it."""
        end = queue.first + len(queue)
        noise = self.noise(purpose, range(end, end + count), candidate).to(queue.x_FCHW)
        return queue.append(self.fresh(noise, torch.full((count,), level), end))

    def _step_noise(self, queue: FrameQueue) -> torch.Tensor | None:
        if not self.solver.is_stochastic:
            return None
        return torch.cat(
            [
                self.noise(f"step@{int(level)}", [index])
                for index, level in zip(queue.indices, queue.level_F, strict=True)
            ]
        ).to(queue.x_FCHW)
