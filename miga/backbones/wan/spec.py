"""What is known of a Wan model from its JSON files alone, before any weights are loaded.

Beside diffusers' own files a folder may hold `miga.json`, for what that layout has no place for (`Settings`). Without
it Wan's published values hold.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field

from miga.backbones.base import BackboneSpec, ImageInput
from miga.backbones.loading import MOST_TOKENS, loading, read_settings, require_component, resolve_folder, revision_of
from miga.backbones.model_config import (
    arguments,
    check_scheduler,
    checked_config,
    class_name_of,
    left_out,
    read_config,
)
from miga.backbones.spec import is_published, resized, spec_folder, why_no_default_length, why_no_multiple
from miga.backbones.wan.config import ClipVisionConfig, Umt5Config, WanTransformerConfig, WanVaeConfig
from miga.backbones.weight_files import PICKLES, named, read_json, visible_files
from miga.errors import ModelError

NEGATIVE_PROMPT: Final = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The one that Wan was published with."""


@dataclass(frozen=True)
class Settings:
    """The keys of `miga.json`, with Wan's published values.

    Attributes:
        family: which kind of model; always "wan".
        window: latents of a clip that the model was trained on; None means those of `num_frames`.
        num_frames: of the clips that the model was trained on.
        height, width: pixels of a frame.
        fps: frames per second that videos are written at.
        negative_prompt: what guidance steers away from.
        default_num_frames: length of a video where none is asked for.
        sampler: settings of `SamplerConfig` over those published for the family.
        low_noise_guidance: guidance scale of the second of two experts, as a share of the first one's.
    """

    family: Literal["wan"] = "wan"
    window: int | None = None
    num_frames: int = 81
    height: int = 480
    width: int = 832
    fps: int = 16
    negative_prompt: str = NEGATIVE_PROMPT
    default_num_frames: int = 161
    sampler: dict[str, Any] = field(default_factory=dict)
    low_noise_guidance: float = 1.0


NUM_TEXT_TOKENS: Final = 512
"""Length that Wan's text embeddings are padded to."""

TIED_TEXT_WEIGHTS: Final = ("encoder.embed_tokens.weight",)
"""Of the text encoder, those that a checkpoint holds under another name."""


