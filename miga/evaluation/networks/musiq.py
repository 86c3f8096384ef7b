"""MUSIQ: the image quality of a frame, trained on SPAQ.

Source: Ke et al., "MUSIQ: Multi-scale Image Quality Transformer" (arXiv 2108.05997), and Google's program
(Apache-2.0). Parameters are named as in `musiq_spaq_ckpt-358bb6af.pth`.

An image is seen at three scales, cut into patches of 32 x 32, each of which becomes a token with the embedding of its
place on a 10 x 10 grid and of its scale.

Legend: N images, C = 3 (RGB, 0 to 1), H, W sides, T tokens of an image (its class token not among them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH: Final = 32
GRID: Final = 10
SCALES: Final = (224, 384)
"""Longer sides, in pixels, of the two small scales; the third is the image as it is."""
_MASKED: Final = -1000.0


@dataclass(frozen=True)
class Tokens:
    """An image cut up.

    Attributes:
        patches_NTP: pixels of each patch, -1 to 1, channel by channel; 0 where there is none.
        places_T: cell of the 10 x 10 grid, row by row.
        scales_T: 0, 1, 2.
        mask_T: whether there is a patch.
    """

    patches_NTP: Tensor
    places_T: Tensor
    scales_T: Tensor
    mask_T: Tensor


def cut(image_NCHW: Tensor) -> Tokens:
    """The patches of an image at all three scales, the small ones filled up to 49 and 144."""
    image_NCHW = (image_NCHW - 0.5) * 2
    height, width = image_NCHW.shape[-2:]
    parts: list[tuple[Tensor, Tensor, int]] = []
    for longer in SCALES:
        ratio = longer / max(height, width)
        size = (round(height * ratio), round(width * ratio))
        small = functional.interpolate(image_NCHW, size, mode="bicubic", align_corners=False)
        parts.append((*_patches(small), math.ceil(longer / PATCH) ** 2))
    patches, places = _patches(image_NCHW)
    parts.append((patches, places, len(places)))
    padded, cells, scales, masks = [], [], [], []
    for scale, (patches, places, length) in enumerate(parts):
        missing = length - len(places)
        padded.append(functional.pad(patches, (0, 0, 0, missing)))
        cells.append(functional.pad(places, (0, missing)))
        scales.append(functional.pad(torch.full_like(places, scale), (0, missing)))
        masks.append(torch.arange(length, device=places.device) < len(places))
    return Tokens(torch.cat(padded, dim=1), torch.cat(cells), torch.cat(scales), torch.cat(masks))


def _patches(image_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Patches `[N, T, C 32 32]`, zeros around the image shared out evenly, and the grid's cell of each."""
    height, width = image_NCHW.shape[-2:]
    rows, columns = math.ceil(height / PATCH), math.ceil(width / PATCH)
    padded = _pad(image_NCHW, rows * PATCH - height, columns * PATCH - width)
    patches = functional.unfold(padded, PATCH, stride=PATCH).transpose(1, 2)
    device = image_NCHW.device
    row = torch.arange(rows, device=device) * GRID // rows
    column = torch.arange(columns, device=device) * GRID // columns
    return patches, cells_of(row, column, rows, columns)


def cells_of(row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    """Cells of the grid for all pairs, row by row."""
    return (row[:, None] * GRID + column[None, :]).expand(rows, columns).reshape(-1)


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros at all sides, the odd one at the end (TensorFlow's "SAME")."""
    return functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    needed = [max(0, (math.ceil(size / stride) - 1) * stride + kernel - size) for size in x.shape[-2:]]
    return _pad(x, *needed)


class _StandardisedConv(nn.Conv2d):
    """A convolution whose weights have mean 0 and deviation 1 for each channel they make, padded as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(_pad_same(x, self.kernel_size[0], self.stride[0]), weight, self.bias, self.stride)


class _Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _StandardisedConv(64, 64, 1, bias=False)
        self.gn1 = nn.GroupNorm(32, 64, eps=1e-4)
        self.conv2 = _StandardisedConv(64, 64, 3, bias=False)
        self.gn2 = nn.GroupNorm(32, 64, eps=1e-4)
        self.conv3 = _StandardisedConv(64, 256, 1, bias=False)
        self.gn3 = nn.GroupNorm(32, 256, eps=1e-4)
        self.conv_proj = _StandardisedConv(64, 256, 1, bias=False)
        self.gn_proj = nn.GroupNorm(32, 256, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.gn1(self.conv1(x)))
        inner = functional.relu(self.gn2(self.conv2(inner)))
        return functional.relu(self.gn3(self.conv3(inner)) + self.gn_proj(self.conv_proj(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, tokens, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        logits = query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5
        weights = torch.softmax(torch.where(bias, logits, _MASKED), dim=-1)
        found: Tensor = self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        return found


class _MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return found


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width, heads)
        self.mlp = _MLP(width, inner)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), bias)
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class _Places(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_emb = nn.Parameter(torch.zeros(1, GRID * GRID, width))


class _Scales(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_emb = nn.Parameter(torch.zeros(len(SCALES) + 1, width))


class _Encoder(nn.Module):
    def __init__(self, width: int, inner: int, layers: int, heads: int) -> None:
        super().__init__()
        self.posembed_input = _Places(width)
        self.scaleembed_input = _Scales(width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        names = {f"encoderblock_{index}": _Layer(width, inner, heads) for index in range(layers)}
        self.transformer = nn.ModuleDict(names)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        x = x + self.posembed_input.position_emb[0, tokens.places_T] + self.scaleembed_input.scale_emb[tokens.scales_T]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        seen = functional.pad(tokens.mask_T, (1, 0), value=True)
        bias = seen[:, None] & seen[None, :]
        for layer in self.transformer.values():
            x = layer(x, bias)
        found: Tensor = self.encoder_norm(x)
        return found


class Musiq(nn.Module):
    """The network, at MUSIQ-SPAQ's size by default."""

    def __init__(self, hidden_size: int = 384, mlp_dim: int = 1152, num_layers: int = 14, num_heads: int = 6) -> None:
        super().__init__()
        self.conv_root = _StandardisedConv(3, 64, 7, 2, bias=False)
        self.gn_root = nn.GroupNorm(32, 64, eps=1e-6)
        self.block1 = _Bottleneck()
        self.embedding = nn.Linear(256 * (PATCH // 4) ** 2, hidden_size)
        self.transformer_encoder = _Encoder(hidden_size, mlp_dim, num_layers, num_heads)
        self.head = nn.Linear(hidden_size, 1)
        self.eval()

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """The quality of each image `[N]`; MUSIQ-SPAQ says 0 to 100.

        Args:
            image_NCHW: RGB, 0 to 1, not scaled to any size.
        """
        tokens = cut(image_NCHW)
        batch, count, _ = tokens.patches_NTP.shape
        x = tokens.patches_NTP.reshape(batch * count, 3, PATCH, PATCH)
        x = functional.relu(self.gn_root(self.conv_root(x)))
        x = self.block1(functional.max_pool2d(_pad_same(x, 3, 2), 3, 2))
        x = self.embedding(x.permute(0, 2, 3, 1).reshape(batch, count, -1))
        found: Tensor = self.head(self.transformer_encoder(x, tokens)[:, 0])[:, 0]
        return found
