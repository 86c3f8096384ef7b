"""A whole video in one window: all its latents at one level, shown to the network together, step by step.

That is what a model does with a clip, at another length. Methods that stretch the window so (FreeNoise, FreeLong,
FreePCA, RIFLEx, and doing nothing) differ in how the noise is arranged (`noise_arrangement.py`), in what stands in for
attention along the frames (`frame_attention.py`) and in what the network is told of positions; the course is one.

The base clip is one of its videos: of as many latents as a window has, without arrangement, the same bits.

Source: decisions/0014.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from miga.base_clip import base_clip_stepper
from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.errors import ConfigError
from miga.frame_texts import SeveralConditions
from miga.noise import NoiseSource
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.windows import Window

PART: Final = "one window"

Arrange: TypeAlias = Callable[[NoiseSource], NoiseSource]
"""Arranges the noise that a video begins with."""


@dataclass(frozen=True)
class ExtendedState:
    """One video: all its latents, at one level; none once they have been handed out."""

    queue: FrameQueue
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


@dataclass(frozen=True)
class Extended:
    """The course of one video.

    Attributes:
        config: the settings.
        stepper: takes the steps that a base clip takes.
        num_latents: of the video.
    """

    config: SamplerConfig
    stepper: Stepper
    num_latents: int

    @classmethod
    def of(
        cls, config: SamplerConfig, stepper: Stepper, num_latents: int | None, arrange: Arrange | None = None
    ) -> Extended:
        """Begins a video.

        Args:
            config: the settings.
            stepper: as methods are given it.
            num_latents: of the video.
            arrange: of its noise; None: as it is drawn.

        Raises:
            ConfigError: of a video without end, or of several prompts where a window takes one.
        """
        config.require_end(num_latents)
        assert num_latents is not None
        stepper = base_clip_stepper(stepper, config.eta)
        noise = stepper.noise if arrange is None else arrange(stepper.noise)
        prompts = _as_one(stepper.prompts, config)
        return cls(config, replace(stepper, noise=noise, prompts=prompts, purpose="base/", part=PART), num_latents)

    def start(self, clean_FCHW: object = None) -> ExtendedState:
        """Pure noise; a base clip is of no use."""
        return ExtendedState(self.stepper.noise_queue(0, self.num_latents, self.config.num_steps, "base"))

    def advance(self, state: ExtendedState) -> tuple[ExtendedState, FrameQueue | None]:
        """One denoise step of the whole video; after the last, all of it is finished."""
        total = len(state.queue)
        queue = self.stepper.pass_over(state.queue, [Window((), 0, total, 0, total)])
        if int(queue.level_F[0]) > 0:
            return replace(state, queue=queue), None
        return replace(state, queue=queue[total:].compact()), queue

    def is_open(self, state: ExtendedState) -> bool:
        """Never: every latent has seen how long the video is."""
        return False


def _as_one(prompts: PromptTrack, config: SamplerConfig) -> PromptTrack:
    """The prompts of a window that stands under all of them.

    Raises:
        ConfigError: if there are several, and a window takes one.
    """
    if len(prompts.conditions) == 1:
        return prompts
    if config.frame_texts is None:
        raise ConfigError(
            f"profile {config.profile!r} puts the whole video into one window under one prompt, and there are "
            f"{len(prompts.conditions)}",
            "take 'swift' or 'paper' for prompts in turn",
        )
    return PromptTrack([SeveralConditions(tuple(prompts.conditions))])