@dataclass(frozen=True, kw_only=True)
class WanArchitecture:
    """The sizes of a model's parts that cost and memory follow from; the defaults are those of Wan2.1 1.3B.

    See `miga.backbones.memory_plan.Footprint`.

    Attributes:
        width, ffn_width, num_layers: of the transformer.
        patch: rows and columns of latent cells that make a token.
        cell: pixels of a latent cell's side.
        channels: of a latent.
        input_channels: that the transformer takes; None: those of a latent.
        image_width: of the tokens of a picture that it reads beside the text; None: it reads none.
        image_positions: tokens of two pictures that it tells apart by their places; None: it reads one.
        num_experts: transformers of that size, one for each stretch of noise levels.
        text_width, frequency_width: what text and time step come in as.
        has_cross_attention_norm: whether cross-attention has a normalisation with weights.
        most_patches: tokens of a frame's side that positions exist for.
        vae_parameters, text_parameters: weights of the VAE (and of what reads pictures) and of the text encoder.
        vae_cache_per_cell, vae_peak_per_cell: numbers that decoding one latent at a time keeps per latent cell, and
            the most that it needs beside while it works.
    """

    can_store_fp8: ClassVar[bool] = True
    width: int = 1536
    ffn_width: int = 8960
    num_layers: int = 30
    patch: tuple[int, int] = (2, 2)
    cell: int = 8
    channels: int = 16
    input_channels: int | None = None
    image_width: int | None = None
    image_positions: int | None = None
    num_experts: int = 1
    text_width: int = 4096
    frequency_width: int = 256
    has_cross_attention_norm: bool = True
    most_patches: int = 1024
    vae_parameters: int = 126_892_531
    text_parameters: int = 5_680_910_336
    vae_cache_per_cell: int = 151_328
    vae_peak_per_cell: int = 175_000

    @property
    def transformer_parameters(self) -> int:
        """Weights of one transformer, all told."""
        return sum(math.prod(shape) for shape in self.weights().values())

    def transformer_bytes(self, *, fp8: bool = False, itemsize: int = 2) -> int:
        """Of all experts' weights, `itemsize` bytes each; with `fp8` one for those of the blocks' linear layers."""
        width, ffn = self.width, self.ffn_width
        num_square = 8 if self.image_width is None else 10
        in_fp8 = self.num_layers * (num_square * (width * width + width) + 2 * width * ffn + ffn + width) if fp8 else 0
        return self.num_experts * (itemsize * (self.transformer_parameters - in_fp8) + in_fp8)

    def tokens_per_latent(self, height: int, width: int) -> int:
        """Tokens of one latent of frames of so many pixels."""
        return (height // self.cell // self.patch[0]) * (width // self.cell // self.patch[1])

    def activation_bytes_per_token(self, dtype: torch.dtype) -> int:
        """The most that is alive at once for one token of a call, weights apart: in attention, or in the feed-forward.

        Taken off the shapes of all tensors alive at once (tests/miga/backbones/test_wan_memory.py).
        """
        if dtype.itemsize == 2:
            return max(30 * self.width, 12 * self.width + 4 * self.ffn_width)
        return max(51 * self.width, 22 * self.width + 8 * self.ffn_width)

    def window_bytes(self, spec: BackboneSpec, num_latents: int, dtype: torch.dtype) -> int:
        """The same of a call over so many latents."""
        tokens = num_latents * self.tokens_per_latent(spec.height, spec.width)
        return tokens * self.activation_bytes_per_token(dtype)

    def cache_bytes(self, spec: BackboneSpec, num_latents: int, dtype: torch.dtype) -> int:
        """Of keys and values of so many latents in all layers."""
        tokens = self.tokens_per_latent(spec.height, spec.width)
        return num_latents * 2 * self.num_layers * tokens * self.width * dtype.itemsize

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight of the transformer (of each expert the same), by its name."""
        width, head = self.width, self.patch[0] * self.patch[1] * self.channels
        embedder = "condition_embedder"
        weights: dict[str, tuple[int, ...]] = {
            "patch_embedding.weight": (width, self.input_channels or self.channels, 1, *self.patch),
            "patch_embedding.bias": (width,),
            "scale_shift_table": (1, 2, width),
        }
        linear = {
            f"{embedder}.time_embedder.linear_1": (self.frequency_width, width),
            f"{embedder}.time_embedder.linear_2": (width, width),
            f"{embedder}.time_proj": (width, 6 * width),
            f"{embedder}.text_embedder.linear_1": (self.text_width, width),
            f"{embedder}.text_embedder.linear_2": (width, width),
            "proj_out": (width, head),
        }
        if self.image_width is not None:
            image = f"{embedder}.image_embedder"
            linear |= {
                f"{image}.ff.net.0.proj": (self.image_width, self.image_width),
                f"{image}.ff.net.2": (self.image_width, width),
            }
            for norm, size in (("norm1", self.image_width), ("norm2", width)):
                weights |= {f"{image}.{norm}.weight": (size,), f"{image}.{norm}.bias": (size,)}
            if self.image_positions is not None:
                weights[f"{image}.pos_embed"] = (1, self.image_positions, self.image_width)
        for block in (f"blocks.{number}" for number in range(self.num_layers)):
            if self.image_width is not None:
                linear |= {f"{block}.attn2.add_{part}_proj": (width, width) for part in ("k", "v")}
                weights[f"{block}.attn2.norm_added_k.weight"] = (width,)
            for attention in (f"{block}.attn1", f"{block}.attn2"):
                linear |= {f"{attention}.to_{part}": (width, width) for part in ("q", "k", "v", "out.0")}
                weights |= {f"{attention}.norm_{part}.weight": (width,) for part in ("q", "k")}
            linear |= {
                f"{block}.ffn.net.0.proj": (width, self.ffn_width),
                f"{block}.ffn.net.2": (self.ffn_width, width),
            }
            weights[f"{block}.scale_shift_table"] = (1, 6, width)
            if self.has_cross_attention_norm:
                weights |= {f"{block}.norm2.weight": (width,), f"{block}.norm2.bias": (width,)}
        for name, (ins, outs) in linear.items():
            weights |= {f"{name}.weight": (outs, ins), f"{name}.bias": (outs,)}
        return weights

    def resized(self, spec: BackboneSpec, height: int, width: int) -> BackboneSpec:
        """The spec for frames of another size.

        Raises:
            ModelError: if the model cannot make that size, naming the nearest that it can.
        """
        num_tokens = spec.window * self.tokens_per_latent(height, width)
        why_not = why_not_size(self, height, width)
        share = self.attention_share(num_tokens)
        return replace(resized(spec, height, width, why_not, self.forward_flops(num_tokens)), attention_share=share)

    def attention_share(self, num_tokens: int) -> float:
        """Of `forward_flops`, the share of self-attention's products of tokens with tokens."""
        return 4.0 * self.num_layers * num_tokens**2 * self.width / self.forward_flops(num_tokens)

    def forward_flops(self, num_tokens: int) -> float:
        """Floating-point operations of one forward of the transformer, matrix products only."""
        width = self.width
        self_attention = 8 * num_tokens * width**2 + 4 * num_tokens**2 * width
        cross_attention = 4 * (num_tokens + NUM_TEXT_TOKENS) * width**2 + 4 * num_tokens * NUM_TEXT_TOKENS * width
        return float(self.num_layers * (self_attention + cross_attention + 4 * num_tokens * width * self.ffn_width))


def why_not_size(architecture: WanArchitecture, height: int, width: int) -> str | None:
    """Why a model cannot make frames of that size, with the nearest sizes that it can; None if it can."""
    cell = architecture.cell
    for side, pixels, patch in (("height", height, architecture.patch[0]), ("width", width, architecture.patch[1])):
        step, most = cell * patch, cell * patch * architecture.most_patches
        if reason := why_no_multiple(side, pixels, step, f"cells of {cell} by patches of {patch}"):
            return reason
        if pixels > most:
            return f"{side} {pixels} is more than the {most} pixels that the model has positions for"
    return None


JSON_FILES: Final = (
    "model_index.json", "miga.json", "vae/config.json", "transformer/config.json", "text_encoder/config.json",
    "scheduler/*.json", "transformer_2/config.json", "image_encoder/config.json", "image_processor/*.json",
)  # fmt: skip
"""What a spec is read from, and what lies beside it."""

_14B: Final = WanArchitecture(width=5120, ffn_width=13824, num_layers=40)
IMAGE_PARAMETERS: Final = 630_766_080
"""Of CLIP's image encoder (ViT-H/14), which Wan2.1's image models come with."""
_I2V_14B: Final = replace(
    _14B, input_channels=36, image_width=1280, vae_parameters=_14B.vae_parameters + IMAGE_PARAMETERS
)
ARCHITECTURES: Final = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": WanArchitecture(),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _14B,
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _I2V_14B,
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": _I2V_14B,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": replace(_14B, num_experts=2),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": replace(_14B, input_channels=36, num_experts=2),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": WanArchitecture(
        width=3072,
        ffn_width=14336,
        num_layers=30,
        cell=16,
        channels=48,
        vae_parameters=704_688_668,
        vae_cache_per_cell=456_800,
        vae_peak_per_cell=970_000,
    ),
}
"""Of the published models."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What `model_index.json` says of how a model is sampled.

    Attributes:
        boundary_ratio: share of the 1000 time steps from which on the first of two transformers is asked.
        expand_timesteps: whether a picture is a first latent with time step 0.
    """

    boundary_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    expand_timesteps: bool = False


