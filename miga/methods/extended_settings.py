"""Settings that methods share which put a whole video into one window, and what is published of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from miga.config import ModelFacts, SamplerConfig
from miga.errors import ConfigError
from miga.extended import Arrange, Extended, ExtendedState
from miga.methods.base import Begin, Method, Profile
from miga.methods.shared_settings import SHARED_PUBLISHED, shared_in_proportion
from miga.noise import NoiseSource
from miga.noise_arrangement import MeanSharedNoise, ShuffledNoise

NUM_STEPS: Final = 50
"""Of VideoCrafter's programs, which these methods are published with, and of Wan's."""
MEMORY: Final = "memory grows with the length"


@dataclass(frozen=True, kw_only=True)
class ExtendedSettings(SamplerConfig):
    """Of a video that goes through the network as one window."""

    one_window: ClassVar[bool] = True
    takes_strided_steps: ClassVar[bool] = True

    def work(self, num_latents: int) -> tuple[float, float]:
        """See `SamplerConfig.work`: every call shows all latents."""
        num_forwards = self.num_steps + self.num_guided_steps
        return float(num_forwards * num_latents), float(num_forwards * self.pairs_seen(num_latents))

    @property
    def num_guided_steps(self) -> int:
        """Steps in which classifier-free guidance acts."""
        return 0 if self.guidance_scale == 1.0 else self.guidance_high_level - self.guidance_low_level + 1

    def pairs_seen(self, num_latents: int) -> int:
        """Pairs of a latent and one that it attends to, in one forward."""
        return num_latents**2

    def why_no_prompts(self, num_prompts: int, spec: ModelFacts) -> str:
        """See `SamplerConfig.why_no_prompts`: all latents are in one window, under one text."""
        if num_prompts == 1:
            return ""
        return (
            f"profile {self.profile!r} puts the whole video into one window under one prompt, and there are "
            f"{num_prompts}: take 'swift' or 'paper' for prompts in turn, or 'freenoise' on VideoCrafter2 for two"
        )


@dataclass(frozen=True, kw_only=True)
class StretchedSettings(ExtendedSettings):
    """Of the same where attention along the frames is changed.

    Attributes:
        stride: latents from one window of attention to the next, and of noise that is put in another order together.
    """

    stride: int

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """A quarter of a window, as 4 of VideoCrafter2's 16."""
        return {"stride": max(1, values["window"] // 4)}

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.require(1 <= self.stride <= self.window, "stride", f"1 to window = {self.window}")

    def check_model(self, spec: ModelFacts) -> None:
        """See `SamplerConfig.check_model`."""
        require_frame_attention(self, spec, "cells", "tokens")


def require_frame_attention(config: SamplerConfig, spec: ModelFacts, *kinds: str) -> None:
    """Refuses a model whose network takes no other attention along the frames, or not one of that kind.

    Raises:
        ConfigError: naming profiles that it can be sampled with.
    """
    if spec.frame_attention in kinds:
        return
    if spec.frame_attention == "tokens":
        raise ConfigError(
            f"profile {config.profile!r} cannot be on {spec.name!r}: it compares frames cell by cell, and this network "
            "has no attention of a cell's frames alone",
            "take a VideoCrafter2 model, or profile 'freenoise' or 'freelong' on this one",
        )
    raise ConfigError(
        f"profile {config.profile!r} changes attention along the frames, and {spec.name!r} takes no other than its own",
        "take a model of Wan's family or VideoCrafter2, or profile 'direct'",
    )


def shuffled(config: StretchedSettings) -> Arrange:
    """FreeNoise's arrangement of noise, by a config's window and stride."""

    def arrange(noise: NoiseSource) -> NoiseSource:
        return ShuffledNoise(noise, config.window, config.stride)

    return arrange


def mean_shared(config: SamplerConfig) -> Arrange:
    """FreePCA's arrangement of noise, by a config's window."""

    def arrange(noise: NoiseSource) -> NoiseSource:
        return MeanSharedNoise(noise, config.window)

    return arrange


def published(eta: float) -> dict[str, dict[str, Any]]:
    """What is published for VideoCrafter2, and our own reading for Wan: its program's 50 steps, all else as Wan's.

    Args:
        eta: of DDIM on VideoCrafter2.
    """
    return {
        "videocrafter2": {**SHARED_PUBLISHED["videocrafter2"], "num_steps": NUM_STEPS, "eta": eta},
        "wan": {**SHARED_PUBLISHED["wan"], "num_steps": NUM_STEPS},
    }


ArrangeFor: TypeAlias = Callable[[Any], Arrange | None]


def extended_method(
    name: str, settings: type[ExtendedSettings], summary: str, eta: float, arrange_for: ArrangeFor = lambda config: None
) -> Method:
    """A method that puts a whole video into one window, with the profile of its name.

    Args:
        name: of the method.
        settings: its settings.
        summary: of the profile; what it takes of memory is added.
        eta: of DDIM on VideoCrafter2.
        arrange_for: the arrangement of noise under given settings; None: as it is drawn.
    """

    def begin(config: Any, begin: Begin) -> Extended:
        return Extended.of(config, begin.stepper, begin.num_latents, arrange_for(config))

    return Method(
        name=name,
        settings=settings,
        state=ExtendedState,
        begin=begin,
        profiles={name: Profile(f"{summary}; {MEMORY}", {}, by_family={"videocrafter2": {"num_steps": NUM_STEPS}})},
        published=published(eta),
        in_proportion=shared_in_proportion,
        needs_base_clip=False,
    )
