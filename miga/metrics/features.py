"""Features of a frame that need no network, and how alike they stay: subject and background consistency.

Source: VBench (arXiv 2311.17982), "subject consistency" and "background consistency"; MIGA's S.C. and B.C. The formula
is VBench's. Its features are DINO's for the subject and CLIP's for the background; those, or any other image model,
come from `miga.backbones.image_model`. Here are two that need none:

- `FrameFeatures`, for any video, looks at whole frames, as VBench does: at the layout of edges for the subject, at the
  layout of colours for the background.
- `SpriteFeatures`, for one subject on a plain ground (the sprite world), tells the two apart: the subject's colours
  around its own middle, wherever that is, and the colours of all that is not subject.

They are coarser than a network's: scores of different features are not comparable.

Legend: F frames, H height, W width, C = 3 (RGB), D entries of a feature, N pixels; frames are uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from miga.backbones.sprites.world import RADIUS
from miga.metrics.pixels import reduce_frame

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

COLOUR_NODES: Final = 5
"""Nodes of the colour grid in each of R, G, B: colours further apart than 64 of 255 have nothing in common."""
EDGE_CELLS: Final = 8
EDGE_ANGLES: Final = 8
EDGE_FLOOR: Final = 0.02
"""Weight of a pixel without an edge, as a slope in [0, 1] units a pixel: noise on a flat frame counts for little."""
LAYOUT_NODES: Final = 4
SUBJECT_NODES: Final = 7
SUBJECT_HALF: Final = RADIUS + 4.0
"""Pixels from the subject's middle to the edge of what is looked at."""
MIN_CONTRAST: Final = 0.02
MIN_ALPHA: Final = 0.35
MIN_PIXELS: Final = 20.0


class FeatureExtractor(Protocol):
    """What consistency is judged by."""

    @property
    def name(self) -> str:
        """Which features these are, weights included: scores under equal names are comparable."""
        ...

    def __call__(self, frames_FHWC: Frames) -> tuple[Floats, Floats]:
        """Features of frames, for the subject and for the background: two arrays `[F, D]`."""
        ...


class SimilarityMeter:
    """Mean over frames (but the first) of the mean of the cosines to the first frame and to the one before.

    Cosines below 0 count as 0. Source: VBench, "subject consistency", "background consistency"; MIGA's S.C., B.C.
    """

    def __init__(self) -> None:
        self._first_D: Floats | None = None
        self._before_D: Floats | None = None
        self._sum = 0.0
        self._count = 0

    def add(self, feature_D: Floats) -> None:
        """Takes the next frame's feature."""
        direction_D = feature_D / max(float(np.linalg.norm(feature_D)), 1e-12)
        if self._first_D is None or self._before_D is None:
            self._first_D = direction_D
        else:
            self._sum += (_cosine(self._first_D, direction_D) + _cosine(self._before_D, direction_D)) / 2
            self._count += 1
        self._before_D = direction_D

    @property
    def score(self) -> float:
        """In [0, 1]; NaN for fewer than two frames."""
        return self._sum / self._count if self._count else float("nan")


class FrameFeatures:
    """Whole frames: histograms of edge directions in 8 x 8 cells, and of colours over 4 x 4 places."""

    name = "frames"

    def __call__(self, frames_FHWC: Frames) -> tuple[Floats, Floats]:
        """See `FeatureExtractor`."""
        small = [reduce_frame(frame) / np.float32(255.0) for frame in frames_FHWC]
        return np.stack([_edge_layout(frame) for frame in small]), np.stack([_colour_layout(frame) for frame in small])


class SpriteFeatures:
    """One subject on a plain ground: its colours placed around its middle, and the colours of the ground."""

    name = "sprites"

    def __call__(self, frames_FHWC: Frames) -> tuple[Floats, Floats]:
        """See `FeatureExtractor`; a frame without a subject is like no frame with one."""
        pairs = [_subject_and_ground(frame / np.float32(255.0)) for frame in frames_FHWC]
        return np.stack([subject for subject, _ in pairs]), np.stack([ground for _, ground in pairs])


def soft_histogram(values_ND: Floats, sizes: Sequence[int], weights_N: Floats | None = None) -> Floats:
    """How much weight falls to each node of a grid, a value between nodes shared among its neighbours, linearly.

    Args:
        values_ND: in units of nodes, 0 to `sizes[d] - 1` along dimension d.
        sizes: nodes along each dimension.
        weights_N: of each value; 1 by default.

    Returns:
        The grid, flattened.
    """
    low_ND = np.clip(np.floor(values_ND), 0, np.asarray(sizes) - 2).astype(np.int64)
    part_ND = np.clip(values_ND - low_ND, 0.0, 1.0)
    index_N = np.zeros((1, len(values_ND)), np.int64)
    share_N = np.ones((1, len(values_ND)), np.float32) if weights_N is None else weights_N[None].astype(np.float32)
    for dimension, size in enumerate(sizes):
        low_N, part_N = low_ND[:, dimension], part_ND[:, dimension]
        index_N = np.concatenate([index_N * size + low_N, index_N * size + low_N + 1])
        share_N = np.concatenate([share_N * (1 - part_N), share_N * part_N])
    counts = np.bincount(index_N.ravel(), share_N.ravel(), minlength=int(np.prod(sizes)))
    return counts.astype(np.float32)


