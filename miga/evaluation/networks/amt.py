"""AMT-S: the frame between two, which motion smoothness is measured by.

Source: Li et al., "AMT: All-Pairs Multi-Field Transforms for Efficient Frame Interpolation" (arXiv 2304.09790); written
from a description of the network. Parameters are named as in `amt-s.pth`, whose licence is CC-BY-NC-4.0: the weights
may not be used commercially.

Legend: N samples, C = 3 (RGB, 0 to 1), H, W multiples of 16; `flow0` goes from the time t to the first image, `flow1`
to the second, (x, y) in pixels of their level. Level 1 is full size, level 4 an eighth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from miga.evaluation.networks.correlation import correlation, lookup, places, pyramid, sample

LEAST_SIDE: Final = 113
"""Pixels: a smaller side is less than 16 places of a feature map, and its fourth correlation level a single one."""
RADIUS: Final = 3
_CHANNELS: Final = (20, 32, 44, 56)
_SIDE: Final = 20
_FIELDS: Final = 3


def warp(image_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """The image, every pixel taken from where the flow points; beyond an edge, its pixels go on."""
    start = places(image_NCHW)
    return sample(image_NCHW, (start + flow_N2HW).permute(0, 2, 3, 1), "border")


def _resized(x: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return x
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _three_fields(change: Tensor, coarse_N2HW: Tensor) -> Tensor:
    """Three flows `[N, 3, 2, H, W]`, each the coarse one changed in its own way."""
    batch, _, height, width = change.shape
    return change.view(batch, _FIELDS, 2, height, width) + coarse_N2HW[:, None]


def _conv_prelu(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, stride, 1), nn.PReLU(channels))


class _Bottleneck(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels // 4, 3, stride, 1)
        self.conv3 = nn.Conv2d(channels // 4, channels, 1)
        self.downsample = None if stride == 1 else nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for conv in (self.conv1, self.conv2, self.conv3):
            inner = functional.relu(functional.instance_norm(conv(inner)))
        shortcut = x if self.downsample is None else functional.instance_norm(self.downsample(x))
        return functional.relu(shortcut + inner)


class _FeatureEncoder(nn.Module):
    """What correlation compares: 84 channels at an eighth of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 7, 2, 3)
        self.layer1 = nn.Sequential(_Bottleneck(32, 32, 1), _Bottleneck(32, 32, 1))
        self.layer2 = nn.Sequential(_Bottleneck(32, 64, 2), _Bottleneck(64, 64, 1))
        self.layer3 = nn.Sequential(_Bottleneck(64, 96, 2), _Bottleneck(96, 96, 1))
        self.conv2 = nn.Conv2d(96, 84, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(functional.instance_norm(self.conv1(image)))
        found: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return found


class _Encoder(nn.Module):
    """What decoders draw with: 20, 32, 44, 56 channels at a half to a sixteenth of the size."""

    def __init__(self) -> None:
        super().__init__()
        before = 3
        for level, channels in enumerate(_CHANNELS, start=1):
            setattr(
                self,
                f"pyramid{level}",
                nn.Sequential(_conv_prelu(before, channels, 2), _conv_prelu(channels, channels)),
            )
            before = channels

    def forward(self, image: Tensor) -> list[Tensor]:
        found = [image]
        for level in range(1, len(_CHANNELS) + 1):
            found.append(getattr(self, f"pyramid{level}")(found[-1]))
        return found[1:]


class _ResidualBlock(nn.Module):
    """Five convolutions, every second of which sees the last 20 channels alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv3 = _conv_prelu(channels, channels), _conv_prelu(channels, channels)
        self.conv2, self.conv4 = _conv_prelu(_SIDE, _SIDE), _conv_prelu(_SIDE, _SIDE)
        self.conv5 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.prelu = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for whole, part in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            inner = whole(inner)
            inner = torch.cat([inner[:, :-_SIDE], part(inner[:, -_SIDE:])], dim=1)
        found: Tensor = self.prelu(x + self.conv5(inner))
        return found


class _Decoder(nn.Module):
    def __init__(self, channels_in: int, channels: int, channels_out: int) -> None:
        super().__init__()
        self.convblock = nn.Sequential(
            _conv_prelu(channels_in, channels),
            _ResidualBlock(channels),
            nn.ConvTranspose2d(channels, channels_out, 4, 2, 1),
        )

    def forward(self, *parts: Tensor) -> Tensor:
        found: Tensor = self.convblock(torch.cat(parts, dim=1))
        return found


class _Update(nn.Module):
    """Corrects flows and features of a level by what correlation says, at an eighth of the size."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.convc1 = nn.Conv2d(2 * 4 * (2 * RADIUS + 1) ** 2, 64, 1)
        self.convf1 = nn.Conv2d(4, 40, 7, padding=3)
        self.convf2 = nn.Conv2d(40, 20, 3, padding=1)
        self.conv = nn.Conv2d(84, 68, 3, padding=1)
        self.gru = nn.Sequential(
            nn.Conv2d(72 + channels, 76, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(76, 76, 3, padding=1)
        )
        self.feat_head = nn.Sequential(
            nn.Conv2d(76, 76, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(76, channels, 3, padding=1)
        )
        self.flow_head = nn.Sequential(
            nn.Conv2d(76, 76, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(76, 4, 3, padding=1)
        )

    def forward(self, features: Tensor, flows_N4HW: Tensor, correlations: Tensor) -> tuple[Tensor, Tensor]:
        """The changes of features and flows; `flows_N4HW` is at an eighth already, `features` are not."""
        seen = functional.leaky_relu(self.convc1(correlations), 0.1)
        moved = functional.leaky_relu(self.convf1(flows_N4HW), 0.1)
        moved = functional.leaky_relu(self.convf2(moved), 0.1)
        both = functional.leaky_relu(self.conv(torch.cat([seen, moved], dim=1)), 0.1)
        small = _resized(features, 1 / self.factor)
        inner = self.gru(torch.cat([both, flows_N4HW, small], dim=1))
        return _resized(self.feat_head(inner), self.factor), self.factor * _resized(self.flow_head(inner), self.factor)


@dataclass(frozen=True)
class Interpolation:
    """What the network found.

    Attributes:
        frame_NCHW: the frame at the time t, 0 to 1.
        flow0, flow1: level → flows; at level 1 three each, `[N, 3, 2, H, W]`.
        features: level → features drawn there; levels 2 to 4 are called 1 to 3, as the decoders' own inputs are.
    """

    frame_NCHW: Tensor
    flow0: dict[int, Tensor]
    flow1: dict[int, Tensor]
    features: dict[int, Tensor]


class AmtS(nn.Module):
    """The network, of the small size."""

    def __init__(self) -> None:
        super().__init__()
        one, two, three, four = _CHANNELS
        self.feat_encoder = _FeatureEncoder()
        self.encoder = _Encoder()
        self.decoder4 = _Decoder(2 * four + 1, 2 * four, 4 + three)
        self.decoder3 = _Decoder(3 * three + 4, 3 * three, 4 + two)
        self.decoder2 = _Decoder(3 * two + 4, 3 * two, 4 + one)
        self.decoder1 = _Decoder(3 * one + 4, 3 * one, 8 * _FIELDS)
        self.update4, self.update3, self.update2 = _Update(three, 1), _Update(two, 2), _Update(one, 4)
        self.comb_block = nn.Sequential(
            nn.Conv2d(3 * _FIELDS, 6 * _FIELDS, 3, padding=1),
            nn.PReLU(6 * _FIELDS),
            nn.Conv2d(6 * _FIELDS, 3, 3, padding=1),
        )
        self.eval()

    def forward(self, first_NCHW: Tensor, second_NCHW: Tensor, time: float = 0.5) -> Interpolation:
        """The frame between two.

        Args:
            first_NCHW: RGB, 0 to 1, sides multiples of 16 and at least 128 (`LEAST_SIDE` before padding).
            second_NCHW: the same.
            time: of the frame, 0 at the first image and 1 at the second.
        """
        mean = torch.cat([first_NCHW, second_NCHW], dim=2).mean(dim=(1, 2, 3), keepdim=True)
        first, second = first_NCHW - mean, second_NCHW - mean
        maps = self.feat_encoder(torch.cat([first, second]))
        volume = correlation(*maps.chunk(2))
        there, back = pyramid(volume), pyramid(volume.permute(0, 3, 4, 1, 2))
        start = places(maps[: len(first)])
        drawn0, drawn1 = self.encoder(first), self.encoder(second)

        def corrected(update: _Update, features: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
            small = _resized(flows, 1 / update.factor) / update.factor
            flow0, flow1 = small.chunk(2, dim=1)
            seen = [
                lookup(there, start + flow1 / time, RADIUS),
                lookup(back, start + flow0 / (1 - time), RADIUS),
            ]
            more, change = update(features, small, torch.cat(seen, dim=1))
            return features + more, flows + change

        plane = first.new_full((len(first), 1, *drawn0[3].shape[-2:]), time)
        found = self.decoder4(drawn0[3], drawn1[3], plane)
        features, flows = corrected(self.update4, found[:, 4:], found[:, :4])
        flows_of, features_of = {4: flows}, {3: features}
        for level, decoder, update in ((3, self.decoder3, self.update3), (2, self.decoder2, self.update2)):
            found = self._decoded(decoder, drawn0[level - 1], drawn1[level - 1], features, flows)
            coarse = 2 * _resized(flows, 2)
            features, flows = corrected(update, found[:, 4:], coarse + found[:, :4])
            flows_of[level], features_of[level - 1] = flows, features
        found = self._decoded(self.decoder1, drawn0[0], drawn1[0], features, flows)
        up0, up1 = (2 * _resized(flows, 2)).chunk(2, dim=1)
        flow0, flow1, masks, rest = torch.split(found, [2 * _FIELDS, 2 * _FIELDS, _FIELDS, 3 * _FIELDS], dim=1)
        fields0, fields1 = _three_fields(flow0, up0), _three_fields(flow1, up1)
        frame = self._blended(first, second, fields0, fields1, torch.sigmoid(masks), rest, mean)
        return Interpolation(
            frame,
            {1: fields0} | {level: both[:, :2] for level, both in flows_of.items()},
            {1: fields1} | {level: both[:, 2:] for level, both in flows_of.items()},
            features_of,
        )

    def _decoded(self, decoder: _Decoder, drawn0: Tensor, drawn1: Tensor, features: Tensor, flows: Tensor) -> Tensor:
        moved = [warp(drawn0, flows[:, :2]), warp(drawn1, flows[:, 2:])]
        found: Tensor = decoder(features, *moved, flows)
        return found

    def _blended(
        self, first: Tensor, second: Tensor, fields0: Tensor, fields1: Tensor, masks: Tensor, rest: Tensor, mean: Tensor
    ) -> Tensor:
        """The three blends' mean, and what the last block adds to it."""
        blends = []
        for field in range(_FIELDS):
            mask = masks[:, field : field + 1]
            blend = mask * warp(first, fields0[:, field]) + (1 - mask) * warp(second, fields1[:, field])
            blends.append(blend + mean + rest[:, 3 * field : 3 * field + 3])
        stacked = torch.cat(blends, dim=1)
        frame: Tensor = torch.stack(blends).mean(dim=0) + self.comb_block(stacked)
        return frame.clamp(0, 1)
