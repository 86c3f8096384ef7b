"""VideoCrafter2's UNet: latent diffusion's 2-D UNet, every block of it followed by one along the frames.

Every frame carries its own time step, as a frame queue needs it; the published sampler gives all of them the same.
The state dict's keys are the checkpoint's below `model.diffusion_model.`, and there are no buffers: a UNet built on the
`meta` device is complete after `load_state_dict(..., assign=True)`.

Source: Chen et al., "VideoCrafter2", 2024; Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models", 2022. Per-frame time steps: Kim et al., "FIFO-Diffusion", 2024.

Legend: B clips in a batch, F frames of a clip (one latent each), N = B * F frames in clip order, C channels, H, W
latent cells, E channels of the embedding, L text tokens, D text channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import torch
from torch import nn

from miga.backbones.videocrafter2.attention import PointwiseConv1d, SpatialTransformer, TemporalTransformer
from miga.backbones.videocrafter2.blocks import (
    NUM_GROUPS,
    Conditioning,
    Downsample,
    GroupNorm32,
    LayerSequence,
    ResidualBlock,
    Upsample,
    clips_of,
    frames_of,
)
from miga.frame_attention import FrameCall

NUM_INITIAL_HEADS: Final = 8
"""Heads of the temporal transformer behind the first convolution, whatever its channels."""

_FIXED: Final = {
    "use_linear": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "addition_attention": True,
    "fps_cond": True,
}
"""Switches of the architecture with one setting in the published model, the only one that is written here."""

_TRAINING_ONLY: Final = frozenset({"use_checkpoint"})
"""Keys of the published configuration that change no output: recomputing activations in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The architecture, under the published configuration's names and with its values.

    Attributes:
        in_channels, out_channels: of a latent and of the predicted noise.
        model_channels: of the first level.
        channel_mult: channels of each level, in `model_channels`; a level has half the height and width of the last.
        num_res_blocks: residual blocks of a level on the way down; one more on the way up.
        attention_resolutions: by how much height and width are divided where blocks have transformers.
        num_head_channels: channels of one attention head.
        transformer_depth: blocks of a transformer.
        context_dim: channels of the text embeddings.
        temporal_length: frames of a clip that the model was trained on; the network takes any number.
        use_linear: whether transformers project with linear layers.
        temporal_conv: whether a residual block ends in a convolution along the frames.
        temporal_attention: whether a transformer over the frames follows that over the cells.
        temporal_selfatt_only: whether frames attend to frames alone, not to the text.
        use_relative_position, use_causal_attention: whether frames know their distance, or see earlier ones alone.
        addition_attention: whether a transformer over the frames follows the first convolution.
        fps_cond: whether the network is told the frame rate.

    Raises:
        ValueError: for sizes that do not fit together, or a switch set otherwise than in the published model.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    num_head_channels: int = 64
    transformer_depth: int = 1
    context_dim: int = 1024
    temporal_length: int = 16
    use_linear: bool = True
    temporal_conv: bool = True
    temporal_attention: bool = True
    temporal_selfatt_only: bool = True
    use_relative_position: bool = False
    use_causal_attention: bool = False
    addition_attention: bool = True
    fps_cond: bool = True

    def __post_init__(self) -> None:
        for name, value in _FIXED.items():
            if getattr(self, name) is not value:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not supported; VideoCrafter2 has {value!r}")
        for field in fields(self):
            if field.name not in _FIXED:
                _check_size(field.name, getattr(self, field.name), several=isinstance(field.default, tuple))
        if self.model_channels % NUM_GROUPS:
            raise ValueError(
                f"model_channels = {self.model_channels} must be a multiple of {NUM_GROUPS}, the norm groups"
            )
        for multiple in self.channel_mult:
            if self.model_channels * multiple % self.num_head_channels:
                raise ValueError(
                    f"{self.model_channels * multiple} channels of a level are no whole number of attention heads of "
                    f"num_head_channels = {self.num_head_channels}"
                )

    @property
    def embedding_channels(self) -> int:
        """E."""
        return 4 * self.model_channels

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """From parsed JSON or YAML: `to_dict`'s, or the `unet_config.params` that the model was published with.

        Keys that are left out have the published values.

        Raises:
            ValueError: for an unknown key, a wrong type or a value that `UNetConfig` refuses.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - known - _TRAINING_ONLY):
            raise ValueError(f"unknown key {unknown[0]!r} of the UNet; its keys: {', '.join(known)}")
        kept: dict[str, Any] = {name: values[name] for name in known if name in values}
        for name, value in kept.items():
            kept[name] = tuple(value) if isinstance(value, list) else value
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class VideoCrafter2UNet(nn.Module):
    """Predicts the noise in the latents of clips.

    Args:
        config: the architecture.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        self.time_embed = _embedding_layers(config)
        self.fps_embedding = _embedding_layers(config)
        self.input_blocks, skip_channels = _input_blocks(config)
        self.init_attn = LayerSequence([_initial_transformer(config)])
        deepest = width * config.channel_mult[-1]
        self.middle_block = LayerSequence(
            [
                _residual_block(config, deepest, deepest),
                *_transformers(config, deepest),
                _residual_block(config, deepest, deepest),
            ]
        )
        self.output_blocks = _output_blocks(config, skip_channels)
        self.out = nn.Sequential(
            GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, config.out_channels, kernel_size=3, padding=1)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; norms are computed in float32 whatever it is."""
        return next(self.parameters()).dtype

    def forward(
        self,
        x_BCFHW: torch.Tensor,
        timestep_BF: torch.Tensor,
        context_BLD: torch.Tensor,
        fps_B: torch.Tensor,
        *,
        frames: FrameCall | None = None,
        up_context_BLD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The predicted noise.

        Args:
            x_BCFHW: noisy latents; any number of clips and frames, any height and width.
            timestep_BF: the model's time step of every frame, or `[B]` where the frames of a clip share it.
            context_BLD: text embeddings of each clip; or of each frame, `[B * F, L, D]` in clip order.
            fps_B: frame rate that each clip shall have.
            frames: what stands in for attention along the frames, in both attentions of every transformer over them.
            up_context_BLD: text embeddings, likewise, that the way up sees, in the place of those that the way down
                and the middle see; None: the same.

        Returns:
            `[B, C, F, H, W]`, of the weights' dtype.

        Raises:
            ValueError: if the arguments are not of one batch.
        """
        num_clips, num_frames = x_BCFHW.shape[0], x_BCFHW.shape[2]
        if timestep_BF.ndim == 1:
            timestep_BF = timestep_BF[:, None].expand(-1, num_frames)
        for text_BLD in (context_BLD, up_context_BLD):
            if text_BLD is not None:
                _check_shapes(num_clips, num_frames, timestep_BF, text_BLD, fps_B)
        embedding_NE, size = self._embed(timestep_BF, fps_B), (x_BCFHW.shape[3], x_BCFHW.shape[4])
        conditioning = Conditioning(num_frames, embedding_NE, context_BLD.to(self.dtype), frames, size)

        h_NCHW = self.input_blocks[0](frames_of(x_BCFHW.to(self.dtype)), conditioning)
        h_NCHW = self.init_attn(h_NCHW, conditioning)
        skips = [h_NCHW]
        for block in self.input_blocks[1:]:
            h_NCHW = block(h_NCHW, conditioning)
            skips.append(h_NCHW)
        h_NCHW = self.middle_block(h_NCHW, conditioning)
        if up_context_BLD is not None:
            conditioning = replace(conditioning, context_BLD=up_context_BLD.to(self.dtype))
        for block in self.output_blocks:
            skip_NCHW = skips.pop()
            # an odd side was rounded up on the way down, so doubling it gives one cell too many
            h_NCHW = h_NCHW[..., : skip_NCHW.shape[-2], : skip_NCHW.shape[-1]]
            h_NCHW = block(torch.cat((h_NCHW, skip_NCHW), dim=1), conditioning)
        return clips_of(self.out(h_NCHW), num_frames)

    def _embed(self, timestep_BF: torch.Tensor, fps_B: torch.Tensor) -> torch.Tensor:
        """Embedding `[N, E]` of every frame's time step and its clip's frame rate."""
        channels = self.config.model_channels
        time_NE = self.time_embed(sinusoidal_embedding(timestep_BF.flatten(), channels).to(self.dtype))
        fps_BE = self.fps_embedding(sinusoidal_embedding(fps_B, channels).to(self.dtype))
        return time_NE + fps_BE.repeat_interleave(timestep_BF.shape[1], dim=0)


