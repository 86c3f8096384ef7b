"""What is measured of a long video: whether it shows what its prompt names, and whether it goes on as it began.

Legend: `frames_FHWC` float32 in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from miga.backbones.sprites.details import TEXTURES
from miga.backbones.sprites.identity import CHANGED_BY, identity_drift
from miga.backbones.sprites.scorer import motion_accuracy, read_frames, read_motion
from miga.backbones.sprites.world import COLOURS, OMISSIBLE, PERIOD, Scene, change_one, held_out_scenes
from miga.errors import UsageError
from miga.metrics.features import SpriteFeatures
from miga.metrics.video import VideoMeter

LOOKS: Final = ("colour", "ground", "shape")
MEASURES: Final[dict[str, bool]] = {
    "colour": True,
    "ground": True,
    "shape": True,
    "all right": True,
    "motion": True,
    "residual": False,
    "same colour": True,
    "same ground": True,
    "same shape": True,
    "all same": True,
    "same motion": True,
    "S.C.": True,
    "B.C.": True,
    "M.S.": True,
    "T.F.": True,
    "O.S.": True,
    "S.C. later": True,
    "B.C. later": True,
    "O.S. later": True,
    "identity": False,
    "subject tint": False,
    "ground tint": False,
    "brightness": False,
    "size": False,
    "texture": False,
    "second object": False,
    "pan": False,
}
"""All measures, and whether more of it is better."""
FIRST_FRAMES: Final = 9
"""Frames that the measures called "later" leave out: those of a video's first three latents."""


def require_scenes(option: str, num_scenes: int, seed: int) -> None:
    """Whether the sprite world has so many held-out scenes.

    Args:
        option: as it was given, for the message.
        num_scenes: that are needed, from the first on.
        seed: of their order.

    Raises:
        UsageError: if not.
    """
    try:
        held_out_scenes(num_scenes, seed)
    except ValueError as error:
        raise UsageError(f"{option}: {error}", "ask for fewer") from None


def omitted(mode: str, prompt: int) -> tuple[str, ...]:
    """What the caption of a prompt leaves open; of "partial" ones at least one of `OMISSIBLE`, the same every time.

    Args:
        mode: "full", "partial", "empty" (then everything is left open, shape too), "turns" or "details" (nothing is).
        prompt: number of the prompt.
    """
    if mode in ("full", "turns", "details"):
        return ()
    if mode == "empty":
        return (*LOOKS, "motion")
    chosen = np.random.default_rng([prompt]).integers(1, 2 ** len(OMISSIBLE))
    return tuple(name for bit, name in enumerate(OMISSIBLE) if chosen >> bit & 1)


def scenes_in_turn(mode: str, scene: Scene, prompt: int) -> list[Scene]:
    """The scenes that a video shows one after the other: two, one attribute apart, where prompts take turns."""
    return [scene, change_one(scene, np.random.default_rng([prompt, 2]))] if mode == "turns" else [scene]


def caption_of(scene: Scene, prompt: int, mode: str = "full") -> str:
    """The scene in words, its wording chosen by the prompt's number.

    Args:
        scene: what it says.
        prompt: its number.
        mode: as in `omitted`; of "empty" there are no words at all, of "details" the ground's texture is named as well,
            and in every second prompt a second object.
    """
    open_names = omitted(mode, prompt)
    if "shape" in open_names:
        return ""
    if mode != "details":
        return scene.caption(prompt % 3, open_names)
    texture = list(TEXTURES.values())[prompt // 2 % len(TEXTURES)]
    others = [colour for colour in COLOURS if colour != scene.colour]
    return scene.caption(prompt % 3, texture=texture, companion=others[prompt % len(others)] if prompt % 2 else "")


def measure(
    frames_FHWC: np.ndarray, wanted: Scene | Sequence[Scene], open_names: Collection[str] = (), num_first: int = 45
) -> dict[str, float]:
    """Every measure of `MEASURES`; NaN where a video is not judged by it.

    "colour", "ground", "shape", "all right": share of frames that show what the caption names; "motion": of cycles.
    "same ...": share of frames that look as most of the first clip does, and of cycles that move as the first one does.
    Where a caption leaves something open, only that is held against the beginning; where it names all, everything that
    no later prompt changes.

    "identity" to "pan": see `identity_drift`, without what a later prompt changes.

    "S.C." to "O.S.": VBench's dimensions as `miga.metrics` has them, on the sprite world's own features; "later": of
    the video without its first `FIRST_FRAMES` frames.

    Args:
        frames_FHWC: the video.
        wanted: what the full caption would say, or one scene per frame where prompts take turns.
        open_names: attributes that the caption leaves open.
        num_first: frames of the first clip.
    """
    reading = read_frames(frames_FHWC)
    scenes = [wanted] * len(reading) if isinstance(wanted, Scene) else list(wanted)
    changed = [name for name in (*LOOKS, "motion") if len({getattr(scene, name) for scene in scenes}) > 1]
    values = dict.fromkeys(MEASURES, math.nan)
    seen = {name: np.asarray(getattr(reading, name)) for name in LOOKS}
    right = {
        name: seen[name] == np.asarray([getattr(scene, name) for scene in scenes])
        for name in LOOKS
        if name not in open_names
    }
    values |= {name: float(is_right.mean()) for name, is_right in right.items()}
    if right:
        values["all right"] = float(np.logical_and.reduce(list(right.values())).mean())
    if "motion" not in open_names:
        values["motion"] = motion_accuracy(reading, scenes)
    values["residual"] = float(reading.residual_F.mean())
    judged = set(open_names or (*LOOKS, "motion")).difference(changed)
    same = {name: seen[name] == _most_common(seen[name][:num_first].tolist()) for name in LOOKS if name in judged}
    values |= {f"same {name}": float(is_same.mean()) for name, is_same in same.items()}
    if same:
        values["all same"] = float(np.logical_and.reduce(list(same.values())).mean())
    if "motion" in judged:
        starts = range(0, max(1, len(reading) - PERIOD + 1), PERIOD // 2)
        motions = [read_motion(reading.xy_F2[start : start + PERIOD]) for start in starts]
        values["same motion"] = float(np.mean([motion == motions[0] for motion in motions]))
    values |= identity_drift(reading, num_first, {name for change in changed for name in CHANGED_BY[change]})
    return values | _vbench(frames_FHWC)


def _vbench(frames_FHWC: np.ndarray) -> dict[str, float]:
    pixels_FHWC = np.rint(frames_FHWC * 255.0).astype(np.uint8)
    whole, later = VideoMeter(), VideoMeter()
    for number, seen in enumerate(zip(pixels_FHWC, *SpriteFeatures()(pixels_FHWC), strict=True)):
        whole.add(*seen)
        if number >= FIRST_FRAMES:
            later.add(*seen)
    return {
        "S.C.": whole.scores.subject_consistency,
        "B.C.": whole.scores.background_consistency,
        "M.S.": whole.scores.motion_smoothness,
        "T.F.": whole.scores.temporal_flicker,
        "O.S.": whole.scores.overall,
        "S.C. later": later.scores.subject_consistency,
        "B.C. later": later.scores.background_consistency,
        "O.S. later": later.scores.overall,
    }


def _most_common(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]
