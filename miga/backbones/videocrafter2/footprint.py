"""The sizes of a VideoCrafter2 model's parts that memory follows from, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import loading, resolve_folder
from miga.backbones.model_config import arguments, left_out, read_config
from miga.backbones.spec import is_published, resized
from miga.backbones.videocrafter2.config import ClipTextConfig, ImageVaeConfig
from miga.backbones.videocrafter2.spec import (
    JSON_FILES,
    PUBLISHED,
    attention_share,
    forward_flops,
    text_config_of_folder,
    unet_config_of,
    why_not_size,
)
from miga.backbones.videocrafter2.unet import NUM_INITIAL_HEADS, UNetConfig, VideoCrafter2UNet


@dataclass(frozen=True, kw_only=True)
class VideoCrafter2Architecture:
    """See `miga.backbones.memory_plan.Footprint`; the defaults are the published model's.

    What a call and a decode take was taken off the shapes of all tensors alive at once
    (tests/miga/backbones/videocrafter2/test_vc2_memory.py).

    Attributes:
        unet: its configuration.
        vae_parameters, text_parameters: weights of the VAE and of the text encoder.
        vae_peak_per_cell: the most numbers per latent cell that decoding one latent needs while it works.
    """

    can_store_fp8: ClassVar[bool] = False
    vae_cache_per_cell: ClassVar[int] = 0
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae_parameters: int = 83_653_863
    text_parameters: int = 352_984_064
    vae_peak_per_cell: int = 51_000

    def transformer_bytes(self, *, fp8: bool = False, itemsize: int = 2) -> int:
        """Of the UNet's weights."""
        assert not fp8, "the UNet's weights are stored as they compute"
        return itemsize * _num_parameters(self.unet)

    def window_bytes(self, spec: BackboneSpec, num_latents: int, dtype: torch.dtype) -> int:
        """The most that is alive at once in a call over so many latents, weights apart.

        It is in the feed-forward part behind the first convolution, which is wider than that of any level.
        """
        widest = max(19 * NUM_INITIAL_HEADS * self.unet.num_head_channels, 28 * self.unet.model_channels)
        return num_latents * spec.latent_height * spec.latent_width * widest * dtype.itemsize

    def resized(self, spec: BackboneSpec, height: int, width: int) -> BackboneSpec:
        """The spec for frames of another size.

        Raises:
            ModelError: if the model cannot make that size, naming the nearest that it can.
        """
        cell = spec.height // spec.latent_height
        size = spec.window, height // cell, width // cell
        why_not, flops = why_not_size(self.unet, cell, height, width), forward_flops(self.unet, *size)
        share = attention_share(self.unet, *size)
        return replace(resized(spec, height, width, why_not, flops), attention_share=share)


def _num_parameters(config: UNetConfig) -> int:
    return sum(weight.numel() for weight in _unet(config).parameters())


def load_architecture(name_or_dir: str | Path, *, revision: str | None = None) -> VideoCrafter2Architecture:
    """The sizes of a model's parts, from its JSON files; of the published model without any.

    Raises:
        ModelError: if the model is missing, or is not a converted VideoCrafter2.
    """
    if is_published(name_or_dir, PUBLISHED):
        return VideoCrafter2Architecture()
    folder = resolve_folder(name_or_dir, revision, (*JSON_FILES, "text_encoder/config.json"))
    modules = modules_of_folder(folder)
    width = read_config(folder, "vae", ImageVaeConfig).block_out_channels[0] / 128  # that of the published one is 128
    return VideoCrafter2Architecture(
        unet=unet_config_of(folder),
        vae_parameters=sum(weight.numel() for weight in modules["vae"][0].parameters()),
        text_parameters=sum(weight.numel() for weight in modules["text_encoder"][0].parameters()),
        vae_peak_per_cell=round(VideoCrafter2Architecture.vae_peak_per_cell * width),
    )


def modules_of_folder(folder: Path) -> dict[str, tuple[torch.nn.Module, str]]:
    """The modules of a model in a local folder, on the meta device: names and shapes, no memory.

    Beside each of them stands what its configuration leaves out, for a hint where the weights do not fit.

    Raises:
        ModelError: if a configuration is missing, or none of such a module.
    """
    modules: dict[str, tuple[torch.nn.Module, str]] = {}
    with loading("unet", folder):
        modules["unet"] = _unet(unet_config_of(folder)), left_out(folder, "unet", UNetConfig)
    with loading("vae", folder):
        modules["vae"] = _vae(read_config(folder, "vae", ImageVaeConfig)), left_out(folder, "vae", ImageVaeConfig)
    with loading("text_encoder", folder):
        encoder = _text_encoder(text_config_of_folder(folder))
        modules["text_encoder"] = encoder, left_out(folder, "text_encoder", ClipTextConfig)
    return modules


@lru_cache(maxsize=4)
def _unet(config: UNetConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return VideoCrafter2UNet(config)


@lru_cache(maxsize=4)
def _vae(config: ImageVaeConfig) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae: torch.nn.Module = AutoencoderKL(**arguments(config))
    return vae


@lru_cache(maxsize=4)
def _text_encoder(config: ClipTextConfig) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        encoder: torch.nn.Module = CLIPTextModel(CLIPTextConfig(**arguments(config)))
    return encoder