@dataclass(frozen=True)
class ImageUse:
    """How a model takes pictures, as its spec says it.

    Attributes:
        input, is_needed, takes_last: `image_input`, `needs_image` and `takes_last_image` of the spec.
    """

    input: ImageInput = ""
    is_needed: bool = False
    takes_last: bool = False


_CHANNELS: Final = ImageUse("channels", True)
_FIRST_AND_LAST: Final = ImageUse("channels", True, True)
_FIRST_LATENT: Final = ImageUse("first_latent")
_HELD: Final = ImageUse("held")
_LARGE: Final = {"height": 720, "width": 1280}
_STEPS_I2V: Final = {"num_steps": 40, "guidance_scale": 5.0}
_KINDS: Final[dict[str, tuple[dict[str, Any], ImageUse, Pipeline]]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ({}, _HELD, Pipeline()),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ({}, _HELD, Pipeline()),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": ({"sampler": {**_STEPS_I2V, "flow_shift": 3.0}}, _CHANNELS, Pipeline()),
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": (
        {**_LARGE, "sampler": {**_STEPS_I2V, "flow_shift": 5.0}},
        _CHANNELS,
        Pipeline(),
    ),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": (
        {"sampler": {"num_steps": 40, "guidance_scale": 4.0, "flow_shift": 12.0}, "low_noise_guidance": 0.75},
        _HELD,
        Pipeline(boundary_ratio=0.875),
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": (
        {"sampler": {"num_steps": 40, "guidance_scale": 3.5, "flow_shift": 5.0}},
        _FIRST_AND_LAST,
        Pipeline(boundary_ratio=0.9),
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": (
        {
            "num_frames": 121,
            "height": 704,
            "width": 1280,
            "fps": 24,
            "default_num_frames": 241,
            "sampler": {"window": 28, "num_steps": 50, "guidance_scale": 5.0, "flow_shift": 5.0},
        },
        _FIRST_LATENT,
        Pipeline(expand_timesteps=True),
    ),
}
"""Settings of the published models that differ from Wan2.1's, how each takes pictures, and how it is sampled."""


