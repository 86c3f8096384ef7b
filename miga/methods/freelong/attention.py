"""FreeLong's attention: what changes slowly over the video from all frames, what changes fast from near ones.

Source: Lu et al., "FreeLong: Training-Free Long Video Generation with SpectralBlend Temporal Attention", 2024, and its
program for VideoCrafter2.

The program transforms both branches over frames, height and width, and adds the low frequencies of the global one to
the high frequencies of the local one. Both shares of a frequency add up to one, so that is

    local + LP(global - local),

and since the low pass LP is a product of three factors, one for each axis, it is three small matrices: no transform is
needed. All of it acts on channels one by one, so that it may stand before the output projection.

Legend: R rows, H heads, F frames, T tokens of a frame in a row, S = F * T tokens of a row, D channels of a head; B
clips, Y, X height and width in cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from miga.frame_attention import FrameGrid, row_chunks, softmax_attention

CUTOFF: Final = 0.25
"""One standard deviation of the low pass, as a share of the highest frequency, on every axis."""
FRAMES_TOGETHER: Final = 16
"""Frames of a block whose near frames are taken together, where a frame is one token."""


def low_pass(size: int, cutoff: float = CUTOFF) -> torch.Tensor:
    """The low pass along one axis, `[size, size]`, circulant; complex128, real but for rounding if `size` is even.

    The factor of a frequency is a Gaussian of 2i / size - 1, where i counts shifted frequencies. For an odd size the
    constant is at -1 / size there, not at 0: the low pass damps it, and is not symmetric. So it is in the program,
    which takes the real part of what comes out.
    """
    share = 2.0 * torch.arange(size, dtype=torch.float64) / size - 1.0
    gain = torch.fft.ifftshift(torch.exp(-0.5 * (share / cutoff) ** 2))
    response: torch.Tensor = torch.fft.ifft(gain)
    place = torch.arange(size)
    return response[(place[:, None] - place) % size]


def low_passed(x_BFYXD: torch.Tensor, cutoff: float = CUTOFF) -> torch.Tensor:
    """The slow part of a block over frames, height and width, channel by channel, float32."""
    sizes = x_BFYXD.shape[1:4]
    # with one odd axis at most the real parts do: of a product of real matrices and a complex one only that counts
    is_complex = sum(size % 2 for size in sizes) > 1
    dtype = torch.complex64 if is_complex else torch.float32
    frames, rows, columns = (_part(low_pass(size, cutoff), dtype).to(x_BFYXD.device) for size in sizes)
    slow = torch.einsum("xw,bfywd->bfyxd", columns, x_BFYXD.to(dtype))
    slow = torch.einsum("yv,bfvxd->bfyxd", rows, slow)
    slow = torch.einsum("fg,bgyxd->bfyxd", frames, slow)
    return slow.real if is_complex else slow


def _part(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (matrix if dtype.is_complex else matrix.real).to(dtype)


def near_attention(
    query_RHSD: torch.Tensor, key_RHSD: torch.Tensor, value_RHSD: torch.Tensor, grid: FrameGrid, reach: int
) -> torch.Tensor:
    """Attention to frames at most `reach` away, fewer at the ends; the work grows with F, not with F²."""
    num_frames, per_frame = grid.num_frames, grid.tokens_per_frame
    together = FRAMES_TOGETHER if per_frame == 1 else 1
    outs = []
    for start in range(0, num_frames, together):
        stop = min(num_frames, start + together)
        first, last = max(0, start - reach), min(num_frames, stop + reach)
        own, near = grid.tokens(start, stop), grid.tokens(first, last)
        mask = None
        if together > 1:
            query_F, key_F = (torch.arange(*ends, device=value_RHSD.device) for ends in ((start, stop), (first, last)))
            mask = (query_F[:, None] - key_F).abs() <= reach
        outs.append(softmax_attention(query_RHSD[:, :, own], key_RHSD[:, :, near], value_RHSD[:, :, near], mask))
    return torch.cat(outs, dim=2)


@dataclass(frozen=True)
class SpectralAttention:
    """Two branches of the same weights, all frames and near frames, mixed by frequency.

    At the full resolution of a network with several, near frames alone.

    Attributes:
        window: near frames are those at most `window // 2` away: one more of them than an even window has.
        cutoff: of the low pass (see `CUTOFF`).
        rows_at_once: rows that are computed together (see `row_chunks`).
    """

    window: int = 16
    cutoff: float = CUTOFF
    rows_at_once: int | None = None

    def __call__(
        self,
        query_RHSD: torch.Tensor,
        key_RHSD: torch.Tensor,
        value_RHSD: torch.Tensor,
        grid: FrameGrid,
        timesteps: tuple[float, ...],
    ) -> torch.Tensor:
        """See `FrameAttention`; every time step alike."""
        num_rows, heads, length = value_RHSD.shape[:3]
        out_RHSD = torch.empty_like(value_RHSD)
        difference_RHSD = None if grid.is_top else torch.empty_like(value_RHSD)
        seen = min(length, 3 * self.window * grid.tokens_per_frame) if grid.is_top else length
        for rows in row_chunks(num_rows, heads * length * seen, self.rows_at_once):
            chunk = query_RHSD[rows], key_RHSD[rows], value_RHSD[rows]
            out_RHSD[rows] = near_attention(*chunk, grid, self.window // 2)
            if difference_RHSD is not None:
                difference_RHSD[rows] = softmax_attention(*chunk) - out_RHSD[rows]
        if difference_RHSD is not None:
            for head in range(heads):
                out_RHSD[:, head] += self._slow(difference_RHSD[:, head], grid).to(out_RHSD)
        return out_RHSD

    def _slow(self, x_RSD: torch.Tensor, grid: FrameGrid) -> torch.Tensor:
        """The slow part of one head's channels, of the same shape."""
        clips, frames, size = grid.num_clips, grid.num_frames, (grid.height, grid.width)
        if grid.tokens_per_frame == 1:
            x_BFYXD = x_RSD.reshape(clips, *size, frames, -1).permute(0, 3, 1, 2, 4)
            return low_passed(x_BFYXD, self.cutoff).permute(0, 2, 3, 1, 4).reshape(x_RSD.shape)
        return low_passed(x_RSD.reshape(clips, frames, *size, -1), self.cutoff).reshape(x_RSD.shape)
