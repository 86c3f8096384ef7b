"""The transformers of VideoCrafter2's UNet: over the cells of a frame and to the text, and over the frames of a cell.

Attribute names are those of the checkpoint.

Legend: B clips in a batch, F frames of a clip, N = B * F frames in clip order, C channels, H, W latent cells, L text
tokens, D text channels; inside a transformer R rows of T tokens each (one frame's cells, or one cell's frames).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from miga.backbones.videocrafter2.blocks import (
    ConditionedLayer,
    Conditioning,
    GroupNorm32,
    LayerNorm32,
    clips_of,
    frames_of,
)
from miga.frame_attention import Attend, FrameGrid, softmax_attention


class Attention(nn.Module):
    """Multi-head attention.

    Args:
        channels: of the tokens; a whole number of heads.
        context_channels: of what they attend to.
        head_channels: of one head.
    """

    def __init__(self, channels: int, context_channels: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())  # training's dropout

    def forward(
        self, x_RTC: torch.Tensor, context_BLD: torch.Tensor, attend: Attend = softmax_attention
    ) -> torch.Tensor:
        """Every token attends to its row's context, or to its clip's where one context serves R / B rows in turn.

        Such rows become one long row: a query does not see the others, and the text is projected once a clip.
        `attend` is what is done with queries, keys and values.
        """
        query_BTC = self.to_q(x_RTC).reshape(context_BLD.shape[0], -1, x_RTC.shape[-1])
        out = attend(self._heads(query_BTC), self._heads(self.to_k(context_BLD)), self._heads(self.to_v(context_BLD)))
        return self.to_out(out.transpose(1, 2).reshape(x_RTC.shape))

    def _heads(self, x_RTC: torch.Tensor) -> torch.Tensor:
        """To `[rows, heads, tokens, channels of a head]`."""
        return x_RTC.unflatten(-1, (-1, self.head_channels)).transpose(1, 2)


class GatedGelu(nn.Module):
    """A linear layer, half of whose output gates the other half. Source: Shazeer, "GLU Variants", 2020 (GEGLU)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, x_RTC: torch.Tensor) -> torch.Tensor:
        """Tokens `[R, T, out_channels]`."""
        value, gate = self.proj(x_RTC).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    """Each token for itself, through four times its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        # the identity stands for training's dropout
        self.net = nn.Sequential(GatedGelu(channels, hidden), nn.Identity(), nn.Linear(hidden, channels))

    def forward(self, x_RTC: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        return self.net(x_RTC)


class TransformerBlock(nn.Module):
    """Self-attention, a second attention and a feed-forward layer, each behind a norm and around a residual.

    Args:
        channels: of the tokens.
        context_channels: of what the second attention looks at.
        head_channels: of one head.
    """

    def __init__(self, channels: int, context_channels: int, head_channels: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_channels, head_channels)
        self.norm1 = LayerNorm32(channels)
        self.norm2 = LayerNorm32(channels)
        self.norm3 = LayerNorm32(channels)

    def forward(
        self, x_RTC: torch.Tensor, context_BLD: torch.Tensor | None, attend: Attend = softmax_attention
    ) -> torch.Tensor:
        """Of the same shape; without a context the second attention is a self-attention too.

        `attend` stands in for softmax attention in all self-attention.
        """
        normed_RTC = self.norm1(x_RTC)
        x_RTC = x_RTC + self.attn1(normed_RTC, normed_RTC, attend)
        normed_RTC = self.norm2(x_RTC)
        if context_BLD is None:
            x_RTC = x_RTC + self.attn2(normed_RTC, normed_RTC, attend)
        else:
            x_RTC = x_RTC + self.attn2(normed_RTC, context_BLD)
        return x_RTC + self.ff(self.norm3(x_RTC))


class SpatialTransformer(ConditionedLayer):
    """The cells of each frame attend to each other, then to the text; frames do not meet.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022.

    Args:
        channels: of the latents.
        context_channels: D.
        head_channels: of one head.
        depth: transformer blocks.
    """

    def __init__(self, channels: int, context_channels: int, head_channels: int, depth: int) -> None:
        super().__init__()
        self.norm = GroupNorm32(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_channels, head_channels) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, h_NCHW: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Of the same shape."""
        x_NTC = self.proj_in(self.norm(h_NCHW).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            x_NTC = block(x_NTC, conditioning.context_BLD)
        return h_NCHW + self.proj_out(x_NTC).transpose(1, 2).reshape(h_NCHW.shape)


class TemporalTransformer(ConditionedLayer):
    """The frames of each cell attend to each other, all to all; they carry no positions, so any number of them fits.

    A call may put something else in the place of that attention (`miga.frame_attention`), in both of a block. The
    group norm takes its statistics over the whole clip.

    Args:
        channels: of the latents.
        inner_channels: of the tokens.
        head_channels: of one head.
        depth: transformer blocks.
        projections: the layer that leads from the one to the other and back; the checkpoint holds convolutions of width
            one for the transformer behind the first convolution and linear layers for all others.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int,
        head_channels: int,
        depth: int,
        projections: type[nn.Linear] | type[PointwiseConv1d] = nn.Linear,
    ) -> None:
        super().__init__()
        self.norm = GroupNorm32(channels, eps=1e-6)
        self.proj_in = projections(channels, inner_channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner_channels, inner_channels, head_channels) for _ in range(depth)
        )
        self.proj_out = projections(inner_channels, channels)

    def forward(self, h_NCHW: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Of the same shape."""
        h_BCFHW = clips_of(h_NCHW, conditioning.num_frames)
        num_clips, _, num_frames, height, width = h_BCFHW.shape
        attend: Attend = softmax_attention
        if conditioning.frames is not None:
            is_top = (height, width) == conditioning.top_size
            attend = conditioning.frames.on(FrameGrid(num_clips, num_frames, height, width, is_top))
        x_RFC = self.proj_in(self.norm(h_BCFHW).permute(0, 3, 4, 2, 1).flatten(0, 2))
        for block in self.transformer_blocks:
            x_RFC = block(x_RFC, None, attend)
        out_BHWFC = self.proj_out(x_RFC).unflatten(0, (num_clips, height, width))
        return h_NCHW + frames_of(out_BHWFC.permute(0, 4, 3, 1, 2))


class PointwiseConv1d(nn.Conv1d):
    """A linear layer whose weight is stored as that of a convolution of width one, `[out, in, 1]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x_RTC: torch.Tensor) -> torch.Tensor:
        """Tokens `[R, T, out_channels]`."""
        return functional.linear(x_RTC, self.weight[:, :, 0], self.bias)