def settings_of_folder(folder: Path, name: str, architecture: WanArchitecture) -> Settings:
    """What `miga.json` says; where it is silent, what was published for that model or one of the same make.

    Raises:
        ModelError: see `read_settings`.
    """
    settings, file = read_settings(folder, Settings), folder / "miga.json"
    stated = read_json(file).keys() if os.path.lexists(file) else ()
    alike = [known for known in _KINDS if _make_of(ARCHITECTURES[known]) == _make_of(architecture)]
    alike = [known for known in alike if _KINDS[known][2] == pipeline_of(folder)]
    if name in alike or alike:
        published = _KINDS[name if name in alike else alike[0]][0]
        settings = replace(settings, **{key: value for key, value in published.items() if key not in stated})
    return settings


def low_noise_guidance_of(folder: Path, name: str) -> float:
    """Guidance scale of the second of two experts, as a share of the first one's; 1 of a single one.

    Raises:
        ModelError: see `settings_of_folder`.
    """
    if not has_second_transformer(folder):
        return 1.0
    return settings_of_folder(folder, name, architecture_of_folder(folder)).low_noise_guidance


def _make_of(architecture: WanArchitecture) -> tuple[object, ...]:
    """What tells the published models apart."""
    of = architecture
    return of.width, of.num_layers, of.channels, of.input_channels, of.image_width, of.image_positions, of.num_experts


def pipeline_of(folder: Path) -> Pipeline:
    """What a folder's `model_index.json` says of how it is sampled.

    Raises:
        ModelError: if it says something of another type.
    """
    file = folder / "model_index.json"
    return checked_config(file, read_json(file), Pipeline)


