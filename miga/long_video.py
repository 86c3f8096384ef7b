"""The Python API: `LongVideoPipeline`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.family import ModelOptions
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import load_backbone, load_spec
from miga.config import SamplerConfig
from miga.errors import UsageError
from miga.methods.base import Features
from miga.profiles import resolve_config
from miga.reflection import ReflectionTrace
from miga.video import Progress, make_video


@dataclass(frozen=True)
class LongVideo:
    """A finished video.

    Attributes:
        frames: uint8 `[F, H, W, 3]`.
        fps: frames per second.
        num_calls: network calls it took (windows: a guided call counts once).
        trace: what self-reflection did.
        final_consistency: consistency of the finished latents, chunk by chunk.
    """

    frames: np.ndarray
    fps: int
    num_calls: int
    trace: ReflectionTrace
    final_consistency: Sequence[float]


class LongVideoPipeline:
    """Long videos from a model that knows short clips.

    Example:
        pipe = LongVideoPipeline.from_pretrained("sprites", profile="swift")
        video = pipe("a red circle moving side to side on a grey ground", num_frames=177, seed=0)
        for frame in pipe.stream("a blue ring circling clockwise on a white ground"):
            ...  # for ever
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig, features: Features | None = None) -> None:
        """The pipeline of a loaded model.

        Args:
            backbone: the model.
            config: the sampler's settings.
            features: what ScalingNoise's search compares latents by (`[F, C, H, W]` to `[F, D]`); None: themselves.
        """
        self.backbone = backbone
        self.config = config
        self.features = features

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str = "sprites",
        *,
        profile: str = "swift",
        sampler: Mapping[str, Any] | None = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        lora: str | Sequence[str] = (),
        height: int | None = None,
        width: int | None = None,
        attention: str = "auto",
        compile: bool = False,
    ) -> LongVideoPipeline:
        """Loads a model and resolves a profile for it.

        Args:
            name_or_dir: "sprites" (the embedded model), a folder in diffusers layout, or a hub name.
            profile: a name of `miga.profiles.profiles()`.
            sampler: fields of `SamplerConfig` to override.
            revision: of a hub name.
            device: by default a GPU if there is one.
            dtype: of the transformer; by default bfloat16 on a GPU, float32 on the CPU.
            lora: `FILE_OR_NAME[:scale]`, one or several, fused into the transformer in that order.
            height: pixels of a frame; by default the model's.
            width: the same.
            attention: a backend of diffusers for self-attention, which then holds for the whole process.
            compile: whether the transformer's blocks are compiled; the first call is then slow.

        Raises:
            ModelError: if the model cannot be loaded.
            ConfigError: if the settings are not possible with it.
        """
        options = ModelOptions(
            lora=(lora,) if isinstance(lora, str) else tuple(lora),
            height=height,
            width=width,
            attention=attention,
            compile=compile,
        )
        configured_spec(load_spec(name_or_dir, revision), options, revision)  # refuses before weights are loaded
        backbone = load_backbone(name_or_dir, revision=revision, device=device, dtype=dtype)
        configure(backbone, options, revision=revision)
        return cls(backbone, resolve_config(profile, backbone.spec, sampler))

    def __call__(
        self,
        prompt: str | Sequence[str],
        num_frames: int | None = None,
        seed: int = 0,
        negative_prompt: str | None = None,
    ) -> LongVideo:
        """Makes a whole video.

        Args:
            prompt: one prompt, or several in turn, each for an even share of the video.
            num_frames: length, one of those the VAE can make; by default the model's.
            seed: 0 ... 2**64 - 1; the same seed gives the same video.
            negative_prompt: by default the model's own.

        Raises:
            UsageError: if an argument has the wrong type, or `num_frames` or `seed` cannot be.
            BadRowError: if a prompt is blank or too long for the text encoder.
        """
        num_frames = self.backbone.spec.default_num_frames if num_frames is None else num_frames
        frames = []
        for step in self._steps(prompt, num_frames, seed, negative_prompt):
            if step.frames is not None:
                frames.append(step.frames)
        return LongVideo(
            np.concatenate(frames), self.backbone.spec.fps, step.num_calls, step.trace, list(step.final_consistency)
        )

    def stream(
        self,
        prompt: str | Sequence[str],
        num_frames: int | None = None,
        seed: int = 0,
        negative_prompt: str | None = None,
        frames_per_prompt: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Frames uint8 `[H, W, 3]` as they are finished, in constant memory; for ever if `num_frames` is None.

        Args:
            prompt: one prompt, or several in turn.
            num_frames: length; None for a video without end.
            seed: see `__call__`.
            negative_prompt: see `__call__`.
            frames_per_prompt: frames that each prompt but the last holds for; by default an even share, or a clip's
                length in a video without end.

        Raises:
            UsageError, BadRowError: see `__call__`; before the first frame.
        """
        steps = self._steps(prompt, num_frames, seed, negative_prompt, frames_per_prompt)
        return (frame for step in steps if step.frames is not None for frame in step.frames)

    def _steps(
        self,
        prompt: str | Sequence[str],
        num_frames: int | None,
        seed: int,
        negative_prompt: str | None,
        frames_per_prompt: int | None = None,
    ) -> Iterator[Progress]:
        spec = self.backbone.spec
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise UsageError(f"seed {seed!r} cannot be", "take a whole number from 0 to 2**64 - 1")
        num_latents = None if num_frames is None else _num_latents(spec, num_frames)
        prompts = _texts(prompt)
        if negative_prompt is not None and not isinstance(negative_prompt, str):
            raise UsageError(f"negative_prompt is a {type(negative_prompt).__name__}", "give a text, or None")
        if frames_per_prompt is not None and not _is_length(frames_per_prompt):
            raise UsageError(f"frames_per_prompt {frames_per_prompt!r} cannot be", "take a number of frames, 1 or more")
        for text in prompts:
            self.backbone.check_prompt(text)
        negative = spec.negative_prompt if negative_prompt is None else negative_prompt
        *embeddings, negative_embedding = self.backbone.encode_prompts([*prompts, negative])
        latents_per_prompt = None
        if frames_per_prompt is not None:
            latents_per_prompt = max(1, round(frames_per_prompt / spec.frames_per_latent))
        return make_video(
            self.backbone,
            self.config,
            embeddings,
            negative_embedding,
            num_latents,
            seed,
            latents_per_prompt=latents_per_prompt,
            features=self.features,
        )


MAX_FRAMES: Final = 2**31 - 1
"""More than a file of video holds; at 16 frames a second they take four years to watch."""


def _is_length(value: object) -> bool:
    return type(value) in (int, float) and 1 <= value <= MAX_FRAMES  # type: ignore[operator]


def _num_latents(spec: BackboneSpec, num_frames: int) -> int:
    if type(num_frames) is not int or num_frames > MAX_FRAMES:
        raise UsageError(f"num_frames {num_frames!r} cannot be", f"take a whole number of frames, at most {MAX_FRAMES}")
    try:
        return spec.num_latents(num_frames)
    except ValueError as error:
        raise UsageError(str(error), "take one of those counts") from None


def _texts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt, or several."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not all(isinstance(text, str) for text in prompts):
        raise UsageError(f"prompt is a {type(prompt).__name__} of something else than texts", "give a text, or several")
    if not prompts:
        raise UsageError("no prompt given", "give one prompt, or several to stand in turn")
    return list(prompts)
