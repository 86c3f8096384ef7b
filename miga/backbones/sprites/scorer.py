"""Reads the attributes of the sprite world back off frames: exact quality, no learnt judge.

Legend: `frames_FHWC` float32 in [0, 1]; positions in pixels, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miga.backbones.sprites.world import AMPLITUDE, COLOURS, GROUNDS, PERIOD, SHAPES, Scene, coverage, draw

_COLOURS = np.asarray(list(COLOURS.values()), np.float32) / 255.0
_GROUNDS = np.asarray(list(GROUNDS.values()), np.float32) / 255.0


@dataclass(frozen=True)
class Reading:
    """What the scorer sees, one entry per frame.

    Attributes:
        colour, shape, ground: attribute names.
        xy_F2: middle of the subject; NaN where no subject is to be seen.
        residual_F: root mean square difference, in units of the [0, 1] pixel range, between a frame and the world's
            own drawing of what was read off it: 0 for a perfect frame, whatever it shows.
    """

    colour: tuple[str, ...]
    shape: tuple[str, ...]
    ground: tuple[str, ...]
    xy_F2: np.ndarray
    residual_F: np.ndarray

    def __len__(self) -> int:
        return len(self.colour)


def read_frames(frames_FHWC: np.ndarray) -> Reading:
    """Reads every frame on its own (see `Reading`)."""
    readings = [_read_frame(np.asarray(frame, np.float32)) for frame in frames_FHWC]
    colour, shape, ground, xy, residual = zip(*readings, strict=True)
    return Reading(colour, shape, ground, np.stack(xy), np.asarray(residual))


def _read_frame(frame_HWC: np.ndarray) -> tuple[str, str, str, np.ndarray, float]:
    ground_index = int(np.argmin(((_GROUNDS - np.median(frame_HWC, axis=(0, 1))) ** 2).sum(1)))
    ground = list(GROUNDS)[ground_index]
    offset = frame_HWC - np.median(frame_HWC, axis=(0, 1))
    # The colour whose direction away from the ground explains the frame best; alpha is how far each pixel went.
    distance = np.sqrt((offset**2).sum(-1))
    if distance.max() < 0.02:
        return "none", "none", ground, np.full(2, np.nan), float(np.sqrt((offset**2).mean()))
    strong = distance > 0.6 * np.quantile(distance, 0.99)
    seen = np.median(frame_HWC[strong], axis=0)
    colour_index = int(np.argmin(((_COLOURS - seen) ** 2).sum(1)))
    colour = list(COLOURS)[colour_index]
    direction = _COLOURS[colour_index] - _GROUNDS[ground_index]
    alpha = np.clip((offset @ direction) / (direction @ direction), 0.0, 1.0)
    alpha = np.where(alpha > 0.35, alpha, 0.0)
    if alpha.sum() < 20.0:
        return colour, "none", ground, np.full(2, np.nan), float(np.sqrt((offset**2).mean()))
    pixel = np.arange(frame_HWC.shape[0]) + 0.5
    centroid = np.array([(alpha * pixel).sum(), (alpha * pixel[:, None]).sum()]) / alpha.sum()
    shape, xy = min(
        ((shape, centroid - _centroid_offset(shape)) for shape in SHAPES),
        key=lambda candidate: float(((coverage(candidate[0], candidate[1][None])[0] - alpha) ** 2).sum()),
    )
    ideal = draw(colour, shape, ground, xy[None])[0]
    return colour, shape, ground, xy, float(np.sqrt(((frame_HWC - ideal) ** 2).mean()))


def _centroid_offset(shape: str) -> np.ndarray:
    """From the point a shape is placed by to the centroid of its area, in pixels."""
    if shape not in _OFFSETS:
        middle = np.array([[32.0, 32.0]])
        alpha = coverage(shape, middle)[0]
        pixel = np.arange(alpha.shape[0]) + 0.5
        _OFFSETS[shape] = np.array([(alpha * pixel).sum(), (alpha * pixel[:, None]).sum()]) / alpha.sum() - middle[0]
    return _OFFSETS[shape]


_OFFSETS: dict[str, np.ndarray] = {}


def read_motion(xy_F2: np.ndarray) -> str:
    """The motion that a track of positions shows; "none" where the subject was lost in a quarter of it or more."""
    seen = ~np.isnan(xy_F2).any(axis=1)
    if seen.sum() < 4 or seen.mean() <= 0.75:
        return "none"
    steps = np.arange(len(xy_F2))
    x, y = (np.interp(steps, steps[seen], xy_F2[seen, axis]) for axis in (0, 1))
    x, y = x - x.mean(), y - y.mean()
    moves_x, moves_y = x.std() > 0.25 * AMPLITUDE, y.std() > 0.25 * AMPLITUDE
    if not moves_x or not moves_y:
        return {(False, False): "still", (True, False): "horizontal", (False, True): "vertical"}[
            bool(moves_x), bool(moves_y)
        ]
    if abs(np.corrcoef(x, y)[0, 1]) > 0.8:
        return "diagonal"
    turned = (x[:-1] * np.diff(y) - y[:-1] * np.diff(x)).sum()  # twice the area swept; y points down
    return "clockwise" if turned > 0 else "counterclockwise"


def motion_accuracy(reading: Reading, wanted: Sequence[Scene]) -> float:
    """Share of whole cycles (`PERIOD` frames, half overlapping, under one wanted motion) that show it."""
    starts = range(0, max(1, len(reading) - PERIOD + 1), PERIOD // 2)
    cycles = [slice(start, start + PERIOD) for start in starts]
    cycles = [cycle for cycle in cycles if len({scene.motion for scene in wanted[cycle]}) == 1]
    right = [read_motion(reading.xy_F2[cycle]) == wanted[cycle][0].motion for cycle in cycles]
    return float(np.mean(right)) if right else float("nan")


@dataclass(frozen=True)
class Score:
    """Shares in [0, 1] of frames (`motion`: of cycles) that show what was wanted, and the mean residual."""

    colour: float
    ground: float
    shape: float
    motion: float
    all_right: float
    residual: float


def score(frames_FHWC: np.ndarray, wanted: Scene | Sequence[Scene]) -> Score:
    """Scores a video against the scene that its prompt describes.

    Args:
        frames_FHWC: the video.
        wanted: one scene, or one per frame where prompts change in turn.
    """
    reading = read_frames(frames_FHWC)
    scenes = [wanted] * len(reading) if isinstance(wanted, Scene) else list(wanted)
    colour = np.array([seen == scene.colour for seen, scene in zip(reading.colour, scenes, strict=True)])
    ground = np.array([seen == scene.ground for seen, scene in zip(reading.ground, scenes, strict=True)])
    shape = np.array([seen == scene.shape for seen, scene in zip(reading.shape, scenes, strict=True)])
    return Score(
        colour=float(colour.mean()),
        ground=float(ground.mean()),
        shape=float(shape.mean()),
        motion=motion_accuracy(reading, scenes),
        all_right=float((colour & ground & shape).mean()),
        residual=float(reading.residual_F.mean()),
    )