def spec_of(
    name: str,
    revision: str,
    settings: Settings,
    architecture: WanArchitecture,
    frames_per_latent: int = 4,
    image: ImageUse = ImageUse(),
    expert_boundary: float | None = None,
) -> BackboneSpec:
    """The spec of a model of that architecture under those settings."""
    window = settings.window or (settings.num_frames - 1) // frames_per_latent + 1
    tokens_per_latent = architecture.tokens_per_latent(settings.height, settings.width)
    return BackboneSpec(
        family=settings.family,
        name=name,
        revision=revision,
        window=window,
        latent_channels=architecture.channels,
        latent_height=settings.height // architecture.cell,
        latent_width=settings.width // architecture.cell,
        height=settings.height,
        width=settings.width,
        fps=settings.fps,
        frames_per_latent=frames_per_latent,
        negative_prompt=settings.negative_prompt,
        default_num_frames=settings.default_num_frames,
        forward_flops=architecture.forward_flops(window * tokens_per_latent),
        attention_share=architecture.attention_share(window * tokens_per_latent),
        sampler=settings.sampler,
        noise_schedule="flow",
        takes_positions=True,
        frame_attention="tokens",
        image_input=image.input,
        needs_image=image.is_needed,
        takes_last_image=image.takes_last,
        expert_boundary=expert_boundary,
    )


PUBLISHED: Final = {
    name: spec_of(name, "main", Settings(**settings), ARCHITECTURES[name], 4, image, pipeline.boundary_ratio)
    for name, (settings, image, pipeline) in _KINDS.items()
}
"""Models that a dry run knows without network."""


def load_spec(name_or_dir: str | Path, *, revision: str | None = None) -> BackboneSpec:
    """The spec of a folder or hub name, from its JSON files; of a published model from `PUBLISHED`.

    The revision of a published model is then the one asked for, not yet a commit: a loaded backbone's spec names it.

    Raises:
        ModelError: if the model is missing, or is not one that this project can sample from.
    """
    name = str(name_or_dir)
    if revision is None and is_published(name, PUBLISHED):
        return PUBLISHED[name]
    return spec_of_folder(spec_folder(name_or_dir, revision, JSON_FILES), name)


def load_architecture(name_or_dir: str | Path, *, revision: str | None = None) -> WanArchitecture:
    """The sizes of a model's parts, from its JSON files; of a published model without any.

    Raises:
        ModelError: as `load_spec`.
    """
    if is_published(name_or_dir, ARCHITECTURES):
        return ARCHITECTURES[str(name_or_dir)]
    return architecture_of_folder(resolve_folder(name_or_dir, revision, JSON_FILES))


def architecture_of_folder(folder: Path) -> WanArchitecture:
    """The sizes of the parts of a model in a local folder.

    Raises:
        ModelError: if a configuration is missing, or none of such a part.
    """
    vae, transformer = _vae_config(folder), _transformer_config(folder)
    with loading("vae", folder):
        vae_parameters = sum(weight.numel() for weight in _vae(vae).parameters())
    known = ARCHITECTURES["Wan-AI/Wan2.2-TI2V-5B-Diffusers"] if vae.is_residual else WanArchitecture()
    vae_width = (vae.decoder_base_dim or vae.base_dim) / (256 if vae.is_residual else 96)  # those of Wan's
    has_two = has_second_transformer(folder)
    image_parameters = _image_parameters(folder) if transformer.image_dim is not None else 0
    return WanArchitecture(
        num_experts=2 if has_two else 1,
        input_channels=None if transformer.in_channels == vae.z_dim else transformer.in_channels,
        image_width=transformer.image_dim,
        image_positions=transformer.pos_embed_seq_len,
        width=transformer.width,
        ffn_width=transformer.ffn_dim,
        num_layers=transformer.num_layers,
        patch=transformer.patch_size[1:],
        cell=vae.cell,
        channels=vae.z_dim,
        text_width=transformer.text_dim,
        frequency_width=transformer.freq_dim,
        has_cross_attention_norm=transformer.cross_attn_norm,
        most_patches=transformer.rope_max_seq_len,
        vae_parameters=vae_parameters + image_parameters,
        text_parameters=_text_parameters(folder, transformer.text_dim),
        vae_cache_per_cell=round(known.vae_cache_per_cell * vae_width),
        vae_peak_per_cell=round(known.vae_peak_per_cell * vae_width),
    )


