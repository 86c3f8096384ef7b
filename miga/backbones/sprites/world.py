"""The sprite world: one coloured shape moving on a coloured ground, drawn from closed form.

The embedded backbone is trained on this world, and because every frame is a function of five attributes its
quality can be measured exactly (`scorer.py`) instead of guessed by another network. What captions do not name is
in `details.py`.

Legend: `frames_FHWC` are F frames of H x W pixels, C = 3 (RGB), float32 in [0, 1].
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

SIZE: Final = 64
"""Height and width of a frame in pixels."""
FPS: Final = 16
PERIOD: Final = 48
"""Frames that one cycle of a motion takes."""
AMPLITUDE: Final = 11.0
"""Pixels between the centre of a motion and its turning points."""
RADIUS: Final = 14.0
"""Pixels from the middle of a shape to its outermost point, about."""

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (215, 45, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 225, 60),
    "green": (60, 180, 75),
    "blue": (50, 80, 220),
    "purple": (150, 50, 190),
}
GROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "black": (25, 25, 30),
    "grey": (130, 130, 135),
    "white": (235, 235, 235),
    "teal": (20, 105, 110),
    "brown": (100, 65, 40),
    "pink": (240, 175, 195),
}
SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
MOTIONS: Final[dict[str, str]] = {
    "still": "staying still",
    "horizontal": "moving side to side",
    "vertical": "moving up and down",
    "diagonal": "moving diagonally",
    "clockwise": "circling clockwise",
    "counterclockwise": "circling counterclockwise",
}
TEMPLATES: Final = (
    "{subject} on a {ground} ground",
    "on a {ground} ground, {subject}",
    "a {ground} ground with {subject}",
)
STILL: Final = "still"
"""The motion that is none."""
OMISSIBLE: Final = ("colour", "ground", "motion")
"""What a caption may leave open."""
HELD_OUT_SHARE: Final = 0.2
"""Share of the attribute combinations that no training clip shows."""


@dataclass(frozen=True)
class Scene:
    """What a caption says: everything about a clip but where the subject starts."""

    colour: str
    shape: str
    ground: str
    motion: str

    def caption(self, template: int = 0, omit: Collection[str] = (), *, texture: str = "", companion: str = "") -> str:
        """The scene in the words of `TEMPLATES[template]`, some of `OMISSIBLE` left open.

        Args:
            template: which wording.
            omit: what is left open.
            texture: a word for the ground's texture ("striped"); it goes with the ground's colour.
            companion: colour of a second, smaller object, if it is to be named.
        """
        words = {"colour": self.colour, "shape": self.shape, "motion": MOTIONS[self.motion]}
        subject = " ".join(["a", *(word for name, word in words.items() if name not in omit)])
        if companion:
            subject += f" and a small {companion} dot"
        if "ground" in omit:
            return subject
        return TEMPLATES[template].format(subject=subject, ground=f"{texture} {self.ground}".strip())

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from training (decided by a hash, so it never depends on order)."""
        name = f"{self.colour}/{self.shape}/{self.ground}/{self.motion}"
        first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        return first / 2**32 < HELD_OUT_SHARE


@dataclass(frozen=True)
class Placement:
    """Where a clip's motion is centred (pixels) and at which phase of its cycle it starts (radians)."""

    x: float = SIZE / 2
    y: float = SIZE / 2
    phase: float = 0.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Placement:
        """A placement at which every motion stays inside the frame."""
        x, y = SIZE / 2 + rng.uniform(-4.0, 4.0, size=2)
        return cls(float(x), float(y), float(rng.uniform(0.0, 2.0 * np.pi)))


def all_scenes() -> list[Scene]:
    """Every combination of the four attributes, in a fixed order."""
    return [Scene(*attributes) for attributes in itertools.product(COLOURS, SHAPES, GROUNDS, MOTIONS)]


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """`count` distinct scenes that training never shows, in a seeded order.

    Raises:
        ValueError: if the world holds fewer held-out scenes than that.
    """
    scenes = [scene for scene in all_scenes() if scene.held_out]
    if count > len(scenes):
        raise ValueError(f"{count} held-out scenes asked for, but the world has {len(scenes)}")
    order = np.random.default_rng(seed).permutation(len(scenes))
    return [scenes[index] for index in order[:count]]


