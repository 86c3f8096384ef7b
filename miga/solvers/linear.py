"""What all steps have in common: each is a weighted sum of latents, its weights a table over levels.

Legend: F latents, C channels, H, W latent cells, K terms.
"""

from __future__ import annotations

import torch


def weighted_sum(weights_FK: torch.Tensor, *terms_FCHW: torch.Tensor) -> torch.Tensor:
    """`sum_k weights_FK[:, k] * terms_FCHW[k]` in new memory, one pass over it per term.

    The weights are rounded to the latents' dtype only here, so that tables stay float64.
    """
    first, *others = terms_FCHW
    weights_KF111 = weights_FK.to(first.device, first.dtype).T[..., None, None, None]
    total_FCHW = weights_KF111[0] * first
    for weight_F111, term_FCHW in zip(weights_KF111[1:], others, strict=True):
        total_FCHW.addcmul_(weight_F111, term_FCHW)
    return total_FCHW


def table_of_steps(*columns: torch.Tensor) -> torch.Tensor:
    """Weights `[level, K]` from columns over levels `1 ... T`; level 0, from which there is no step, is NaN."""
    weights = torch.stack(columns, dim=1)
    return torch.cat([torch.full_like(weights[:1], torch.nan), weights])


def require_noise(noise_FCHW: torch.Tensor | None, solver: str) -> torch.Tensor:
    """The noise of a stochastic step.

    Raises:
        ValueError: if there is none.
    """
    if noise_FCHW is None:
        raise ValueError(
            f"solver {solver!r} is stochastic and was given no noise: pass noise_FCHW, standard normal and of the "
            "shape of x_FCHW (`is_stochastic` says which solvers need it)"
        )
    return noise_FCHW