def has_second_transformer(folder: Path) -> bool:
    """Whether `model_index.json` names a second transformer, for the lower noise levels.

    Raises:
        ModelError: if the file cannot be read.
    """
    return read_json(folder / "model_index.json").get("transformer_2") not in (None, [], [None, None])


def _image_parameters(folder: Path) -> int:
    """Weights of what reads pictures, where it is at hand; else CLIP's."""
    if not os.path.lexists(folder / "image_encoder" / "config.json"):
        return IMAGE_PARAMETERS
    return sum(weight.numel() for weight in _image_encoder(_image_config(folder)).parameters())


def _image_config(folder: Path) -> ClipVisionConfig:
    require_component("image_encoder", folder)
    return read_config(folder, "image_encoder", ClipVisionConfig)


def image_config_of_folder(folder: Path) -> Any:
    """transformers' configuration of the image encoder, of nothing but the values that were checked.

    Raises:
        ModelError: if it is missing, or none of CLIP.
    """
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**arguments(_image_config(folder)))


def _transformer_config(folder: Path, part: str = "transformer") -> WanTransformerConfig:
    return read_config(folder, part, WanTransformerConfig)


def _vae_config(folder: Path) -> WanVaeConfig:
    return read_config(folder, "vae", WanVaeConfig)


def _text_parameters(folder: Path, text_width: int) -> int:
    """Weights of the text encoder by its configuration, where that is at hand; else Wan's."""
    file = folder / "text_encoder" / "config.json"
    if not os.path.lexists(file):
        return WanArchitecture().text_parameters
    config = read_config(folder, "text_encoder", Umt5Config)
    if config.d_model != text_width:
        raise ModelError(
            f"{str(file)!r}: d_model is {config.d_model}, and the transformer reads texts of text_dim {text_width}",
            hint="they are of two models: download it again",
        )
    return config.num_parameters


def text_config_of_folder(folder: Path) -> Any:
    """transformers' configuration of the text encoder, of nothing but the values that were checked.

    Raises:
        ModelError: if it is missing, or none of UMT5.
    """
    from transformers import UMT5Config

    return UMT5Config(**arguments(_text_config(folder)))


def text_vocabulary(folder: Path) -> int:
    """Tokens that the text encoder knows by its configuration; without one, any number."""
    is_here = os.path.lexists(folder / "text_encoder" / "config.json")
    return _text_config(folder).vocab_size if is_here else MOST_TOKENS


def _text_config(folder: Path) -> Umt5Config:
    require_component("text_encoder", folder)
    return read_config(folder, "text_encoder", Umt5Config)


def modules_of_folder(folder: Path) -> dict[str, tuple[torch.nn.Module, str]]:
    """The modules of a model in a local folder, on the meta device: names and shapes, no memory.

    Beside each of them stands what its configuration leaves out, for a hint where the weights do not fit.

    Raises:
        ModelError: if a configuration is missing, or none of such a module.
    """
    modules: dict[str, tuple[torch.nn.Module, str]] = {}
    with loading("transformer", folder):
        config = _transformer_config(folder)
        modules["transformer"] = _transformer(config), left_out(folder, "transformer", WanTransformerConfig)
    with loading("vae", folder):
        modules["vae"] = _vae(_vae_config(folder)), left_out(folder, "vae", WanVaeConfig)
    with loading("text_encoder", folder):
        modules["text_encoder"] = _text_encoder(_text_config(folder)), left_out(folder, "text_encoder", Umt5Config)
    if has_second_transformer(folder):
        with loading("transformer_2", folder):
            second = _transformer(_transformer_config(folder, "transformer_2"))
            modules["transformer_2"] = second, left_out(folder, "transformer_2", WanTransformerConfig)
    if _transformer_config(folder).image_dim is not None:
        with loading("image_encoder", folder):
            encoder = _image_encoder(_image_config(folder))
            modules["image_encoder"] = encoder, left_out(folder, "image_encoder", ClipVisionConfig)
    return modules


