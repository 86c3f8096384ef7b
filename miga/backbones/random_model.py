"""The published models with random weights, at full size or made smaller: speed and memory without a checkpoint.

Sizes, dtypes and what stays in float32 are those of the models as they are loaded; what they draw is noise. There is no
text encoder: conditions are random too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

from miga.backbones.base import BackboneSpec
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.checkpoint import Architecture
from miga.backbones.videocrafter2.spec import NUM_TEXT_TOKENS as NUM_CLIP_TOKENS
from miga.backbones.videocrafter2.spec import PUBLISHED as PUBLISHED_VIDEOCRAFTER2
from miga.backbones.videocrafter2.spec import PUBLISHED_NAME, Settings, forward_flops
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import ARCHITECTURES, WanArchitecture
from miga.backbones.wan.spec import PUBLISHED as PUBLISHED_WAN
from miga.errors import UsageError

MODELS: Final = {
    "wan-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "videocrafter2": PUBLISHED_NAME,
}
"""Short names of the models, and their names on the hub."""

WAN_HEAD_CHANNELS: Final = 128
WAN_VAE_CHANNELS: Final = 96
NUM_PROMPT_TOKENS: Final = 64
NUM_NEGATIVE_TOKENS: Final = 128
"""Words of a synthetic prompt for Wan and of its negative prompt; the network pads them to 512."""


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """By how much a model is made smaller than published.

    Attributes:
        scale: of a frame's height and width.
        layers: blocks of Wan's transformer, or residual blocks of a level of VideoCrafter2's UNet; None for all.
        channels: of network and VAE, as a share.

    Raises:
        UsageError: if one is out of range.
    """

    scale: float = 1.0
    layers: int | None = None
    channels: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "channels"):
            if not 0.0 < (value := getattr(self, name)) <= 1.0:
                raise UsageError(f"--{name} {value:g} is out of range", "it must be above 0 and at most 1, a share")
        if self.layers is not None and self.layers < 1:
            raise UsageError(f"--layers {self.layers} is out of range", "it must be at least 1")


FULL_SIZE: Final = Reduction()


@dataclass(frozen=True)
class RandomModel:
    """A backbone with random weights, without a text encoder.

    Attributes:
        backbone: as `load_backbone` would hand it out.
        label: what it is, and by how much it is smaller than published; belongs beside every figure.
        is_full_size: whether it is as published.
        architecture: (Wan) the sizes of its parts.
    """

    backbone: WanBackbone | VideoCrafter2Backbone
    label: str
    is_full_size: bool
    architecture: WanArchitecture | None = None

    @property
    def spec(self) -> BackboneSpec:
        """Of the backbone."""
        return self.backbone.spec

    def embeddings(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Random text embeddings `[L, D]` of a prompt and of a negative prompt, float32 on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        if self.architecture is not None:
            lengths, width = (NUM_PROMPT_TOKENS, NUM_NEGATIVE_TOKENS), self.architecture.text_width
        else:
            lengths, width = (NUM_CLIP_TOKENS, NUM_CLIP_TOKENS), UNetConfig().context_dim
        prompt, negative = (torch.randn(length, width, generator=generator) for length in lengths)
        return prompt, negative


def random_model(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    reduction: Reduction = FULL_SIZE,
    with_vae: bool = True,
) -> RandomModel:
    """A published model with random weights, the same for the same device and dtype.

    Args:
        name: one of `MODELS`.
        device: where it is made; no second copy is ever in memory.
        dtype: of the network, but for the modules that loading keeps in float32. The VAE is in float32.
        reduction: by how much smaller.
        with_vae: whether the VAE is made too.

    Raises:
        UsageError: for an unknown name, or layers the model does not have.
    """
    if name not in MODELS:
        raise UsageError(f"there is no random model {name!r}", f"models: {', '.join(MODELS)}")
    if name == "videocrafter2":
        return _random_videocrafter2(device, dtype, reduction, with_vae)
    return _random_wan(name, device, dtype, reduction, with_vae)


def plain_twin(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """diffusers' own transformer, without any of our hooks, over the same weights in the same memory."""
    twin = _wan_transformer(dict(transformer.config))
    twin.load_state_dict(transformer.state_dict(), assign=True)
    return twin.to(transformer.device).eval().requires_grad_(False)


def planned_spec(name: str, reduction: Reduction = FULL_SIZE) -> BackboneSpec:
    """The spec of a random model, before it is made."""
    if name == "videocrafter2":
        config, settings = _unet_config(reduction), _settings(reduction)
        height, width = settings.height // 8, settings.width // 8
        return replace(
            PUBLISHED_VIDEOCRAFTER2[PUBLISHED_NAME],
            revision="random weights",
            height=settings.height,
            width=settings.width,
            latent_height=height,
            latent_width=width,
            forward_flops=forward_flops(config, settings.window, height, width),
        )
    spec, architecture = PUBLISHED_WAN[MODELS[name]], wan_architecture(name, reduction)
    side = architecture.cell * architecture.patch[0]
    height, width = (_rounded(pixels * reduction.scale, side) for pixels in (spec.height, spec.width))
    return replace(architecture.resized(spec, height, width), revision="random weights")


def wan_architecture(name: str, reduction: Reduction = FULL_SIZE) -> WanArchitecture:
    """The sizes of a Wan model's parts.

    Raises:
        UsageError: for more layers than it has.
    """
    published = ARCHITECTURES[MODELS[name]]
    layers = _layers(reduction, published.num_layers, name)
    if reduction.channels == 1.0:
        return replace(published, num_layers=layers)
    return replace(
        published,
        width=_rounded(published.width * reduction.channels, WAN_HEAD_CHANNELS),
        ffn_width=_rounded(published.ffn_width * reduction.channels, WAN_HEAD_CHANNELS),
        num_layers=layers,
    )


