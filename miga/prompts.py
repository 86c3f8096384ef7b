"""Which prompt a latent stands under. Source: MIGA A.3, Eq. A3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from miga.backbones.base import Condition


@dataclass(frozen=True)
class PromptTrack:
    """Conditions in turn, each for the same number of latents; the last one holds for all that follow.

    Attributes:
        conditions: one per prompt, in order.
        latents_per_prompt: `N_prom`; a fraction where a video cannot be shared out in whole latents.
    """

    conditions: Sequence[Condition]
    latents_per_prompt: int | Fraction = 1

    @classmethod
    def spread(cls, conditions: Sequence[Condition], num_latents: int) -> PromptTrack:
        """The prompts shared out evenly over a video: of two shares one is a latent longer at most.

        Of more prompts than latents each latent has its own, and those left over are not used.
        """
        return cls(conditions, max(Fraction(1), Fraction(num_latents, len(conditions))))

    def index(self, latent: int) -> int:
        """Which prompt rules a window whose first kept latent has this index in the video."""
        return min(int(max(0, latent) // self.latents_per_prompt), len(self.conditions) - 1)

    def first(self, prompt: int) -> int:
        """Index in the video of the first latent that this prompt rules; 0 of the first prompt."""
        return math.ceil(prompt * self.latents_per_prompt)

    def at(self, latent: int) -> Condition:
        """The condition of that prompt."""
        return self.conditions[self.index(latent)]
