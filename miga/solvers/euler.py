"""The first-order step of the probability flow, with one clock per latent.

On a flow schedule it is Euler's: `x + (sigma' - sigma) * velocity`, the velocity being `(x - clean) / sigma`. On a
variance-preserving one it is DDIM's at eta 0. Both are

    x' = alpha' * clean + sigma' / sigma * (x - alpha * clean).

Source: Lipman et al., "Flow Matching for Generative Modeling"; Song et al., "Denoising Diffusion Implicit Models";
decisions/0007.

Legend: F latents, C channels, H, W latent cells; `level_F` int64, the steps a latent still has to take.
"""

from __future__ import annotations

import torch

from miga.queue import History
from miga.schedule import NoiseSchedule
from miga.solvers.base import WithoutHistory
from miga.solvers.linear import table_of_steps, weighted_sum


class EulerSolver(WithoutHistory):
    """A `Solver` for any schedule, one whose pure noise has signal scale 0 included.

    Args:
        schedule: the levels to step through.
    """

    is_stochastic = False

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        ratio = schedule.sigma[:-1] / schedule.sigma[1:]
        self._weights = table_of_steps(ratio, schedule.alpha[:-1] - schedule.alpha[1:] * ratio)  # of x and clean

    def step(
        self,
        x_FCHW: torch.Tensor,
        level_F: torch.Tensor,
        clean_FCHW: torch.Tensor,
        history: History,
        noise_FCHW: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, History]:
        """See `Solver.step`."""
        return weighted_sum(self._weights[level_F.to(self._weights.device)], x_FCHW, clean_FCHW), history