def sinusoidal_embedding(position_N: torch.Tensor, channels: int) -> torch.Tensor:
    """Cosines, then sines, of each position at wavelengths from 2π to nearly 2π * 10,000; float32 `[N, channels]`.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, which takes the sines first.
    """
    half = channels // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=position_N.device) / half
    angle = position_N.float()[:, None] * torch.exp(exponent)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


def _check_size(name: str, value: object, several: bool) -> None:
    sizes = value if several else (value,)
    # a bool is an int too
    if not isinstance(sizes, tuple) or not sizes or any(type(size) is not int or size < 1 for size in sizes):
        wanted = "one or more whole numbers, each" if several else "a whole number,"
        raise ValueError(f"{name} = {value!r} must be {wanted} at least 1")


def _check_shapes(
    num_clips: int, num_frames: int, timestep_BF: torch.Tensor, context_BLD: torch.Tensor, fps_B: torch.Tensor
) -> None:
    given = (tuple(timestep_BF.shape), context_BLD.shape[0], tuple(fps_B.shape))
    num_texts = given[1] if given[1] in (num_clips, num_clips * num_frames) else num_clips
    if given != ((num_clips, num_frames), num_texts, (num_clips,)):
        raise ValueError(
            f"the latents hold {num_clips} clips of {num_frames} frames, but the time steps are of shape {given[0]}, "
            f"the text embeddings of {given[1]} clips and the frame rates of shape {given[2]}; all need one batch"
        )


