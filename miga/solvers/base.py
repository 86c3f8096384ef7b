"""What the sampler knows of a solver: a pure step in which every latent moves on from its own level.

Legend: F latents, C channels, H, W latent cells; `level_F` int64, the steps a latent still has to take.
"""

from __future__ import annotations

from typing import Protocol

import torch

from miga.queue import History


class Solver(Protocol):
    """Takes latents one level down. Pure: no argument is changed, though results may share memory with them.

    Attributes:
        is_stochastic: whether `step` reads `noise_FCHW`.
    """

    is_stochastic: bool

    def fresh_history(self, x_FCHW: torch.Tensor) -> History:
        """The history of latents that have not been stepped yet, at whatever level they enter."""
        ...

    def step(
        self,
        x_FCHW: torch.Tensor,
        level_F: torch.Tensor,
        clean_FCHW: torch.Tensor,
        history: History,
        noise_FCHW: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, History]:
        """The latents one level further down, and their history.

        Args:
            x_FCHW: the latents, as the solver last returned them (or as they entered).
            level_F: each latent's level, 1 or above; the result is at `level_F - 1`.
            clean_FCHW: the clean latents that the network predicts from them.
            history: of these latents.
            noise_FCHW: standard normal noise; only stochastic solvers read it.
        """
        ...


class WithoutHistory:
    """The part of a `Solver` whose step depends on nothing but the latent and its prediction."""

    def fresh_history(self, x_FCHW: torch.Tensor) -> History:
        """None is kept."""
        return {}
