"""Wan's published models with random weights. See `miga/backbones/random_model.py`.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, N tokens, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch.nn import functional

from miga.backbones.attention_backend import attention_backends
from miga.backbones.base import BackboneSpec
from miga.backbones.random_model import (
    FULL_SIZE,
    PER_TOKEN,
    PLAIN,
    RandomModel,
    Reduction,
    fill_randomly,
    label_of,
    layers_of,
    rounded,
)
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.spec import ARCHITECTURES, NUM_TEXT_TOKENS, PUBLISHED, WanArchitecture

MODELS: Final = {
    "wan-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}
"""Short names of the models, and their names on the hub."""

HEAD_CHANNELS: Final = 128
VAE_CHANNELS: Final = 96


class RandomWan(RandomModel):
    """See `RandomModel`.

    Args:
        backbone: the model.
        label: what it is.
        is_full_size: whether it is as published.
        architecture: the sizes of its parts.
    """

    text_tokens: ClassVar[tuple[int, int]] = (64, 128)
    backbone: WanBackbone

    def __init__(self, backbone: WanBackbone, label: str, *, is_full_size: bool, architecture: WanArchitecture) -> None:
        super().__init__(backbone, label, is_full_size=is_full_size)
        self.architecture = architecture

    @property
    def text_width(self) -> int:
        """See `RandomModel.text_width`."""
        return self.architecture.text_width

    def forward(self, x_BCFHW: torch.Tensor, timestep: torch.Tensor, texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
        """See `RandomModel.forward`."""
        network = self.backbone.network
        use_per_latent_timesteps(network)
        text_BLD = torch.nn.utils.rnn.pad_sequence([text_LD.to(x_BCFHW) for text_LD in texts_LD], batch_first=True)
        return _forward(network, x_BCFHW, timestep, text_BLD)

    def reference_forwards(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, timestep_BF: torch.Tensor, text_LD: torch.Tensor
    ) -> Mapping[str, Callable[[], Any]]:
        """diffusers' own transformer: with one time step, and with one for every token."""
        twin = plain_twin(self.backbone.network)
        tokens = (x_BCFHW.shape[-2] // 2) * (x_BCFHW.shape[-1] // 2)
        plain_B, plain_BN = (each.to(x_BCFHW.device) for each in (timestep_B, timestep_BF.repeat_interleave(tokens, 1)))
        text_BLD = text_LD[None].to(x_BCFHW)
        padded_BLD = functional.pad(text_BLD, (0, 0, 0, NUM_TEXT_TOKENS - text_BLD.shape[1]))
        return {
            PLAIN: lambda: _forward(twin, x_BCFHW, plain_B, padded_BLD),
            PER_TOKEN: lambda: _forward(twin, x_BCFHW, plain_BN, padded_BLD),
        }

    def attention_backends(self) -> list[str]:
        """See `RandomModel.attention_backends`: those of diffusers."""
        return attention_backends()

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """See `RandomModel.attention`."""
        self.backbone.set_attention_backend(name)
        try:
            yield
        finally:
            self.backbone.set_attention_backend("native")

    def compile(self) -> None:
        """See `RandomModel.compile`: as the product does."""
        self.backbone.compile()


def _forward(network: Any, x_BCFHW: torch.Tensor, timestep: torch.Tensor, text_BLD: torch.Tensor) -> torch.Tensor:
    x = x_BCFHW.expand(len(text_BLD), -1, -1, -1, -1)
    result: torch.Tensor = network(x, timestep.expand(len(text_BLD), *timestep.shape[1:]), text_BLD, return_dict=False)[
        0
    ]
    return result


def plain_twin(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """diffusers' own transformer, without any of our hooks, over the same weights in the same memory."""
    twin = _wan_transformer(dict(transformer.config))
    twin.load_state_dict(transformer.state_dict(), assign=True)
    return twin.to(transformer.device).eval().requires_grad_(False)


def planned_spec(name: str, reduction: Reduction = FULL_SIZE) -> BackboneSpec:
    """The spec of a random model, before it is made."""
    spec, architecture = PUBLISHED[MODELS[name]], planned_architecture(name, reduction)
    side = architecture.cell * architecture.patch[0]
    height, width = (rounded(pixels * reduction.scale, side) for pixels in (spec.height, spec.width))
    return replace(architecture.resized(spec, height, width), revision="random weights")


def planned_architecture(name: str, reduction: Reduction = FULL_SIZE) -> WanArchitecture:
    """The sizes of a Wan model's parts.

    Raises:
        UsageError: for more layers than it has.
    """
    published = ARCHITECTURES[MODELS[name]]
    layers = layers_of(reduction, published.num_layers, name)
    if reduction.channels == 1.0:
        return replace(published, num_layers=layers)
    return replace(
        published,
        width=rounded(published.width * reduction.channels, HEAD_CHANNELS),
        ffn_width=rounded(published.ffn_width * reduction.channels, HEAD_CHANNELS),
        num_layers=layers,
    )


def random_wan(name: str, device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool) -> RandomWan:
    """See `miga.backbones.registry.random_model`."""
    architecture, spec = planned_architecture(name, reduction), planned_spec(name, reduction)
    transformer = _wan_transformer(
        {
            "num_attention_heads": architecture.width // HEAD_CHANNELS,
            "attention_head_dim": HEAD_CHANNELS,
            "ffn_dim": architecture.ffn_width,
            "num_layers": architecture.num_layers,
        }
    )
    fill_randomly(transformer, device, dtype)
    use_compact_padding(transformer)
    vae = None
    if with_vae:
        with torch.device("meta"):
            vae = AutoencoderKLWan(base_dim=rounded(VAE_CHANNELS * reduction.channels, 8))
        fill_randomly(vae, device, torch.float32)
    layers = (architecture.num_layers, ARCHITECTURES[MODELS[name]].num_layers, "layers")
    label, is_full_size = label_of(name, spec, PUBLISHED[MODELS[name]], reduction, layers)
    backbone = WanBackbone(spec, device, network=transformer, vae=vae)
    return RandomWan(backbone, label, is_full_size=is_full_size, architecture=architecture)


def _wan_transformer(config: dict[str, Any]) -> WanTransformer3DModel:
    """Without memory, but for the positions, which are no weights and are computed."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(config)
    transformer.rope = WanRotaryPosEmbed(
        transformer.config.attention_head_dim, transformer.config.patch_size, transformer.config.rope_max_seq_len
    )
    return transformer
