"""Stage C of making the sprite world's denoiser causal: the student learns from what it makes by itself.

It rolls out a window block by block, before a cache of its own blocks as in use, and stops each block after some of its
few steps: what it predicts there is taken for clean. All these predictions are then made once more with gradients, in
one masked call. A guided window teacher and a critic say where they are to go (`miga/training/causal.py`).

Source: Self-Forcing (arXiv 2506.08009): rollouts with a random number of steps, gradients through the last one alone,
caches detached.

Legend: B clips, F latents, C channels, H, W cells, L text tokens, D text channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from miga.backbones.sprites.train_causal import BLOCK, FLOW_SHIFT, WINDOW, Captions, Windows
from miga.backbones.sprites.training import Schedule, autocast, train
from miga.backbones.wan.causal.network import CausalWan
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from miga.cached_call import CachedCall
from miga.schedule import shifted
from miga.training.causal import block_sigmas, denoising_loss, matching_loss

GUIDANCE_SCALE: Final = 3.0
"""Of the teacher."""
MATCHING_RATE: Final = 1e-4
CRITIC_FACTOR: Final = 2.0
"""Of the student's rate. With equal rates the critic does not keep up: its loss grows, and shapes are lost."""
MATCHING_SHIFT: Final = 3.0
"""Of the evenly drawn levels at which teacher and critic are asked."""
CRITIC_SHIFT: Final = 2.0
"""Of the levels at which the critic learns."""
SIGMAS: Final = tuple(shifted(step / 1000, FLOW_SHIFT) for step in (1000, 750, 500, 250))
"""Where the student's steps begin: those of the causal presets."""


@dataclass(frozen=True)
class RollOut:
    """Windows that a student made by itself.

    Attributes:
        x_BFCHW: what the last call of each block was given.
        sigma_BF: its levels.
        made_BFCHW: what that call predicted, clean: what later blocks saw.
    """

    x_BFCHW: torch.Tensor
    sigma_BF: torch.Tensor
    made_BFCHW: torch.Tensor


@torch.no_grad()
def roll_out(
    student: WanTransformer3DModel,
    text_BLD: torch.Tensor,
    latent_size: tuple[int, int],
    num_calls: Sequence[int],
    generator: torch.Generator,
) -> RollOut:
    """Makes windows block by block.

    Args:
        student: makes them.
        text_BLD: a caption's embedding for every window.
        latent_size: rows and columns of a latent.
        num_calls: of every block, after how many of its steps it is taken for clean: 1 to `len(SIGMAS)`.
        generator: of all noise.
    """
    network, batch, device = CausalWan(student), len(text_BLD), student.device
    shape = (batch, BLOCK, student.config.in_channels, *latent_size)
    cache = network.open_cache(BLOCK * len(num_calls), latent_size, batch=batch)

    def fresh() -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def call(x_BFCHW: torch.Tensor, sigma: float, first: int, writes: tuple[int, ...]) -> torch.Tensor:
        before = tuple(range(first))
        own = tuple(float(first + each) for each in range(BLOCK))
        seen = CachedCall(
            cache, (1000.0 * sigma,) * BLOCK, (sigma,) * BLOCK, own, before, tuple(map(float, before)), writes
        )
        with autocast(device):
            return network(x_BFCHW, seen, list(text_BLD), NUM_TEXT_TOKENS)

    xs, sigmas, made = [], [], []
    for number, count in enumerate(num_calls):
        first = BLOCK * number
        x_BFCHW = fresh()
        for step in range(count):
            sigma = SIGMAS[step]
            clean_BFCHW = x_BFCHW - sigma * call(x_BFCHW, sigma, first, (-1,) * BLOCK)
            if step + 1 < count:
                x_BFCHW = torch.lerp(clean_BFCHW, fresh(), SIGMAS[step + 1])
        xs.append(x_BFCHW)
        made.append(clean_BFCHW)
        sigmas += [sigma] * BLOCK
        if number + 1 < len(num_calls):
            call(clean_BFCHW, 0.0, first, tuple(range(first, first + BLOCK)))
    sigma_BF = torch.tensor(sigmas, device=device).expand(batch, -1)
    return RollOut(torch.cat(xs, 1), sigma_BF, torch.cat(made, 1))


class _Both(nn.Module):
    """The student and the critic, whose losses have no weight in common; a state of both resumes exactly."""

    def __init__(self, student: WanTransformer3DModel, critic: WanTransformer3DModel) -> None:
        super().__init__()
        self.student = student
        self.critic = critic


def match(
    student: WanTransformer3DModel,
    teacher: WanTransformer3DModel,
    captions: Captions,
    latent_size: tuple[int, int],
    state_file: Path,
    num_steps: int,
    *,
    stop_at: int | None = None,
    learning_rate: float = MATCHING_RATE,
    compiled: bool = False,
) -> WanTransformer3DModel:
    """Stage C: distribution matching over rollouts, in place; it goes on from `state_file` if that exists.

    Args:
        student: causal, of few steps: from stage B.
        teacher: whose latents all see each other; not changed. The critic begins as it.
        captions: to roll out; no clip is needed.
        latent_size: rows and columns of a latent.
        state_file: where training is kept.
        num_steps: of the learning rate's schedule.
        stop_at: stop after so many of them.
        learning_rate: its peak.
        compiled: see `Windows`.

    Returns:
        The student's averaged weights.
    """
    for network in (student, teacher):
        use_compact_padding(network)
    teacher.eval().requires_grad_(False)
    both = _Both(student.requires_grad_(True), copy.deepcopy(teacher).requires_grad_(True))
    predicts = Windows("causal", both.student, compiled=compiled)
    critic, guide = (Windows("window", each, compiled=compiled) for each in (both.critic, teacher))

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = captions.draw_captions("matching", step)
        count, generator, device = captions.batch, batch.generator, captions.device
        num_calls = [1 + int(batch.rng.integers(len(SIGMAS))) for _ in range(WINDOW // BLOCK)]
        rolled = roll_out(both.student, batch.text, latent_size, num_calls, generator)

        velocity = predicts.velocity(rolled.made_BFCHW, batch.text)(rolled.x_BFCHW, rolled.sigma_BF)
        made_BFCHW = rolled.x_BFCHW - rolled.sigma_BF[:, :, None, None, None] * velocity
        even_B = 0.02 + 0.96 * torch.rand(count, generator=generator).to(device)
        noise_BFCHW = torch.randn(made_BFCHW.shape, generator=generator).to(device)
        of_critic = critic.velocity(None, batch.text)
        matched = matching_loss(
            made_BFCHW,
            guide.guided(None, batch, GUIDANCE_SCALE),
            of_critic,
            noise_BFCHW,
            shifted(even_B, MATCHING_SHIFT),
        )

        draw_B1 = torch.randn(count, 1, generator=generator).to(device)
        noise_BFCHW = torch.randn(made_BFCHW.shape, generator=generator).to(device)
        sigma_B = block_sigmas(WINDOW, WINDOW, draw_B1, CRITIC_SHIFT)[:, 0]
        learnt = denoising_loss(of_critic, made_BFCHW.detach(), noise_BFCHW, sigma_B)
        return matched + learnt, {"matching": float(matched.detach()), "critic": float(learnt.detach())}

    schedule = Schedule(num_steps, learning_rate, num_warmup_steps=20)
    factors = {"critic": CRITIC_FACTOR}
    train("matching", both, loss_of, schedule, state_file, ema_decay=0.99, muon=True, factors=factors, stop_at=stop_at)
    return both.student.eval()
