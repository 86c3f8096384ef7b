"""What is known of a VideoCrafter2 model from its JSON files alone, before any weights are loaded.

The folder is what `miga convert` writes. Its `miga.json` holds `Settings`; without it the published values hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import read_settings, require_component, resolve_folder, revision_of
from miga.backbones.model_config import Few, Size, check_scheduler, checked_config, class_name_of, read_config
from miga.backbones.spec import is_published, spec_folder, why_no_multiple
from miga.backbones.videocrafter2.config import ClipTextConfig, ImageVaeConfig
from miga.backbones.videocrafter2.unet import NUM_INITIAL_HEADS, UNetConfig
from miga.backbones.weight_files import first_line, read_json
from miga.errors import ModelError
from miga.schedule import DdimSpacing

FAMILY: Final = "videocrafter2"
PIPELINE_CLASS: Final = "VideoCrafter2Pipeline"
"""What `model_index.json` of a converted folder names; no library has such a class."""

JSON_FILES: Final = ("model_index.json", "miga.json", "vae/config.json", "unet/config.json", "scheduler/*.json")
"""What a spec is read from, and what lies beside it."""

NUM_TEXT_TOKENS: Final = 77
"""Of every prompt, its padding included: the network attends to that too."""

LATENT_SCALE: Final = 0.18215
"""The UNet's latents are the VAE's times this."""

PAD_TOKEN: Final = 0
"""OpenCLIP fills prompts up with token 0 ("!"), not with the end mark as CLIP's own tokenizer does."""

NUM_STRIDED_STEPS: Final = 67
"""Denoise steps that VideoCrafter's own spacing takes where 64 are asked for."""

PUBLISHED_NAME: Final = "VideoCrafter/VideoCrafter2"


@dataclass(frozen=True)
class Settings:
    """The keys of `miga.json`, with VideoCrafter2's published values. Source: decisions/0011.

    Attributes:
        family: which kind of model; always "videocrafter2".
        window: latents of a clip that the model was trained on.
        height, width: pixels of a frame.
        fps: frames per second that videos are written at.
        fps_condition: frames per second that the network is told.
        negative_prompt: what guidance steers away from.
        default_num_frames: length of a video where none is asked for.
        use_scale: whether the base clip is sampled with a factor on the signal, 1 at time 0 and 0.7 from 399 on, as
            VideoCrafter2 does; steps of single latents never are.
        spacing: of the time steps, see `ddim_schedule`.
        sampler: settings of `SamplerConfig` over those published for the family.
    """

    family: Literal["videocrafter2"] = FAMILY
    window: int = 16
    height: int = 320
    width: int = 512
    fps: int = 10
    fps_condition: int = 8
    negative_prompt: str = ""
    default_num_frames: int = 128
    use_scale: bool = True
    spacing: DdimSpacing = "linspace"
    sampler: dict[str, Any] = field(default_factory=dict)


def forward_flops(config: UNetConfig, num_latents: int, height: int, width: int) -> float:
    """Floating-point operations of one forward of the UNet: its convolutions, matrix products and attention.

    Args:
        config: of the UNet.
        num_latents: of the window.
        height: of a latent.
        width: of a latent.
    """
    count = _FlopCount(config, num_latents, height, width)
    channels, down, skips = config.model_channels, 1, [config.model_channels]
    total = count.embeddings() + count.convolution(config.in_channels, channels, down)
    total += count.temporal(channels, NUM_INITIAL_HEADS * config.num_head_channels, down)
    last = len(config.channel_mult) - 1
    for level, multiple in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            total += count.block(channels, multiple * config.model_channels, down)
            channels = multiple * config.model_channels
            skips.append(channels)
        if level < last:
            down *= 2
            total += count.convolution(channels, channels, down)
            skips.append(channels)
    total += 2 * count.residual(channels, channels, down) + count.attentions(channels, down)
    for level in range(last, -1, -1):
        for _ in range(config.num_res_blocks + 1):
            wide = config.channel_mult[level] * config.model_channels
            total += count.block(channels + skips.pop(), wide, down)
            channels = wide
        if level:
            down //= 2
            total += count.convolution(channels, channels, down)
    return float(total + count.convolution(channels, config.out_channels, down))


def attention_share(config: UNetConfig, num_latents: int, height: int, width: int) -> float:
    """Of `forward_flops`, the share that grows with the window's square: of frames that attend to frames."""
    once, twice, thrice = (forward_flops(config, times * num_latents, height, width) for times in (1, 2, 3))
    return (thrice - 2.0 * twice + once) / (2.0 * once)


