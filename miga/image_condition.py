"""What an image-to-video model is shown of given frames: the condition y, a mask and latents, beside the noisy latents.

A latent of y says which of its frames are given (mask channels, one for each frame of a latent) and what is known of
them (the VAE's latents of the given frames, with a fill where none are given). `y` has a latent for every one of the
clip, and stands behind the noisy latents' channels in the network's input.

Source: Wan 2.1 and 2.2 (image to video), Stable Video Infinity (several motion frames, fills, latents handed over);
with one given frame and fill "zeros" it is what diffusers' `WanImageToVideoPipeline.prepare_latents` makes.

Legend: F frames or latents, C channels, H, W pixels or latent cells; pixels are -1 ... 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch

from miga.backbones.base import BackboneSpec, Condition
from miga.config import LaterWindows, SamplerConfig
from miga.errors import BadRowError, ConfigError

Fill: TypeAlias = Literal["zeros", "reference"]
"""What stands where no frame is given: mid grey, or a reference picture over and over."""
Encode: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Frames `[F, 3, H, W]` to normalised latents `[F, C, H, W]`: the mean of a causal VAE's posterior."""


def mask_of(is_given_F: torch.Tensor, frames_per_latent: int) -> torch.Tensor:
    """Which frames of every latent are given, `[F, frames_per_latent]`: 1 for a given one.

    The first latent is one frame, which all of its channels tell of; of the others each channel is a frame's.

    Args:
        is_given_F: of every frame, 1 + k F' of them.
        frames_per_latent: k.
    """
    first, others = is_given_F[:1].expand(frames_per_latent), is_given_F[1:]
    if len(others) % frames_per_latent:
        raise ValueError(f"{len(is_given_F)} frames are not 1 + {frames_per_latent}k")
    return torch.cat([first, others]).reshape(-1, frames_per_latent).float()


def joined(mask_FC: torch.Tensor, latents_FCHW: torch.Tensor) -> torch.Tensor:
    """The condition y `[F, mask channels + C, H, W]`, the mask first."""
    mask_FCHW = mask_FC[:, :, None, None].expand(-1, -1, *latents_FCHW.shape[2:]).to(latents_FCHW)
    return torch.cat([mask_FCHW, latents_FCHW], dim=1)


def condition_of_frames(
    encode: Encode,
    given_FCHW: torch.Tensor,
    num_frames: int,
    frames_per_latent: int,
    *,
    fill: Fill = "zeros",
    reference_CHW: torch.Tensor | None = None,
    num_references: int | None = None,
    num_marked: int = 1,
    last_CHW: torch.Tensor | None = None,
) -> torch.Tensor:
    """The condition y of a clip that begins with given frames.

    Args:
        encode: the VAE.
        given_FCHW: the first frames.
        num_frames: of the clip.
        frames_per_latent: of the VAE.
        fill: what follows them.
        reference_CHW: the picture of fill "reference".
        num_references: so many times, and then mid grey; None: to the end.
        num_marked: given frames that the mask tells of; Wan and SVI mark the first alone.
        last_CHW: the clip's last frame, marked too; None if it is not given.
    """
    video_FCHW = given_FCHW.new_zeros(num_frames, *given_FCHW.shape[1:])
    count = len(given_FCHW)
    if not 0 < count <= num_frames:
        raise ValueError(f"{count} given frames do not fit a clip of {num_frames}")
    if fill == "reference":
        if reference_CHW is None:
            raise ValueError("fill 'reference' needs a reference picture")
        stop = num_frames if num_references is None else min(num_frames, count + num_references)
        video_FCHW[count:stop] = reference_CHW
    video_FCHW[:count] = given_FCHW
    is_given_F = torch.zeros(num_frames, device=given_FCHW.device)
    is_given_F[: min(count, num_marked)] = 1.0
    if last_CHW is not None:
        video_FCHW[-1], is_given_F[-1] = last_CHW, 1.0
    return joined(mask_of(is_given_F, frames_per_latent), encode(video_FCHW))


def condition_of_latents(
    anchor_1CHW: torch.Tensor, motion_FCHW: torch.Tensor, num_latents: int, frames_per_latent: int
) -> torch.Tensor:
    """The condition y of SVI 2.0 Pro: the anchor's latent, the last latents of the clip before, and zeros.

    The mask tells of the first latent alone. Nothing is decoded and encoded again at a hand-over.

    Args:
        anchor_1CHW: the user's picture, encoded.
        motion_FCHW: the last latents of the clip before; none for a first clip.
        num_latents: of the clip.
        frames_per_latent: of the VAE.
    """
    known_FCHW = torch.cat([anchor_1CHW, motion_FCHW.to(anchor_1CHW)])
    if len(known_FCHW) > num_latents:
        raise ValueError(f"{len(known_FCHW)} known latents do not fit a clip of {num_latents}")
    latents_FCHW = anchor_1CHW.new_zeros(num_latents, *anchor_1CHW.shape[1:])
    latents_FCHW[: len(known_FCHW)] = known_FCHW
    mask_FC = latents_FCHW.new_zeros(num_latents, frames_per_latent)
    mask_FC[0] = 1.0
    return joined(mask_FC, latents_FCHW)