def module_of(config: WanTransformerConfig | WanVaeConfig | Umt5Config | ClipVisionConfig) -> torch.nn.Module:
    """The module of a part's configuration, on the meta device; the same one for the same configuration."""
    if isinstance(config, WanTransformerConfig):
        return _transformer(config)
    if isinstance(config, ClipVisionConfig):
        return _image_encoder(config)
    return _vae(config) if isinstance(config, WanVaeConfig) else _text_encoder(config)


@lru_cache(maxsize=4)
def _transformer(config: WanTransformerConfig) -> torch.nn.Module:
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        transformer: torch.nn.Module = WanTransformer3DModel(**arguments(config))
    return transformer


@lru_cache(maxsize=4)
def _vae(config: WanVaeConfig) -> torch.nn.Module:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae: torch.nn.Module = AutoencoderKLWan(**arguments(config))
    return vae


@lru_cache(maxsize=4)
def _text_encoder(config: Umt5Config) -> torch.nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        encoder: torch.nn.Module = UMT5EncoderModel(UMT5Config(**arguments(config)))
    return encoder


@lru_cache(maxsize=4)
def _image_encoder(config: ClipVisionConfig) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        encoder: torch.nn.Module = CLIPVisionModel(CLIPVisionConfig(**arguments(config)))
    return encoder


def spec_of_folder(folder: Path, name: str) -> BackboneSpec:
    """The spec of a model in a local folder.

    Args:
        folder: where the files are.
        name: what the user called it.

    Raises:
        ModelError: if it is no model of this kind, or a configuration cannot be read.
    """
    _check_pipeline(folder)
    for part, wanted in (("vae", "AutoencoderKLWan"), ("transformer", "WanTransformer3DModel")):
        kind = class_name_of(read_json(folder / part / "config.json"))
        if kind != wanted:
            raise ModelError(f"{part} of {name!r} is {kind}, not {wanted}", hint=_SUPPORTED)
    vae, transformer = _vae_config(folder), _transformer_config(folder)
    image, pipeline = _image_use(folder, name, transformer, vae), pipeline_of(folder)
    file = folder / "transformer" / "config.json"
    for key, is_other, wanted in (
        ("patch_size", transformer.patch_size[0] != 1, "[1, rows, columns]"),
        (
            "out_channels",
            (transformer.out_channels or transformer.in_channels) != vae.z_dim,
            f"{vae.z_dim}, a latent's",
        ),
    ):
        if is_other:
            raise ModelError(f"{str(file)!r}: {key} is {getattr(transformer, key)}, not {wanted}", hint=_SUPPORTED)
    boundary = _expert_boundary(folder, transformer, pipeline)
    check_scheduler(folder, "flow_prediction")
    architecture = architecture_of_folder(folder)
    settings = settings_of_folder(folder, name, architecture)
    if reason := why_not_size(architecture, settings.height, settings.width):
        raise ModelError(f"{name!r}: {reason}", hint="correct miga.json")
    spec = spec_of(name, revision_of(folder), settings, architecture, vae.frames_per_latent, image, boundary)
    if reason := why_no_default_length(spec):
        raise ModelError(f"{name!r}: default_num_frames: {reason}", hint="correct miga.json")
    return spec


def _image_use(folder: Path, name: str, transformer: WanTransformerConfig, vae: WanVaeConfig) -> ImageUse:
    """How a model takes pictures, by its transformer's channels.

    Raises:
        ModelError: if they are of no kind that is known.
    """
    file = folder / "transformer" / "config.json"
    reads_tokens = transformer.image_dim is not None
    if reads_tokens != (transformer.added_kv_proj_dim is not None):
        raise ModelError(
            f"{str(file)!r}: image_dim is {transformer.image_dim}, and added_kv_proj_dim is "
            f"{transformer.added_kv_proj_dim}",
            hint="both say that the model reads pictures, or neither: download it again",
        )
    with_condition = 2 * vae.z_dim + vae.frames_per_latent
    if transformer.in_channels == with_condition:
        reads_two = transformer.pos_embed_seq_len is not None
        return ImageUse("channels", True, reads_two or not reads_tokens)
    if transformer.in_channels != vae.z_dim or reads_tokens:
        raise ModelError(
            f"{name!r} is conditioned on images in a way that is not known: its transformer takes "
            f"{transformer.in_channels} channels, a latent has {vae.z_dim}",
            hint=f"{_SUPPORTED}, or image-to-video models of {with_condition} channels",
        )
    return _FIRST_LATENT if pipeline_of(folder).expand_timesteps else _HELD


