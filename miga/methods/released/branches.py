"""What the authors' two programs do differently, and where both put a pass's remainder. Source: decisions/0009."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Branch:
    """What the two programs do differently.

    Attributes:
        clean_level: level at which a latent is clean and Stage 2 ends.
        pushes_base: whether Stage 1, too, pushes the noised last base latent; else pure noise.
        reads_snapshot: whether the windows of a pass of Stage 1 see the queue from before it; else they see what the
            windows before them have written, as they do during initialisation.
        averages_latents: whether the consistency score compares means over latents.
    """

    clean_level: int
    pushes_base: bool
    reads_snapshot: bool
    averages_latents: bool


BRANCHES: Final = {
    "wan": Branch(clean_level=0, pushes_base=True, reads_snapshot=True, averages_latents=False),
    "videocrafter2": Branch(clean_level=1, pushes_base=False, reads_snapshot=False, averages_latents=True),
}
"""By `ReleasedSettings.released_branch`."""


def remainder(num_latents: int, capacity: int, stride: int) -> int:
    """Border offset that puts the remainder window first, so that every other one keeps a whole stride."""
    return (num_latents - capacity) % stride
