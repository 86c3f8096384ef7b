"""The all-pairs correlation of two feature maps and its lookup around places, which RAFT and AMT share.

Source: RAFT (arXiv 2003.12039), section 3.2.

Legend: N samples, C channels, H, W rows and columns of a feature map, R radius of a lookup, K = 2 R + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 4


def places(image_NCHW: Tensor) -> Tensor:
    """Every pixel's own place as (x, y), `[N, 2, H, W]`."""
    batch, _, height, width = image_NCHW.shape
    rows, columns = (torch.arange(size, device=image_NCHW.device) for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y]).float().expand(batch, 2, height, width)


def sample(image_NCHW: Tensor, xy_NHW2: Tensor, padding: str) -> Tensor:
    """Bilinear values at places in pixels, (0, 0) the middle of the first pixel and (W - 1, H - 1) of the last.

    An axis of one pixel has no such scale: its values are not numbers, as in the published programs.
    """
    height, width = image_NCHW.shape[-2:]
    x, y = xy_NHW2.unbind(-1)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return functional.grid_sample(image_NCHW, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def correlation(first_NCHW: Tensor, second_NCHW: Tensor) -> Tensor:
    """Scalar products of all pairs of places over the root of C, `[N, H, W, H, W]`: the first map's places first."""
    batch, channels, height, width = first_NCHW.shape
    one, other = first_NCHW.flatten(2), second_NCHW.flatten(2)
    products: Tensor = torch.matmul(one.transpose(1, 2), other) / math.sqrt(channels)
    return products.view(batch, height, width, height, width)


def pyramid(volume_NHWHW: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """The volume `[N H W, 1, H, W]`, and each time half as fine in the second map's places."""
    batch, height, width = volume_NHWHW.shape[:3]
    found = [volume_NHWHW.reshape(batch * height * width, 1, *volume_NHWHW.shape[3:])]
    for _ in range(levels - 1):
        found.append(functional.avg_pool2d(found[-1], 2, stride=2))
    return found


def lookup(levels: Sequence[Tensor], xy_N2HW: Tensor, radius: int) -> Tensor:
    """Correlations around places of the second map, at all levels: `[N, levels K K, H, W]`.

    Of the K x K offsets the first index moves along x and the second along y, which trained weights expect.
    """
    batch, _, height, width = xy_N2HW.shape
    steps = torch.arange(-radius, radius + 1, device=xy_N2HW.device, dtype=xy_N2HW.dtype)
    offsets_KK2 = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    middle = xy_N2HW.permute(0, 2, 3, 1).reshape(batch * height * width, 1, 1, 2)
    found = [
        sample(volume, middle / 2**level + offsets_KK2, "zeros").view(batch, height, width, -1)
        for level, volume in enumerate(levels)
    ]
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2).contiguous()
