"""Reads a ground's texture off frames: its kind, direction, phase and contrast, by least squares.

Every direction's sine of a texture's period is fitted to the pixels of the ground; the exact pattern of the best of
each kind is held against the frame, and the one that leaves least is what is read.

Legend: F frames, N pixels of every second row and column, A directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np

from miga.backbones.sprites.details import PERIODS, Texture, axes, pattern

NUM_ANGLES: Final = 90
STRIDE: Final = 2
MIN_CONTRAST: Final = 0.02
"""A weaker texture is read as a plain ground."""
MIN_GAIN: Final = 0.25
"""Least share of the ground's variance that a texture explains."""
MIN_SINE_GAIN: Final = 0.12
"""The same of its fundamental sine alone, on the pixels that are fitted: less is not looked at closer."""
MIN_PIXELS: Final = 100


@dataclass(frozen=True)
class _Waves:
    """Cosines and sines of one period in every direction, `[N, A]` each, and their products."""

    cos_NA: np.ndarray
    sin_NA: np.ndarray
    coscos_NA: np.ndarray
    sinsin_NA: np.ndarray
    cossin_NA: np.ndarray


@cache
def _waves(period: float) -> _Waves:
    along = [axes(np.pi * number / NUM_ANGLES)[0][0, ::STRIDE, ::STRIDE].ravel() for number in range(NUM_ANGLES)]
    turns_NA = 2.0 * np.pi * np.stack(along, axis=1) / period
    cos, sin = np.cos(turns_NA).astype(np.float32), np.sin(turns_NA).astype(np.float32)
    return _Waves(cos, sin, cos * cos, sin * sin, cos * sin)


def read_textures(light_FHW: np.ndarray, is_ground_FHW: np.ndarray) -> list[Texture]:
    """The texture of each frame.

    Args:
        light_FHW: mean of the channels.
        is_ground_FHW: whether a pixel shows the ground and nothing else.

    Returns:
        Textures of speed 0; "plain" where none is to be seen.
    """
    mask_FN = is_ground_FHW[:, ::STRIDE, ::STRIDE].reshape(len(light_FHW), -1).astype(np.float32)
    light_FN = light_FHW[:, ::STRIDE, ::STRIDE].reshape(len(light_FHW), -1).astype(np.float32)
    mean_F1 = (mask_FN * light_FN).sum(1, keepdims=True) / np.maximum(mask_FN.sum(1, keepdims=True), 1.0)
    centred_FN = mask_FN * (light_FN - mean_F1)
    least_F = MIN_SINE_GAIN * (centred_FN**2).sum(1)
    short_FA3 = _fit(mask_FN, centred_FN, PERIODS["stripes"])
    long_FA3 = _fit(mask_FN, centred_FN, PERIODS["gradient"])
    return [
        _best(light_HW, is_ground_HW, [found for found, gain in _candidates(short_A3, long_A3) if gain > least])
        for light_HW, is_ground_HW, short_A3, long_A3, least in zip(
            light_FHW, is_ground_FHW, short_FA3, long_FA3, least_F, strict=True
        )
    ]


def _fit(mask_FN: np.ndarray, centred_FN: np.ndarray, period: float) -> np.ndarray:
    """For each direction: what a sine explains of the squares beside a constant, and its two factors, `[F, A, 3]`."""
    waves = _waves(period)
    count_F1 = np.maximum(mask_FN.sum(1, keepdims=True), 1.0)
    cos, sin = mask_FN @ waves.cos_NA, mask_FN @ waves.sin_NA
    cc = mask_FN @ waves.coscos_NA - cos * cos / count_F1
    ss = mask_FN @ waves.sinsin_NA - sin * sin / count_F1
    cs = mask_FN @ waves.cossin_NA - cos * sin / count_F1
    yc, ys = centred_FN @ waves.cos_NA, centred_FN @ waves.sin_NA
    determinant = np.maximum(cc * ss - cs * cs, 1e-3 * count_F1)
    a, b = (ss * yc - cs * ys) / determinant, (cc * ys - cs * yc) / determinant
    return np.stack([a * yc + b * ys, a, b], axis=2)


def _best(light_HW: np.ndarray, is_ground_HW: np.ndarray, candidates: Sequence[Texture]) -> Texture:
    """The candidate whose exact pattern leaves least, with its contrast; a plain ground if none explains enough."""
    if not candidates or is_ground_HW.sum() < MIN_PIXELS:
        return Texture()
    light_N = light_HW[is_ground_HW]
    least = float(((light_N - light_N.mean()) ** 2).sum()) * (1.0 - MIN_GAIN)
    best = Texture()
    for candidate in candidates:
        pattern_N = pattern(candidate, 1)[0][is_ground_HW]
        pattern_N = pattern_N - pattern_N.mean()
        contrast = float(pattern_N @ light_N) / max(float(pattern_N @ pattern_N), 1e-6)
        left = float(((light_N - light_N.mean() - contrast * pattern_N) ** 2).sum())
        if contrast > MIN_CONTRAST and left < least:
            least, best = left, replace(candidate, contrast=contrast)
    return best


def _candidates(short_A3: np.ndarray, long_A3: np.ndarray) -> list[tuple[Texture, float]]:
    """The best texture of each kind, without a contrast, and what its sines explain."""
    return [_sine("stripes", short_A3), _sine("gradient", long_A3), _dots(short_A3)]


def _sine(kind: str, fit_A3: np.ndarray) -> tuple[Texture, float]:
    index, part = _peak(fit_A3[:, 0])
    return Texture(kind, (index + part) * np.pi / NUM_ANGLES, _phase(fit_A3[index])), float(fit_A3[index, 0])


def _dots(fit_A3: np.ndarray) -> tuple[Texture, float]:
    half = NUM_ANGLES // 2
    both_A = fit_A3[:half, 0] + fit_A3[half:, 0]
    index, part = _peak(both_A)
    angle = (index + part) * np.pi / NUM_ANGLES
    return Texture("dots", angle, _phase(fit_A3[index]), _phase(fit_A3[index + half])), float(both_A[index])


def _phase(fit_3: np.ndarray) -> float:
    return float(np.arctan2(fit_3[2], fit_3[1]) / (2.0 * np.pi) % 1.0)


def _peak(values_A: np.ndarray) -> tuple[int, float]:
    """Where the values are greatest, and how far beside it the parabola through three of them has its top."""
    index = int(np.argmax(values_A))
    before, here, after = values_A[index - 1], values_A[index], values_A[(index + 1) % len(values_A)]
    bend = 2.0 * here - before - after
    return index, float(np.clip((after - before) / (2.0 * bend), -0.5, 0.5)) if bend > 0.0 else 0.0
