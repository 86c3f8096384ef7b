"""Settings of chains of clips, and the profiles of Stable Video Infinity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, TypeAlias

from miga.clips import ClipLayout
from miga.config import SamplerConfig
from miga.methods.base import Profile

HandOver: TypeAlias = Literal["float", "round", "truncate"]
Overlap: TypeAlias = Literal["drop_head", "drop_tail"]


@dataclass(frozen=True, kw_only=True)
class ChainSettings(SamplerConfig):
    """Of a chain: clip after clip, each going on from the end of the one before.

    Attributes:
        num_motion_frames: `n`, the last frames of a clip that the next one is shown; 0: it is shown latents.
        num_motion_latents: `m`, the last latents of a clip that the next one is shown behind the picture's, where it is
            shown no frames.
        fill: what a clip is shown of frames that are not given: "zeros" (mid grey) or "reference" (the picture).
        num_overlap: frames that two clips share, and of which one clip's are left out.
        overlap: whose: "drop_head" leaves out what a later clip begins with, "drop_tail" what an earlier one ends with.
        hand_over: how frames are handed over: "float" as they are decoded, "round" in 8 bits, "truncate" in 8 bits cut
            down, as SVI's program does (the video's frames are then cut down too).
    """

    takes_even_steps: ClassVar[bool] = True

    num_motion_frames: int = 1
    num_motion_latents: int = 0
    fill: Literal["zeros", "reference"] = "zeros"
    num_overlap: int
    overlap: Overlap = "drop_tail"
    hand_over: HandOver = "float"

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Two clips share what is handed over; of latents four frames, the first one's picture being one alone."""
        return {"num_overlap": values["num_motion_frames"] or 4 * values["num_motion_latents"]}

    @property
    def clips(self) -> ClipLayout:
        """See `SamplerConfig.clips`."""
        is_head = self.overlap == "drop_head"
        head, tail = (self.num_overlap, 0) if is_head else (0, self.num_overlap)
        return ClipLayout(self.window, head, tail, truncates=self.hand_over == "truncate")

    def first_under(self, latent: int) -> int:
        """See `SamplerConfig.first_under`: a clip is made under one prompt."""
        return -(-latent // self.window) * self.window

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        most = self.window - 1  # a clip has more frames than latents
        self.require(0 <= self.num_motion_frames <= most, "num_motion_frames", f"0 to {most}")
        least = 0 if self.num_motion_frames else 1
        most_latents = 0 if self.num_motion_frames else self.window - 2
        self.require(
            least <= self.num_motion_latents <= most_latents, "num_motion_latents",
            "0 beside num_motion_frames" if self.num_motion_frames else f"1 to {most_latents}, without motion frames",
        )  # fmt: skip
        self.require(0 <= self.num_overlap <= most, "num_overlap", f"0 to {most}")


_SVI: Final[dict[str, Any]] = {"solver": "euler", "num_steps": 50, "flow_shift": 5.0, "guidance_scale": 5.0}
"""What the published program samples with."""
_FILM: Final[dict[str, Any]] = {**_SVI, "num_motion_frames": 5, "fill": "zeros", "overlap": "drop_tail"}

PROFILES: Final[dict[str, Profile]] = {
    "chain": Profile("a chain of an image-to-video model's own clips, each from the last frame of the one before", {}),
    "svi-film": Profile(
        "a chain of clips from a picture, scenes that change: SVI-Film; each clip goes on from five frames", _FILM
    ),
    "svi-shot": Profile(
        "a chain of clips from a picture, one scene: SVI-Shot; each clip goes on from a frame, the picture beside it",
        {**_SVI, "num_motion_frames": 1, "fill": "reference", "overlap": "drop_tail"},
    ),
    "svi-2": Profile(
        "SVI 2.0: as svi-shot, and where clips meet the later one's frame is left out",
        {**_SVI, "num_motion_frames": 1, "fill": "reference", "overlap": "drop_head"},
    ),
    "svi-2-pro": Profile(
        "SVI 2.0 Pro: latents are handed over, not frames: nothing is decoded and encoded again between clips",
        {**_SVI, "num_motion_frames": 0, "num_motion_latents": 1, "overlap": "drop_head", "num_overlap": 4},
    ),
    "svi-paper": Profile(
        "svi-film as its program hands frames over: in 8 bits, cut down", {**_FILM, "hand_over": "truncate"}
    ),
}
