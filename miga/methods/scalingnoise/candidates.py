"""Kinds of noise that a beam is offered for a new latent.

Source: Yang et al. 2025, "ScalingNoise", whose program draws a kind for each candidate; decisions/0010.

Legend: C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from miga.noise import NoiseSource
from miga.schedule import NoiseSchedule

FRESH: Final = "fresh"
KINDS: Final = (FRESH, "renoised", "low_pass", "mixed")
"""New noise; the latent before, brought to pure noise as if it were clean; its low frequencies with the high ones of
new noise; the second and new noise, in shares that differ from number to number."""
CUTOFF: Final = 0.25
"""One standard deviation of the low pass, as a share of the highest frequency, in height and in width."""


def low_pass(x_1CHW: torch.Tensor) -> torch.Tensor:
    """The low frequencies over height and width."""
    rows, columns = (2 * torch.fft.fftfreq(size, device=x_1CHW.device) for size in x_1CHW.shape[-2:])
    gain_HW = torch.exp(-0.5 * ((rows[:, None] / CUTOFF) ** 2 + (columns / CUTOFF) ** 2))
    slow: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(x_1CHW) * gain_HW).real
    return slow


@dataclass(frozen=True)
class TailNoise:
    """A `NoiseSource` of one kind, for the latent behind another.

    Where a schedule's purest level holds no signal (Wan's), "renoised" and "mixed" are new noise too, of one more draw.

    Attributes:
        noise: draws.
        kind: see `KINDS`.
        before_1CHW: the latent before, at whatever level it is.
        schedule: of the noise.
    """

    noise: NoiseSource
    kind: str
    before_1CHW: torch.Tensor
    schedule: NoiseSchedule

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """See `NoiseSource`."""
        fresh = self.noise(purpose, latents, candidate)
        if self.kind == FRESH:
            return fresh
        before = self.before_1CHW.to(fresh)
        if self.kind == "low_pass":
            return low_pass(before) + fresh - low_pass(fresh)
        level_1 = torch.tensor([self.schedule.num_steps])
        if self.kind == "renoised":
            return self.schedule.add_noise(before, fresh, level_1)
        renoised = self.schedule.add_noise(before, self.noise(f"{purpose}/renoise", latents, candidate), level_1)
        share = torch.special.ndtr(self.noise(f"{purpose}/share", latents, candidate))  # evenly from 0 to 1
        mixed: torch.Tensor = ((1 - share) * renoised + share * fresh) / ((1 - share) ** 2 + share**2).sqrt()
        return mixed
