"""Settings of ScalingNoise, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from miga.config import MAX_CANDIDATES
from miga.methods.base import Profile
from miga.methods.fifo.settings import DiagonalSettings
from miga.methods.scalingnoise.candidates import FRESH, KINDS


@dataclass(frozen=True, kw_only=True)
class ScalingNoiseSettings(DiagonalSettings):
    """Of a beam search in FIFO-Diffusion with lookahead denoising: candidates are held against its clean context.

    Attributes:
        num_beams: beams of the search.
        num_candidates: noises that each beam is offered for a new latent.
        num_eval_latents: latents that are judged, the last that a pass predicts.
        candidate_kinds: kinds of noise that are offered, one or more of fresh, renoised, low_pass and mixed, separated
            by commas; candidates take them in turn (`candidates.py`).
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"candidate_kinds"})

    num_beams: int
    num_candidates: int
    num_eval_latents: int
    candidate_kinds: str = FRESH

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of `candidate_kinds`, in order."""
        return tuple(kind.strip() for kind in self.candidate_kinds.split(","))

    def kind_of(self, candidate: int) -> str:
        """The kind of a candidate, numbered from 1."""
        return self.kinds[(candidate - 1) % len(self.kinds)]

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.check_diagonal(keeps_right_half=True)
        for name in ("num_beams", "num_candidates"):
            held = 1 <= getattr(self, name) <= MAX_CANDIDATES
            self.require(held, name, f"at least 1, at most {MAX_CANDIDATES}")
        half = self.right_half
        self.require(1 <= self.num_eval_latents <= half, "num_eval_latents", f"1 to {half}, the right half of a window")
        held = set(self.kinds) <= set(KINDS) and len(set(self.kinds)) == len(self.kinds)
        self.require(held, "candidate_kinds", f"one or more of {', '.join(KINDS)}, each once, separated by commas")


PROFILES: Final[dict[str, Profile]] = {
    "scalingnoise": Profile(
        "FIFO-Diffusion with a beam search over new latents, by their consistency with the head",
        {"num_beams": 3, "num_candidates": 5, "num_eval_latents": 1},
    ),
}
