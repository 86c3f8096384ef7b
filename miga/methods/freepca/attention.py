"""FreePCA's attention: what all frames agree on replaces the main components of what a window makes of itself.

Written from a description, not from the program, which has no licence. Source: Tan et al., "FreePCA: Integrating
Consistency Information across Long-short Frames in Training-free Long Video Generation via Principal Component
Analysis", 2025.

Deviations. The program knows 64 frames; here any number goes, and what it writes as sqrt(log_16 64), the factor of the
queries that look at all frames, is sqrt(log_window F). Where windows every `stride` frames leave a rest at the end, a
last window stands over it. Frames less their mean leave one direction empty, in which the program compares rounding
noise with rounding noise: it is left out. Clips of a batch are analysed one by one.

Legend: R rows, H heads, F frames, T tokens of a frame in a row, S = F * T tokens of a row, D channels of a head; W
frames of a window, N = T * D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from miga.frame_attention import FrameGrid, frame_windows, row_chunks, softmax_attention


@dataclass(frozen=True)
class PrincipalAttention:
    """Windows along the frames, each fused with its part of what attention over all frames makes.

    The first window stays as it is: the others follow it. In window number w, counted from 0, the min(w, most)
    components that both branches agree on best are those of all frames.

    Attributes:
        window: frames of one.
        stride: from the start of one to that of the next; at most `window`.
        most: components that come from all frames, at most.
        above_timestep: fused in calls whose time step is above it; windows alone in all others.
        rows_at_once: rows that are computed together (see `row_chunks`).
    """

    window: int = 16
    stride: int = 4
    most: int = 3
    above_timestep: float = 250.0
    rows_at_once: int | None = None

    def __call__(
        self,
        query_RHSD: torch.Tensor,
        key_RHSD: torch.Tensor,
        value_RHSD: torch.Tensor,
        grid: FrameGrid,
        timesteps: tuple[float, ...],
    ) -> torch.Tensor:
        """See `FrameAttention`."""
        out_RHSD = torch.empty_like(value_RHSD)
        for clip, timestep in enumerate(timesteps):
            rows = grid.rows(clip)
            chunk = query_RHSD[rows], key_RHSD[rows], value_RHSD[rows]
            out_RHSD[rows] = self._clip(*chunk, grid, timestep > self.above_timestep)
        return out_RHSD

    def _clip(
        self, query_RHSD: torch.Tensor, key_RHSD: torch.Tensor, value_RHSD: torch.Tensor, grid: FrameGrid, fuses: bool
    ) -> torch.Tensor:
        """The mean over the windows of one clip, in float32 where there are several."""
        windows = frame_windows(grid.num_frames, self.window, self.stride)
        if len(windows) == 1:
            return self._attention(query_RHSD, key_RHSD, value_RHSD)
        all_RHSD = None
        if fuses:
            factor = math.sqrt(math.log(grid.num_frames, self.window))
            all_RHSD = self._attention(query_RHSD, key_RHSD, value_RHSD, factor)
        sum_RHSD = torch.zeros_like(value_RHSD, dtype=torch.float32)
        count_S1 = torch.zeros(value_RHSD.shape[2], 1, device=value_RHSD.device)
        for number, (start, stop) in enumerate(windows):
            tokens = grid.tokens(start, stop)
            part_RHSD = self._attention(query_RHSD[:, :, tokens], key_RHSD[:, :, tokens], value_RHSD[:, :, tokens])
            if all_RHSD is not None and number:
                part_RHSD = self._fused(part_RHSD, all_RHSD[:, :, tokens], stop - start, min(number, self.most))
            sum_RHSD[:, :, tokens] += part_RHSD
            count_S1[tokens] += 1
        return sum_RHSD.div_(count_S1)

    def _attention(
        self, query_RHSD: torch.Tensor, key_RHSD: torch.Tensor, value_RHSD: torch.Tensor, factor: float = 1.0
    ) -> torch.Tensor:
        num_rows, heads, length = query_RHSD.shape[:3]
        out_RHSD = torch.empty_like(query_RHSD)
        for rows in row_chunks(num_rows, heads * length * length, self.rows_at_once):
            out_RHSD[rows] = softmax_attention(query_RHSD[rows], key_RHSD[rows], value_RHSD[rows], factor=factor)
        return out_RHSD

    def _fused(self, local_RHSD: torch.Tensor, all_RHSD: torch.Tensor, window: int, num_from_all: int) -> torch.Tensor:
        """A window of one clip, `num_from_all` components and the mean from all frames; the rest is its own."""
        # both branches and their transposes, or what is made of them
        chunks = [*row_chunks(len(local_RHSD), 4 * local_RHSD[0].numel(), self.rows_at_once)]
        gram_3WW = torch.zeros(3, window, window, dtype=torch.float64, device=local_RHSD.device)
        for rows in chunks:
            gram_3WW += _grams(_centred(local_RHSD[rows], window)[0], _centred(all_RHSD[rows], window)[0])
        projection_WW = from_all(gram_3WW[0], gram_3WW[1], gram_3WW[2], num_from_all).float()
        out_RHSD = torch.empty_like(local_RHSD)
        for rows in chunks:
            local_RHWN, _ = _centred(local_RHSD[rows], window)
            all_RHWN, mean_RH1N = _centred(all_RHSD[rows], window)
            fused_RHWN = local_RHWN + projection_WW @ (all_RHWN - local_RHWN) + mean_RH1N
            out_RHSD[rows] = fused_RHWN.reshape(out_RHSD[rows].shape).to(out_RHSD)
        return out_RHSD


def _centred(x_RHSD: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every cell and channel less its mean over the frames `[R, H, W, N]`, and that mean `[R, H, 1, N]`; float32."""
    rows, heads, _, channels = x_RHSD.shape
    x_RHWN = x_RHSD.float().reshape(rows, heads, window, -1, channels).flatten(3)
    mean_RH1N = x_RHWN.mean(dim=2, keepdim=True)
    return x_RHWN - mean_RH1N, mean_RH1N


