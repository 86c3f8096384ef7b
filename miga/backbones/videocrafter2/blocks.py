"""What VideoCrafter2's UNet is made of besides attention: norms, residual blocks with temporal convolution, sampling.

Between the layers a batch of clips is a batch of frames, `h_NCHW`; a layer that looks across frames folds it back.
Attribute names are those of the checkpoint, misspellings included: its keys are the interface.

Legend: B clips in a batch, F frames of a clip (one latent each), N = B * F frames in clip order, C channels, H, W
latent cells, E channels of the embedding, L text tokens, D text channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from miga.frame_attention import FrameCall

NUM_GROUPS: Final = 32
"""Of every group norm."""


@dataclass(frozen=True)
class Conditioning:
    """What every layer may look at besides the latents.

    Attributes:
        num_frames: F; cuts the N frames into clips.
        embedding_NE: of each frame's time step and its clip's frame rate.
        context_BLD: text embeddings, the same for all frames of a clip; or one for every frame, `[N, L, D]`.
        frames: what stands in for attention along the frames; None: attention itself.
        top_size: height and width of the full resolution.
    """

    num_frames: int
    embedding_NE: torch.Tensor
    context_BLD: torch.Tensor
    frames: FrameCall | None = None
    top_size: tuple[int, int] = (0, 0)


class ConditionedLayer(nn.Module):
    """A layer that looks at the `Conditioning`; it is told apart from plain layers by this class."""

    def forward(self, h_NCHW: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The layer's output, `[N, C', H, W]`."""
        raise NotImplementedError


class LayerSequence(nn.ModuleList):
    """Layers in order, the conditioned among them given the `Conditioning`."""

    def forward(self, h_NCHW: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The last layer's output."""
        for layer in self:
            h_NCHW = layer(h_NCHW, conditioning) if isinstance(layer, ConditionedLayer) else layer(h_NCHW)
        return h_NCHW


def clips_of(h_NCHW: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Frames back to clips, `[B, C, F, H, W]`."""
    return h_NCHW.unflatten(0, (-1, num_frames)).transpose(1, 2)


def frames_of(h_BCFHW: torch.Tensor) -> torch.Tensor:
    """Clips to their frames, `[N, C, H, W]`."""
    return h_BCFHW.transpose(1, 2).flatten(0, 1)


class GroupNorm32(nn.GroupNorm):
    """Group norm with float32 arithmetic in any dtype; on clips, the statistics are taken over all frames."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(NUM_GROUPS, channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised, in the dtype of `x` `[B, C, ...]`."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class LayerNorm32(nn.LayerNorm):
    """Layer norm with float32 arithmetic in any dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised over the last axis, in the dtype of `x`."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class TemporalConvolution(nn.Module):
    """Four convolutions along the frames, each three frames wide, around a residual connection.

    Source: Wang et al., "ModelScope Text-to-Video Technical Report", 2023.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _temporal_layer(channels)
        # training has a dropout here, which counts in the checkpoint's numbering
        self.conv2 = _temporal_layer(channels, nn.Identity())
        self.conv3 = _temporal_layer(channels, nn.Identity())
        self.conv4 = _temporal_layer(channels, nn.Identity())

    def forward(self, h_BCFHW: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        return h_BCFHW + self.conv4(self.conv3(self.conv2(self.conv1(h_BCFHW))))


def _temporal_layer(channels: int, *dropout: nn.Module) -> nn.Sequential:
    convolution = nn.Conv3d(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
    return nn.Sequential(GroupNorm32(channels), nn.SiLU(), *dropout, convolution)


class ResidualBlock(ConditionedLayer):
    """Latent diffusion's residual block on each frame, the time step's embedding added in; then along the frames.

    Args:
        in_channels, out_channels: of the latents.
        embedding_channels: E.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm32(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Identity(),  # training's dropout
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )
        self.temopral_conv = TemporalConvolution(out_channels)

    def forward(self, h_NCHW: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Frames `[N, out_channels, H, W]`."""
        shift_NC11 = self.emb_layers(conditioning.embedding_NE)[:, :, None, None]
        out_NCHW = self.skip_connection(h_NCHW) + self.out_layers(self.in_layers(h_NCHW) + shift_NC11)
        return frames_of(self.temopral_conv(clips_of(out_NCHW, conditioning.num_frames)))


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, h_NCHW: torch.Tensor) -> torch.Tensor:
        """Frames `[N, C, ceil(H / 2), ceil(W / 2)]`."""
        return self.op(h_NCHW)


class Upsample(nn.Module):
    """Doubles height and width by the nearest cell, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, h_NCHW: torch.Tensor) -> torch.Tensor:
        """Frames `[N, C, 2 * H, 2 * W]`."""
        return self.conv(functional.interpolate(h_NCHW, scale_factor=2.0, mode="nearest"))
