"""RAFT (large): the optical flow that dynamic degree is measured by.

Source: Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow" (arXiv 2003.12039), and its program
(BSD-3). Parameters are named as in `raft-things.pth`; torchvision's `raft_large` is the same network under other names.

Legend: N samples, C = 3 (RGB, 0 to 255), H, W multiples of 8; a flow is (x, y) in pixels, `[N, 2, H, W]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from miga.evaluation.networks.correlation import correlation, lookup, places, pyramid

LEAST_SIDE: Final = 121
"""Pixels: a smaller side is less than 16 places of a feature map, and its fourth correlation level a single one."""
STEPS: Final = 20
RADIUS: Final = 4
_STATE: Final = 128


class _NoParameters(nn.InstanceNorm2d):
    """Instance norm that has no parameters, and so no entry in a file of weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False, track_running_stats=False)


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, norm: Callable[[int], nn.Module], stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.norm3 = norm(channels)  # one module under two names, in files of weights too
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        inner = functional.relu(self.norm2(self.conv2(inner)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(shortcut + inner)


class _Encoder(nn.Module):
    def __init__(self, channels_out: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm(64)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.layer1 = nn.Sequential(_Residual(64, 64, norm, 1), _Residual(64, 64, norm, 1))
        self.layer2 = nn.Sequential(_Residual(64, 96, norm, 2), _Residual(96, 96, norm, 1))
        self.layer3 = nn.Sequential(_Residual(96, 128, norm, 2), _Residual(128, 128, norm, 1))
        self.conv2 = nn.Conv2d(128, channels_out, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(image)))
        found: Tensor = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return found


class _MotionEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(4 * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(64 + 192, 128 - 2, 3, padding=1)

    def forward(self, flow: Tensor, correlations: Tensor) -> Tensor:
        seen = functional.relu(self.convc2(functional.relu(self.convc1(correlations))))
        moved = functional.relu(self.convf2(functional.relu(self.convf1(flow))))
        return torch.cat([functional.relu(self.conv(torch.cat([seen, moved], dim=1))), flow], dim=1)


class _SeparableGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = _STATE + 128 + 128
        self.convz1, self.convr1, self.convq1 = (nn.Conv2d(width, _STATE, (1, 5), padding=(0, 2)) for _ in range(3))
        self.convz2, self.convr2, self.convq2 = (nn.Conv2d(width, _STATE, (5, 1), padding=(2, 0)) for _ in range(3))

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        for update, reset, candidate in (
            (self.convz1, self.convr1, self.convq1),
            (self.convz2, self.convr2, self.convq2),
        ):
            both = torch.cat([state, x], dim=1)
            z, r = torch.sigmoid(update(both)), torch.sigmoid(reset(both))
            q = torch.tanh(candidate(torch.cat([r * state, x], dim=1)))
            state = (1 - z) * state + z * q
        return state


class _FlowHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(_STATE, 256, 3, padding=1)
        self.conv2 = nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        change: Tensor = self.conv2(functional.relu(self.conv1(state)))
        return change


class _UpdateBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = _MotionEncoder()
        self.gru = _SeparableGRU()
        self.flow_head = _FlowHead()
        self.mask = nn.Sequential(nn.Conv2d(_STATE, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 64 * 9, 1))

    def forward(self, state: Tensor, context: Tensor, correlations: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        state = self.gru(state, torch.cat([context, self.encoder(flow, correlations)], dim=1))
        return state, self.flow_head(state)


class Raft(nn.Module):
    """The network. `load_state_dict` takes the names of `raft-things.pth` without their "module."."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet = _Encoder(256, _NoParameters)
        self.cnet = _Encoder(2 * _STATE, nn.BatchNorm2d)
        self.update_block = _UpdateBlock()
        self.eval()

    def forward(self, first_NCHW: Tensor, second_NCHW: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
        """The flow from the first image to the second, at an eighth of the size and at full size.

        Args:
            first_NCHW: 0 to 255, sides multiples of 8 and at least 128 (`LEAST_SIDE` before padding).
            second_NCHW: the same.
            steps: updates of the flow.
        """
        first, second = 2 * (first_NCHW / 255.0) - 1.0, 2 * (second_NCHW / 255.0) - 1.0
        maps = self.fnet(torch.cat([first, second]))
        levels = pyramid(correlation(*maps.chunk(2)))
        state, context = self.cnet(first).split(_STATE, dim=1)
        state, context = torch.tanh(state), torch.relu(context)
        start = places(state)
        flow = torch.zeros_like(start)
        for _ in range(steps):
            state, change = self.update_block(state, context, lookup(levels, start + flow, RADIUS), flow)
            flow = flow + change
        return flow, _upsampled(flow, 0.25 * self.update_block.mask(state))


def _upsampled(flow_N2HW: Tensor, weights: Tensor) -> Tensor:
    """Eight times as fine: every value a convex combination of 3 x 3 neighbours."""
    batch, _, height, width = flow_N2HW.shape
    shares = torch.softmax(weights.view(batch, 1, 9, 8, 8, height, width), dim=2)
    near = functional.unfold(8 * flow_N2HW, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    return (shares * near).sum(dim=2).permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)


_FROM_TORCHVISION: Final = (
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"^((?:f|c)net)\.convnormrelu\.0\.", r"\1.conv1."),
    (r"^((?:f|c)net)\.convnormrelu\.1\.", r"\1.norm1."),
    (r"^((?:f|c)net)\.conv\.", r"\1.conv2."),
    (r"\.convnormrelu([12])\.0\.", r".conv\1."),
    (r"\.convnormrelu([12])\.1\.", r".norm\1."),
    (r"^update_block\.motion_encoder\.conv\.0\.", "update_block.encoder.conv."),
    (r"^update_block\.motion_encoder\.convcorr([12])\.0\.", r"update_block.encoder.convc\1."),
    (r"^update_block\.motion_encoder\.convflow([12])\.0\.", r"update_block.encoder.convf\1."),
    (r"^update_block\.recurrent_block\.convgru([12])\.conv([zrq])\.", r"update_block.gru.conv\2\1."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


def own_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of either file under this network's names: `raft-things.pth`, or torchvision's `raft_large`."""
    if not any(name.startswith("feature_encoder.") for name in state_dict):
        return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for pattern, ours in _FROM_TORCHVISION:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
        if ".downsample.1." in name:
            found[name.replace(".downsample.1.", ".norm3.")] = tensor
    return found
