"""UniPC of order 2 (B2(h), predicting the clean latent), with one clock per latent.

Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", as in diffusers' `UniPCMultistepScheduler`.

The corrector and the predictor of a step are both linear in the latents involved, and the corrector's starting point is
what the predictor returned the step before, less a known multiple of the difference of two predictions. So a whole step
is one sum of four latents,

    x' = c0 * x + c1 * clean + c2 * previous + c3 * before_previous,

whose weights depend only on the level and on how many steps the latent has taken (0, 1, or 2 and more): a table, looked
up for every latent at its own level. Beside its own value a latent carries two earlier predictions, and nothing else.

Legend: F latents, C channels, H, W latent cells; `level_F` int64, the steps a latent still has to take.
"""

from __future__ import annotations

import math

import torch

from miga.queue import History
from miga.schedule import NoiseSchedule
from miga.solvers.linear import weighted_sum

MAX_ORDER = 2


class UniPCSolver:
    """A `Solver` for schedules whose signal scale is never 0.

    Args:
        schedule: the levels to step through.

    Raises:
        ValueError: if a level has no signal at all, as pure noise in `flow_euler_schedule` and `few_step_schedule`.
    """

    is_stochastic = False

    def __init__(self, schedule: NoiseSchedule) -> None:
        if bool((schedule.alpha <= 0.0).any()):
            raise ValueError(
                "solver 'unipc' steps in the logarithm of the signal-to-noise ratio, and this schedule has a level of "
                "signal scale 0: take flow_unipc_schedule, whose pure noise keeps 1e-6, or solver 'euler' or 'renoise'"
            )
        self.schedule = schedule
        self._weights = _weights(schedule.alpha.tolist(), schedule.sigma.tolist())  # [level, steps taken, 4]

    def fresh_history(self, x_FCHW: torch.Tensor) -> History:
        """No steps taken, no predictions."""
        return {
            "num_taken": torch.zeros(len(x_FCHW), dtype=torch.int64, device=x_FCHW.device),
            "previous": torch.zeros_like(x_FCHW),
            "before_previous": torch.zeros_like(x_FCHW),
        }

    def step(
        self,
        x_FCHW: torch.Tensor,
        level_F: torch.Tensor,
        clean_FCHW: torch.Tensor,
        history: History,
        noise_FCHW: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, History]:
        """See `Solver.step`. A latent's first step is of order 1 and uncorrected, its last (to level 0) of order 1."""
        weights = self._weights.to(x_FCHW.device)[level_F.to(x_FCHW.device), history["num_taken"]]  # [F, 4]
        x = weighted_sum(weights, x_FCHW, clean_FCHW, history["previous"], history["before_previous"])
        return x, {
            "num_taken": (history["num_taken"] + 1).clamp(max=MAX_ORDER),
            "previous": clean_FCHW,
            "before_previous": history["previous"],
        }


def _weights(alpha: list[float], sigma: list[float]) -> torch.Tensor:
    """Weights `[level, steps taken, 4]` in float64 of `x`, `clean`, `previous` and `before_previous`."""
    weights = torch.full((len(sigma), MAX_ORDER + 1, 4), torch.nan, dtype=torch.float64)  # NaN: no such step
    for level in range(1, len(sigma)):
        for num_taken in range(min(MAX_ORDER, len(sigma) - 1 - level) + 1):
            corrected = _corrected(alpha, sigma, level, num_taken)
            order = 1 if level == 1 or num_taken == 0 else 2
            ratio = sigma[level - 1] / sigma[level]
            predicted = _predicted(alpha, sigma, level, order)
            weights[level, num_taken] = ratio * corrected + predicted
    return weights


def _gain(alpha: list[float], sigma: list[float], level: int) -> float:
    """Weight of the clean latent in the first-order step from `level`: finite also where that step ends at sigma 0."""
    return alpha[level - 1] - alpha[level] * sigma[level - 1] / sigma[level]


def _log_snr(alpha: list[float], sigma: list[float], level: int) -> float:
    return math.log(alpha[level]) - math.log(sigma[level])


def _predicted(alpha: list[float], sigma: list[float], level: int, order: int) -> torch.Tensor:
    """What the predictor from `level` adds to `ratio * x`."""
    gain = _gain(alpha, sigma, level)
    if order == 1:
        return torch.tensor([0.0, gain, 0.0, 0.0], dtype=torch.float64)
    now = _log_snr(alpha, sigma, level)
    span = _log_snr(alpha, sigma, level - 1) - now
    slope = 0.5 * gain * span / (_log_snr(alpha, sigma, level + 1) - now)
    return torch.tensor([0.0, gain - slope, slope, 0.0], dtype=torch.float64)


def _corrected(alpha: list[float], sigma: list[float], level: int, order: int) -> torch.Tensor:
    """The corrected latent at `level`, where the predictor's last step, to `level`, was of that order (0: none).

    Solves `sum_k rho_k * r_k^(i-1) = b_i` for the corrector's weights and takes off what the predictor put in.
    """
    if order == 0:
        return torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    gain = _gain(alpha, sigma, level + 1)
    if order == 1:
        return torch.tensor([1.0, 0.5 * gain, -0.5 * gain, 0.0], dtype=torch.float64)
    before = _log_snr(alpha, sigma, level + 1)
    span = _log_snr(alpha, sigma, level) - before
    r = (_log_snr(alpha, sigma, level + 2) - before) / span
    scale = math.expm1(-span)
    phi_2 = scale / -span - 1.0
    phi_3 = phi_2 / -span - 0.5
    b_1, b_2 = phi_2 / scale, 2.0 * phi_3 / scale
    rho_1 = (b_1 - b_2) / (1.0 - r)
    rho_2 = b_1 - rho_1
    slope = gain * (rho_1 - 0.5) / r
    return torch.tensor([1.0, gain * rho_2, -slope - gain * rho_2, slope], dtype=torch.float64)
