"""Frames as each network takes them, exactly as VBench makes them.

A frame becomes a float tensor of 0 to 255 before anything else, so resized values are neither rounded nor clamped, and
nothing but DINOv2's and DreamSim's resizing is antialiased.

Source: VBench's `dino_transform`, `clip_transform`, VBench-Long's DINOv2 and DreamSim transforms.

Legend: F frames, H height, W width, C = 3 (RGB); frames are uint8, or float of 0 to 255.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Frames: TypeAlias = npt.NDArray[np.uint8]
Preprocessing = Literal["dino", "clip", "dinov2", "dreamsim", "imaging"]
ImagingMode = Literal["longer", "shorter", "shorter_centercrop", "None"]

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIDE: Final = 224
IMAGING_SIDE: Final = 512


def as_tensor(frames_FHWC: Frames, device: torch.device | str = "cpu") -> Tensor:
    """Frames as float32 `[F, C, H, W]`, 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(frames_FHWC)).to(device).permute(0, 3, 1, 2).float()


def shorter_side_size(height: int, width: int, shorter: int = SIDE) -> tuple[int, int]:
    """Height and width once the shorter side is `shorter`; the longer one is cut to whole pixels."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def imaging_size(height: int, width: int, mode: ImagingMode = "longer") -> tuple[int, int]:
    """Height and width that image quality is judged at.

    By default nothing is enlarged: a longer side above 512 becomes 512.
    """
    side = max(height, width) if mode == "longer" else min(height, width)
    if mode == "None" or side <= IMAGING_SIDE:
        return height, width
    scale = IMAGING_SIDE / side
    return int(scale * height), int(scale * width)


def dino(frames_FCHW: Tensor) -> Tensor:
    """Shorter side 224, bilinear; ImageNet's mean and deviation."""
    size = shorter_side_size(*_size(frames_FCHW))
    return _normalised(_resized(frames_FCHW, size, "bilinear") / 255.0, IMAGENET)


def clip(frames_FCHW: Tensor) -> Tensor:
    """Shorter side 224, bicubic; the middle 224 x 224; CLIP's mean and deviation."""
    size = shorter_side_size(*_size(frames_FCHW))
    return _normalised(_middle(_resized(frames_FCHW, size, "bicubic"), SIDE) / 255.0, CLIP)


def dinov2(frames_FCHW: Tensor) -> Tensor:
    """Shorter side 256, bicubic, antialiased; the middle 224 x 224; ImageNet's mean and deviation."""
    size = shorter_side_size(*_size(frames_FCHW), 256)
    return _normalised(_middle(_resized(frames_FCHW, size, "bicubic", antialias=True), SIDE) / 255.0, IMAGENET)


def dreamsim(frames_FCHW: Tensor) -> Tensor:
    """224 x 224 whatever the sides were, bicubic, antialiased; 0 to 1 and a little beyond."""
    return _resized(frames_FCHW, (SIDE, SIDE), "bicubic", antialias=True) / 255.0


def imaging(frames_FCHW: Tensor, mode: ImagingMode = "longer") -> Tensor:
    """0 to 1, at the size that image quality is judged at, bilinear."""
    found = _resized(frames_FCHW, imaging_size(*_size(frames_FCHW), mode), "bilinear")
    if mode == "shorter_centercrop" and min(frames_FCHW.shape[-2:]) > IMAGING_SIDE:
        found = _middle(found, min(found.shape[-2:]))
    return found / 255.0


def padded(frames_FCHW: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Sides made multiples by repeating the edge, the odd pixel at the end; and (left, right, top, bottom)."""
    height, width = frames_FCHW.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return functional.pad(frames_FCHW, sides, mode="replicate"), sides


def _size(x: Tensor) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


def _resized(x: Tensor, size: tuple[int, int], mode: str, antialias: bool = False) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return functional.interpolate(x, size, mode=mode, align_corners=False, antialias=antialias)


def _middle(x: Tensor, side: int) -> Tensor:
    top, left = (round((size - side) / 2.0) for size in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def _normalised(x: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (x.new_tensor(values).view(1, -1, 1, 1) for values in statistics)
    return (x - mean) / deviation
