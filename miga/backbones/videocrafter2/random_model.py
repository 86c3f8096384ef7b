"""VideoCrafter2 with random weights. See `miga/backbones/random_model.py`.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.random_model import FULL_SIZE, RandomModel, Reduction, fill_randomly, label_of, layers_of, rounded
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.checkpoint import Architecture
from miga.backbones.videocrafter2.footprint import VideoCrafter2Architecture
from miga.backbones.videocrafter2.spec import (
    NUM_TEXT_TOKENS,
    PUBLISHED,
    PUBLISHED_NAME,
    Settings,
    attention_share,
    forward_flops,
)
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet


class RandomVideoCrafter2(RandomModel):
    """See `RandomModel`. Compiling the UNet is done for benches alone."""

    text_tokens: ClassVar[tuple[int, int]] = (NUM_TEXT_TOKENS, NUM_TEXT_TOKENS)
    backbone: VideoCrafter2Backbone

    @property
    def text_width(self) -> int:
        """See `RandomModel.text_width`."""
        return UNetConfig().context_dim

    def forward(self, x_BCFHW: torch.Tensor, timestep: torch.Tensor, texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `RandomModel.forward`."""
        unet = self.backbone.network
        assert unet is not None
        count = len(texts_LD)
        text_BLD = torch.stack(list(texts_LD)).to(x_BCFHW)
        fps_B = torch.full((count,), self.backbone.settings.fps_condition, device=x_BCFHW.device)
        timestep = timestep.to(x_BCFHW.device).expand(count, *timestep.shape[1:])
        result: torch.Tensor = unet(x_BCFHW.expand(count, -1, -1, -1, -1), timestep, text_BLD, fps_B)
        return result


def planned_spec(reduction: Reduction = FULL_SIZE) -> BackboneSpec:
    """The spec of the random model, before it is made."""
    config, settings = _unet_config(reduction), _settings(reduction)
    height, width = settings.height // 8, settings.width // 8
    return replace(
        PUBLISHED[PUBLISHED_NAME],
        revision="random weights",
        height=settings.height,
        width=settings.width,
        latent_height=height,
        latent_width=width,
        forward_flops=forward_flops(config, settings.window, height, width),
        attention_share=attention_share(config, settings.window, height, width),
    )


def planned_architecture(reduction: Reduction = FULL_SIZE) -> VideoCrafter2Architecture:
    """The sizes of its parts; those of VAE and text encoder are the published model's."""
    return VideoCrafter2Architecture(unet=_unet_config(reduction))


def random_videocrafter2(
    device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool
) -> RandomVideoCrafter2:
    """See `miga.backbones.registry.random_model`."""
    spec, config, settings = planned_spec(reduction), _unet_config(reduction), _settings(reduction)
    widths = [rounded(width * reduction.channels, 32) for width in Architecture().vae["block_out_channels"]]
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
    published = PUBLISHED[PUBLISHED_NAME]
    label, is_full_size = label_of("videocrafter2", spec, published, reduction, layers)
    backbone = VideoCrafter2Backbone(spec, device, settings, network=unet, vae=vae)
    return RandomVideoCrafter2(backbone, label, is_full_size=is_full_size)


def _unet_config(reduction: Reduction) -> UNetConfig:
    published = UNetConfig()
    return UNetConfig(
        model_channels=rounded(published.model_channels * reduction.channels, published.num_head_channels),
        num_res_blocks=layers_of(reduction, published.num_res_blocks, "videocrafter2"),
    )


def _settings(reduction: Reduction) -> Settings:
    published = Settings()
    height, width = (rounded(pixels * reduction.scale, 8) for pixels in (published.height, published.width))
    return replace(published, height=height, width=width)
