"""Which prompt a latent stands under. Source: MIGA A.3, Eq. A3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miga.backbones.base import Condition


@dataclass(frozen=True)
class PromptTrack:
    """Conditions in turn, each for the same number of latents; the last one holds for all that follow.

    Attributes:
        conditions: one per prompt, in order.
        latents_per_prompt: `N_prom`.
    """

    conditions: Sequence[Condition]
    latents_per_prompt: int = 1

    @classmethod
    def spread(cls, conditions: Sequence[Condition], num_latents: int) -> PromptTrack:
        """The prompts shared out evenly over a video; none is left out, unless there are more than latents."""
        share = -(-num_latents // len(conditions))
        if share * (len(conditions) - 1) >= num_latents:  # rounded up, the first ones would leave none to the last
            share = max(1, num_latents // len(conditions))
        return cls(conditions, share)

    def index(self, latent: int) -> int:
        """Which prompt rules a window whose first kept latent has this index in the video."""
        return min(max(0, latent) // self.latents_per_prompt, len(self.conditions) - 1)

    def at(self, latent: int) -> Condition:
        """The condition of that prompt."""
        return self.conditions[self.index(latent)]
