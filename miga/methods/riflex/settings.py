"""Settings of RIFLEx, and its profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from miga.config import ModelFacts
from miga.errors import ConfigError
from miga.methods.base import Method
from miga.methods.extended_settings import ExtendedSettings, extended_method
from miga.methods.riflex.frequency import LoweredFrequency

MOST_COMPONENTS: Final = 1024
MOST_LATENTS: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class RiflexSettings(ExtendedSettings):
    """Of a network with rotary positions, one frequency of time lowered.

    Attributes:
        rope_component: `k`, which frequency of time, counted from 1, the quickest first; 0: the one whose period is
            nearest to `repetition_latents`.
        repetition_latents: latents after which a video of the model first repeats itself.
    """

    rope_component: int = 0
    repetition_latents: int

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """One and a half windows, which is where the authors saw it on both of their models (48 of 33, 20 of 13)."""
        return {"repetition_latents": values["window"] * 3 // 2}

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        held = 0 <= self.rope_component <= MOST_COMPONENTS
        self.require(held, "rope_component", f"0 (by repetition_latents), or 1 to {MOST_COMPONENTS}")
        held = 1 <= self.repetition_latents <= MOST_LATENTS
        self.require(held, "repetition_latents", f"1 to {MOST_LATENTS}")

    @property
    def time_rotation(self) -> LoweredFrequency:
        """See `SamplerConfig.time_rotation`."""
        return LoweredFrequency(self.rope_component, self.repetition_latents)

    def check_model(self, spec: ModelFacts) -> None:
        """See `SamplerConfig.check_model`."""
        if not spec.takes_positions:
            raise ConfigError(
                f"profile {self.profile!r} lowers a frequency of rotary positions, and {spec.name!r} has none",
                "take a model of Wan's family, or profile 'freenoise' or 'freelong' on this one",
            )


METHOD: Final[Method] = extended_method(
    "riflex",
    RiflexSettings,
    "RIFLEx: the whole video in one window, one rotary frequency of time lowered so that nothing repeats",
    eta=1.0,
)