def _expert_boundary(folder: Path, transformer: WanTransformerConfig, pipeline: Pipeline) -> float | None:
    """Where the second of two transformers takes over; None of one.

    Raises:
        ModelError: if only one of both is there, or the two do not belong together.
    """
    if not has_second_transformer(folder):
        if pipeline.boundary_ratio is not None:
            raise ModelError(
                f"{str(folder)!r} has a boundary_ratio and no second transformer",
                hint="Wan2.2's 14B models are two: download both",
            )
        return None
    if pipeline.boundary_ratio is None:
        raise ModelError(
            f"{str(folder)!r} has two transformers, and no boundary_ratio that says which is asked",
            hint="model_index.json of Wan2.2's models has one: 0.875 for text, 0.9 for images",
        )
    second = _transformer_config(folder, "transformer_2")
    if second != transformer:
        raise ModelError(
            f"the two transformers of {str(folder)!r} are not of one size",
            hint="they are of two models: download again",
        )
    return pipeline.boundary_ratio


_SUPPORTED = "models of Wan2.1's and Wan2.2's layout are supported, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

MMDIT: Final = ("CogVideoX", "HunyuanVideo", "Mochi", "StableDiffusion3", "Flux")
"""How the classes of models begin that join the tokens of text and video (`MMDiT`)."""


def _check_mmdit(kind: str, folder: Path) -> None:
    """Refuses models for which the method does not work. Source: MIGA A.4."""
    if kind.startswith(MMDIT):
        raise ModelError(
            f"{str(folder)!r} is a {kind}, built on MMDiT: the tokens of text and video are joined, and both meet the "
            "time step together. Here every latent has a noise level of its own, and the text has none to go with it: "
            "the videos come out broken (MIGA paper, A.4)",
            hint=_SUPPORTED,
        )


def _convert_hint(folder: Path) -> str:
    """Which command makes a model of a folder."""
    out = folder.with_name(f"{folder.resolve().name}-diffusers")
    return f"convert it once, `miga convert {quote(str(folder))} {quote(str(out))}`, and name {str(out)!r} as the model"


def _loose_weights(folder: Path) -> list[str]:
    return [name for name in visible_files(folder) if name.endswith((*PICKLES, ".safetensors"))]


def _check_pipeline(folder: Path) -> None:
    if not os.path.lexists(folder / "model_index.json") and (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        architectures = config.get("architectures")
        other = architectures[0] if isinstance(architectures, list) and architectures else "a single network"
        kind = class_name_of({"_class_name": config.get("_class_name") or other})
        _check_mmdit(kind, folder)
        if kind == "WanModel":
            raise ModelError(
                f"model folder {str(folder)!r} is in the layout of Wan's own program",
                hint=f"{_convert_hint(folder)}; or take the same model in diffusers' layout, as "
                "Wan-AI/Wan2.1-T2V-1.3B-Diffusers is",
            )
        raise ModelError(f"model folder {str(folder)!r} holds {kind}, not a pipeline", hint=_SUPPORTED)
    if not os.path.lexists(folder / "model_index.json") and (loose := _loose_weights(folder)):
        raise ModelError(
            f"model folder {str(folder)!r} has no model_index.json, and holds {named(loose)}",
            hint=_convert_hint(folder),
        )
    index = read_json(folder / "model_index.json")
    kind = class_name_of(index)
    _check_mmdit(kind, folder)
    if kind not in ("WanPipeline", "WanImageToVideoPipeline"):
        raise ModelError(f"{str(folder)!r} is a {kind}, not a WanPipeline or WanImageToVideoPipeline", hint=_SUPPORTED)
