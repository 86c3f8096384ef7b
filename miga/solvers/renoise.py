"""The step of step-distilled models: predict the clean latent, noise it afresh to the next level.

    x' = alpha' * clean + sigma' * noise

Nothing of `x` is kept beside what the network made of it. Where level 0 has no noise the last step is the prediction.

For networks whose prediction is a *sample* of the clean latents (distilled and consistency models). An ordinary network
predicts their mean, which varies less than they do: renoised again and again, detail is lost. Those take `ddim` with
eta 1.

Source: Song et al., "Consistency Models", Alg. 1; Yin et al., "Improved Distribution Matching Distillation", sec. 4.4;
decisions/0007.

Legend: F latents, C channels, H, W latent cells; `level_F` int64, the steps a latent still has to take.
"""

from __future__ import annotations

import torch

from miga.queue import History
from miga.schedule import NoiseSchedule
from miga.solvers.base import WithoutHistory
from miga.solvers.linear import require_noise, table_of_steps, weighted_sum


class RenoiseSolver(WithoutHistory):
    """A `Solver` for any schedule, one whose pure noise has signal scale 0 included.

    Args:
        schedule: the levels to step through, for a distilled model its own short list (`few_step_schedule`).
    """

    is_stochastic = True

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self._weights = table_of_steps(schedule.alpha[:-1], schedule.sigma[:-1])  # of clean and noise

    def step(
        self,
        x_FCHW: torch.Tensor,
        level_F: torch.Tensor,
        clean_FCHW: torch.Tensor,
        history: History,
        noise_FCHW: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, History]:
        """See `Solver.step`.

        Raises:
            ValueError: if there is no noise.
        """
        weights_FK = self._weights[level_F.to(self._weights.device)]
        return weighted_sum(weights_FK, clean_FCHW, require_noise(noise_FCHW, "renoise")), history
