"""Settings of Stage 2 alone, and its profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from miga.config import SamplerConfig
from miga.methods.base import Profile
from miga.unified import implied_stride, require_strides


@dataclass(frozen=True, kw_only=True)
class UnifiedSettings(SamplerConfig):
    """Of Stage 2 alone.

    Attributes:
        stride: what `unified_stride` follows from where it is not said.
        unified_stride: `S`, latents kept of every window but a pass's last, and noised latents that enter at a time.
        position_0_context: whether a window that does not start at the video's first latent sees one latent more
            before it, so that none but that first one is kept from the window's position 0.
    """

    stride: int
    unified_stride: int
    position_0_context: bool = False

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Half a window is kept."""
        return {"stride": values["window"] // 2, "unified_stride": implied_stride(values)}

    @property
    def lead(self) -> int:
        """Latents of context before a window's kept ones (see `position_0_context`)."""
        return int(self.position_0_context)

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.require(1 <= self.stride <= self.window, "stride", f"1 to window = {self.window}")
        require_strides(self, self.lead, stride=self.stride, unified_stride=self.unified_stride)


PROFILES: Final[dict[str, Profile]] = {
    "stage-2-only": Profile("Alg. 8: all latents from noise at one level, without a queue", {}),
}
