"""What a call of Wan's transformer is told beside latents and text, and what of it reaches every layer.

Wan's transformer knows time by rotary embeddings alone, which tell two latents how far they lie apart. diffusers takes
the latents of a window to follow one another, and a window to be no longer than a table. Here they may have gaps ("this
one is from long ago"), their frequencies may be others, and there is no longest window. Embeddings travel to all layers
with a call; so does what stands in for self-attention (`frame_attention.py`), which they carry along. Nothing is kept
between calls, and other threads see what is theirs.

Legend: B windows, F latents, C channels, H, W cells, N tokens, D channels of a head, K pairs of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from miga.frame_attention import Attend, FrameCall, FrameGrid
from miga.time_rotation import TimeRotation

THETA: Final = 10_000.0
"""Base of the frequencies; diffusers' model has no other."""


@dataclass(frozen=True)
class Told:
    """What a call is told.

    Attributes:
        position_BF: where its latents stand in time; None: at 0, 1, 2, …
        rotation: frequencies of time in the place of the network's own; None: those.
        frames: what stands in for self-attention; None: itself.
    """

    position_BF: torch.Tensor | None = None
    rotation: TimeRotation | None = None
    frames: FrameCall | None = None


_NOTHING: Final = Told()
_TOLD: ContextVar[Told] = ContextVar("told", default=_NOTHING)


class CarryingRotary(tuple[torch.Tensor, torch.Tensor]):
    """Cosines and sines as diffusers hands them to its layers, with what these are to compute in place of attention."""

    attend: Attend


def use_positions(transformer: WanTransformer3DModel) -> None:
    """Makes a transformer heed `positions`. Without anything told it computes what it did.

    Args:
        transformer: changed in place; a second call does nothing.

    Raises:
        ValueError: if one of its tokens covers several latents.
    """
    if transformer.config.patch_size[0] != 1:
        raise ValueError(f"a token of this model covers {transformer.config.patch_size[0]} latents, not one")
    transformer.rope.__class__ = _PositionedRope


@contextmanager
def positions(
    position_BF: torch.Tensor | None, rotation: TimeRotation | None = None, frames: FrameCall | None = None
) -> Iterator[None]:
    """In it, calls of such transformers are told these (see `Told`)."""
    token = _TOLD.set(Told(position_BF, rotation, frames))
    try:
        yield
    finally:
        _TOLD.reset(token)


def frequencies(num_channels: int) -> torch.Tensor:
    """The network's own frequencies of an axis of so many channels, `[K]` float64, as diffusers makes them."""
    return 1.0 / (THETA ** (torch.arange(0, num_channels, 2, dtype=torch.float64)[: num_channels // 2] / num_channels))


class _PositionedRope(WanRotaryPosEmbed):
    """diffusers' embedding, with its own function for the angles in time."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[1, N, 1, D]`; `[B, N, 1, D]` where latents have positions."""
        rotary = self._rotary(hidden_states, _TOLD.get())
        frames = _TOLD.get().frames
        if frames is None:
            return rotary
        carrying = CarryingRotary(rotary)
        carrying.attend = frames.on(self._grid(hidden_states))
        return carrying

    def _rotary(self, hidden_states: torch.Tensor, told: Told) -> tuple[torch.Tensor, torch.Tensor]:
        batch, _, num_latents = hidden_states.shape[:3]
        position_BF = told.position_BF
        own_K = frequencies(self.t_dim)
        frequency_K = own_K if told.rotation is None else told.rotation(own_K, num_latents)
        if position_BF is None and frequency_K is own_K and num_latents <= self.max_seq_len:
            return super().forward(hidden_states)
        if position_BF is not None and position_BF.shape != (batch, num_latents):
            raise ValueError(f"positions {list(position_BF.shape)} for {batch} windows of {num_latents} latents")
        if position_BF is None:
            position_BF = torch.arange(num_latents)[None]
        cos_ND, sin_ND = self._angles(position_BF.flatten().cpu(), None if frequency_K is own_K else frequency_K)
        shape = (len(position_BF), num_latents, self.t_dim)
        cos_1T1D, sin_1T1D = super().forward(hidden_states[:, :, :1])
        return self._with_time(cos_1T1D, cos_ND.view(shape)), self._with_time(sin_1T1D, sin_ND.view(shape))

    def _angles(self, position_N: torch.Tensor, frequency_K: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines in time `[N, D]`, every value twice; with the network's own frequencies by diffusers."""
        if frequency_K is None:
            of_own: tuple[torch.Tensor, torch.Tensor] = get_1d_rotary_pos_embed(
                self.t_dim, position_N, use_real=True, repeat_interleave_real=True, freqs_dtype=torch.float64
            )
            return of_own
        angle_NK = torch.outer(position_N.double(), frequency_K)
        cos_ND, sin_ND = (each.repeat_interleave(2, dim=1).float() for each in (angle_NK.cos(), angle_NK.sin()))
        return cos_ND, sin_ND

    def _with_time(self, usual_1T1D: torch.Tensor, time_BFD: torch.Tensor) -> torch.Tensor:
        """Cosines, or sines, of one latent's cells for all latents, with these as channels of time, the first ones."""
        batch, num_latents, _ = time_BFD.shape
        num_tokens = usual_1T1D.shape[1]
        time_BN1D = time_BFD.to(usual_1T1D).repeat_interleave(num_tokens, dim=1)[:, :, None]
        space_1N1D = usual_1T1D[..., self.t_dim :].repeat(1, num_latents, 1, 1)
        return torch.cat([time_BN1D, space_1N1D.expand(batch, -1, -1, -1)], dim=-1)

    def _grid(self, hidden_states: torch.Tensor) -> FrameGrid:
        batch, _, num_latents, rows, columns = hidden_states.shape
        height, width = rows // self.patch_size[1], columns // self.patch_size[2]
        return FrameGrid(batch, num_latents, height, width, tokens_per_frame=height * width)
