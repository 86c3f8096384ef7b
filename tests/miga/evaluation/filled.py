"""Weights, features and textures by a rule: the same numbers that other programs' figures were recorded with.

`unit(key, n)`: n numbers in [-1, 1), by splitmix64 from the crc32 of the key.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch

GAINS = {"raft": 1.0, "amt": 0.6, "musiq": 1.0, "dino": 1.5}


def unit(key: str, count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = np.uint64(zlib.crc32(key.encode())) * np.uint64(2**32) + np.arange(count, dtype=np.uint64)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53 * 2 - 1


def filled(shapes: Iterable[tuple[str, tuple[int, ...], torch.dtype]], gain: float) -> dict[str, torch.Tensor]:
    return {name: _tensor(name, tuple(shape), dtype, gain) for name, shape, dtype in shapes}


def filled_like(state_dict: Mapping[str, torch.Tensor], gain: float) -> dict[str, torch.Tensor]:
    """Weights for a network's own names; RAFT's shortcut norm has two names and one value."""
    values = filled(((name, tensor.shape, tensor.dtype) for name, tensor in state_dict.items()), gain)
    for name in values:
        if ".downsample.1." in name:
            values[name] = values[name.replace(".downsample.1.", ".norm3.")]
    return values


def _tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, gain: float) -> torch.Tensor:
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    count = int(np.prod(shape))
    x = unit(name, count)
    if name.endswith("running_var"):
        x = 1 + 0.5 * np.abs(x)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) >= 2:
        x = x * gain * np.sqrt(3 * shape[0] / count)
    elif name.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(x.reshape(shape)).float()


def texture(frames: int, height: int, width: int, name: str, vx: float = 1.5, vy: float = 0.5) -> np.ndarray:
    """Moving waves, uint8 `[F, H, W, 3]`."""
    p = unit(f"texture/{name}", 72).reshape(3, 6, 4)
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float64)
    video = np.zeros((frames, height, width, 3))
    for channel in range(3):
        for fx, fy, phase, amplitude in p[channel]:
            angle = 2 * np.pi * (0.09 * fx * (x - vx * t) + 0.09 * fy * (y - vy * t)) + np.pi * phase
            video[..., channel] += amplitude * np.sin(angle)
    return np.clip(np.floor(127.5 + 55 * video + 0.5), 0, 255).astype(np.uint8)
