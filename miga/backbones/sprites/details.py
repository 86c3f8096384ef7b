"""What captions of the sprite world leave open, or name only sometimes: tints, size, light, texture, a second object.

All of it is constant over a clip, so a long video that is consistent keeps it too. Everything is drawn from closed form
and read back by value (`identity.py`).

Legend: `frames_FHWC` are F frames of H x W pixels, C = 3 (RGB), float32 in [0, 1]; lengths in pixels, y down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from miga.backbones.sprites.world import (
    COLOURS,
    GROUNDS,
    RADIUS,
    SIZE,
    Placement,
    Scene,
    coverage,
    positions,
)

TINT: Final = 0.1
"""How far a colour may lie from the palette's, per channel."""
SIZES: Final = (0.8, 1.05)
"""Least and greatest size of a subject, in units of `RADIUS`."""
LIGHTS: Final = (0.85, 1.0)
"""Darkest and brightest light: what all colours of a clip are multiplied by."""
TEXTURES: Final[dict[str, str]] = {"stripes": "striped", "dots": "dotted", "gradient": "shaded"}
"""Textures of a ground beside a plain one, and the word for each."""
PERIODS: Final[dict[str, float]] = {"stripes": 16.0, "dots": 16.0, "gradient": 96.0}
"""Pixels after which a texture repeats itself along its direction."""
CONTRASTS: Final = (0.08, 0.15)
"""How far a texture goes from the ground's colour to either side, in all channels alike."""
SPEEDS: Final = (0.25, 0.75)
"""Pixels a frame that a camera pans along the texture's direction, either way."""
DOT_RADIUS: Final = 5.0
"""Of a dotted ground's dots."""
DOTS_MEAN: Final = 2.0 * np.pi * (DOT_RADIUS**2 + 1.0 / 3.0) / PERIODS["dots"] ** 2 - 1.0
"""What is taken off a dotted pattern of -1 between dots and 1 on them, so that its mean is 0."""
COMPANION_RADIUS: Final = 5.0
COMPANION_PLACES: Final = ((9.0, 9.0), (55.0, 9.0), (9.0, 55.0), (55.0, 55.0))
"""Around which corners a second object lies."""
COMPANION_SPREAD: Final = 2.0
"""How far from them, at most, in x and y."""
PLAIN_SHARE: Final = 0.3
PAN_SHARE: Final = 0.5
"""Share of the textured scenes that a camera pans over."""
COMPANION_SHARE: Final = 0.3
MIN_MARGIN: Final = 0.03
"""How much nearer a tinted, lit colour is to the palette's colour of its name than to any other."""
MIN_HUE_DISTANCE: Final = 0.25
"""Least distance, grey taken out, between the colours of two things that lie on each other: textures differ in grey."""


@dataclass(frozen=True)
class Texture:
    """A ground's pattern.

    Attributes:
        kind: "plain" or one of `TEXTURES`.
        angle: direction along which it changes, radians from the x axis towards y: in [0, pi), of dots in [0, pi / 2).
        phase: turns, in [0, 1), at the frame's middle in the first frame, along the direction; a stripe's or a dot's
            middle is at 0.
        across: the same at right angles to it, of dots alone.
        contrast: how far it goes to either side of the ground's colour (dots: half of the step at their edges).
        speed: pixels a frame that the pattern moves along its direction, because the camera pans the other way.
    """

    kind: str = "plain"
    angle: float = 0.0
    phase: float = 0.0
    across: float = 0.0
    contrast: float = 0.0
    speed: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Texture:
        """A texture, or none; its contrast is drawn with the ground's colour, which leaves it more or less room."""
        if rng.random() < PLAIN_SHARE:
            return cls()
        kind = list(TEXTURES)[int(rng.integers(len(TEXTURES)))]
        return cls(
            kind=kind,
            angle=float(rng.uniform(0.0, np.pi / (2.0 if kind == "dots" else 1.0))),
            phase=float(rng.random()),
            across=float(rng.random()) if kind == "dots" else 0.0,
            speed=float(rng.uniform(*SPEEDS) * rng.choice([-1.0, 1.0])) if rng.random() < PAN_SHARE else 0.0,
        )


