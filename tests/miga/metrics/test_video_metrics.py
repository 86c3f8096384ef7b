"""The scores of videos whose scores are known: constant ones, alternating ones, even motion, changes half-way.

Legend: F frames, H, W pixels, C = 3 (RGB); frames are uint8.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from miga.backbones.sprites.world import Placement, Scene, draw, positions, render
from miga.metrics.features import FeatureExtractor, FrameFeatures, SimilarityMeter, SpriteFeatures, soft_histogram
from miga.metrics.pixels import REACH, FlickerMeter, SmoothnessMeter, interpolate, reduce_frame
from miga.metrics.video import LongVideoMeter, VideoScores, chunks_of

SCENE = Scene("red", "triangle", "grey", "diagonal")
HALF = 24


def pixels(frames_FHWC: np.ndarray) -> np.ndarray:
    return np.round(frames_FHWC * 255).astype(np.uint8)


def clip(scene: Scene = SCENE, num_frames: int = 2 * HALF) -> np.ndarray:
    return pixels(render(scene, Placement(), num_frames))


def half_way(**change: str) -> np.ndarray:
    """A video whose scene changes in one attribute after half of it."""
    return np.concatenate([clip()[:HALF], clip(replace(SCENE, **change))[HALF:]])


def values(
    frames_FHWC: np.ndarray, extractor: FeatureExtractor | None = None, clip_frames: int = 1000
) -> dict[str, float]:
    meter = LongVideoMeter(extractor or SpriteFeatures(), len(frames_FHWC), clip_frames)
    for chunk in chunks_of(frames_FHWC, 7):
        meter.add(chunk)
    return meter.values()


def smoothness(frames_FHWC: np.ndarray) -> float:
    meter = SmoothnessMeter()
    for frame in frames_FHWC:
        meter.add(frame)
    return meter.score


def flicker(frames_FHWC: np.ndarray) -> float:
    meter = FlickerMeter()
    for frame in frames_FHWC:
        meter.add(frame)
    return meter.score


def sliding(steps: list[int], size: int = 64) -> np.ndarray:
    """A textured square on a flat ground, moved along x by the steps in turn; the first frame is before the first."""
    texture = np.random.default_rng(5).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    frames = []
    for x in itertools.accumulate(steps, initial=10):
        frame = np.full((size, size, 3), 90, np.uint8)
        frame[24:40, x : x + 16] = texture
        frames.append(frame)
    return np.stack(frames)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("extractor", [SpriteFeatures(), FrameFeatures()])
@pytest.mark.parametrize("frame", [np.zeros((64, 64, 3), np.uint8), clip()[0]])
def test_a_constant_video_has_every_score_1_and_no_drift(extractor: FeatureExtractor, frame: np.ndarray) -> None:
    scores = values(np.repeat(frame[None], 40, axis=0), extractor, clip_frames=10)
    assert scores.pop("drift") == pytest.approx(0, abs=1e-6)
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0), abs=1e-6)
    assert len(scores) == 5


def test_a_video_of_black_and_white_in_turn_has_no_temporal_flicker_score() -> None:
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    frames[1::2] = 255
    assert flicker(frames) == 0.0
    assert smoothness(frames) == 0.0  # the dropped frames are all white, their neighbours all black


def test_temporal_flicker_is_the_mean_absolute_difference_of_adjacent_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)
    by_hand = np.mean([np.abs(a.astype(float) - b.astype(float)).mean() for a, b in itertools.pairwise(frames)])
    assert flicker(frames) == pytest.approx((255 - by_hand) / 255)


def test_the_overall_score_is_the_mean_of_the_four() -> None:
    row = VideoScores(0.9766, 0.9699, 0.9860, 0.9803)  # MIGA's row of the paper's Table 1
    assert row.overall == pytest.approx(0.9782, abs=1e-4)


def test_motion_is_smooth_where_it_is_even() -> None:
    even, jittering = sliding([2] * 12), sliding([2, 0, 3, 1, 4, 2, 0, 4, 1, 3, 2, 2])
    assert smoothness(even) == 1.0
    assert smoothness(jittering) < 0.99
    assert smoothness(sliding([0] * 12)) == 1.0
    fast = sliding([REACH + 3] * 4)
    assert smoothness(fast) < 0.99, "faster than motion is looked for"


def test_motion_in_the_sprite_world_is_smoother_than_a_jittering_one() -> None:
    xy_F2 = positions(SCENE, Placement(), 48)
    jitter_F2 = np.random.default_rng(1).normal(0, 1.5, xy_F2.shape)
    jittering = pixels(draw(SCENE.colour, SCENE.shape, SCENE.ground, xy_F2 + jitter_F2))
    assert smoothness(clip()) > smoothness(jittering) + 0.005


def test_the_middle_frame_of_two_equal_ones_is_the_same() -> None:
    frame = np.random.default_rng(0).uniform(0, 255, (21, 30, 3)).astype(np.float32)
    np.testing.assert_array_equal(interpolate(frame, frame), frame)


def test_large_frames_are_reduced_by_whole_squares() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (480, 832, 3), dtype=np.uint8)
    small = reduce_frame(frame)
    assert small.shape == (120, 208, 3)
    assert small[3, 5, 1] == pytest.approx(frame[12:16, 20:24, 1].mean(), rel=1e-5)


def test_consistency_is_vbenchs_mean_of_two_cosines() -> None:
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    by_hand = np.mean(
        [(cosine(features[0], features[i]) + cosine(features[i - 1], features[i])) / 2 for i in range(1, 7)]
    )
    meter = SimilarityMeter()
    for feature in features:
        meter.add(feature)
    assert meter.score == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
def test_a_subject_that_changes_lowers_subject_consistency_alone() -> None:
    before = values(clip())
    for change in ({"colour": "blue"}, {"shape": "ring"}):
        after = values(half_way(**change))
        assert after["subject_consistency"] < before["subject_consistency"] - 0.02
        assert after["background_consistency"] == pytest.approx(before["background_consistency"], abs=2e-3)
    # Nothing in common: the cosine to the first frame is 0 from the change on, that to the one before once.
    recoloured = values(half_way(colour="blue"))["subject_consistency"]
    expected = ((HALF - 1) * 1.0 + (HALF - 1) * 0.5 + 0.0) / (2 * HALF - 1)
    assert recoloured == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_a_ground_that_changes_lowers_background_consistency_alone() -> None:
    before, after = values(clip()), values(half_way(ground="teal"))
    assert after["background_consistency"] < before["background_consistency"] - 0.2
    assert after["subject_consistency"] == pytest.approx(before["subject_consistency"], abs=2e-3)
    layout = values(half_way(ground="teal"), FrameFeatures())
    assert layout["background_consistency"] < values(clip(), FrameFeatures())["background_consistency"] - 0.2


def test_where_the_subject_is_does_not_count() -> None:
    assert values(clip())["subject_consistency"] == pytest.approx(1.0, abs=2e-3)


def test_a_subject_that_is_lost_is_like_none() -> None:
    ground_only = np.repeat(clip()[:1, :1, :1], 64, axis=1).repeat(64, axis=2).repeat(HALF, axis=0)
    lost = values(np.concatenate([clip()[:HALF], ground_only]))
    # As for a change of colour: nothing in common with the first frame, and within what is left all alike.
    assert lost["subject_consistency"] == pytest.approx((1.5 * HALF - 1.5) / (2 * HALF - 1), abs=0.01)


@pytest.mark.slow
def test_drift_is_the_last_clip_length_against_the_first() -> None:
    noise = np.random.default_rng(0).normal(0, 20, (HALF, 64, 64, 3))
    still = np.repeat(clip()[:1], HALF, axis=0)
    worse = np.concatenate([still, np.clip(still + noise, 0, 255).astype(np.uint8)])
    scores, alone = values(worse, clip_frames=HALF), values(worse[HALF:])
    assert scores["drift"] == pytest.approx(alone["overall"] - 1.0, abs=1e-6)
    assert scores["drift"] < -0.02
    assert np.isnan(values(worse, clip_frames=2 * HALF)["drift"])


def test_videos_too_short_have_no_score() -> None:
    scores = values(clip(num_frames=1))
    assert all(np.isnan(value) for value in scores.values())
    assert np.isnan(values(clip(num_frames=2))["motion_smoothness"])


def test_a_video_of_another_length_is_refused() -> None:
    meter = LongVideoMeter(SpriteFeatures(), 5, 3)
    meter.add(clip(num_frames=4))
    with pytest.raises(ValueError, match="4 frames came of a video of 5"):
        meter.values()


def test_soft_histogram_shares_a_value_among_its_neighbours() -> None:
    grid = soft_histogram(np.array([[0.25, 1.0]], np.float32), [2, 3], np.array([2.0], np.float32)).reshape(2, 3)
    np.testing.assert_allclose(grid, [[0, 1.5, 0], [0, 0.5, 0]])
    edge = soft_histogram(np.array([[1.0, 2.0]], np.float32), [2, 3]).reshape(2, 3)
    np.testing.assert_allclose(edge, [[0, 0, 0], [0, 0, 1]])


def test_chunks_hold_every_frame_once() -> None:
    frames = clip(num_frames=10)
    chunks = list(chunks_of(frames, 4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(chunks), frames)
