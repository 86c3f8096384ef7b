"""FreeNoise's attention: within windows along the frames, what several say of a frame fused.

Source: Qiu et al., "FreeNoise: Tuning-Free Longer Video Diffusion via Noise Rescheduling", 2024, section 3.2
(window-based attention fusion), and its program.

Deviation: where windows every `stride` frames leave a rest at the end, a last window stands over it; the program gives
such frames no attention at all.

Legend: R rows, H heads, F frames, T tokens of a frame in a row, S = F * T tokens of a row, D channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from miga.frame_attention import FrameGrid, frame_windows, row_chunks, softmax_attention


def triangle(window: int, device: torch.device | None = None) -> torch.Tensor:
    """Weight of each place in a window, `[window]`, float32: 1, 2, … to the middle (one or two places), and back."""
    place = torch.arange(1, window + 1, device=device)
    return torch.minimum(place, window + 1 - place).float()


@dataclass(frozen=True)
class WindowedAttention:
    """A frame attends within the windows that it is in; their answers are averaged, the middle of a window counts most.

    A clip that is no longer than a window has ordinary attention. Nothing is stored that grows with F².

    Attributes:
        window: frames of one.
        stride: from the start of one to that of the next; at most `window`.
        rows_at_once: rows that are computed together (see `row_chunks`).
    """

    window: int = 16
    stride: int = 4
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
        windows = frame_windows(grid.num_frames, self.window, self.stride)
        num_rows, heads, length, channels = value_RHSD.shape
        seen = (windows[0][1] - windows[0][0]) * grid.tokens_per_frame
        out_RHSD = torch.empty_like(value_RHSD)
        for rows in row_chunks(num_rows, heads * (seen**2 + length * channels), self.rows_at_once):
            chunk = query_RHSD[rows], key_RHSD[rows], value_RHSD[rows]
            out_RHSD[rows] = softmax_attention(*chunk) if len(windows) == 1 else _fused(*chunk, grid, windows)
        return out_RHSD


def _fused(
    query_RHSD: torch.Tensor,
    key_RHSD: torch.Tensor,
    value_RHSD: torch.Tensor,
    grid: FrameGrid,
    windows: list[tuple[int, int]],
) -> torch.Tensor:
    """The weighted mean over windows, float32."""
    weight_W1 = triangle(windows[0][1], value_RHSD.device).repeat_interleave(grid.tokens_per_frame)[:, None]
    sum_RHSD = torch.zeros_like(value_RHSD, dtype=torch.float32)
    weight_S1 = torch.zeros(value_RHSD.shape[2], 1, device=value_RHSD.device)
    for start, stop in windows:
        tokens = grid.tokens(start, stop)
        out = softmax_attention(query_RHSD[:, :, tokens], key_RHSD[:, :, tokens], value_RHSD[:, :, tokens])
        sum_RHSD[:, :, tokens] += weight_W1 * out
        weight_S1[tokens] += weight_W1
    return sum_RHSD / weight_S1
