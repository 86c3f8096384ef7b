"""Wan's rotary positions, computed from numbers: no table, so no last position.

A head's channels are split into time, height and width; pairs of neighbouring channels are turned by `position *
frequency`, base 10,000. Angles are float64.

Legend: F latents, T tokens of a latent, N tokens, B videos, H heads, D channels of a head, K = D / 2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

THETA: Final = 10_000.0
Turns: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines `[1 or B, N, 1 or H, K]` (of float32 keys float64, else float32)."""


def axis_channels(head_channels: int) -> tuple[int, int, int]:
    """Channels of a head for time, height and width: of 128, 44, 42 and 42."""
    side = 2 * (head_channels // 6)
    return head_channels - 2 * side, side, side


def frequencies(channels: int) -> torch.Tensor:
    """Radians a place of one axis, `[channels / 2]`, float64."""
    return THETA ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)


@dataclass(frozen=True)
class Rope:
    """Positions of one size of latents.

    Attributes:
        space_TK: angles of height and width of every token of a latent, float64.
        time_LHK: frequencies of time, by layer and head; `[1, 1, K]` where all share them.
        dtype: that angles are applied in.
    """

    space_TK: torch.Tensor
    time_LHK: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        head_channels: int,
        rows: int,
        columns: int,
        time_LHK: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Rope:
        """Of latents of so many rows and columns of tokens, for keys of a dtype."""
        _, height, width = axis_channels(head_channels)
        row_TK = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies(height)
        column_TK = torch.arange(columns, dtype=torch.float64)[:, None] * frequencies(width)
        space_TK = torch.cat([row_TK.repeat_interleave(columns, 0), column_TK.repeat(rows, 1)], dim=1)
        exact = torch.float64 if dtype == torch.float32 else torch.float32
        return cls(space_TK.to(device), time_LHK.to(device), exact)

    @property
    def is_per_layer(self) -> bool:
        """Whether layers turn differently."""
        return len(self.time_LHK) > 1

    def turns(self, layer: int, position_F: torch.Tensor, cell_BN: torch.Tensor | None = None) -> Turns:
        """Of latents at these places in time.

        Args:
            layer: which one's.
            position_F: float64, one a latent.
            cell_BN: which token of its latent each is, where they are not in order.
        """
        time_HK = self.time_LHK[layer if self.is_per_layer else 0]
        time_FHK = position_F.to(time_HK.device)[:, None, None] * time_HK
        time_NHK = time_FHK.repeat_interleave(len(self.space_TK), 0)
        space_BNK = self.space_TK.repeat(len(position_F), 1)[None] if cell_BN is None else self.space_TK[cell_BN]
        shape = (len(space_BNK), *time_NHK.shape[:2])
        angle = torch.cat([time_NHK.expand(*shape, -1), space_BNK[:, :, None].expand(*shape, -1)], dim=-1)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)


def turned(x_BNHD: torch.Tensor, turns: Turns) -> torch.Tensor:
    """Queries or keys at their positions."""
    cos, sin = turns
    even, odd = x_BNHD.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x_BNHD.dtype)
