"""Settings of FreePCA, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from miga.config import ModelFacts
from miga.frame_attention import frame_windows
from miga.methods.base import Method
from miga.methods.extended_settings import StretchedSettings, extended_method, mean_shared, require_frame_attention
from miga.methods.freepca.attention import PrincipalAttention


@dataclass(frozen=True, kw_only=True)
class FreePcaSettings(StretchedSettings):
    """Of noise with a common mean, and windows of attention whose leading components are those of the whole video."""

    @property
    def frame_attention(self) -> PrincipalAttention:
        """See `SamplerConfig.frame_attention`."""
        return PrincipalAttention(self.window, self.stride)

    def pairs_seen(self, num_latents: int) -> int:
        """See `ExtendedSettings.pairs_seen`."""
        windows = frame_windows(num_latents, self.window, self.stride)
        return num_latents**2 + sum((stop - start) ** 2 for start, stop in windows)

    def check_model(self, spec: ModelFacts) -> None:
        """See `SamplerConfig.check_model`: only some networks have a cell's frames apart."""
        require_frame_attention(self, spec, "cells")


METHOD: Final[Method] = extended_method(
    "freepca",
    FreePcaSettings,
    "FreePCA: the whole video in one window, its principal components from attention to all of it, the rest local",
    eta=1.0,
    arrange_for=mean_shared,
)
