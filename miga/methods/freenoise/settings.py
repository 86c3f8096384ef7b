"""Settings of FreeNoise, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from miga.config import ModelFacts
from miga.frame_attention import frame_windows
from miga.methods.base import Method
from miga.methods.extended_settings import StretchedSettings, extended_method, shuffled
from miga.methods.freenoise.attention import WindowedAttention
from miga.methods.freenoise.text import MotionInjection

MOST_PROMPTS: Final = 2


@dataclass(frozen=True, kw_only=True)
class FreeNoiseSettings(StretchedSettings):
    """Of shuffled noise and attention by windows."""

    @property
    def frame_attention(self) -> WindowedAttention:
        """See `SamplerConfig.frame_attention`."""
        return WindowedAttention(self.window, self.stride)

    @property
    def frame_texts(self) -> MotionInjection:
        """See `SamplerConfig.frame_texts`."""
        return MotionInjection()

    def pairs_seen(self, num_latents: int) -> int:
        """See `ExtendedSettings.pairs_seen`."""
        return sum((stop - start) ** 2 for start, stop in frame_windows(num_latents, self.window, self.stride))

    def why_no_prompts(self, num_prompts: int, spec: ModelFacts) -> str:
        """See `SamplerConfig.why_no_prompts`: motion injection is between two, in a network with a way down and up."""
        if num_prompts == 1 or (num_prompts == MOST_PROMPTS and spec.frame_attention == "cells"):
            return ""
        if spec.frame_attention != "cells":
            return super().why_no_prompts(num_prompts, spec)
        return (
            f"profile {self.profile!r} goes from one prompt to a second (motion injection), and there are "
            f"{num_prompts}: take 'swift' or 'paper' for more prompts in turn"
        )


METHOD: Final[Method] = extended_method(
    "freenoise",
    FreeNoiseSettings,
    "FreeNoise: the whole video in one window, noise that comes back shuffled, attention by windows that overlap",
    eta=0.0,
    arrange_for=shuffled,
)
