"""Positions in time of the latents of a window, where they are not 0, 1, 2, …

Wan's transformer knows time by rotary embeddings alone, which tell two latents how far they lie apart. diffusers takes
the latents of a window to follow one another; here they may have gaps: "this one is from long ago". Nothing is kept
between calls, and other threads see positions of their own.

Legend: B windows, F latents, C channels, H, W cells, N tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

_POSITIONS: ContextVar[torch.Tensor | None] = ContextVar("positions", default=None)


def use_positions(transformer: WanTransformer3DModel) -> None:
    """Makes a transformer heed `positions`. Without them it computes what it did.

    Args:
        transformer: changed in place; a second call does nothing.

    Raises:
        ValueError: if one of its tokens covers several latents.
    """
    if transformer.config.patch_size[0] != 1:
        raise ValueError(f"a token of this model covers {transformer.config.patch_size[0]} latents, not one")
    transformer.rope.__class__ = _PositionedRope


@contextmanager
def positions(position_BF: torch.Tensor | None) -> Iterator[None]:
    """In it, calls of such transformers take their latents to stand at these positions; None: at 0, 1, 2, …"""
    token = _POSITIONS.set(position_BF)
    try:
        yield
    finally:
        _POSITIONS.reset(token)


class _PositionedRope(WanRotaryPosEmbed):
    """diffusers' embedding, with its own function for the angles in time."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[1, N, 1, D]`; `[B, N, 1, D]` where latents have positions."""
        cos_1N1D, sin_1N1D = super().forward(hidden_states)
        position_BF = _POSITIONS.get()
        if position_BF is None:
            return cos_1N1D, sin_1N1D
        batch, _, num_latents = hidden_states.shape[:3]
        if position_BF.shape != (batch, num_latents):
            raise ValueError(f"positions {list(position_BF.shape)} for {batch} windows of {num_latents} latents")
        cos_ND, sin_ND = get_1d_rotary_pos_embed(
            self.t_dim,
            position_BF.flatten().cpu(),
            use_real=True,
            repeat_interleave_real=True,
            freqs_dtype=torch.float64,
        )
        shape = (batch, num_latents, self.t_dim)
        return self._with_time(cos_1N1D, cos_ND.view(shape)), self._with_time(sin_1N1D, sin_ND.view(shape))

    def _with_time(self, usual_1N1D: torch.Tensor, time_BFD: torch.Tensor) -> torch.Tensor:
        """Cosines, or sines, with other channels for time, which are the first."""
        batch, num_latents, _ = time_BFD.shape
        num_tokens = usual_1N1D.shape[1] // num_latents
        time_BN1D = time_BFD.to(usual_1N1D).repeat_interleave(num_tokens, dim=1)[:, :, None]
        return torch.cat([time_BN1D, usual_1N1D[..., self.t_dim :].expand(batch, -1, -1, -1)], dim=-1)
