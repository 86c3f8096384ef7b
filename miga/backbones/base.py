"""What the sampler and the pipeline know of a video model, and nothing more.

Legend: B windows in a batch, F latents (one latent frame each), C channels, H, W latent cells; `level_BF` int64, the
number of denoise steps a latent still has to take (`T` = pure noise, 0 = clean).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch

from miga.cached_call import CachedCall, TimeFrequencies
from miga.clips import ClipLayout
from miga.config import SamplerConfig
from miga.schedule import NoiseSchedule

Condition: TypeAlias = Any
"""What a prompt becomes for the network (for Wan: text embeddings); opaque to the sampler."""

Component: TypeAlias = Literal["tokenizer", "text", "denoiser", "vae"]
"""A part that can be loaded on its own: "tokenizer" only checks prompts, "text" encodes them too."""


ImageInput: TypeAlias = Literal["", "channels", "first_latent", "held"]
"""How a network takes a picture: not at all; as channels behind its latents (`image_condition.py`); as a first latent
that is clean already, at time step 0, as it was trained; or so though it was trained on text alone, "held" clean."""


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a model without loading it.

    Attributes:
        family: such as "wan" or "videocrafter2": picks the published sampler settings.
        name: the folder or hub name the model was loaded from.
        revision: commit, or a digest of the files of a folder.
        window: `f0`, latents the model was trained to make at once.
        latent_channels, latent_height, latent_width: shape of one latent.
        height, width: pixels of a frame.
        fps: frames per second that videos are written at.
        frames_per_latent: frames that every latent but the first decodes to.
        frames_first_latent: frames that the first latent decodes to (1 for a causal VAE).
        negative_prompt: the model's own.
        default_num_frames: length of a video where none is asked for.
        forward_flops: floating-point operations of one forward over a whole window, about.
        attention_share: of these operations, the share of self-attention, which grows with the window's square.
        sampler: settings of the model's own for `SamplerConfig`, over those of its family.
        noise_schedule: what it was trained with: "flow" (flow matching, which ends at no noise), "ddim" (Stable
            Diffusion's betas, which end above it), or "" where that is known once it is loaded.
        takes_positions: whether its network can be told where latents stand in time (`PositionedDenoiser`).
        frame_attention: what of its network attends to other frames, where something else may stand in for that
            (`Backbone.denoiser`): "cells" (frames of a cell to each other), "tokens" (all to all), or "" (nothing may).
        image_input: how the network takes a picture.
        needs_image: whether it makes nothing without one.
        takes_last_image: whether it takes the last frame too.
        expert_boundary: share of the noise (of 1000 time steps) from which on another network of the model's two is
            asked; None for one network.
        clips: how a video is made of clips (of the method; none of a model's own).
    """

    family: str
    name: str
    revision: str
    window: int
    latent_channels: int
    latent_height: int
    latent_width: int
    height: int
    width: int
    fps: int
    frames_per_latent: int = 4
    frames_first_latent: int = 1
    negative_prompt: str = ""
    default_num_frames: int = 161
    forward_flops: float = 0.0
    attention_share: float = 0.0
    sampler: dict[str, Any] = field(default_factory=dict)
    noise_schedule: Literal["flow", "ddim", ""] = ""
    takes_positions: bool = False
    frame_attention: Literal["", "cells", "tokens"] = ""
    image_input: ImageInput = ""
    needs_image: bool = False
    takes_last_image: bool = False
    expert_boundary: float | None = None
    clips: ClipLayout | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        return self.latent_channels, self.latent_height, self.latent_width

    @property
    def num_condition_channels(self) -> int:
        """Channels that the network takes behind those of a latent: which frames are given, and their latents."""
        return self.frames_per_latent + self.latent_channels if self.image_input == "channels" else 0

    def num_latents(self, num_frames: int) -> int:
        """Latents that decode to `num_frames` frames.

        Raises:
            ValueError: if the VAE, or a chain of clips, cannot make exactly that many, naming the nearest counts that
                can be made.
        """
        if self.clips is not None:
            clips = self.clips
            return clips.num_clips(num_frames, self._decoded(clips.num_latents)) * clips.num_latents
        whole, rest = divmod(num_frames - self.frames_first_latent, self.frames_per_latent)
        if num_frames < self.frames_first_latent or rest:
            nearest = max(0, whole) * self.frames_per_latent + self.frames_first_latent
            formula = (
                f"{self.frames_first_latent} + {self.frames_per_latent}k"
                if self.frames_first_latent != self.frames_per_latent
                else f"{self.frames_per_latent}k"
            )
            near = f"{nearest}" if num_frames < nearest else f"{nearest} or {nearest + self.frames_per_latent}"
            raise ValueError(
                f"num_frames {num_frames} cannot be made: the VAE makes {formula} frames; the nearest is {near}"
            )
        return whole + 1

    def latent_at(self, frame: int) -> int:
        """The latent that a frame, counted from 0, is decoded from; of a chain, in the clip that it is shown of."""
        if self.clips is None:
            return max(0, -(-(frame + 1 - self.frames_first_latent) // self.frames_per_latent))
        clips, clip_frames = self.clips, self._decoded(self.clips.num_latents)
        clip, within = divmod(frame - (clip_frames - clips.drop_tail), clip_frames - clips.overlap)
        if clip < 0:
            return replace(self, clips=None).latent_at(frame)
        return (clip + 1) * clips.num_latents + replace(self, clips=None).latent_at(within + clips.drop_head)

    def num_frames(self, num_latents: int) -> int:
        """Frames that `num_latents` latents decode to; of a chain, those of whole clips."""
        if self.clips is None:
            return self._decoded(num_latents)
        num_clips = max(1, -(-num_latents // self.clips.num_latents))
        return self.clips.num_frames(num_clips, self._decoded(self.clips.num_latents))

    def of_clips(self, clips: ClipLayout | None) -> BackboneSpec:
        """The spec where videos are made of clips; a default length that they cannot make becomes the nearest."""
        if clips is None:
            return self
        clip = self._decoded(clips.num_latents)
        num_further = max(0, round((self.default_num_frames - clip) / (clip - clips.overlap)))
        return replace(self, clips=clips, default_num_frames=clips.num_frames(num_further + 1, clip))

    def _decoded(self, num_latents: int) -> int:
        return self.frames_first_latent + (num_latents - 1) * self.frames_per_latent


class Denoiser(Protocol):
    """The network as the sampler sees it.

    Whatever the network predicts (flow, noise or v), whatever its dtype and guidance: a call returns the predicted
    **clean latent** of every latent, in float32.
    """

    window: int
    schedule: NoiseSchedule

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Condition]) -> torch.Tensor:
        """Predicted clean latents `[B, F, C, H, W]`; window b is under `conditions[b]`.

        F is at most `window`, but where a method puts all latents of a video into one window.
        """
        ...


@runtime_checkable
class BranchedDenoiser(Denoiser, Protocol):
    """A denoiser that can be asked for the forwards of a guided call one by one, so that they may run side by side.

    `combine` of what `predict_branch` returns for each of them is the whole call, bit for bit. A denoiser that puts
    both through the network as one batch does not offer this.
    """

    def num_branches(self, level_BF: torch.Tensor) -> int:
        """Forwards of a call: 2 with guidance, 1 without."""
        ...

    def predict_branch(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Condition], branch: int
    ) -> torch.Tensor:
        """What the network returns under the prompt (branch 0) or the negative one (1), float32, batch first."""
        ...

    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Predicted clean latents `[B, F, C, H, W]` from the prediction of every branch.

        Raises:
            NonFiniteError: if they are NaN or infinite.
        """
        ...


@runtime_checkable
class PositionedDenoiser(Denoiser, Protocol):
    """A denoiser that can be told where the latents of a window stand in time.

    Its calls (and `predict_branch`, where it has that) take one argument more, `position_BF`, int64 `[B, F]`, rising;
    without it latents stand at 0, 1, 2, … Only where positions have gaps is it given.

    Attributes:
        takes_positions: True.
    """

    takes_positions: bool


@runtime_checkable
class CachedDenoiser(Denoiser, Protocol):
    """A denoiser whose network can keep keys and values of latents, and show them to later ones."""

    def open_cache(
        self,
        num_slots: int,
        latent_size: tuple[int, int],
        *,
        batch: int = 1,
        time_frequencies: TimeFrequencies | None = None,
    ) -> Any:
        """An empty cache of so many latents, of that height and width, for so many videos in step.

        Where a cache of one video has a method `joined(others)`, which gives the cache of all of them for a call that
        does the same in each, videos can be made in step.
        """
        ...

    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Condition]) -> torch.Tensor:
        """Predicted clean latents `[B, F, C, H, W]`, float32; the cache keeps what the call says.

        Raises:
            NonFiniteError: if they are NaN or infinite.
        """
        ...


class FrameDecoder(Protocol):
    """Turns finished latents into frames as they come, in constant memory."""

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames uint8 `[frames, height, width, 3]` of the next latents of the video, in order."""
        ...


class Backbone(Protocol):
    """A loaded video model."""

    spec: BackboneSpec
    device: torch.device

    def check_prompt(self, prompt: str) -> None:
        """Finds a prompt that the text encoder cannot take, at no cost.

        Raises:
            BadRowError: if it is blank or too long.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """One text embedding per prompt, on the CPU (so that they can be kept and sent)."""
        ...

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> Condition:
        """What `Denoiser` takes for a prompt, on the backbone's device."""
        ...

    def denoiser(self, config: SamplerConfig) -> Denoiser:
        """The network under the schedule and guidance scale of `config`.

        Where that names another attention along the frames (`config.frame_attention`), the denoiser gives it to every
        call, and has it as `frame_attention`; one without that attribute is refused there.
        """
        ...

    def frame_decoder(self) -> FrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        ...
