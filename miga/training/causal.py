"""How weights become causal, and few-step: who sees whom in training, and what is learnt. All pure.

Stage A, teacher forcing: the network is shown a clip twice, clean and noised, and a noised block sees itself and the
clean blocks before it. Stage B, consistency distillation: from a noised clip the student predicts what its own slow
average predicts one small step of the teacher further down. The same without a clean half makes few-step weights for
windows. Stage C, distribution matching: what the student makes by itself is moved to where a guided teacher finds it
more likely than a critic does, which learns all the while what the student makes.

Source: Causal Forcing (teacher forcing, then causal consistency distillation on 48 grid points); Self-Forcing's "TF"
and its training on own rollouts; DMD (arXiv 2311.18828).

Legend: B clips, F latents, C channels, H, W cells; s is sigma, v the velocity e - x0 of noise e and clean latents x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import torch

from miga.schedule import shifted

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
    return shifted(even, flow_shift)


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


def matching_loss(
    made_BFCHW: torch.Tensor,
    real: Velocity,
    fake: Velocity,
    noise_BFCHW: torch.Tensor,
    sigma_B: torch.Tensor,
) -> torch.Tensor:
    """A loss whose gradient moves clips to where the teacher finds them more likely than the critic does.

    Both predict the clean clip from the noised one. Their difference, over how far the teacher's prediction is from the
    clip, is the gradient (DMD, Eq. 7 and 8); the number itself is no measure of progress.

    Args:
        made_BFCHW: what the student made; its gradient flows.
        real: the teacher, with guidance.
        fake: the critic.
        noise_BFCHW: to noise the clips with.
        sigma_B: of each clip.
    """
    fixed_BFCHW, sigma_BF = made_BFCHW.detach(), sigma_B[:, None].expand(made_BFCHW.shape[:2])
    with torch.no_grad():
        x_BFCHW = noised(fixed_BFCHW, noise_BFCHW, sigma_BF)
        real_BFCHW, fake_BFCHW = (x_BFCHW - _wide(sigma_BF) * of(x_BFCHW, sigma_BF) for of in (real, fake))
        distance_B = (fixed_BFCHW - real_BFCHW).abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
        wanted_BFCHW = fixed_BFCHW - (fake_BFCHW - real_BFCHW) / distance_B
    return 0.5 * (made_BFCHW - wanted_BFCHW).square().mean()


def denoising_loss(
    velocity: Velocity, clean_BFCHW: torch.Tensor, noise_BFCHW: torch.Tensor, sigma_B: torch.Tensor
) -> torch.Tensor:
    """Flow matching: the squared error of the predicted velocity, at one level a clip."""
    sigma_BF = sigma_B[:, None].expand(clean_BFCHW.shape[:2])
    predicted_BFCHW = velocity(noised(clean_BFCHW, noise_BFCHW, sigma_BF), sigma_BF)
    return (predicted_BFCHW - (noise_BFCHW - clean_BFCHW)).square().mean()


def _wide(value_BF: torch.Tensor) -> torch.Tensor:
    return value_BF[:, :, None, None, None]