def _embedding_layers(config: UNetConfig) -> nn.Sequential:
    channels = config.embedding_channels
    return nn.Sequential(nn.Linear(config.model_channels, channels), nn.SiLU(), nn.Linear(channels, channels))


def _residual_block(config: UNetConfig, in_channels: int, out_channels: int) -> ResidualBlock:
    return ResidualBlock(in_channels, out_channels, config.embedding_channels)


def _initial_transformer(config: UNetConfig) -> TemporalTransformer:
    head, depth = config.num_head_channels, config.transformer_depth
    return TemporalTransformer(
        config.model_channels, NUM_INITIAL_HEADS * head, head, depth, projections=PointwiseConv1d
    )


def _transformers(config: UNetConfig, channels: int) -> tuple[nn.Module, nn.Module]:
    """Over the cells, then over the frames."""
    head, depth = config.num_head_channels, config.transformer_depth
    return (
        SpatialTransformer(channels, config.context_dim, head, depth),
        TemporalTransformer(channels, channels, head, depth),
    )


def _input_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels that each of its blocks hands to the way up."""
    channels, division = config.model_channels, 1
    blocks = [LayerSequence([nn.Conv2d(config.in_channels, channels, kernel_size=3, padding=1)])]
    skip_channels = [channels]
    for level, multiple in enumerate(config.channel_mult):
        if level:
            blocks.append(LayerSequence([Downsample(channels)]))
            skip_channels.append(channels)
            division *= 2
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [_residual_block(config, channels, multiple * config.model_channels)]
            channels = multiple * config.model_channels
            if division in config.attention_resolutions:
                layers.extend(_transformers(config, channels))
            blocks.append(LayerSequence(layers))
            skip_channels.append(channels)
    return nn.ModuleList(blocks), skip_channels


def _output_blocks(config: UNetConfig, skip_channels: list[int]) -> nn.ModuleList:
    """The way up: each block takes the last one's output and a skip; the last of a level leads to the next level."""
    skip_channels = list(skip_channels)
    channels, division = skip_channels[-1], 2 ** (len(config.channel_mult) - 1)
    blocks = []
    for multiple in reversed(config.channel_mult):
        for _ in range(config.num_res_blocks + 1):
            skip = skip_channels.pop()
            layers: list[nn.Module] = [_residual_block(config, channels + skip, multiple * config.model_channels)]
            channels = multiple * config.model_channels
            if division in config.attention_resolutions:
                layers.extend(_transformers(config, channels))
            blocks.append(LayerSequence(layers))
        if skip_channels:
            blocks[-1].append(Upsample(channels))
            division //= 2
    return nn.ModuleList(blocks)
