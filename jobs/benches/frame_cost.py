"""Seconds a frame of a profile: calls counted without making the video, each at the price that was measured for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.cost import count_calls

Rows: TypeAlias = list[dict[str, Any]]

PROFILES: Final = ("fifo", "no-guidance-no-reflection", "paper", "swift")
_PAPER_MODEL: Final = "videocrafter2"
PAPER_FRAME_S: Final = {"fifo": 7.48, "no-guidance-no-reflection": 7.53, "paper": 9.16}
"""Seconds a frame that the paper gives for that model, on a card it does not name. Source: MIGA B.3, Table A4."""
WITHOUT_DCE: Final = "no-guidance-no-reflection"
DCE_TARGET: Final = 1.08
"""At most so many times as long with the paper's dual consistency enhancement as without."""
LONG_LATENTS: Final = 1000
"""Between a video of so many latents and one twice as long, every profile is in its steady state."""


@dataclass(frozen=True)
class Prices:
    """Seconds that a video's cost follows from.

    Attributes:
        two_branches_s, one_branch_s: a call of a whole window, with classifier-free guidance and without.
        first_latent_s, latent_s: decoding a video's first latent, and any other.
        frame_s: encoding a frame.
    """

    two_branches_s: float
    one_branch_s: float
    first_latent_s: float
    latent_s: float
    frame_s: float

    def calls_s(self, num_calls: int, num_guided: int) -> float:
        """Seconds of so many calls, so many of which take two branches."""
        return num_guided * self.two_branches_s + (num_calls - num_guided) * self.one_branch_s


def frame_rows(
    configs: dict[str, SamplerConfig], prices: Prices, num_latents: int, spec: BackboneSpec, is_full_size: bool
) -> Rows:
    """Seconds a frame by profile: of a video of so many latents, and of every frame more of a long one.

    Args:
        configs: by profile.
        prices: as measured.
        num_latents: length of the video.
        spec: of the model.
        is_full_size: whether the paper's figures may stand beside these.
    """
    rows: Rows = []
    for name, config in configs.items():
        num_frames = spec.num_frames(num_latents)
        count = count_calls(config, num_latents)
        denoise_s = prices.calls_s(count.total, count.num_guided) / num_frames
        search_s = prices.calls_s(count.per_search, count.guided_per_search)
        decode_s = (prices.first_latent_s + (num_latents - 1) * prices.latent_s) / num_frames
        row = {
            "profile": name,
            "calls": count.total,
            "of one branch": count.total - count.num_guided,
            "denoise": denoise_s,
            "decode": decode_s,
            "encode": prices.frame_s,
            "s a frame": denoise_s + decode_s + prices.frame_s,
            "s a frame more": long_frame_s(config, prices, spec),
            "a search adds": search_s / num_frames if count.per_search else "",
            "most searches": max(0, count.num_evaluations - 1),
        }
        if spec.family == _PAPER_MODEL and is_full_size:
            row["the paper's"] = PAPER_FRAME_S.get(config.profile, "")
        rows.append(row)
    return rows


def calls_per_latent(config: SamplerConfig) -> float:
    """Calls of every latent more of a long video."""
    return (count_calls(config, 2 * LONG_LATENTS).total - count_calls(config, LONG_LATENTS).total) / LONG_LATENTS


def long_frame_s(config: SamplerConfig, prices: Prices, spec: BackboneSpec) -> float:
    """Seconds of every frame more of a long video, without searches."""
    count, longer = (count_calls(config, length) for length in (LONG_LATENTS, 2 * LONG_LATENTS))
    denoise_s = prices.calls_s(longer.total - count.total, longer.num_guided - count.num_guided)
    return (
        denoise_s / (LONG_LATENTS * spec.frames_per_latent) + prices.latent_s / spec.frames_per_latent + prices.frame_s
    )


def dce_rows(with_dce: SamplerConfig, without: SamplerConfig, prices: Prices, spec: BackboneSpec) -> Rows:
    """What dual consistency enhancement costs a frame more of a long video, and how many searches its target allows."""
    with_s, without_s = (long_frame_s(config, prices, spec) for config in (with_dce, without))
    first, second = (count_calls(with_dce, count) for count in (LONG_LATENTS, 2 * LONG_LATENTS))
    evaluations = (second.num_evaluations - first.num_evaluations) / (LONG_LATENTS * spec.frames_per_latent)
    one_search_s = prices.calls_s(first.per_search, first.guided_per_search)
    share = (DCE_TARGET * without_s - with_s) / (evaluations * one_search_s)
    return [
        {
            "long-range guidance alone": f"{with_s / without_s:.3f} times",
            "one search": f"{one_search_s:.4g} s",
            "evaluations a frame": evaluations,
            f"searches that {DCE_TARGET} times leaves room for": f"{max(0.0, share):.1%} of evaluations",
            "the paper's": f"{PAPER_FRAME_S['paper'] / PAPER_FRAME_S[WITHOUT_DCE]:.3f} times",
        }
    ]
