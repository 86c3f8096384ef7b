"""DDIM with one clock per latent: from the deterministic step (eta 0) to ancestral sampling (eta 1).

Source: Song et al., "Denoising Diffusion Implicit Models", Eq. 12 and 16; decisions/0007.

Legend: F latents, C channels, H, W latent cells; `level_F` int64, the steps a latent still has to take.
"""

from __future__ import annotations

import torch

from miga.queue import History
from miga.schedule import NoiseSchedule
from miga.solvers.base import WithoutHistory
from miga.solvers.linear import require_noise, table_of_steps, weighted_sum


class DDIMSolver(WithoutHistory):
    """A `Solver` for any schedule.

    With `a = alpha^2` of a variance-preserving schedule a step from level r to r - 1 ("prev") adds noise of

        eta * sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev)).

    That is `eta` times the spread of the diffusion's own step back, given the clean latent. Written as it is here,
    `eta * sigma_prev * sqrt(1 - k^2)` with `k = (alpha * sigma_prev) / (alpha_prev * sigma)`, it holds for flow
    schedules as well: whatever eta, what comes out has the signal and the noise scale of level r - 1.

    Args:
        schedule: the levels to step through.
        eta: 0 (no noise; the step is then `EulerSolver`'s) to 1.
        scale: factor on the signal scale by level, `[T + 1]`, for backbones trained with one (`ddim_signal_scale` for
            VideoCrafter2's `use_scale`). The clean latents passed to `step` must have been predicted with it, from
            `x = alpha * scale * clean + sigma * noise`. The noise of a step does not depend on it. None: 1.

    Raises:
        ValueError: if eta is not within 0 and 1, or scale is not a table over the schedule's levels.
    """

    def __init__(self, schedule: NoiseSchedule, eta: float = 0.0, scale: torch.Tensor | None = None) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(
                f"eta = {eta!r} of solver 'ddim' is out of range: it must be 0 (deterministic) to 1 (ancestral)"
            )
        if scale is not None and scale.shape != schedule.alpha.shape:
            raise ValueError(
                f"scale of solver 'ddim' has shape {list(scale.shape)}: it must hold one factor per level 0 ... T, "
                f"{list(schedule.alpha.shape)}"
            )
        self.schedule = schedule
        self.eta = eta
        self.is_stochastic = eta > 0.0
        self._weights = _weights(schedule, eta, scale)

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
            ValueError: if eta > 0 and there is no noise.
        """
        weights_FK = self._weights[level_F.to(self._weights.device)]
        if not self.is_stochastic:
            return weighted_sum(weights_FK[:, :2], x_FCHW, clean_FCHW), history
        return weighted_sum(weights_FK, x_FCHW, clean_FCHW, require_noise(noise_FCHW, "ddim")), history


def _weights(schedule: NoiseSchedule, eta: float, scale: torch.Tensor | None) -> torch.Tensor:
    """Weights `[level, 3]` in float64 of `x`, `clean` and noise."""
    alpha, alpha_prev = schedule.alpha[1:], schedule.alpha[:-1]
    sigma, sigma_prev = schedule.sigma[1:], schedule.sigma[:-1]
    k = alpha * sigma_prev / (alpha_prev * sigma)
    noise = eta * sigma_prev * (1.0 - k**2).clamp(min=0.0).sqrt()
    direction = (sigma_prev**2 - noise**2).clamp(min=0.0).sqrt() / sigma  # of x less its signal
    signal = schedule.alpha if scale is None else schedule.alpha * scale.to(schedule.alpha)
    return table_of_steps(direction, signal[:-1] - signal[1:] * direction, noise)
