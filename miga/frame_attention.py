"""What may stand in for attention along the frames of a window, and how a network is given it.

Methods that put a whole video into one window (FreeNoise, FreeLong, FreePCA) change one thing of the network: how
latents attend to other latents. Such a strategy is a value, `FrameAttention`, that a method's settings name
(`SamplerConfig.frame_attention`). A backbone gives it to the denoiser that it makes for these settings, and the
denoiser to every call. It is never written into the network, which other videos are put through at the same time.

Legend: R rows of a batch, H heads, F frames (latents), T tokens of a frame in a row, S = F * T tokens of a row in frame
order, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias

import torch
from torch.nn import functional

MAX_CHUNK_BYTES: Final = 256 << 20
"""What rows that are computed together may take beside their inputs, in float32."""


@dataclass(frozen=True)
class FrameGrid:
    """Where the tokens of an attention stand.

    Rows are ordered by clip; within a clip by cell, row of cells by row of cells. There are
    `num_clips * height * width / tokens_per_frame` of them: one a cell (`tokens_per_frame` 1) where frames of a cell
    attend to each other alone, one a clip (`tokens_per_frame` = `height * width`) where everything attends to
    everything.

    Attributes:
        num_clips: videos in the batch; they never meet.
        num_frames: F.
        height, width: cells of a frame at this place in the network.
        is_top: whether that is the full resolution of a network with several; False of one with a single resolution.
        tokens_per_frame: T.
    """

    num_clips: int
    num_frames: int
    height: int
    width: int
    is_top: bool = False
    tokens_per_frame: int = 1

    @property
    def rows_per_clip(self) -> int:
        """Rows of one clip."""
        return self.height * self.width // self.tokens_per_frame

    def rows(self, clip: int) -> slice:
        """The rows of a clip."""
        return slice(clip * self.rows_per_clip, (clip + 1) * self.rows_per_clip)

    def tokens(self, start: int, stop: int) -> slice:
        """The tokens of frames `start` to `stop` in a row."""
        return slice(start * self.tokens_per_frame, stop * self.tokens_per_frame)


class FrameAttention(Protocol):
    """A strategy: what a network takes in the place of softmax attention along the frames."""

    def __call__(
        self,
        query_RHSD: torch.Tensor,
        key_RHSD: torch.Tensor,
        value_RHSD: torch.Tensor,
        grid: FrameGrid,
        timesteps: tuple[float, ...],
    ) -> torch.Tensor:
        """What goes into the output projection.

        Args:
            query_RHSD: after norms and rotary positions, if the network has those; not scaled.
            key_RHSD: likewise.
            value_RHSD: what is attended to.
            grid: where their tokens stand.
            timesteps: what the network is told (0 to 1000), one for each clip: the highest of its frames.

        Returns:
            `[R, H, S, D]`, in the dtype of the values.
        """
        ...


Attend: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries, keys and values to what goes into the output projection, all `[R, H, S, D]`."""


@dataclass(frozen=True)
class FrameCall:
    """A strategy in one call of a network.

    Attributes:
        attention: the strategy.
        timesteps: see `FrameAttention`.
    """

    attention: FrameAttention
    timesteps: tuple[float, ...]

    def on(self, grid: FrameGrid) -> Attend:
        """The attention of one place in the network."""
        return partial(self.attention, grid=grid, timesteps=self.timesteps)


def frame_call(attention: FrameAttention | None, timestep_BF: torch.Tensor) -> FrameCall | None:
    """A strategy in a call at these time steps (on the CPU: they are read), `[B, F]` or `[B]`; None without one."""
    if attention is None:
        return None
    return FrameCall(attention, tuple(float(value) for value in timestep_BF.reshape(len(timestep_BF), -1).amax(dim=1)))


def softmax_attention(
    query_RHSD: torch.Tensor,
    key_RHSD: torch.Tensor,
    value_RHSD: torch.Tensor,
    mask: torch.Tensor | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """Ordinary attention.

    Args:
        query_RHSD: not scaled.
        key_RHSD: of any number of tokens.
        value_RHSD: of as many.
        mask: `[queries, keys]`, False where a query does not see a key.
        factor: on the queries, beside 1 / sqrt(D).
    """
    scale = None if factor == 1.0 else factor * query_RHSD.shape[-1] ** -0.5
    return functional.scaled_dot_product_attention(query_RHSD, key_RHSD, value_RHSD, attn_mask=mask, scale=scale)


def row_chunks(num_rows: int, numbers_per_row: int, rows_at_once: int | None = None) -> Iterator[slice]:
    """Rows to compute together, in order. Rows do not meet in attention, so a cut changes nothing but memory.

    Args:
        num_rows: of the batch.
        numbers_per_row: that a row needs while it is computed, attention weights among them (as if they were stored).
        rows_at_once: so many; None: as many as keep that below `MAX_CHUNK_BYTES`.
    """
    step = rows_at_once or max(1, MAX_CHUNK_BYTES // (4 * numbers_per_row))
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))


def frame_windows(num_frames: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Windows of so many frames, one every `stride`, as (start, stop); a clip that is no longer is one window.

    Where they would leave a rest at the end, a last window stands at the very end. (FreeNoise's program leaves such
    frames without attention, FreePCA's cannot be run there.)
    """
    if num_frames <= window:
        return [(0, num_frames)]
    starts = [*range(0, num_frames - window + 1, stride)]
    if starts[-1] + window < num_frames:
        starts.append(num_frames - window)
    return [(start, start + window) for start in starts]