def parse_caption(caption: str) -> Scene:
    """The scene that a caption of this grammar describes.

    Raises:
        ValueError: if an attribute is missing from the caption.
    """
    ground = re.search(rf"\b({'|'.join(GROUNDS)}) ground\b", caption)
    subject = re.search(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", caption)
    motion = next((name for name, words in MOTIONS.items() if words in caption), None)
    if ground is None or subject is None or motion is None:
        raise ValueError(f"not a caption of the sprite world: {caption!r}")
    return Scene(colour=subject[1], shape=subject[2], ground=ground[1], motion=motion)


def change_one(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one attribute changed: the next prompt of several in turn."""
    attribute, values = [
        ("colour", list(COLOURS)),
        ("shape", list(SHAPES)),
        ("ground", list(GROUNDS)),
        ("motion", list(MOTIONS)),
    ][int(rng.integers(4))]
    others = [value for value in values if value != getattr(scene, attribute)]
    return replace(scene, **{attribute: others[int(rng.integers(len(others)))]})


def positions(scene: Scene, placement: Placement, num_frames: int) -> np.ndarray:
    """Middle of the subject per frame: `[F, 2]` of (x, y) in pixels, y pointing down."""
    angle = placement.phase + 2.0 * np.pi * np.arange(num_frames) / PERIOD
    cos, sin, zero = AMPLITUDE * np.cos(angle), AMPLITUDE * np.sin(angle), np.zeros(num_frames)
    x, y = {
        "still": (zero, zero),
        "horizontal": (cos, zero),
        "vertical": (zero, cos),
        "diagonal": (cos, cos),
        "clockwise": (cos, sin),
        "counterclockwise": (cos, -sin),
    }[scene.motion]
    return np.stack([placement.x + x, placement.y + y], axis=1)


def coverage(shape: str, xy_F2: np.ndarray, radius: float = RADIUS) -> np.ndarray:
    """How much of each pixel the shape covers, `[F, H, W]` in [0, 1], edges one pixel soft."""
    pixel = np.arange(SIZE) + 0.5
    x = pixel[None, None, :] - xy_F2[:, 0, None, None]
    y = pixel[None, :, None] - xy_F2[:, 1, None, None]
    r = np.hypot(x, y)
    outside = {
        "circle": lambda: r - radius,
        "square": lambda: np.maximum(abs(x), abs(y)) - 0.87 * radius,
        "triangle": lambda: np.maximum(y - 0.7 * radius, (abs(x) * np.sqrt(3.0) - y) / 2.0 - 0.65 * radius),
        "cross": lambda: np.minimum(
            np.maximum(abs(x) - 0.33 * radius, abs(y) - radius), np.maximum(abs(y) - 0.33 * radius, abs(x) - radius)
        ),
        "ring": lambda: abs(r - 0.75 * radius) - 0.27 * radius,
    }[shape]()
    return np.clip(0.5 - outside, 0.0, 1.0).astype(np.float32)


def draw(colour: str, shape: str, ground: str, xy_F2: np.ndarray) -> np.ndarray:
    """Frames `[F, H, W, 3]` of a subject at the given positions."""
    alpha = coverage(shape, xy_F2)[..., None]
    subject = np.asarray(COLOURS[colour], np.float32) / 255.0
    behind = np.asarray(GROUNDS[ground], np.float32) / 255.0
    return alpha * subject + (1.0 - alpha) * behind


def render(scene: Scene, placement: Placement, num_frames: int) -> np.ndarray:
    """A clip of the world: frames `[F, H, W, 3]`, float32 in [0, 1]."""
    return draw(scene.colour, scene.shape, scene.ground, positions(scene, placement, num_frames))
