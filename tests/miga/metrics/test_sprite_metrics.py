"""Scores of the sprite world, frame by frame, against the scorer's own on the whole video."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from miga.backbones.sprites.scorer import score
from miga.backbones.sprites.world import Placement, Scene, render
from miga.metrics.sprites import SpriteMeter, scenes_of, wanted_scenes

SCENE = Scene("red", "square", "grey", "horizontal")


def pixels(scene: Scene, num_frames: int) -> np.ndarray:
    return np.round(render(scene, Placement(), num_frames) * 255).astype(np.uint8)


def test_in_pieces_it_is_the_scorers_own_score() -> None:
    frames = np.concatenate([pixels(SCENE, 96), pixels(replace(SCENE, colour="blue", shape="ring"), 32)])
    meter = SpriteMeter([SCENE] * len(frames), 45)
    for start in range(0, len(frames), 30):
        meter.add(frames[start : start + 30])
    found = meter.values()
    assert found.pop("right_drift") == pytest.approx(13 / 45 - 1)  # the last 45 frames hold 13 of the first scene
    assert found == pytest.approx(asdict(score(frames / np.float32(255), SCENE)))
    assert found["all_right"] == pytest.approx(96 / 128)


def test_a_video_of_another_length_is_refused() -> None:
    meter = SpriteMeter([SCENE] * 9, 45)
    meter.add(pixels(SCENE, 8))
    with pytest.raises(ValueError, match="8 frames came of a video of 9"):
        meter.values()


def test_prompts_outside_the_grammar_have_no_scenes() -> None:
    assert scenes_of([SCENE.caption(2), SCENE.caption(1)]) == [SCENE, SCENE]
    assert scenes_of([SCENE.caption(), "a panda on a bicycle"]) is None


def test_prompts_in_turn_are_wanted_for_the_frames_of_their_latents() -> None:
    other = replace(SCENE, colour="green")
    wanted = wanted_scenes([SCENE, other], 41, frames_first_latent=1, frames_per_latent=4)
    # 11 latents, 6 for the first prompt: 1 + 5 * 4 frames.
    assert wanted == [SCENE] * 21 + [other] * 20
    assert wanted_scenes([SCENE], 5, frames_first_latent=1, frames_per_latent=4) == [SCENE] * 5
    even = wanted_scenes([SCENE, other], 8, frames_first_latent=4, frames_per_latent=4)
    assert even == [SCENE] * 4 + [other] * 4