def _grams(local_RHWN: torch.Tensor, all_RHWN: torch.Tensor) -> torch.Tensor:
    """Sums over cells and channels of the products of frames, `[3, W, W]` in float64: all and all, local and local,
    local and all."""
    pairs = ((all_RHWN, all_RHWN), (local_RHWN, local_RHWN), (local_RHWN, all_RHWN))
    return torch.stack([torch.einsum("rhwn,rhvn->wv", left, right).double() for left, right in pairs])


def without_mean(window: int, device: torch.device | None = None) -> torch.Tensor:
    """An orthonormal basis `[W, W - 1]` of what is orthogonal to "all frames alike", float64 (Helmert's)."""
    step = torch.arange(1, window, dtype=torch.float64, device=device)
    basis = torch.ones(window - 1, window, dtype=torch.float64, device=device).tril()
    basis.diagonal(1).copy_(-step)
    basis_WC: torch.Tensor = (basis / (step * (step + 1)).sqrt()[:, None]).T
    return basis_WC


def from_all(all_WW: torch.Tensor, local_WW: torch.Tensor, cross_WW: torch.Tensor, count: int) -> torch.Tensor:
    """The projection `[W, W]` onto the components that come from all frames, float64.

    Components are those of the covariance of all frames. Their order is that of the cosine between what both branches
    have of them, over all cells and channels.

    Args:
        all_WW: Gram matrix of the branch over all frames, centred.
        local_WW: of the window's own.
        cross_WW: products of the window's own (rows) and that over all frames.
        count: how many.
    """
    basis_WC = without_mean(len(all_WW), all_WW.device)
    gram_CC = basis_WC.T @ all_WW @ basis_WC
    # what is not finite is reported by the denoiser, for all methods alike; there it still is so
    _, vector_CC = torch.linalg.eigh(gram_CC.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    component_WC = basis_WC @ vector_CC
    both, own, other = (
        torch.einsum("wc,wv,vc->c", component_WC, gram, component_WC) for gram in (cross_WW, all_WW, local_WW)
    )
    cosine_C = both / (own * other).clamp_min(0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    chosen_WK: torch.Tensor = component_WC[:, cosine_C.argsort(descending=True, stable=True)[:count]]
    return chosen_WK @ chosen_WK.T