@dataclass(frozen=True)
class _FlopCount:
    """Operations of the UNet's parts; `down` is by how much a latent's sides are divided there."""

    config: UNetConfig
    num_latents: int
    height: int
    width: int

    def tokens(self, down: int) -> int:
        return self.num_latents * -(-self.height // down) * -(-self.width // down)

    def embeddings(self) -> int:
        """Of every latent's time step and the window's frame rate."""
        width = self.config.embedding_channels
        return 2 * (self.num_latents + 1) * (self.config.model_channels + width) * width

    def convolution(self, num_in: int, num_out: int, down: int) -> int:
        """3 x 3."""
        return 18 * num_in * num_out * self.tokens(down)

    def block(self, num_in: int, num_out: int, down: int) -> int:
        """A residual block and, where the level has them, its attentions."""
        attentions = self.attentions(num_out, down) if down in self.config.attention_resolutions else 0
        return self.residual(num_in, num_out, down) + attentions

    def residual(self, num_in: int, num_out: int, down: int) -> int:
        """Two convolutions over the cells, four over three latents each, the embedding, and a projection past them."""
        shortcut = 2 * num_in * num_out * self.tokens(down) if num_in != num_out else 0
        embedding = 2 * self.config.embedding_channels * num_out * self.num_latents
        temporal = 4 * 6 * num_out**2 * self.tokens(down)
        spatial = self.convolution(num_in, num_out, down) + self.convolution(num_out, num_out, down)
        return spatial + temporal + embedding + shortcut

    def attentions(self, channels: int, down: int) -> int:
        """Over the cells of each latent and to the text, then over the latents."""
        tokens, text = self.tokens(down), NUM_TEXT_TOKENS
        cells = 8 * tokens * channels**2 + 4 * tokens * (tokens // self.num_latents) * channels
        to_text = 4 * tokens * channels**2 + 4 * text * self.config.context_dim * channels
        to_text += 4 * tokens * text * channels
        depth = self.config.transformer_depth
        spatial = 4 * tokens * channels**2 + depth * (cells + to_text + 24 * tokens * channels**2)
        return spatial + self.temporal(channels, channels, down)

    def temporal(self, channels: int, inner: int, down: int) -> int:
        """Twice over the latents, and a feed-forward part, between projections in and out."""
        tokens = self.tokens(down)
        attention = 8 * tokens * inner**2 + 4 * tokens * self.num_latents * inner
        depth = self.config.transformer_depth
        return 4 * tokens * channels * inner + depth * (2 * attention + 24 * tokens * inner**2)


def spec_of(name: str, revision: str, settings: Settings, unet: UNetConfig, cell: int = 8) -> BackboneSpec:
    """The spec of a model of that UNet under those settings.

    Args:
        name: what the user called it.
        revision: of its files.
        settings: see there.
        unet: its configuration.
        cell: pixels of a latent cell's side.
    """
    height, width = settings.height // cell, settings.width // cell
    steps = {"num_steps": NUM_STRIDED_STEPS} if settings.spacing == "strided" else {}
    return BackboneSpec(
        family=settings.family,
        name=name,
        revision=revision,
        window=settings.window,
        latent_channels=unet.in_channels,
        latent_height=height,
        latent_width=width,
        height=settings.height,
        width=settings.width,
        fps=settings.fps,
        frames_per_latent=1,
        frames_first_latent=1,
        negative_prompt=settings.negative_prompt,
        default_num_frames=settings.default_num_frames,
        forward_flops=forward_flops(unet, settings.window, height, width),
        attention_share=attention_share(unet, settings.window, height, width),
        sampler=steps | settings.sampler,
        noise_schedule="ddim",
        frame_attention="cells",
    )


PUBLISHED: Final = {PUBLISHED_NAME: spec_of(PUBLISHED_NAME, "main", Settings(), UNetConfig())}
"""The model that a dry run knows without network. It is published as a pickle, so it cannot be loaded by this name."""

CONVERT_HINT: Final = "run `miga convert model.ckpt FOLDER` once, and name FOLDER as the model"


def unconverted(name: str) -> ModelError:
    """What is said of the published name, by which nothing can be loaded."""
    return ModelError(
        f"{name!r} is published as a pickle, model.ckpt, which is never loaded here as it is",
        hint=f"download model.ckpt from the hub, then {CONVERT_HINT}",
    )


def load_spec(name_or_dir: str | Path, *, revision: str | None = None) -> BackboneSpec:
    """The spec of a folder or hub name, from its JSON files; of the published model from `PUBLISHED`.

    Raises:
        ModelError: if the model is missing, or is not a converted VideoCrafter2.
    """
    name = str(name_or_dir)
    if is_published(name, PUBLISHED):
        return PUBLISHED[name]
    return spec_of_folder(spec_folder(name_or_dir, revision, JSON_FILES), name)


def spec_of_folder(folder: Path, name: str) -> BackboneSpec:
    """The spec of a model in a local folder.

    Args:
        folder: where the files are.
        name: what the user called it.
    """
    index = class_name_of(read_json(folder / "model_index.json"))
    if index != PIPELINE_CLASS:
        raise ModelError(f"{name!r} is a {index}, not a {PIPELINE_CLASS}", hint=CONVERT_HINT)
    kind = class_name_of(read_json(folder / "vae" / "config.json"))
    if kind != "AutoencoderKL":
        raise ModelError(f"vae of {name!r} is {kind}, not AutoencoderKL", hint=CONVERT_HINT)
    vae, unet = read_config(folder, "vae", ImageVaeConfig), unet_config_of(folder)
    channels, cell = vae.latent_channels, 2 ** (len(vae.block_out_channels) - 1)
    if channels != unet.in_channels or channels != unet.out_channels:
        raise ModelError(
            f"vae of {name!r} has {channels} channels, its UNet takes {unet.in_channels}",
            hint="they are of two models: convert the checkpoint again",
        )
    check_scheduler(folder, "epsilon")
    settings = settings_of_folder(folder)
    if reason := why_not_size(unet, cell, settings.height, settings.width):
        raise ModelError(f"{name!r}: {reason}", hint="correct miga.json")
    return spec_of(name, revision_of(folder), settings, unet, cell)


def why_not_size(unet: UNetConfig, cell: int, height: int, width: int) -> str | None:
    """Why a model cannot make frames of that size, with the nearest sizes that it can; None if it can.

    The network takes any latent, but halves its sides level by level: where one is odd on the way, a row or column is
    made up and cut off again, which the model never saw in training.

    Args:
        unet: its configuration.
        cell: pixels of a latent cell's side.
        height: pixels of a frame.
        width: pixels of a frame.
    """
    halvings = len(unet.channel_mult) - 1
    step = cell * 2**halvings
    for side, pixels in (("height", height), ("width", width)):
        if reason := why_no_multiple(side, pixels, step, f"cells of {cell}, halved {halvings} times by the network"):
            return reason
    return None


def unet_config_of(folder: Path) -> UNetConfig:
    """The UNet's configuration.

    Raises:
        ModelError: if it is missing or of another network.
    """
    file = folder / "unet" / "config.json"
    config = read_json(file)
    if class_name_of(config) != "VideoCrafter2UNet":
        raise ModelError(f"unet of {str(folder)!r} is no VideoCrafter2UNet", hint=CONVERT_HINT)
    checked_config(file, config, UNetSizes)
    try:
        return UNetConfig.from_dict({key: value for key, value in config.items() if key != "_class_name"})
    except ValueError as error:
        raise ModelError(
            f"{str(file)!r} describes no VideoCrafter2UNet: {first_line(error)}",
            hint=CONVERT_HINT,
        ) from error


@dataclass(frozen=True, kw_only=True)
class UNetSizes:
    """Bounds of `UNetConfig`'s sizes; what fits together it knows itself."""

    in_channels: Size = 4
    out_channels: Size = 4
    model_channels: Size = 320
    channel_mult: Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Field(ge=1, le=16)] = 2
    attention_resolutions: Annotated[tuple[Size, ...], Field(max_length=8)] = (4, 2, 1)
    num_head_channels: Size = 64
    transformer_depth: Annotated[int, Field(ge=1, le=16)] = 1
    context_dim: Size = 1024
    temporal_length: Annotated[int, Field(ge=1, le=2**16)] = 16


def text_config_of_folder(folder: Path) -> ClipTextConfig:
    """The text encoder's configuration.

    Raises:
        ModelError: if it is missing, none of CLIP, or of another width than the UNet reads.
    """
    require_component("text_encoder", folder)
    config, unet = read_config(folder, "text_encoder", ClipTextConfig), unet_config_of(folder)
    if config.hidden_size != unet.context_dim:
        raise ModelError(
            f"{str(folder / 'text_encoder' / 'config.json')!r}: hidden_size is {config.hidden_size}, and the UNet "
            f"reads texts of context_dim {unet.context_dim}",
            hint="they are of two models: convert the checkpoint again",
        )
    return config


def load_settings(name_or_dir: str | Path, *, revision: str | None = None) -> Settings:
    """The settings of a folder or hub name; of the published model without any files.

    Raises:
        ModelError: as `load_spec`.
    """
    if is_published(name_or_dir, PUBLISHED):
        return Settings()
    return settings_of_folder(resolve_folder(name_or_dir, revision, JSON_FILES))


def settings_of_folder(folder: Path) -> Settings:
    """The checked contents of `miga.json`, defaults filled in.

    Raises:
        ModelError: for an unknown key, a wrong type or a value out of range.
    """
    return read_settings(folder, Settings)