def fill_randomly(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """Gives every parameter values and memory, whatever it had: weights of unit gain, norms of 1, biases of 0.

    Args:
        module: changed in place; may be on the meta device.
        device: of the parameters.
        dtype: of them, but for those that the module says are kept in float32.
        seed: of the values.
    """
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(module.named_parameters()):
        *path, leaf = name.split(".")
        is_kept = dtype.itemsize == 2 and not kept.isdisjoint([*path, leaf])
        options: dict[str, Any] = {"device": device, "dtype": torch.float32 if is_kept else dtype}
        if leaf == "bias":
            value = torch.zeros(parameter.shape, **options)
        elif leaf == "gamma" or parameter.ndim == 1:
            value = torch.ones(parameter.shape, **options)
        else:
            value = torch.randn(parameter.shape, generator=generator, **options)
            value *= math.prod(parameter.shape[1:]) ** -0.5
        owner = module.get_submodule(".".join(path))
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())), "a part has no memory"
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, buffer.to(device))
    module.eval()


def _random_wan(
    name: str, device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool
) -> RandomModel:
    architecture, spec = wan_architecture(name, reduction), planned_spec(name, reduction)
    transformer = _wan_transformer(
        {
            "num_attention_heads": architecture.width // WAN_HEAD_CHANNELS,
            "attention_head_dim": WAN_HEAD_CHANNELS,
            "ffn_dim": architecture.ffn_width,
            "num_layers": architecture.num_layers,
        }
    )
    fill_randomly(transformer, device, dtype)
    use_compact_padding(transformer)
    vae = None
    if with_vae:
        with torch.device("meta"):
            vae = AutoencoderKLWan(base_dim=_rounded(WAN_VAE_CHANNELS * reduction.channels, 8))
        fill_randomly(vae, device, torch.float32)
    layers = (architecture.num_layers, ARCHITECTURES[MODELS[name]].num_layers, "layers")
    label, is_full_size = _label(name, spec, PUBLISHED_WAN[MODELS[name]], reduction, layers)
    backbone = WanBackbone(spec, device, network=transformer, vae=vae)
    return RandomModel(backbone, label, is_full_size, architecture)


def _random_videocrafter2(
    device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool
) -> RandomModel:
    spec, config, settings = planned_spec("videocrafter2", reduction), _unet_config(reduction), _settings(reduction)
    widths = [_rounded(width * reduction.channels, 32) for width in Architecture().vae["block_out_channels"]]
    vae_config: Mapping[str, Any] = {**Architecture().vae, "block_out_channels": tuple(widths)}
    architecture = Architecture(unet=config, vae=vae_config, settings=settings)
    unet = architecture.build("unet")
    assert isinstance(unet, VideoCrafter2UNet)
    fill_randomly(unet, device, dtype)
    vae = None
    if with_vae:
        vae = architecture.build("vae")
        fill_randomly(vae, device, torch.float32)
    layers = (config.num_res_blocks, UNetConfig().num_res_blocks, "blocks a level")
    published = PUBLISHED_VIDEOCRAFTER2[PUBLISHED_NAME]
    label, is_full_size = _label("videocrafter2", spec, published, reduction, layers)
    return RandomModel(VideoCrafter2Backbone(spec, device, settings, network=unet, vae=vae), label, is_full_size)


def _wan_transformer(config: dict[str, Any]) -> WanTransformer3DModel:
    """Without memory, but for the positions, which are no weights and are computed."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(config)
    transformer.rope = WanRotaryPosEmbed(
        transformer.config.attention_head_dim, transformer.config.patch_size, transformer.config.rope_max_seq_len
    )
    return transformer


def _unet_config(reduction: Reduction) -> UNetConfig:
    published = UNetConfig()
    return UNetConfig(
        model_channels=_rounded(published.model_channels * reduction.channels, published.num_head_channels),
        num_res_blocks=_layers(reduction, published.num_res_blocks, "videocrafter2"),
    )


def _settings(reduction: Reduction) -> Settings:
    published = Settings()
    height, width = (_rounded(pixels * reduction.scale, 8) for pixels in (published.height, published.width))
    return replace(published, height=height, width=width)


def _layers(reduction: Reduction, published: int, name: str) -> int:
    if reduction.layers is not None and reduction.layers > published:
        raise UsageError(f"--layers {reduction.layers} is more than {name} has", f"it must be at most {published}")
    return reduction.layers or published


def _rounded(value: float, step: int) -> int:
    return max(step, round(value / step) * step)


def _label(
    name: str, spec: BackboneSpec, published: BackboneSpec, reduction: Reduction, layers: tuple[int, int, str]
) -> tuple[str, bool]:
    """What the model is, and whether it is as published. `layers`: how many it has, how many it should, of what."""
    size, changes = f"{spec.height}x{spec.width}", []
    if layers[0] != layers[1]:
        changes.append(f"{layers[0]} of {layers[1]} {layers[2]}")
    if (spec.height, spec.width) != (published.height, published.width):
        changes.append(f"{size} of {published.height}x{published.width}")
    if reduction.channels != 1.0:
        changes.append(f"{reduction.channels:g} of the channels")
    if not changes:
        return f"{name} at full size, {spec.window} latents of {size}, random weights", True
    return f"{name} REDUCED to {', '.join(changes)}: no figure of the published model", False
