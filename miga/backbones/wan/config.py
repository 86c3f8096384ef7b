"""The configurations of a Wan model's parts, as diffusers and transformers write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from miga.backbones.model_config import Few, Layers, Rate, Size, Small, Token, Words


@dataclass(frozen=True, kw_only=True)
class WanTransformerConfig:
    """diffusers' `WanTransformer3DModel`, its defaults those of Wan2.1 14B."""

    patch_size: tuple[Few, Few, Few] = (1, 2, 2)
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 40
    attention_head_dim: Annotated[int, Field(ge=2, le=1024)] = 128
    in_channels: Size = 16
    out_channels: Size | None = 16
    text_dim: Size = 4096
    freq_dim: Size = 256
    ffn_dim: Size = 13824
    num_layers: Layers = 40
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: Small = 1e-6
    image_dim: Size | None = None
    added_kv_proj_dim: Size | None = None
    rope_max_seq_len: Annotated[int, Field(ge=1, le=2**16)] = 1024
    pos_embed_seq_len: Size | None = None

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """diffusers' `AutoencoderKLWan`, its defaults those of Wan2.1."""

    base_dim: Annotated[int, Field(ge=1, le=4096)] = 96
    decoder_base_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    z_dim: Annotated[int, Field(ge=1, le=1024)] = 16
    dim_mult: Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Field(ge=1, le=16)] = 2
    attn_scales: Annotated[tuple[float, ...], Field(max_length=8)] = ()
    temperal_downsample: Annotated[tuple[bool, ...], Field(max_length=7)] = (False, True, True)
    dropout: Rate = 0.0
    latents_mean: tuple[float, ...] = (
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latents_std: tuple[Annotated[float, Field(gt=0)], ...] = (
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    )  # fmt: skip
    is_residual: bool = False
    in_channels: Size = 3
    out_channels: Size = 3
    patch_size: Annotated[int, Field(ge=1, le=16)] | None = None
    scale_factor_temporal: Few | None = 4
    scale_factor_spatial: Annotated[int, Field(ge=1, le=2**11)] | None = 8

    def __post_init__(self) -> None:
        spatial = 2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1)
        temporal = 2 ** sum(self.temperal_downsample)
        problems = {
            f"latents_mean has {len(self.latents_mean)} numbers, z_dim is {self.z_dim}": (
                len(self.latents_mean) != self.z_dim
            ),
            f"latents_std has {len(self.latents_std)} numbers, z_dim is {self.z_dim}": (
                len(self.latents_std) != self.z_dim
            ),
            "temperal_downsample must be one shorter than dim_mult": (
                len(self.temperal_downsample) != len(self.dim_mult) - 1
            ),
            f"scale_factor_spatial is {self.scale_factor_spatial}, and the other sizes make {spatial}": (
                self.scale_factor_spatial not in (None, spatial)
            ),
            f"scale_factor_temporal is {self.scale_factor_temporal}, and temperal_downsample makes {temporal}": (
                self.scale_factor_temporal not in (None, temporal)
            ),
            "out_channels must be 3 for every pixel of a patch": self.out_channels != 3 * (self.patch_size or 1) ** 2,
        }
        if found := [problem for problem, is_so in problems.items() if is_so]:
            raise ValueError("; ".join(found))

    @property
    def cell(self) -> int:
        """Pixels of a latent cell's side."""
        return int(2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1))

    @property
    def frames_per_latent(self) -> int:
        """Frames that every latent but the first decodes to."""
        return int(2 ** sum(self.temperal_downsample))


@dataclass(frozen=True, kw_only=True)
class Umt5Config:
    """transformers' `UMT5Config`."""

    vocab_size: Words = 250112
    d_model: Size = 512
    d_kv: Size = 64
    d_ff: Size = 1024
    num_layers: Layers = 8
    num_heads: Annotated[int, Field(ge=1, le=1024)] = 6
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=4096)] = 32
    relative_attention_max_distance: Annotated[int, Field(ge=4, le=2**20)] = 128
    dropout_rate: Rate = 0.1
    layer_norm_epsilon: Small = 1e-6
    initializer_factor: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    feed_forward_proj: Literal["gated-gelu", "gated-silu", "gated-relu", "gelu", "relu", "silu"] = "gated-gelu"
    pad_token_id: Token | None = 0
    eos_token_id: Token | None = 1
    decoder_start_token_id: Token | None = 0

    @property
    def num_parameters(self) -> int:
        """Weights of the half that reads."""
        width, inner = self.d_model, self.num_heads * self.d_kv
        positions = self.relative_attention_num_buckets * self.num_heads
        matrices = 3 if self.feed_forward_proj.startswith("gated") else 2
        layer = 4 * width * inner + matrices * width * self.d_ff + 2 * width + positions
        return self.vocab_size * width + self.num_layers * layer + width


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """transformers' `CLIPVisionConfig`; the defaults are transformers'."""

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    projection_dim: Size = 512
    num_hidden_layers: Layers = 12
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 12
    num_channels: Few = 3
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    patch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new", "relu", "silu"] = "quick_gelu"
    layer_norm_eps: Small = 1e-5