def _cosine(one_D: Floats, other_D: Floats) -> float:
    return max(0.0, float(one_D @ other_D))


def _edge_layout(frame_HWC: Floats) -> Floats:
    """Slopes of brightness by direction (opposite ones count as one), cell by cell, and a floor for flat cells."""
    grey_HW = frame_HWC.mean(axis=2)
    slope_y, slope_x = np.gradient(grey_HW)
    height, width = grey_HW.shape
    cells = [np.minimum(np.arange(size) * EDGE_CELLS // size, EDGE_CELLS - 1) for size in (height, width)]
    cell_HW = cells[0][:, None] * EDGE_CELLS + cells[1][None, :]
    angle_HW = (np.arctan2(slope_y, slope_x) / np.pi % 1.0) * EDGE_ANGLES
    size_HW = np.hypot(slope_x, slope_y)
    grid = np.zeros((EDGE_CELLS**2, EDGE_ANGLES + 1), np.float32)
    low_HW = angle_HW.astype(np.int64)
    part_HW = angle_HW - low_HW
    np.add.at(grid, (cell_HW, low_HW % EDGE_ANGLES), size_HW * (1 - part_HW))
    np.add.at(grid, (cell_HW, (low_HW + 1) % EDGE_ANGLES), size_HW * part_HW)
    np.add.at(grid, (cell_HW, np.full_like(cell_HW, EDGE_ANGLES)), np.float32(EDGE_FLOOR))
    return grid.ravel()


def _colour_layout(frame_HWC: Floats) -> Floats:
    height, width, _ = frame_HWC.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    place = [(y + 0.5) / height * (LAYOUT_NODES - 1), (x + 0.5) / width * (LAYOUT_NODES - 1)]
    colour = frame_HWC * np.float32(COLOUR_NODES - 1)
    values = np.stack([*(axis.ravel() for axis in place), *(colour[..., c].ravel() for c in range(3))], axis=1)
    return soft_histogram(values, [LAYOUT_NODES] * 2 + [COLOUR_NODES] * 3)


def _subject_and_ground(frame_HWC: Floats) -> tuple[Floats, Floats]:
    """The two features of a frame; the subject's last entry stands for "no subject"."""
    ground_C = np.median(frame_HWC, axis=(0, 1))
    alpha_HW = _subject_alpha(frame_HWC, ground_C)
    behind = soft_histogram(frame_HWC[alpha_HW == 0] * np.float32(COLOUR_NODES - 1), [COLOUR_NODES] * 3)
    subject = np.zeros(SUBJECT_NODES**2 * COLOUR_NODES**3 + 1, np.float32)
    if not alpha_HW.any():
        subject[-1] = 1.0
        return subject, behind
    y, x = np.nonzero(alpha_HW)
    alpha_N = alpha_HW[y, x]
    pure_NC = np.clip(ground_C + (frame_HWC[y, x] - ground_C) / alpha_N[:, None], 0.0, 1.0)  # without the ground
    place_N2 = np.stack([y - (alpha_N @ y) / alpha_N.sum(), x - (alpha_N @ x) / alpha_N.sum()], axis=1)
    near_N = (np.abs(place_N2) < SUBJECT_HALF).all(axis=1)
    node_N2 = (place_N2 / SUBJECT_HALF + 1) / 2 * (SUBJECT_NODES - 1)
    values_N5 = np.concatenate([node_N2, pure_NC * (COLOUR_NODES - 1)], axis=1).astype(np.float32)
    subject[:-1] = soft_histogram(
        values_N5[near_N], [SUBJECT_NODES] * 2 + [COLOUR_NODES] * 3, alpha_N[near_N].astype(np.float32)
    )
    return subject, behind


def _subject_alpha(frame_HWC: Floats, ground_C: Floats) -> Floats:
    """How much of each pixel the subject covers `[H, W]`, 0 wherever it is less than `MIN_ALPHA`, or there is none.

    The subject is what differs most from the ground: its colour is the median there, and how far a pixel went from the
    ground towards that colour is what the subject covers of it (as `miga.backbones.sprites.scorer` has it).
    """
    offset_HWC = frame_HWC - ground_C
    distance_HW = np.sqrt((offset_HWC**2).sum(axis=2))
    if distance_HW.max() < MIN_CONTRAST:
        return np.zeros_like(distance_HW)
    seen_C = np.median(frame_HWC[distance_HW > 0.6 * np.quantile(distance_HW, 0.99)], axis=0) - ground_C
    alpha_HW = np.clip((offset_HWC @ seen_C) / max(float(seen_C @ seen_C), 1e-12), 0.0, 1.0)
    alpha_HW = np.where(alpha_HW > MIN_ALPHA, alpha_HW, 0.0).astype(np.float32)
    return alpha_HW if alpha_HW.sum() >= MIN_PIXELS else np.zeros_like(alpha_HW)
