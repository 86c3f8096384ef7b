"""Reads the attributes of the sprite world back off frames: exact quality, no learnt judge.

What captions name is read as one of their words, everything else by value. Both come from one explanation of a frame: a
ground with its texture, perhaps a second object, and a subject, each with the colour, place and size that leave least
unexplained.

Legend: `frames_FHWC` float32 in [0, 1]; positions in pixels, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np

from miga.backbones.sprites.details import (
    COMPANION_PLACES,
    COMPANION_RADIUS,
    COMPANION_SPREAD,
    Texture,
    pattern,
)
from miga.backbones.sprites.texture_reader import read_textures
from miga.backbones.sprites.world import AMPLITUDE, COLOURS, GROUNDS, PERIOD, RADIUS, SHAPES, SIZE, Scene, coverage

_COLOURS: Final = np.asarray(list(COLOURS.values()), np.float32) / 255.0
_GROUNDS: Final = np.asarray(list(GROUNDS.values()), np.float32) / 255.0
STRONG: Final = 0.6
"""What part of the strongest difference from the ground a pixel of the subject shows."""
STRONGEST_SHARE: Final = 0.04
"""Share of pixels that the strongest difference is read off: less than a subject has, more than a second object."""
MIN_CONTRAST: Final = 0.02
MIN_TEXTURED_CONTRAST: Final = 0.2
"""Less than this from the ground is no subject where there is a texture."""
MIN_ALPHA: Final = 0.35
MIN_PIXELS: Final = 20.0
MAX_GROUND_DISTANCE: Final = 0.12
"""What is further from the ground's colour, after `TEXTURE_ROOM`, is not ground."""
TEXTURE_ROOM: Final = 0.3
"""How far a texture may go from the most common colour of the ground, in grey."""
NEAR: Final = 3.0
"""Pixels around a fitted subject that still count as its own."""
MIN_COMPANION_DIFFERENCE: Final = 0.15
MIN_COMPANION_PIXELS: Final = 15


@dataclass(frozen=True)
class SecondObject:
    """A second object as seen: its colour `[3]` and the middle of what is visible of it, and the pixels that are."""

    colour_C: np.ndarray
    x: float
    y: float
    num_pixels: int


@dataclass(frozen=True)
class Values:
    """What captions leave open, as one frame shows it.

    Attributes:
        subject_C: colour of the subject as seen, light included; NaN where there is none.
        ground_C: colour of the ground as seen, its texture taken out.
        size: of the subject, in units of `RADIUS`; NaN where there is none.
        texture: of the ground; a frame by itself has no speed.
        companion: the second object, if one is seen.
    """

    subject_C: np.ndarray
    ground_C: np.ndarray
    size: float
    texture: Texture
    companion: SecondObject | None


@dataclass(frozen=True)
class Reading:
    """What the scorer sees, one entry per frame.

    Attributes:
        colour, shape, ground: attribute names.
        xy_F2: middle of the subject; NaN where no subject is to be seen.
        residual_F: root mean square difference, in units of the [0, 1] pixel range, between a frame and the world's
            own drawing of what was read off it: 0 for a perfect frame, whatever it shows.
        values: what captions leave open.
    """

    colour: tuple[str, ...]
    shape: tuple[str, ...]
    ground: tuple[str, ...]
    xy_F2: np.ndarray
    residual_F: np.ndarray
    values: tuple[Values, ...]

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, part: slice) -> Reading:
        """The reading of some of the frames."""
        return Reading(
            self.colour[part],
            self.shape[part],
            self.ground[part],
            self.xy_F2[part],
            self.residual_F[part],
            self.values[part],
        )

    @classmethod
    def joined(cls, readings: Sequence[Reading]) -> Reading:
        """Readings of parts of a video as one."""
        return cls(
            tuple(name for reading in readings for name in reading.colour),
            tuple(name for reading in readings for name in reading.shape),
            tuple(name for reading in readings for name in reading.ground),
            np.concatenate([reading.xy_F2 for reading in readings]),
            np.concatenate([reading.residual_F for reading in readings]),
            tuple(values for reading in readings for values in reading.values),
        )


