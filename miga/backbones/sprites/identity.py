"""Identity drift in the sprite world: how far a video moves from what its first clip shows and captions leave open.

Every attribute is measured by value, frame by frame, as a distance from the first clip. Distances of colour, light and
texture are root mean squares in units of the [0, 1] pixel range, so they can be held against a residual. For one
figure in all, each is divided by what two clips of one full caption differ by on average (`SPREAD`): 0 is the same clip
going on, 1 is another clip.

Legend: F frames, C = 3 (RGB).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from miga.backbones.sprites.details import COMPANION_RADIUS, PERIODS, Texture, pattern
from miga.backbones.sprites.scorer import Reading, SecondObject, Values
from miga.backbones.sprites.world import PERIOD, RADIUS

SPREAD: Final[dict[str, float]] = {
    "subject tint": 0.065,
    "ground tint": 0.056,
    "brightness": 0.032,
    "size": 0.091,
    "texture": 0.090,
    "second object": 0.192,
}
"""Mean distance between two clips of one full caption, by attribute, from 20,000 pairs drawn by the world itself."""
ATTRIBUTES: Final = tuple(SPREAD)
CHANGED_BY: Final[dict[str, tuple[str, ...]]] = {
    "colour": ("subject tint",),
    "ground": ("ground tint",),
    "shape": ("size",),
    "motion": (),
}
"""What a prompt changes beside the attribute that it names: the video's identity is judged without that."""
ALL: Final = "identity"
PAN: Final = "pan"
NUM_MEDOID_FRAMES: Final = 9
MIN_COMPANION_SHARE: Final = 0.3
"""Share of the first clip's frames that must show a second object: it may be behind the subject in the others."""
SAME_PLACE: Final = 6.0
"""Pixels within which two second objects are one that is compared by its colour."""
MIN_PAN: Final = 0.1
"""Pixels a frame below which a camera stands still."""
PAN_LAG: Final = 4
"""Frames between two phases that a camera's speed is read off."""


@dataclass(frozen=True)
class Look:
    """What a first clip shows.

    Attributes:
        subject_C: median colour of the subject as seen; NaN if there is none.
        ground_C: of the ground.
        size: median size of the subject in `RADIUS`.
        texture: of the frame whose texture is most like the others'; where a camera pans its phase means nothing.
        velocity_2: pixels a frame that the ground moves to the right and down.
        companion: the second object, if there is one.
    """

    subject_C: np.ndarray
    ground_C: np.ndarray
    size: float
    texture: Texture
    velocity_2: np.ndarray
    companion: SecondObject | None

    @property
    def pans(self) -> bool:
        """Whether the camera moves over the ground."""
        return float(np.linalg.norm(self.velocity_2)) > MIN_PAN


def look_of(first: Reading) -> Look:
    """What these frames, the first clip of a video, show."""
    values = first.values
    seen = [value for value in values if not np.isnan(value.size)]
    velocity_2 = pan_velocity([value.texture for value in values])
    picked = np.linspace(0, len(values) - 1, min(NUM_MEDOID_FRAMES, len(values))).round().astype(int)
    return Look(
        subject_C=np.median([value.subject_C for value in seen], axis=0) if seen else np.full(3, np.nan),
        ground_C=np.median([value.ground_C for value in values], axis=0),
        size=float(np.median([value.size for value in seen])) if seen else float("nan"),
        texture=_medoid([values[i].texture for i in picked], pans=float(np.linalg.norm(velocity_2)) > MIN_PAN),
        velocity_2=velocity_2,
        companion=_usual_companion(values),
    )


def pan_velocity(textures: Sequence[Texture]) -> np.ndarray:
    """Pixels a frame that a ground moves to the right and down, `[2]`; 0 where too little of a texture is seen.

    Along stripes and gradients no movement can be seen, and none is read.
    """
    kinds = [texture.kind for texture in textures]
    kind = max(sorted(set(kinds)), key=kinds.count)
    steps = [
        _moved(before, after)
        for before, after in zip(textures[:-PAN_LAG], textures[PAN_LAG:], strict=True)
        if before.kind == after.kind == kind != "plain"
    ]
    if not steps or len(steps) * 2 < len(textures) - PAN_LAG:
        return np.zeros(2)
    return np.asarray(np.median(steps, axis=0)) / PAN_LAG


