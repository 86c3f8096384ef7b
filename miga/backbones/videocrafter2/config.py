"""The configurations of a VideoCrafter2 model's VAE and text encoder, as diffusers and transformers write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from miga.backbones.model_config import Layers, Rate, Size, Small, Token, Words


@dataclass(frozen=True, kw_only=True)
class ImageVaeConfig:
    """diffusers' `AutoencoderKL`, as far as a latent is decoded by it."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: Annotated[tuple[Literal["DownEncoderBlock2D"], ...], Field(max_length=8)] = (
        "DownEncoderBlock2D",
    )
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], Field(max_length=8)] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=8)
    ] = (64,)
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 1
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 4
    norm_num_groups: Annotated[int, Field(ge=1, le=1024)] = 32
    sample_size: Size = 32
    scaling_factor: Annotated[float, Field(gt=0, le=1e6)] = 0.18215
    shift_factor: None = None
    latents_mean: None = None
    latents_std: None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        count = len(self.block_out_channels)
        if len(self.down_block_types) != count or len(self.up_block_types) != count:
            raise ValueError("block_out_channels, down_block_types and up_block_types must be of one length")
        if odd := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(f"block_out_channels has {odd[0]}, no multiple of norm_num_groups")


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """transformers' `CLIPTextConfig`."""

    vocab_size: Words = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    projection_dim: Size = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    max_position_embeddings: Annotated[int, Field(ge=77, le=2**16)] = 77
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: Small = 1e-5
    attention_dropout: Rate = 0.0
    initializer_range: Annotated[float, Field(ge=0, le=1e3)] = 0.02
    initializer_factor: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    pad_token_id: Token | None = 1
    bos_token_id: Token | None = 49406
    eos_token_id: Token | None = 49407

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is no multiple of num_attention_heads")