def read_frames(frames_FHWC: np.ndarray) -> Reading:
    """Reads every frame on its own (see `Reading`)."""
    frames = np.asarray(frames_FHWC, np.float32)
    first_looks = [_first_look(frame) for frame in frames]
    textures = read_textures(frames.mean(axis=3), np.stack([look.is_ground_HW for look in first_looks]))
    readings = [_read_frame(*read) for read in zip(frames, first_looks, textures, strict=True)]
    colour, shape, ground, xy, residual, values = zip(*readings, strict=True)
    return Reading(colour, shape, ground, np.stack(xy), np.asarray(residual), values)


@dataclass(frozen=True)
class _FirstLook:
    """A frame before its texture is known.

    Attributes:
        subject_C: colour of the subject; None where nothing stands out.
        is_ground_HW: pixels that show neither subject nor second object, nor an edge of them.
    """

    subject_C: np.ndarray | None
    is_ground_HW: np.ndarray


def _first_look(frame_HWC: np.ndarray) -> _FirstLook:
    # Grey apart: a texture splits it in two, and then each channel's own median may be of another half.
    grey_HW1 = frame_HWC.mean(axis=2, keepdims=True)
    median_C = np.median(frame_HWC - grey_HW1, axis=(0, 1)) + np.median(grey_HW1)
    distance_HW = _distance(frame_HWC - median_C)
    strongest = float(np.quantile(distance_HW, 1.0 - STRONGEST_SHARE))
    if strongest < MIN_CONTRAST:
        return _FirstLook(None, np.ones(distance_HW.shape, bool))
    seen_C = np.median(frame_HWC[distance_HW > STRONG * strongest], axis=0)
    limit = min(0.5 * strongest, MAX_GROUND_DISTANCE)
    return _FirstLook(seen_C, ~_grown(distance_HW > limit, 2))


def _distance(offset_HWC: np.ndarray) -> np.ndarray:
    """How far colours lie from the ground's, `[H, W]`; in grey part is forgiven, for that may be its texture."""
    grey_HW = (offset_HWC[..., 0] + offset_HWC[..., 1] + offset_HWC[..., 2]) / 3.0
    chroma_HW = np.maximum(_dot(offset_HWC, offset_HWC) - 3.0 * grey_HW**2, 0.0)
    return np.sqrt(chroma_HW + 3.0 * np.maximum(np.abs(grey_HW) - TEXTURE_ROOM, 0.0) ** 2)


def _dot(first_HWC: np.ndarray, second_HWC: np.ndarray) -> np.ndarray:
    """Sum over channels of products, `[H, W]`."""
    return np.asarray(np.einsum("hwc,hwc->hw", first_HWC, second_HWC))


def _grown(is_set_HW: np.ndarray, steps: int) -> np.ndarray:
    """With pixels added that lie up to so many rows and columns away."""
    grown = is_set_HW.copy()
    for _ in range(steps):
        rows = grown.copy()
        rows[1:] |= grown[:-1]
        rows[:-1] |= grown[1:]
        grown = rows.copy()
        grown[:, 1:] |= rows[:, :-1]
        grown[:, :-1] |= rows[:, 1:]
    return grown


@dataclass(frozen=True)
class _Fit:
    """A shape as it was fitted: its name, place and size, how much of each pixel it covers, and the second best."""

    shape: str
    xy: np.ndarray
    size: float
    cover_HW: np.ndarray
    others: tuple[str, ...] = ()