def _moved(before: Texture, after: Texture) -> np.ndarray:
    after = _turned_like(after, before)
    angle, period = (before.angle + after.angle) / 2.0, PERIODS[before.kind]
    along, across = (
        ((new - old + 0.5) % 1.0 - 0.5) * period
        for old, new in ((before.phase, after.phase), (before.across, after.across))
    )
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([along * cos - across * sin, along * sin + across * cos])


def distances(look: Look, reading: Reading, without: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Distance of every frame from a look, by attribute, `[F]` each; NaN where a frame cannot tell.

    "subject tint", "ground tint": of the colour, the change of light taken out; "brightness": change of the mean of
    both colours; "size": of its logarithm; "texture": between the two patterns, moved over each other where a camera
    pans; "second object": between the colours at the places where either has one. A subject that is lost has none.

    Args:
        look: what the first clip shows.
        reading: of later frames.
        without: attributes that prompts change; a tint that is one of them says nothing of the light either.
    """
    rows = [_distances(look, values, xy_2, without) for values, xy_2 in zip(reading.values, reading.xy_F2, strict=True)]
    return {name: np.asarray([row[name] for row in rows]) for name in ATTRIBUTES}


def identity_over_time(look: Look, reading: Reading, without: Collection[str] = ()) -> np.ndarray:
    """Distance in all `[F]` in [0, 1]: mean over attributes, each in units of `SPREAD` and at most 1.

    A subject that is lost counts as another one.

    Args:
        look: what the first clip shows.
        reading: of later frames.
        without: attributes that are not to count.
    """
    found = distances(look, reading, without)
    scaled = {name: np.minimum(found[name] / SPREAD[name], 1.0) for name in ATTRIBUTES}
    if not np.isnan(look.size):
        is_lost = np.isnan([values.size for values in reading.values])
        for name in ("subject tint", "size"):
            scaled[name] = np.where(is_lost, 1.0, scaled[name])
    return np.asarray(np.nanmean(np.stack([scaled[name] for name in ATTRIBUTES if name not in without]), axis=0))


def identity_drift(reading: Reading, num_first: int, without: Collection[str] = ()) -> dict[str, float]:
    """Mean distance from the first clip over all later frames, by attribute, `ALL` for all together, and `PAN`.

    `PAN` is the mean change of the ground's velocity, pixels a frame, over cycles of `PERIOD` frames with a texture.

    Args:
        reading: of the whole video.
        num_first: frames of the first clip; a video that is no longer has no drift (NaN).
        without: attributes that are not judged (NaN), because prompts change them.
    """
    look, later = look_of(reading[:num_first]), reading[num_first:]
    if not len(later):
        return dict.fromkeys((*ATTRIBUTES, ALL, PAN), float("nan"))
    found = {name: _mean(values) for name, values in distances(look, later, without).items()}
    found |= {ALL: _mean(identity_over_time(look, later, without)), PAN: _pan_drift(look, later)}
    return found | dict.fromkeys(without, float("nan"))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def _pan_drift(look: Look, later: Reading) -> float:
    starts = range(0, max(1, len(later) - PERIOD + 1), PERIOD // 2)
    windows = [[value.texture for value in later.values[start : start + PERIOD]] for start in starts]
    textured = [window for window in windows if np.mean([texture.kind != "plain" for texture in window]) > 0.5]
    if look.texture.kind == "plain" or not textured:
        return float("nan")
    return float(np.mean([np.linalg.norm(pan_velocity(window) - look.velocity_2) for window in textured]))


def _distances(look: Look, values: Values, xy_2: np.ndarray, without: Collection[str]) -> dict[str, float]:
    change_2C = np.stack([values.subject_C - look.subject_C, values.ground_C - look.ground_C])
    tells_light = [name not in without for name in ("subject tint", "ground tint")]
    light = float(np.nanmean(change_2C[tells_light])) if any(tells_light) else float("nan")
    subject_tint, ground_tint = np.sqrt(((change_2C - light) ** 2).mean(axis=1))
    return {
        "subject tint": float(subject_tint),
        "ground tint": float(ground_tint),
        "brightness": abs(light),
        "size": float(abs(np.log(values.size / look.size))),
        "texture": texture_distance(look.texture, values.texture, look.pans),
        "second object": _companion_distance(look, values, xy_2),
    }


def texture_distance(first: Texture, second: Texture, pans: bool = False) -> float:
    """Root mean square difference of two patterns over a frame, in the pixel range.

    Args:
        first: one.
        second: the other.
        pans: whether the first is moved to the other's phase.
    """
    if first.kind == second.kind == "plain":
        return 0.0
    if pans and first.kind == second.kind:
        turned = _turned_like(second, first)
        first = replace(first, phase=turned.phase, across=turned.across)
    difference = first.contrast * pattern(first, 1) - second.contrast * pattern(second, 1)
    return float(np.sqrt((difference**2).mean()))


def _turned_like(texture: Texture, other: Texture) -> Texture:
    """The same texture, written with the direction nearest the other's: each has two, of dots four."""
    step = np.pi / 2.0 if texture.kind == "dots" else np.pi
    while texture.angle - other.angle > step / 2.0:
        texture = _turned(texture, back=True)
    while texture.angle - other.angle < -step / 2.0:
        texture = _turned(texture, back=False)
    return texture


def _turned(texture: Texture, *, back: bool) -> Texture:
    """The same texture, its direction written a quarter (dots) or half a turn further, or less far."""
    step = np.pi / 2.0 if texture.kind == "dots" else np.pi
    angle = texture.angle + (-step if back else step)
    if texture.kind != "dots":
        return replace(texture, angle=angle, phase=-texture.phase % 1.0)
    if back:
        return replace(texture, angle=angle, phase=-texture.across % 1.0, across=texture.phase)
    return replace(texture, angle=angle, phase=texture.across, across=-texture.phase % 1.0)


def _medoid(textures: Sequence[Texture], pans: bool) -> Texture:
    sums = [sum(texture_distance(one, other, pans) for other in textures) for one in textures]
    return textures[int(np.argmin(sums))]


def _usual_companion(values: Sequence[Values]) -> SecondObject | None:
    seen = [value.companion for value in values if value.companion is not None]
    if len(seen) < MIN_COMPANION_SHARE * len(values):
        return None
    return SecondObject(
        colour_C=np.median([one.colour_C for one in seen], axis=0),
        x=float(np.median([one.x for one in seen])),
        y=float(np.median([one.y for one in seen])),
        num_pixels=int(np.median([one.num_pixels for one in seen])),
    )


def _companion_distance(look: Look, values: Values, xy_2: np.ndarray) -> float:
    first, seen = look.companion, values.companion
    if first is None and seen is None:
        return 0.0
    gone = _apart(first.colour_C, values.ground_C) if first else 0.0
    come = _apart(seen.colour_C, values.ground_C) if seen else 0.0
    if first is not None and seen is not None and np.hypot(first.x - seen.x, first.y - seen.y) < SAME_PLACE:
        return _apart(first.colour_C, seen.colour_C)
    if first is not None and seen is None:
        reach = COMPANION_RADIUS + 1.2 * RADIUS * values.size
        if np.isnan(values.size) or np.hypot(xy_2[0] - first.x, xy_2[1] - first.y) < reach:
            return float("nan")  # it may be behind the subject
    return max(gone, come)


def _apart(first_C: np.ndarray, second_C: np.ndarray) -> float:
    return float(np.sqrt(((first_C - second_C) ** 2).mean()))
