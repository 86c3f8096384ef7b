"""Settings of FreeLong, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from miga.methods.base import Method
from miga.methods.extended_settings import StretchedSettings, extended_method, shuffled
from miga.methods.freelong.attention import SpectralAttention


@dataclass(frozen=True, kw_only=True)
class FreeLongSettings(StretchedSettings):
    """Of shuffled noise, and attention whose slow part is global and whose quick part is local."""

    @property
    def frame_attention(self) -> SpectralAttention:
        """See `SamplerConfig.frame_attention`."""
        return SpectralAttention(self.window)

    def pairs_seen(self, num_latents: int) -> int:
        """See `ExtendedSettings.pairs_seen`: all with all, and each with half a window to either side."""
        return num_latents**2 + num_latents * min(num_latents, self.window + 1)


METHOD: Final[Method] = extended_method(
    "freelong",
    FreeLongSettings,
    "FreeLong: the whole video in one window, of attention to all of it the slow part, of local attention the quick",
    eta=1.0,
    arrange_for=shuffled,
)
