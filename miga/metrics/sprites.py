"""How right a video of the sprite world is, frame by frame: what the scorer reads against what the prompts ask for.

Legend: F frames, H, W = 64 pixels, C = 3 (RGB); frames are uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from miga.backbones.sprites.identity import ALL, CHANGED_BY, identity_drift
from miga.backbones.sprites.scorer import Reading, read_frames, score_reading
from miga.backbones.sprites.world import SIZE, Scene, parse_caption
from miga.metrics.features import Frames
from miga.prompts import PromptTrack


def scenes_of(prompts: Sequence[str]) -> list[Scene] | None:
    """The scenes that captions describe; None if any is not of the sprite world's grammar."""
    try:
        return [parse_caption(prompt) for prompt in prompts]
    except ValueError:
        return None


def wanted_scenes(
    scenes: Sequence[Scene],
    num_frames: int,
    *,
    frames_first_latent: int,
    frames_per_latent: int,
    prompt_frames: Sequence[int] = (),
) -> list[Scene]:
    """The scene that each frame is to show: prompts take turns by latents.

    They have even shares (MIGA A.3, Eq. A3), or begin with the latents of `prompt_frames`.
    """
    num_latents = 1 + -(-(num_frames - frames_first_latent) // frames_per_latent)

    def latent_at(frame: int) -> int:
        return max(0, -(-(frame + 1 - frames_first_latent) // frames_per_latent))

    track = PromptTrack.spread(scenes, num_latents)
    if prompt_frames:
        track = PromptTrack(scenes, starts=tuple(map(latent_at, prompt_frames)))
    return [scenes[track.index(latent_at(frame))] for frame in range(num_frames)]


class SpriteMeter:
    """Reads a video of the sprite world as it is decoded.

    Args:
        wanted: one scene per frame.
        clip_frames: frames of the model's own clip.
        with_identity: whether the distance from the first clip is measured too.
    """

    def __init__(self, wanted: Sequence[Scene], clip_frames: int, *, with_identity: bool = False) -> None:
        self._wanted = wanted
        self._with_identity = with_identity
        self._clip_frames = clip_frames
        self._readings: list[Reading] = []

    @staticmethod
    def can_read(height: int, width: int) -> bool:
        """Whether frames of that size are of the sprite world."""
        return (height, width) == (SIZE, SIZE)

    def add(self, frames_FHWC: Frames) -> None:
        """Takes the next frames."""
        self._readings.append(read_frames(frames_FHWC / np.float32(255.0)))

    def values(self) -> dict[str, float]:
        """The scorer's attributes, and `right_drift`: `all_right` of the last clip length less that of the first.

        If asked for, `identity`: how far all that can be measured is from the first clip (`identity_drift`), but for
        what a later prompt changes.

        Raises:
            ValueError: if more or fewer frames came than scenes are wanted.
        """
        whole = Reading.joined(self._readings)
        if len(whole) != len(self._wanted):
            raise ValueError(f"{len(whole)} frames came of a video of {len(self._wanted)}")
        values = asdict(score_reading(whole, self._wanted))
        shown = zip(whole.colour, whole.shape, whole.ground, strict=True)
        asked = ((scene.colour, scene.shape, scene.ground) for scene in self._wanted)
        right = np.array([seen == wanted for seen, wanted in zip(shown, asked, strict=True)])
        clip = self._clip_frames
        drift = float(right[-clip:].mean() - right[:clip].mean()) if clip < len(right) else float("nan")
        identity = {"identity": self._identity(whole)} if self._with_identity else {}
        return {**values, "right_drift": drift, **identity}

    def _identity(self, whole: Reading) -> float:
        looks = [name for name in CHANGED_BY if len({getattr(scene, name) for scene in self._wanted}) > 1]
        changed = {name for look in looks for name in CHANGED_BY[look]}
        return identity_drift(whole, self._clip_frames, changed)[ALL]
