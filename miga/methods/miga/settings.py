"""Settings of MIGA as the paper gives it, and its profiles."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from miga.config import LaterWindows
from miga.methods.base import Profile
from miga.methods.queue_settings import QueueSettings
from miga.unified import implied_stride, require_strides


@dataclass(frozen=True, kw_only=True)
class MigaSettings(QueueSettings):
    """Of the zigzag queue and the unified denoising behind it.

    Attributes:
        unified_stride: `S` in Stage 2; by default `stride`, and one more where `position_0_context` takes a place.
        drain: whether a video of known length stops pushing noise once its last latent and one group more are in the
            queue, which then runs empty; else the queue stays full to the end and what is left in it is thrown away.
        position_0_context: whether a plain window that does not start at the video's first latent sees one latent
            more before it, so that none but that first one is kept from the window's position 0.
        image_condition: of a model that takes a picture beside its latents, what windows are conditioned on that do not
            begin with the video's first latent: "anchor" (the picture, in a place before their own latents), or
            "reference" (the same, the picture in place of grey behind it).
    """

    unified_stride: int
    drain: bool = False
    position_0_context: bool = False
    image_condition: LaterWindows = ""

    added_later: ClassVar[frozenset[str]] = QueueSettings.added_later | {"image_condition"}

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Half a window is kept, in Stage 2 as much as in Stage 1."""
        return {**super().implied(values), "unified_stride": implied_stride(values)}

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.check_queue()
        require_strides(self, self.lead, stride=self.stride, unified_stride=self.unified_stride)
        self.check_reflection()

    @property
    def later_windows(self) -> LaterWindows:
        """See `SamplerConfig.later_windows`."""
        return self.image_condition

    @property
    def num_early_groups(self) -> int:
        """Base groups that would enter Stage 1's queue below its head's level: they go straight to Stage 2.

        There are some where `T` is small: `n_zig > T - e`.
        """
        return min(self.num_base_groups, max(0, self.num_base_groups + self.handoff_level - self.num_steps))

    @property
    def lead(self) -> int:
        """Latents of context before a plain window's kept ones (see `position_0_context`)."""
        return int(self.position_0_context)


_PAPER: Final[dict[str, Any]] = {"self_reflection": True}
ABLATIONS: Final[dict[str, dict[str, Any]]] = {
    "no-zigzag": {"zigzag_width": 1},
    "no-stage-2": {"handoff_level": 1},
    "no-guidance": {"num_guidance_latents": 0},
    "no-reflection": {"self_reflection": False},
}
"""What each part of the method is switched off by; profiles join them with "-" in this order."""


SWIFT_KEPT_SHARE: Final = 0.8
"""Of a guided window's local latents, how many `swift` keeps: the rest is context."""


def _swift(values: Mapping[str, Any]) -> dict[str, Any]:
    """Longer strides, and classifier-free guidance in Stage 1 alone. Source: decisions/0008."""
    local = values["window"] - values["num_guidance_latents"]
    lowest = min(max(1, values["handoff_level"]), values["num_steps"])  # a wrong level is refused by its own name
    return {"stride": max(1, round(SWIFT_KEPT_SHARE * local)), "guidance_low_level": lowest}


def _ablated() -> dict[str, Profile]:
    """`paper` without each of its parts, alone and together."""
    profiles = {}
    for count in range(1, len(ABLATIONS) + 1):
        for parts in itertools.combinations(ABLATIONS, count):
            ablates = {part: ABLATIONS[part] for part in parts}
            settings = {key: value for changes in ablates.values() for key, value in changes.items()}
            without = " and ".join(part.removeprefix("no-").replace("-", " ") for part in parts)
            profiles["-".join(parts)] = Profile(f"`paper` without {without}", _PAPER | settings, ablates=ablates)
    return profiles


PROFILES: Final[dict[str, Profile]] = {
    "swift": Profile(
        "ours: as good as `paper` for far fewer calls (decisions/0008): the queue drains, longer strides, no search; "
        'for prompts that leave looks open set guidance_from = "anchors" (docs/ablation.md)',
        {"self_reflection": False, "drain": True},
        by_family={"wan": {"position_0_context": True}},
        derive=_swift,
    ),
    "paper": Profile(
        "MIGA as the paper gives it: zigzag queue, unified denoising, long-range guidance, self-reflection", _PAPER
    ),
    **_ablated(),
}
