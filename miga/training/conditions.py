"""Which conditions y a clip is trained under, by name, and how each is made of the clip's own frames.

`film-5`: the clip's first five frames, mid grey behind them. `shot-1`: its first frame, and a reference picture behind
it. `pro-1`: the reference's latent, the last latent of what comes before the clip, zeros. `none`: nothing at all.

Source: Stable Video Infinity, training of film, shot and 2.0 Pro.

Legend: F frames or latents, C channels, H, W pixels or latent cells.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from miga.errors import ConfigError
from miga.image_condition import ImageBackbone, condition_of_frames, condition_of_latents

NONE: Final = "none"
_NAME: Final = re.compile(r"(?P<kind>film|shot|pro)-(?P<count>\d{1,2})", re.ASCII)
NUM_BEFORE_LATENTS: Final = 3
"""Latents that those handed over are encoded with: what is before these changes them no more than rounding does."""


@dataclass(frozen=True)
class Shown:
    """What a condition shows.

    Attributes:
        kind: "film", "shot", "pro" or "none".
        count: frames of the clip that are given; of "pro", latents of what comes before it.
    """

    kind: str
    count: int

    @classmethod
    def of(cls, name: str) -> Shown:
        """What a name says.

        Raises:
            ConfigError: if it is none.
        """
        if name == NONE:
            return cls(NONE, 0)
        match = _NAME.fullmatch(name)
        if match is None or (match["kind"] != "pro" and match["count"] == "0"):
            raise ConfigError(
                f"condition {name!r} is unknown",
                "it is film-N, shot-N (N given frames, 1 or more), pro-N (N latents handed over), or none",
            )
        return cls(match["kind"], int(match["count"]))

    def num_held(self, frames_per_latent: int) -> int:
        """Latents that are known under it: those of given frames alone, or the reference's and those handed over."""
        if self.kind == NONE:
            return 0
        return 1 + (self.count if self.kind == "pro" else (self.count - 1) // frames_per_latent)


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Whether these conditions can be drawn from.

    Raises:
        ConfigError: if a name is unknown or a weight no positive number.
    """
    if not mixture:
        raise ConfigError("no condition is to be trained", "name one, such as film-5")
    for name, weight in mixture.items():
        Shown.of(name)
        if not 0.0 < weight < float("inf"):
            raise ConfigError(f"condition {name!r} has weight {weight!r}", "it must be greater than 0")


def frames_before(name: str, frames_per_latent: int) -> int:
    """Frames before a clip's own that a condition is made of, its last ones being the clip's first latent's."""
    shown = Shown.of(name)
    return (
        1 + (max(NUM_BEFORE_LATENTS, shown.count) - 1) * frames_per_latent if shown.kind == "pro" and shown.count else 0
    )


def conditions_of(
    backbone: ImageBackbone,
    clip_FCHW: torch.Tensor,
    reference_CHW: torch.Tensor,
    before_FCHW: torch.Tensor,
    names: Collection[str],
) -> dict[str, torch.Tensor]:
    """The condition `[C, F, H, W]` of each name.

    Args:
        backbone: whose VAE encodes.
        clip_FCHW: the clip, pixels of -1 ... 1.
        reference_CHW: the reference picture, best one from outside the clip.
        before_FCHW: frames that the clip before ends with, `1 + k F'` of them; the last `k` are this clip's first ones.
            Read by `pro` alone.
        names: of the conditions.
    """
    spec = backbone.spec
    found: dict[str, torch.Tensor] = {}
    for name in names:
        shown = Shown.of(name)
        if shown.kind == NONE:
            continue
        if shown.kind == "pro":
            anchor_1CHW = backbone.encode_frames(reference_CHW[None])
            motion_FCHW = anchor_1CHW[:0]
            if shown.count:
                motion_FCHW = backbone.encode_frames(before_FCHW)[-shown.count :]
            y_FCHW = condition_of_latents(anchor_1CHW, motion_FCHW, spec.window, spec.frames_per_latent)
        else:
            y_FCHW = condition_of_frames(
                backbone.encode_frames,
                clip_FCHW[: shown.count],
                len(clip_FCHW),
                spec.frames_per_latent,
                fill="reference" if shown.kind == "shot" else "zeros",
                reference_CHW=reference_CHW,
            )
        found[name] = y_FCHW.transpose(0, 1)
    return found


def picture_shown(name: str, clip_FCHW: torch.Tensor, reference_CHW: torch.Tensor) -> torch.Tensor:
    """The picture that a network's image encoder reads under a condition: the first given frame, or the reference."""
    return reference_CHW if Shown.of(name).kind == "pro" else clip_FCHW[0]
