"""What stands in for attention along the frames, against the same said in the plainest way, in float64.

Legend: R rows, H heads, F frames, T tokens of a frame in a row, S = F * T, D channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from miga.frame_attention import FrameAttention, FrameGrid, frame_call, frame_windows, row_chunks
from miga.methods.freelong.attention import SpectralAttention, low_pass, low_passed
from miga.methods.freenoise.attention import WindowedAttention, triangle
from miga.methods.freenoise.text import ramp
from miga.methods.freepca.attention import PrincipalAttention, from_all, without_mean
from tests.alive_bytes import AliveBytes
from tests.tiny_videocrafter2 import FIXTURES

CELLS = FrameGrid(2, 23, 2, 3)  # a row for every cell
WHOLE = FrameGrid(2, 23, 2, 3, tokens_per_frame=6)  # a row for every clip
WINDOWED, SPECTRAL, PRINCIPAL = WindowedAttention(8, 3), SpectralAttention(8), PrincipalAttention(8, 3)
ALL = pytest.mark.parametrize("attention", [WINDOWED, SPECTRAL, PRINCIPAL], ids=["freenoise", "freelong", "freepca"])
GRIDS = pytest.mark.parametrize("grid", [CELLS, WHOLE], ids=["cells", "whole"])
T = (801.0, 301.0)


def inputs(grid: FrameGrid, dtype: torch.dtype = torch.float64, channels: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (grid.num_clips * grid.rows_per_clip, 2, grid.num_frames * grid.tokens_per_frame, channels)
    return [torch.randn(3, *shape, generator=draw, dtype=torch.float64)[number].to(dtype) for number in range(3)]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    return (query @ key.mT * factor / math.sqrt(query.shape[-1])).softmax(dim=-1) @ value


def clip_block(x: torch.Tensor, grid: FrameGrid) -> torch.Tensor:
    """`[B, H, F, Y, X, D]`."""
    size = grid.num_clips, grid.height, grid.width
    if grid.tokens_per_frame == 1:
        return x.unflatten(0, size).permute(0, 3, 4, 1, 2, 5)
    return x.unflatten(2, (grid.num_frames, *size[1:]))


def frames_in(grid: FrameGrid, start: int, stop: int) -> slice:
    return slice(start * grid.tokens_per_frame, stop * grid.tokens_per_frame)


def test_windows() -> None:
    assert frame_windows(64, 16, 4) == [(start, start + 16) for start in range(0, 49, 4)]
    assert frame_windows(30, 16, 4) == [(0, 16), (4, 20), (8, 24), (12, 28), (14, 30)]
    assert frame_windows(16, 16, 4) == frame_windows(16, 32, 4) == [(0, 16)]
    assert triangle(16).tolist() == [*range(1, 9), *range(8, 0, -1)]
    assert triangle(5).tolist() == [1, 2, 3, 2, 1]
    assert [*row_chunks(7, 10**9)] == [slice(row, row + 1) for row in range(7)]
    assert [*row_chunks(7, 1, 4)] == [slice(0, 4), slice(4, 7)]
    assert ramp(8).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert ramp(16).tolist() == pytest.approx([0] * 6 + [0, 1 / 3, 2 / 3, 1] + [1] * 6)


def test_time_steps_of_a_call() -> None:
    call = frame_call(WINDOWED, torch.tensor([[1, 5, 3], [9, 2, 2]]))
    assert call is not None
    assert call.timesteps == (5.0, 9.0)
    assert frame_call(None, torch.tensor([3])) is None


@GRIDS
def test_freenoise(grid: FrameGrid) -> None:
    """Of every frame, window by window that it is in."""
    query, key, value = inputs(grid)
    out = WINDOWED(query, key, value, grid, T)
    for frame in range(grid.num_frames):
        own, total, weights = frames_in(grid, frame, frame + 1), 0.0, 0
        for start in [0, 3, 6, 9, 12, 15]:
            if start <= frame < start + 8:
                weight = min(frame - start + 1, start + 8 - frame)
                seen = frames_in(grid, start, start + 8)
                total = total + weight * plain(query[:, :, own], key[:, :, seen], value[:, :, seen])
                weights += weight
        torch.testing.assert_close(out[:, :, own], total / weights, atol=1e-6, rtol=0)


def near(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: FrameGrid, reach: int) -> torch.Tensor:
    frame = torch.arange(grid.num_frames).repeat_interleave(grid.tokens_per_frame)
    far = (frame[:, None] - frame).abs() > reach
    score = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(far, -math.inf)
    return score.softmax(dim=-1) @ value


@pytest.mark.parametrize("size", [(23, 2, 3), (16, 4, 6), (9, 5, 3), (17, 4, 2)])
@pytest.mark.parametrize("whole", [False, True])
def test_freelong(size: tuple[int, int, int], whole: bool) -> None:
    """Transforms of both branches over frames, height and width; sizes with 0 to 3 odd axes."""
    grid = FrameGrid(2, *size, tokens_per_frame=size[1] * size[2] if whole else 1)
    query, key, value = inputs(grid)
    local = near(query, key, value, grid, 4)
    out = SPECTRAL(query, key, value, grid, T)
    squares = [((2 * torch.arange(n, dtype=torch.float64) / n - 1) / 0.25) ** 2 for n in size]
    gain = (-0.5 * (squares[0][:, None, None] + squares[1][:, None] + squares[2])).exp()[..., None]
    axes = (2, 3, 4)
    slow, fast = (
        torch.fft.fftshift(torch.fft.fftn(clip_block(x, grid), dim=axes), dim=axes)
        for x in (plain(query, key, value), local)
    )
    mixed = torch.fft.ifftn(torch.fft.ifftshift(slow * gain + fast * (1 - gain), dim=axes), dim=axes).real
    torch.testing.assert_close(clip_block(out, grid), mixed, atol=1e-6, rtol=0)
    assert float((out - local).abs().max()) > 1e-3, "the mix does something"
    top = FrameGrid(2, *size, is_top=True, tokens_per_frame=grid.tokens_per_frame)
    torch.testing.assert_close(SPECTRAL(query, key, value, top, T), local, atol=1e-6, rtol=0)


def test_freelong_mixes_as_recorded() -> None:
    recorded = load_file(FIXTURES / "extended_attention.safetensors")
    for height in (4, 5):
        slow, fast = (recorded[f"freelong.mix.{branch}"][:, :, :, :height] for branch in ("global", "local"))
        mixed = fast + low_passed((slow - fast).permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        torch.testing.assert_close(mixed, recorded[f"freelong.mix.out_16_{height}_8"], atol=1e-6, rtol=0)
    gains = [torch.fft.fftshift(torch.fft.fft(low_pass(size)[:, 0])) for size in (128, 5, 8)]
    line = (gains[0][64] * gains[1][:, None] * gains[2]).abs()
    torch.testing.assert_close(line.float(), recorded["freelong.filter_128_5_8_line"], atol=1e-6, rtol=0)


@GRIDS
def test_freepca(grid: FrameGrid) -> None:
    """By its definition: rows of cells and channels, columns of frames, clip by clip; the general solver."""
    query, key, value = inputs(grid)
    out = PRINCIPAL(query, key, value, grid, T)
    for clip in range(2):
        rows = grid.rows(clip)
        q, k, v = (tensor[rows] for tensor in (query, key, value))
        total, count = torch.zeros_like(v), torch.zeros(v.shape[2], 1, dtype=v.dtype)
        wide = plain(q, k, v, math.sqrt(math.log(23) / math.log(8)))
        for number, start in enumerate([0, 3, 6, 9, 12, 15]):
            seen = frames_in(grid, start, start + 8)
            part = plain(q[:, :, seen], k[:, :, seen], v[:, :, seen])
            if number:
                part = fused(part, wide[:, :, seen], min(number, 3))
            total[:, :, seen] += part
            count[seen] += 1
        torch.testing.assert_close(out[rows], total / count, atol=1e-5, rtol=0)


def fused(local: torch.Tensor, wide: torch.Tensor, count: int) -> torch.Tensor:
    def table(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (8, -1)).transpose(2, 3).transpose(3, 4).reshape(-1, 8)

    def back(rows: torch.Tensor) -> torch.Tensor:
        shape = local.unflatten(2, (8, -1)).transpose(2, 3).transpose(3, 4).shape
        return rows.reshape(shape).transpose(3, 4).transpose(2, 3).reshape(local.shape)

    left, right = table(local), table(wide)
    mean = right.mean(dim=1, keepdim=True)
    left, right = left - left.mean(dim=1, keepdim=True), right - mean
    values, vectors = torch.linalg.eig(right.T @ right / 7)
    kept = [n for n in range(8) if abs(values[n]) > 1e-9]  # all but "all frames alike"
    components = vectors.real[:, kept]
    own, other = left @ components, right @ components
    cosine = torch.nn.functional.cosine_similarity(own, other, dim=0)
    chosen = cosine.argsort(descending=True)[:count]
    own[:, chosen] = other[:, chosen]
    return back(own @ components.T + mean)


def test_freepca_late_is_the_mean_over_windows() -> None:
    query, key, value = inputs(CELLS)
    late = PRINCIPAL(query, key, value, CELLS, (250.0, 1.0))
    total, count = torch.zeros_like(value), torch.zeros(23, 1, dtype=torch.float64)
    for start in [0, 3, 6, 9, 12, 15]:
        seen = slice(start, start + 8)
        total[:, :, seen] += plain(query[:, :, seen], key[:, :, seen], value[:, :, seen])
        count[seen] += 1
    torch.testing.assert_close(late, total / count, atol=1e-6, rtol=0)


def test_components() -> None:
    """None of them is "all frames alike", which is empty; all of them are all that is left."""
    basis = without_mean(8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(7, dtype=torch.float64))
    assert float(basis.sum(dim=0).abs().max()) < 1e-12
    rows = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own, wide = rows - rows.mean(dim=2, keepdim=True)
    grams = wide.T @ wide, own.T @ own, own.T @ wide
    for count in (0, 3, 7, 8):
        projection = from_all(*grams, count)
        assert float(projection.trace()) == pytest.approx(min(count, 7))
        assert float(projection.sum(dim=0).abs().max()) < 1e-12
    torch.testing.assert_close(from_all(*grams, 7), torch.eye(8, dtype=torch.float64) - 1 / 8)
    broken = [gram.clone().fill_(math.nan) for gram in grams]
    assert from_all(*broken, 3).shape == (8, 8), "what is not finite is found by the denoiser, not here"


@ALL
@GRIDS
def test_cuts_over_rows_change_nothing(attention: Any, grid: FrameGrid) -> None:
    given = inputs(grid, torch.float32)
    whole = attention(*given, grid, T)
    assert whole.dtype == torch.float32
    for rows in (1, 7):
        cut = replace(attention, rows_at_once=rows)
        torch.testing.assert_close(cut(*given, grid, T), whole, atol=1e-6, rtol=0)


@ALL
@GRIDS
def test_clips_do_not_meet(attention: FrameAttention, grid: FrameGrid) -> None:
    given, alone = inputs(grid), FrameGrid(1, 23, 2, 3, tokens_per_frame=grid.tokens_per_frame)
    together = attention(*given, grid, T)
    for clip in range(2):
        rows = grid.rows(clip)
        out = attention(*(tensor[rows] for tensor in given), alone, T[clip : clip + 1])
        torch.testing.assert_close(together[rows], out, atol=1e-6, rtol=0)


@ALL
@pytest.mark.parametrize("frames", [8, 5])
def test_a_clip_no_longer_than_a_window_has_ordinary_attention(attention: FrameAttention, frames: int) -> None:
    grid = FrameGrid(2, frames, 2, 3)
    query, key, value = inputs(grid, torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    if attention is SPECTRAL:  # near frames of such a clip: all but for the first and the last
        attention = SpectralAttention(2 * frames)
        torch.testing.assert_close(attention(query, key, value, grid, T), expected, atol=1e-6, rtol=0)
    else:
        assert torch.equal(attention(query, key, value, grid, T), expected)


@ALL
def test_half_precision(attention: FrameAttention) -> None:
    given = inputs(CELLS)
    exact = attention(*given, CELLS, T)
    rounded = attention(*(tensor.bfloat16() for tensor in given), CELLS, (801.0, 301.0))
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.double() - exact).abs().mean()) < 0.02


@ALL
def test_nothing_grows_with_the_square_of_the_length(attention: FrameAttention) -> None:
    """The largest tensor of a call is one of the size of the values, but for tables of frames by frames."""
    grid = FrameGrid(1, 96, 4, 6)
    given = inputs(grid, torch.float32, channels=8)
    with AliveBytes() as alive, torch.no_grad():
        attention(*given, grid, (801.0,))
    assert alive.largest <= max(3 * given[2].numel() * 4, 16 * 96**2)
