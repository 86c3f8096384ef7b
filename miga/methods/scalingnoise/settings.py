"""Settings of ScalingNoise, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from miga.config import MAX_CANDIDATES
from miga.methods.base import Profile
from miga.methods.fifo.settings import DiagonalSettings


@dataclass(frozen=True, kw_only=True)
class ScalingNoiseSettings(DiagonalSettings):
    """Of a beam search in FIFO-Diffusion with lookahead denoising: candidates are held against its clean context.

    Attributes:
        num_beams: beams of the search.
        num_candidates: noises that each beam is offered for a new latent.
        num_eval_latents: latents that are judged, the last that a pass predicts.
    """

    num_beams: int
    num_candidates: int
    num_eval_latents: int

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.check_diagonal(keeps_right_half=True)
        for name in ("num_beams", "num_candidates"):
            held = 1 <= getattr(self, name) <= MAX_CANDIDATES
            self.require(held, name, f"at least 1, at most {MAX_CANDIDATES}")
        half = self.right_half
        self.require(1 <= self.num_eval_latents <= half, "num_eval_latents", f"1 to {half}, the right half of a window")


PROFILES: Final[dict[str, Profile]] = {
    "scalingnoise": Profile(
        "FIFO-Diffusion with a beam search over new latents, by their consistency with the head",
        {"num_beams": 3, "num_candidates": 5, "num_eval_latents": 1},
    ),
}
