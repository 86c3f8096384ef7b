"""The sprite world and the scorer that reads it back: exactness here is what every quality figure rests on."""

from __future__ import annotations

import numpy as np
import pytest

from miga.backbones.sprites.scorer import read_frames, read_motion, score
from miga.backbones.sprites.world import (
    AMPLITUDE,
    COLOURS,
    GROUNDS,
    MOTIONS,
    SHAPES,
    SIZE,
    TEMPLATES,
    Placement,
    Scene,
    all_scenes,
    change_one,
    held_out_scenes,
    parse_caption,
    positions,
    render,
)

SCENE = Scene("red", "triangle", "grey", "clockwise")


@pytest.mark.slow
def test_the_scorer_reads_the_world_without_error() -> None:
    """At least 99.5 % of frames, over every colour, shape, ground and motion; the position to half a pixel."""
    rng = np.random.default_rng(0)
    scenes = all_scenes()
    num_right = num_frames = 0
    for index in rng.permutation(len(scenes))[:120]:
        scene, placement = scenes[index], Placement.random(rng)
        frames = render(scene, placement, 48)[::4]
        reading = read_frames(frames)
        assert np.abs(reading.xy_F2 - positions(scene, placement, 48)[::4]).max() < 0.5
        assert reading.residual_F.max() < 0.02
        num_right += round(score(frames, scene).all_right * len(frames))
        num_frames += len(frames)
    assert num_right / num_frames >= 0.995


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_told_from_its_track(motion: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        track = positions(Scene("red", "circle", "grey", motion), Placement.random(rng), 48)
        assert read_motion(track + rng.normal(0.0, 0.3, track.shape)) == motion


def test_what_is_wrong_is_scored_wrong() -> None:
    frames = render(SCENE, Placement(), 48)
    assert score(frames, SCENE).all_right == 1.0
    for wrong in (
        Scene("blue", "triangle", "grey", "clockwise"),
        Scene("red", "circle", "grey", "clockwise"),
        Scene("red", "triangle", "teal", "clockwise"),
    ):
        assert score(frames, wrong).all_right == 0.0
    assert score(frames, Scene("red", "triangle", "grey", "counterclockwise")).motion == 0.0


def test_a_frame_without_a_subject_is_not_right() -> None:
    empty = np.full((4, SIZE, SIZE, 3), np.asarray(GROUNDS["grey"]) / 255.0, np.float32)
    assert score(empty, SCENE).shape == 0.0
    assert np.isnan(read_frames(empty).xy_F2).all()


def test_noise_raises_the_residual_by_its_own_size() -> None:
    frames = render(SCENE, Placement(), 8)
    noisy = frames + np.random.default_rng(0).normal(0.0, 0.1, frames.shape)
    assert read_frames(noisy).residual_F.mean() == pytest.approx(0.1, rel=0.05)


def test_prompts_in_turn_are_scored_frame_by_frame() -> None:
    later = Scene("blue", "triangle", "grey", "clockwise")
    frames = np.concatenate([render(SCENE, Placement(), 48), render(later, Placement(), 48)])
    assert score(frames, [SCENE] * 48 + [later] * 48).all_right == 1.0
    assert score(frames, SCENE).all_right == pytest.approx(0.5)


def test_captions_say_the_scene_and_are_read_back() -> None:
    assert len(all_scenes()) == len(COLOURS) * len(SHAPES) * len(GROUNDS) * len(MOTIONS)
    for scene in all_scenes()[::7]:
        for template in range(len(TEMPLATES)):
            assert parse_caption(scene.caption(template)) == scene
    with pytest.raises(ValueError, match="not a caption"):
        parse_caption("a cat")


def test_subjects_stay_inside_the_frame() -> None:
    rng = np.random.default_rng(2)
    for motion in MOTIONS:
        for _ in range(10):
            frames = render(Scene("red", "circle", "white", motion), Placement.random(rng), 48)
            edge = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
            assert np.ptp(edge) < 1e-6
    assert AMPLITUDE > 0


def test_held_out_scenes_are_fixed_distinct_and_kept_from_training() -> None:
    from miga.backbones.sprites.train_vae import training_scenes

    held_out = held_out_scenes(64, seed=0)
    assert len(set(held_out)) == 64
    assert held_out == held_out_scenes(64, seed=0)
    assert not set(held_out) & set(training_scenes())
    assert 0.15 < sum(scene.held_out for scene in all_scenes()) / len(all_scenes()) < 0.25


def test_the_next_prompt_changes_one_attribute() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        changed = change_one(SCENE, rng)
        assert sum(a != b for a, b in zip(vars(SCENE).values(), vars(changed).values(), strict=True)) == 1
