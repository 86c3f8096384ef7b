"""Which prompt a latent stands under. Source: MIGA A.3, Eq. A3; or from given latents on."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from miga.backbones.base import Condition


@dataclass(frozen=True)
class PromptTrack:
    """Conditions in turn, each for the same number of latents or from a given one on; the last one holds for all that
    follow.

    Attributes:
        conditions: one per prompt, in order.
        latents_per_prompt: `N_prom`; a fraction where a video cannot be shared out in whole latents.
        starts: index in the video of the first latent of each prompt, rising from 0; empty: even shares.
    """

    conditions: Sequence[Condition]
    latents_per_prompt: int | Fraction = 1
    starts: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if self.starts and len(self.starts) != len(self.conditions):
            raise ValueError(f"{len(self.conditions)} prompts begin at {len(self.starts)} latents, {self.starts}")
        if self.starts and not (self.starts[0] == 0 and all(a < b for a, b in pairwise(self.starts))):
            raise ValueError(f"prompts begin at rising latents from 0 on, not at {self.starts}")

    @classmethod
    def spread(cls, conditions: Sequence[Condition], num_latents: int) -> PromptTrack:
        """The prompts shared out evenly over a video: of two shares one is a latent longer at most.

        Of more prompts than latents each latent has its own, and those left over are not used.
        """
        return cls(conditions, max(Fraction(1), Fraction(num_latents, len(conditions))))

    def index(self, latent: int) -> int:
        """Which prompt rules a window whose first kept latent has this index in the video."""
        if self.starts:
            return max(0, bisect_right(self.starts, latent) - 1)
        return min(int(max(0, latent) // self.latents_per_prompt), len(self.conditions) - 1)

    def first(self, prompt: int) -> int:
        """Index in the video of the first latent that this prompt rules; 0 of the first prompt."""
        if self.starts:
            return self.starts[prompt]
        return math.ceil(prompt * self.latents_per_prompt)

    def at(self, latent: int) -> Condition:
        """The condition of that prompt."""
        return self.conditions[self.index(latent)]
