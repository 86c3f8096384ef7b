"""How weights become causal, and few-step: who sees whom in training, and what is learnt. All pure.

Stage A, teacher forcing: the network is shown a clip twice, clean and noised, and a noised block sees itself and the
clean blocks before it. Stage B, consistency distillation: from a noised clip the student predicts what its own slow
average predicts one small step of the teacher further down. The same without a clean half makes few-step weights for
windows. Stage C, ODE regression: the student predicts where the teacher's guided steps lead.

Source: Causal Forcing (teacher forcing, then causal consistency distillation on 48 grid points); Self-Forcing's "TF";
CausVid (ODE regression).

Legend: B clips, F latents, C channels, H, W cells; s is sigma, v the velocity e - x0 of noise e and clean latents x0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch

Velocity: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of noised latents `[B, F, C, H, W]` and their sigmas `[B, F]`: v."""

NUM_GRID: Final = 48
"""Points of the schedule that distillation steps between."""


def teacher_forcing_mask(num_latents: int, block: int) -> torch.Tensor:
    """Who sees whom in a sequence `[clean | noised]` of a clip, bool `[2F, 2F]`; rows see columns.

    A clean block sees the clean blocks up to itself, a noised one the clean blocks before it and itself.
    """
    of_F = torch.arange(num_latents) // block
    clean_FF = of_F[:, None] >= of_F
    before_FF, own_FF = of_F[:, None] > of_F, of_F[:, None] == of_F
    nothing_FF = torch.zeros_like(own_FF)
    return torch.cat([torch.cat([clean_FF, nothing_FF], 1), torch.cat([before_FF, own_FF], 1)])


def shown_latents(num_latents: int, window: int, block: int, choice: float) -> tuple[list[int], list[int]]:
    """Which latents of a longer clip a training window shows, and which of them are learnt from.

    The clip's beginning, or its first block (the sink) and later ones that follow one another: what a cache holds that
    has let the latents between go. Of the latter only the last block is learnt from: others lack what was before them.

    Args:
        num_latents: of the clip.
        window: latents that are shown, whole blocks.
        block: latents of a block.
        choice: 0 to 1, by which one is chosen.

    Returns:
        Indices in the clip, and positions among them.
    """
    num_shown = window // block
    gap = int(choice * (num_latents // block - num_shown + 1))
    blocks = [0, *range(1 + gap, num_shown + gap)]
    learnt = range(window - block, window) if gap else range(window)
    return [block * each + within for each in blocks for within in range(block)], list(learnt)


def block_sigmas(num_latents: int, block: int, draw_BN: torch.Tensor, flow_shift: float = 1.0) -> torch.Tensor:
    """A sigma a block, for all of its latents: logit-normal, of standard normal draws `[B, blocks]`; `[B, F]`.

    `flow_shift` moves all of them up as it moves a schedule: `s -> shift s / (1 + (shift - 1) s)` adds `ln shift` to
    the logit.
    """
    return torch.sigmoid(0.4 + math.log(flow_shift) + 1.3 * draw_BN).repeat_interleave(block, 1)[:, :num_latents]


def grid_sigmas(flow_shift: float, num_points: int = NUM_GRID) -> torch.Tensor:
    """Sigmas from 1 down to 0, float32 `[points + 1]`, evenly spaced before the shift."""
    even = torch.linspace(1.0, 0.0, num_points + 1)
    return flow_shift * even / (1.0 + (flow_shift - 1.0) * even)


def noised(clean_BFCHW: torch.Tensor, noise_BFCHW: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
    """`(1 - s) x0 + s e`."""
    return torch.lerp(clean_BFCHW, noise_BFCHW, _wide(sigma_BF))


def consistency_loss(
    student: Velocity,
    target: Velocity,
    teacher: Velocity,
    x_BFCHW: torch.Tensor,
    sigma_B: torch.Tensor,
    next_B: torch.Tensor,
    learnt: Sequence[int],
) -> torch.Tensor:
    """Squared distance of two predicted clean clips: the student's, and its average's one step of the teacher on.

    Args:
        student: learns.
        target: its slow average.
        teacher: takes the step, with guidance.
        x_BFCHW: noised clips.
        sigma_B: of each.
        next_B: of each after the step; at 0 what the step gives is the clean clip.
        learnt: latents that count.
    """
    sigma_BF, next_BF = (each[:, None].expand(x_BFCHW.shape[:2]) for each in (sigma_B, next_B))
    with torch.no_grad():
        stepped_BFCHW = x_BFCHW + _wide(next_BF - sigma_BF) * teacher(x_BFCHW, sigma_BF)
        wanted_BFCHW = stepped_BFCHW - _wide(next_BF) * target(stepped_BFCHW, next_BF)
    predicted_BFCHW = x_BFCHW - _wide(sigma_BF) * student(x_BFCHW, sigma_BF)
    return (predicted_BFCHW - wanted_BFCHW)[:, list(learnt)].square().mean()


@torch.no_grad()
def ode_end(teacher: Velocity, x_BFCHW: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Where Euler steps of the teacher lead: the clean latents that noised ones belong to.

    Args:
        teacher: with guidance, if there is to be any.
        x_BFCHW: latents at the first of the sigmas.
        sigmas: from theirs down to the last; 0 for clean ones.
    """
    for sigma, next_sigma in itertools.pairwise(sigmas):
        sigma_BF = torch.full(x_BFCHW.shape[:2], sigma, device=x_BFCHW.device)
        x_BFCHW = x_BFCHW + (next_sigma - sigma) * teacher(x_BFCHW, sigma_BF)
    return x_BFCHW


def regression_loss(
    student: Velocity, x_BFCHW: torch.Tensor, sigma: float, target_BFCHW: torch.Tensor, learnt: Sequence[int]
) -> torch.Tensor:
    """Squared distance of the predicted clean clip from a given one.

    Args:
        student: learns.
        x_BFCHW: noised clips.
        sigma: of all of them.
        target_BFCHW: clean ones.
        learnt: latents that count.
    """
    sigma_BF = torch.full(x_BFCHW.shape[:2], sigma, device=x_BFCHW.device)
    error_BFCHW = x_BFCHW - sigma * student(x_BFCHW, sigma_BF) - target_BFCHW
    return error_BFCHW[:, list(learnt)].square().mean()


def _wide(value_BF: torch.Tensor) -> torch.Tensor:
    return value_BF[:, :, None, None, None]