def _read_frame(
    frame_HWC: np.ndarray, look: _FirstLook, texture: Texture
) -> tuple[str, str, str, np.ndarray, float, Values]:
    texture_HW = texture.contrast * pattern(texture, 1)[0]
    flat_HWC = frame_HWC - texture_HW[..., None]
    ground_NC = flat_HWC[::2, ::2][look.is_ground_HW[::2, ::2]]
    ground_C = np.median(ground_NC if len(ground_NC) else flat_HWC.reshape(-1, 3), axis=0)
    ground = list(GROUNDS)[int(np.argmin(((_GROUNDS - ground_C) ** 2).sum(1)))]
    nobody = Values(np.full(3, np.nan), ground_C, np.nan, texture, None)
    nowhere, flat_residual = np.full(2, np.nan), float(np.sqrt(((flat_HWC - ground_C) ** 2).mean()))
    contrast = 0.0 if look.subject_C is None else float(np.linalg.norm(look.subject_C - ground_C))
    if look.subject_C is None or contrast < (MIN_TEXTURED_CONTRAST if texture.contrast else MIN_CONTRAST):
        return "none", "none", ground, nowhere, flat_residual, nobody
    colour = _name_of(look.subject_C)
    behind_HWC = ground_C + texture_HW[..., None]
    alpha_HW = _alpha(frame_HWC - behind_HWC, look.subject_C - behind_HWC)
    if np.where(alpha_HW > MIN_ALPHA, alpha_HW, 0.0).sum() < MIN_PIXELS:
        return colour, "none", ground, nowhere, flat_residual, nobody
    fit = _fit_shape(_largest(np.where(alpha_HW > MIN_ALPHA, alpha_HW, 0.0)))
    companion = _read_companion(frame_HWC, behind_HWC, fit.cover_HW)
    # Once more, with the faint edges that the first fit left out, and without what is the second object's.
    alpha_HW = np.where(_grown(fit.cover_HW > 0.0, 1), alpha_HW, 0.0)
    likely = (fit.shape, *fit.others)
    if companion is None:
        fit = _fit_shape(alpha_HW, likely)
    else:
        is_other_HW = (np.hypot(*_from(companion.x, companion.y)) < COMPANION_RADIUS + 1.0) & (fit.cover_HW < 1.0)
        for _ in range(2):  # there the fit itself stands in for what cannot be told
            fit = _fit_shape(np.where(is_other_HW, fit.cover_HW, alpha_HW), likely)
    if companion is not None:
        disc_HW1 = coverage("circle", np.array([[companion.x, companion.y]]), COMPANION_RADIUS)[0][..., None]
        behind_HWC = disc_HW1 * companion.colour_C.astype(np.float32) + (1.0 - disc_HW1) * behind_HWC
    subject_C = _colour_under(frame_HWC, fit.cover_HW, behind_HWC)
    ideal_HWC = behind_HWC + fit.cover_HW[..., None] * (subject_C.astype(np.float32) - behind_HWC)
    residual = float(np.sqrt(((frame_HWC - ideal_HWC) ** 2).mean()))
    values = Values(subject_C, ground_C, fit.size, texture, companion)
    return _name_of(subject_C), fit.shape, ground, fit.xy, residual, values


def _name_of(colour_C: np.ndarray) -> str:
    return list(COLOURS)[int(np.argmin(((_COLOURS - colour_C) ** 2).sum(1)))]


def _alpha(offset_HWC: np.ndarray, whole_HWC: np.ndarray) -> np.ndarray:
    """What part of the whole way from the ground to the subject's colour each pixel went; 0 where it went elsewhere."""
    length_HW, along_HW = _dot(whole_HWC, whole_HWC), _dot(offset_HWC, whole_HWC)
    alpha_HW = np.clip(along_HW / length_HW, 0.0, 1.0)
    aside_HW = _dot(offset_HWC, offset_HWC) - 2.0 * alpha_HW * along_HW + alpha_HW**2 * length_HW
    return np.where(aside_HW < 0.2 * length_HW, alpha_HW, 0.0)


def _fit_shape(alpha_HW: np.ndarray, shapes: Sequence[str] = SHAPES) -> _Fit:
    """The shape whose area and middle, set to what is seen, leaves least; its place, and its size in `RADIUS`."""
    pixel = np.arange(SIZE) + 0.5
    area = float(alpha_HW.sum())
    centroid = np.full(2, SIZE / 2)  # where nothing is seen
    if area > 0.0:
        centroid = np.array([(alpha_HW * pixel).sum(), (alpha_HW * pixel[:, None]).sum()]) / area
    fits = []
    for shape in shapes:
        full_area, offset = _area_and_offset(shape)
        size = float(np.sqrt(area / full_area))
        xy = centroid - size * offset
        cover_HW = coverage(shape, xy[None], size * RADIUS)[0]
        fits.append((float(((cover_HW - alpha_HW) ** 2).sum()), _Fit(shape, xy, size, cover_HW)))
    fits.sort(key=lambda fit: fit[0])
    return replace(fits[0][1], others=tuple(fit.shape for _, fit in fits[1:2]))


def _largest(alpha_HW: np.ndarray) -> np.ndarray:
    """Without what lies further from the middle of most of it than any shape reaches."""
    for _ in range(2):
        x, y = (_middle((alpha_HW > 0.0).sum(axis)) for axis in (0, 1))
        far_HW = np.hypot(*_from(x, y)) > 1.45 * RADIUS
        alpha_HW = np.where(far_HW, 0.0, alpha_HW)
    return alpha_HW