@dataclass(frozen=True)
class Companion:
    """A second, smaller object: a dot of one of `COLOURS` that stays where it is, behind the subject."""

    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Details:
    """What a clip shows beside its scene and its placement.

    Attributes:
        subject_tint: what is added to the palette's colour, per channel.
        ground_tint: the same of the ground.
        size: of the subject, in units of `RADIUS`.
        light: what all colours are multiplied by.
        texture: of the ground.
        companion: the second object, if there is one.
    """

    subject_tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ground_tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    size: float = 1.0
    light: float = 1.0
    texture: Texture = Texture()
    companion: Companion | None = None

    @classmethod
    def random(cls, scene: Scene, rng: np.random.Generator) -> Details:
        """Details with which every colour of the scene still reads as its name, and is seen on what it lies on."""
        texture = Texture.random(rng)
        companion = _random_companion(scene, rng) if rng.random() < COMPANION_SHARE else None
        while True:
            subject_tint, ground_tint = rng.uniform(-TINT, TINT, size=(2, 3))
            details = cls(
                subject_tint=_triple(subject_tint),
                ground_tint=_triple(ground_tint),
                size=float(rng.uniform(*SIZES)),
                light=float(rng.uniform(*LIGHTS)),
                texture=replace(texture, contrast=rng.uniform(*CONTRASTS) if texture.kind != "plain" else 0.0),
                companion=companion,
            )
            if details.reads_as(scene):
                return details

    def subject_colour(self, scene: Scene) -> np.ndarray:
        """As seen, tint and light included, `[3]`."""
        return self.light * (_palette(COLOURS[scene.colour]) + np.asarray(self.subject_tint, np.float32))

    def ground_colour(self, scene: Scene) -> np.ndarray:
        """As seen, tint and light included, the texture taken out, `[3]`."""
        return self.light * (_palette(GROUNDS[scene.ground]) + np.asarray(self.ground_tint, np.float32))

    def companion_colour(self) -> np.ndarray:
        """As seen, light included, `[3]`; black where there is no second object."""
        return self.light * _palette(COLOURS[self.companion.colour] if self.companion else (0, 0, 0))

    def reads_as(self, scene: Scene) -> bool:
        """Whether colours stay in the pixels' range, near their names, and apart from each other."""
        subject, ground, room = self.subject_colour(scene), self.ground_colour(scene), 1.4 * self.texture.contrast
        inside = subject.min() >= 0 and subject.max() <= 1 and ground.min() >= room and ground.max() <= 1 - room
        named = _margin(subject, scene.colour, COLOURS) and _margin(ground, scene.ground, GROUNDS)
        apart = _hue_distance(subject, ground) >= MIN_HUE_DISTANCE
        if self.companion is not None:
            other = self.companion_colour()
            apart = apart and min(_hue_distance(other, subject), _hue_distance(other, ground)) >= MIN_HUE_DISTANCE
        return bool(inside and named and apart)


PLAIN: Final = Details()
"""No details: palette colours, full size and light, a plain ground, one object."""


def pattern(texture: Texture, num_frames: int) -> np.ndarray:
    """The texture by itself, `[F, H, W]`: what its contrast is multiplied by."""
    if texture.kind == "plain":
        return np.zeros((num_frames, SIZE, SIZE), np.float32)
    period = PERIODS[texture.kind]
    along, across = axes(texture.angle)
    shift = texture.phase + texture.speed * np.arange(num_frames, dtype=np.float32)[:, None, None] / period
    return wave(texture.kind, along / period - shift, across / period - texture.across)


def wave(kind: str, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """A texture's value by turns along and across its direction: mean 0, edges two or three pixels soft."""
    if kind == "stripes":
        return np.clip(2.0 * np.cos(2.0 * np.pi * along), -1.0, 1.0).astype(np.float32)
    if kind == "gradient":
        return np.cos(2.0 * np.pi * along).astype(np.float32)
    nearest = np.hypot(along - np.rint(along), across - np.rint(across)) * PERIODS["dots"]
    return np.clip(DOT_RADIUS - nearest, -1.0, 1.0).astype(np.float32) - np.float32(DOTS_MEAN)


def axes(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from the frame's middle along a direction and across it, each `[1, H, W]`."""
    pixel = (np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2)[None]
    x, y = pixel[:, None, :], pixel[:, :, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def render_detailed(scene: Scene, placement: Placement, details: Details, num_frames: int) -> np.ndarray:
    """A clip of the world with its details: frames `[F, H, W, 3]`, float32 in [0, 1]."""
    behind = details.ground_colour(scene) + details.texture.contrast * pattern(details.texture, num_frames)[..., None]
    if details.companion is not None:
        middle = np.array([[details.companion.x, details.companion.y]])
        cover = coverage("circle", middle, COMPANION_RADIUS)[..., None]
        behind = cover * details.companion_colour() + (1.0 - cover) * behind
    alpha = coverage(scene.shape, positions(scene, placement, num_frames), details.size * RADIUS)[..., None]
    return (alpha * details.subject_colour(scene) + (1.0 - alpha) * behind).astype(np.float32)


def _random_companion(scene: Scene, rng: np.random.Generator) -> Companion:
    x, y = COMPANION_PLACES[int(rng.integers(len(COMPANION_PLACES)))]
    dx, dy = rng.uniform(-COMPANION_SPREAD, COMPANION_SPREAD, size=2)
    others = [colour for colour in COLOURS if colour != scene.colour]
    return Companion(others[int(rng.integers(len(others)))], float(x + dx), float(y + dy))


def _hue_distance(first_C: np.ndarray, second_C: np.ndarray) -> float:
    difference_C = first_C - second_C
    return float(np.linalg.norm(difference_C - difference_C.mean()))


def _margin(seen_C: np.ndarray, name: str, palette: dict[str, tuple[int, int, int]]) -> bool:
    distances = {other: float(np.linalg.norm(seen_C - _palette(rgb))) for other, rgb in palette.items()}
    return distances.pop(name) + MIN_MARGIN <= min(distances.values())


def _palette(rgb: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(rgb, np.float32) / np.float32(255.0)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