class ImageBackbone(Protocol):
    """A backbone that takes pictures, beside what `miga.backbones.base.Backbone` says of it.

    `spec.image_input` says how its network takes them.
    """

    spec: BackboneSpec
    device: torch.device

    def encode_frames(self, frames_FCHW: torch.Tensor) -> torch.Tensor:
        """Normalised latents `[F, C, H, W]`, float32, of frames `[1 + k F', 3, H, W]`: the posterior's mean."""
        ...

    def decode_frames(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames `[F, 3, H, W]`, float32, of the latents of a clip from its first on."""
        ...

    def image_tokens(self, frames_FCHW: torch.Tensor) -> torch.Tensor | None:
        """What the network reads of whole pictures `[tokens, D]` beside the text; None if it reads nothing."""
        ...

    def with_image(self, condition: Condition, tokens_LD: torch.Tensor | None) -> Condition:
        """A prompt's condition, with what the network reads of a picture."""
        ...


@dataclass(frozen=True)
class Pictures:
    """The pictures of one video, and the model that takes them.

    Attributes:
        backbone: encodes, decodes.
        first_CHW: the video's first frame.
        last_CHW: its last one; None if it is not given.
    """

    backbone: ImageBackbone
    first_CHW: torch.Tensor
    last_CHW: torch.Tensor | None = None
    _kept: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def anchor(self) -> torch.Tensor:
        """The first picture's latent `[1, C, H, W]`, encoded once."""
        if "anchor" not in self._kept:
            self._kept["anchor"] = self.backbone.encode_frames(self.first_CHW[None])
        return self._kept["anchor"]


def pictures_of(backbone: Any, first_CHW: torch.Tensor | None, last_CHW: torch.Tensor | None = None) -> Pictures | None:
    """The pictures of a video on the backbone's device; None if there are none.

    Raises:
        BadRowError: if there is a last one alone.
    """
    if first_CHW is None:
        if last_CHW is not None:
            raise BadRowError("there is a last_image, and no image", "give both, or leave the last one out")
        return None
    device = backbone.device
    return Pictures(backbone, first_CHW.to(device), None if last_CHW is None else last_CHW.to(device))


class WindowPictures(Protocol):
    """What windows show of given pictures, and what is kept of their outputs."""

    def before(self, indices: Sequence[int]) -> torch.Tensor | None:
        """A clean latent `[1, C, H, W]` that a window shows before the latents of these places; None for none."""
        ...

    def show(
        self, x_FCHW: torch.Tensor, level_F: torch.Tensor, indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is shown in place of the latents of these places in the video, and their levels."""
        ...

    def keep(self, clean_FCHW: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """The clean latents that count in place of those predicted."""
        ...


@dataclass(frozen=True)
class HeldFirst:
    """The first latent of the video is given: it is shown clean wherever it is shown, at level 0, and stays as it is.

    Source: Wan 2.2 TI2V-5B, whose first latent has time step 0 (diffusers' `expand_timesteps`).

    Attributes:
        latent_1CHW: the picture, encoded.
    """

    latent_1CHW: torch.Tensor

    def before(self, indices: Sequence[int]) -> torch.Tensor | None:
        """See `WindowPictures.before`."""
        return None

    def show(
        self, x_FCHW: torch.Tensor, level_F: torch.Tensor, indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `WindowPictures.show`."""
        if 0 not in indices:
            return x_FCHW, level_F
        place = indices.index(0)
        return self._held(x_FCHW, place), level_F.index_fill(0, torch.tensor([place]), 0)

    def keep(self, clean_FCHW: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """See `WindowPictures.keep`."""
        return self._held(clean_FCHW, indices.index(0)) if 0 in indices else clean_FCHW

    def _held(self, x_FCHW: torch.Tensor, place: int) -> torch.Tensor:
        held_FCHW = x_FCHW.clone()
        held_FCHW[place] = self.latent_1CHW[0].to(x_FCHW)
        return held_FCHW


@dataclass(frozen=True)
class Channels:
    """The condition y stands behind the channels of a window's latents.

    Attributes:
        y_FCHW: of a clip.
        start: place in the video of its first latent.
    """

    y_FCHW: torch.Tensor
    start: int = 0

    def before(self, indices: Sequence[int]) -> torch.Tensor | None:
        """See `WindowPictures.before`."""
        return None

    def show(
        self, x_FCHW: torch.Tensor, level_F: torch.Tensor, indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `WindowPictures.show`."""
        places = [index - self.start for index in indices]
        assert 0 <= min(places) <= max(places) < len(self.y_FCHW), "windows lie within the clip"
        return torch.cat([x_FCHW, self.y_FCHW[places].to(x_FCHW)], dim=1), level_F

    def keep(self, clean_FCHW: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """See `WindowPictures.keep`."""
        return clean_FCHW


@dataclass(frozen=True)
class WindowChannels:
    """A condition y of its own for every window of a queue, behind the channels of its latents.

    A window that begins with the video's first latent is shown what a clip of the model is: the picture, then grey, or
    the picture over and over. So is one that is shown the picture before its own latents, which takes a place: the
    picture is as noisy there as the cleanest of them.

    Attributes:
        y_FCHW: of a clip that begins with the picture.
        anchor_1CHW: the picture, encoded.
    """

    y_FCHW: torch.Tensor
    anchor_1CHW: torch.Tensor

    @classmethod
    def of(cls, pictures: Pictures, window: int, later: LaterWindows) -> WindowChannels:
        """Those of a video, whose windows show so many latents at most."""
        spec, backbone = pictures.backbone.spec, pictures.backbone
        num_frames = spec.frames_first_latent + (window - 1) * spec.frames_per_latent
        first_1CHW = pictures.first_CHW[None]
        y_FCHW = condition_of_frames(
            backbone.encode_frames,
            first_1CHW,
            num_frames,
            spec.frames_per_latent,
            fill="reference" if later == "reference" else "zeros",
            reference_CHW=pictures.first_CHW,
        )
        return cls(y_FCHW, pictures.anchor())

    def before(self, indices: Sequence[int]) -> torch.Tensor | None:
        """See `WindowPictures.before`."""
        return None if indices[0] == 0 else self.anchor_1CHW

    def show(
        self, x_FCHW: torch.Tensor, level_F: torch.Tensor, indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `WindowPictures.show`."""
        assert indices[0] == 0, "every window begins with the picture, its own or the one before it"
        return torch.cat([x_FCHW, self.y_FCHW[: len(indices)].to(x_FCHW)], dim=1), level_F

    def keep(self, clean_FCHW: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """See `WindowPictures.keep`."""
        return clean_FCHW


@dataclass(frozen=True)
class PictureRules:
    """Which pictures a model takes in a profile; a reason not to take one is empty where it is taken.

    Attributes:
        why_no_first: why no first picture is taken.
        why_no_last: why no last one is.
        is_needed: whether there is no video without a first one.
    """

    why_no_first: str = ""
    why_no_last: str = ""
    is_needed: bool = False


def picture_rules(
    spec: BackboneSpec, config: SamplerConfig, *, makes_chains: bool, keeps_cache: bool = False
) -> PictureRules:
    """What is known of a model and a profile, before any picture is.

    Args:
        spec: of the model.
        config: the profile's settings.
        makes_chains: whether its method shows pictures itself, clip by clip.
        keeps_cache: whether its method keeps keys and values of one network, from noise on.

    Raises:
        ConfigError: if the two do not go together, with or without pictures.
    """
    if makes_chains:
        if spec.image_input != "channels":
            raise ConfigError(
                f"profile {config.profile!r} makes chains of an image-to-video model's clips, and {spec.name!r} is "
                "none that takes a condition beside its latents",
                "take one such as Wan-AI/Wan2.2-I2V-A14B-Diffusers, or another profile",
            )
        by_frames = getattr(config, "num_motion_frames", 1) > 0
        why_no_last = "" if spec.takes_last_image else f"{spec.name!r} was trained with a first picture alone"
        return PictureRules("", why_no_last if by_frames else f"profile {config.profile!r} hands latents over", True)
    if spec.image_input == "channels":
        if not config.later_windows:
            raise ConfigError(
                f"{spec.name!r} was never shown a window that does not begin with the picture, and profile "
                f"{config.profile!r} makes such ones",
                "take 'swift', 'paper' or 'fifo', whose windows are shown the picture; a chain of its clips, such as "
                "profile 'chain' or 'svi-shot'; or a model that holds its first latent, as "
                "Wan-AI/Wan2.2-TI2V-5B-Diffusers does",
            )
        return PictureRules("", f"profile {config.profile!r} takes a first picture alone", spec.needs_image)
    if config.later_windows:
        raise ConfigError(
            f"sampler.image_condition = {config.later_windows!r} does nothing: {spec.name!r} takes no condition beside "
            "its latents",
            "leave it out, or take a model that does, such as Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        )
    if keeps_cache and spec.expert_boundary is not None:
        raise ConfigError(
            f"profile {config.profile!r} keeps keys and values of one network, and {spec.name!r} has two, one for "
            "each part of the noise levels",
            "take causal weights, as `miga convert --causal` makes them, or another profile",
        )
    why_no_first = config.why_no_picture if spec.image_input else f"{spec.name!r} takes no pictures"
    return PictureRules(why_no_first, f"profile {config.profile!r} takes a first picture alone")


def require_pictures(rules: PictureRules, pictures: Pictures | None) -> None:
    """Whether a video can be made with these pictures.

    Raises:
        BadRowError: if not, naming what to do.
    """
    if pictures is None:
        if rules.is_needed:
            raise BadRowError(
                "this video begins with a picture, and none is given", "give the row an image, or --image"
            )
        return
    if rules.why_no_first:
        raise BadRowError(f"image: {rules.why_no_first}", "leave it out")
    if pictures.last_CHW is not None and rules.why_no_last:
        raise BadRowError(f"last_image: {rules.why_no_last}", "leave it out")