def _middle(counts_N: np.ndarray) -> float:
    """The median, in pixels, of so many pixels in each column or row."""
    sums_N = np.cumsum(counts_N)
    return float(np.searchsorted(sums_N, sums_N[-1] / 2.0)) + 0.5


def _from(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from a point, to the right and down, `[1, W]` and `[H, 1]`."""
    pixel = np.arange(SIZE) + 0.5
    return pixel[None] - x, pixel[:, None] - y


@cache
def _area_and_offset(shape: str) -> tuple[float, np.ndarray]:
    """Pixels that a shape of full size covers, and from the point it is placed by to the centroid of them."""
    alpha = coverage(shape, np.array([[SIZE / 2, SIZE / 2]]))[0]
    pixel = np.arange(SIZE) + 0.5
    area = float(alpha.sum())
    return area, np.array([(alpha * pixel).sum(), (alpha * pixel[:, None]).sum()]) / area - SIZE / 2


def _colour_under(frame_HWC: np.ndarray, cover_HW: np.ndarray, behind_HWC: np.ndarray) -> np.ndarray:
    """The colour that explains the pixels a subject covers, by least squares."""
    # frame = behind + cover * (colour - behind), so cover * (frame - behind) + cover² * behind = cover² * colour.
    cover_HW = cover_HW.astype(np.float32)
    squared_HW = cover_HW**2
    wanted_C = np.einsum("hw,hwc->c", cover_HW, frame_HWC - behind_HWC) + np.einsum("hw,hwc->c", squared_HW, behind_HWC)
    return np.asarray(wanted_C / max(float(squared_HW.sum()), 1e-6))


def _read_companion(frame_HWC: np.ndarray, behind_HWC: np.ndarray, cover_HW: np.ndarray) -> SecondObject | None:
    """What differs from the ground near a corner and is not the subject."""
    differs_HW = _distance(frame_HWC - behind_HWC) > MIN_COMPANION_DIFFERENCE
    is_open_HW = ~_grown(cover_HW > 0.0, int(NEAR) - 1)
    differs_HW &= is_open_HW
    best: SecondObject | None = None
    for corner_x, corner_y in COMPANION_PLACES:
        reach = COMPANION_RADIUS + COMPANION_SPREAD + 2.0
        near_x, near_y = _from(corner_x, corner_y)
        is_seen_HW = differs_HW & (np.abs(near_x) < reach) & (np.abs(near_y) < reach)
        num_pixels = int(is_seen_HW.sum())
        if num_pixels < max(MIN_COMPANION_PIXELS, best.num_pixels if best else 0):
            continue
        x, y = _fit_disc(is_seen_HW, is_open_HW)
        disc_HW = is_open_HW * coverage("circle", np.array([[x, y]]), COMPANION_RADIUS)[0]
        colour_C = _colour_under(frame_HWC, disc_HW, behind_HWC)
        best = SecondObject(colour_C, x, y, num_pixels)
    return best


def _fit_disc(is_seen_HW: np.ndarray, is_open_HW: np.ndarray) -> tuple[float, float]:
    """Middle of a second object of which these pixels are seen, some of it perhaps behind the subject."""
    rows, columns = np.nonzero(is_seen_HW)
    x, y = float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
    for _ in range(4):  # what the seen part of a disc is off the middle of the disc is taken back
        disc_HW = (np.hypot(*_from(x, y)) < COMPANION_RADIUS + 0.5) & is_open_HW
        if not disc_HW.any():
            break
        disc_rows, disc_columns = np.nonzero(disc_HW)
        x += float(columns.mean() - disc_columns.mean())
        y += float(rows.mean() - disc_rows.mean())
    return x, y


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
    return score_reading(read_frames(frames_FHWC), wanted)


def score_reading(reading: Reading, wanted: Scene | Sequence[Scene]) -> Score:
    """`score` of frames that have been read already."""
    scenes = [wanted] * len(reading) if isinstance(wanted, Scene) else wanted
    colour, ground, shape = (
        np.array([seen == getattr(scene, name) for seen, scene in zip(getattr(reading, name), scenes, strict=True)])
        for name in ("colour", "ground", "shape")
    )
    return Score(
        colour=float(colour.mean()),
        ground=float(ground.mean()),
        shape=float(shape.mean()),
        motion=motion_accuracy(reading, scenes),
        all_right=float((colour & ground & shape).mean()),
        residual=float(reading.residual_F.mean()),
    )
