"""What captions of the sprite world leave open: drawn from closed form, and read back by value to stated errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from miga.backbones.sprites.details import (
    COMPANION_RADIUS,
    CONTRASTS,
    LIGHTS,
    PERIODS,
    PLAIN,
    SIZES,
    SPEEDS,
    TINT,
    Companion,
    Details,
    Texture,
    pattern,
    render_detailed,
)
from miga.backbones.sprites.scorer import _fit_shape, read_frames, score
from miga.backbones.sprites.world import (
    COLOURS,
    GROUNDS,
    RADIUS,
    SIZE,
    Placement,
    Scene,
    all_scenes,
    coverage,
    parse_caption,
    positions,
    render,
)

SCENE = Scene("red", "square", "grey", "horizontal")
STRIPES = Texture("stripes", angle=0.4, phase=0.3, contrast=0.08)


def clips(count: int, seed: int) -> list[tuple[Scene, Placement, Details]]:
    rng = np.random.default_rng(seed)
    scenes = all_scenes()
    picked = [scenes[int(index)] for index in rng.integers(len(scenes), size=count)]
    return [(scene, Placement.random(rng), Details.random(scene, rng)) for scene in picked]


def check_readings(count: int, seed: int) -> None:
    """Every colour, size, texture and second object of random clips, frame by frame, to the errors stated here.

    Where a second object touches the subject, what each covers can be told less well.
    """
    for scene, placement, details in clips(count, seed):
        frames = render_detailed(scene, placement, details, 48)[::8]
        reading = read_frames(frames)
        assert score(frames, scene).all_right == 1.0
        xy_F2 = positions(scene, placement, 48)[::8]
        for number, values in enumerate(reading.values):
            is_apart = distance_to_companion(details, xy_F2[number]) > 1.2 * RADIUS + COMPANION_RADIUS
            assert np.abs(reading.xy_F2[number] - xy_F2[number]).max() < (0.1 if is_apart else 0.6)
            assert values.size == pytest.approx(details.size, abs=0.005 if is_apart else 0.03)
            assert np.abs(values.subject_C - details.subject_colour(scene)).max() < (0.005 if is_apart else 0.04)
            assert np.abs(values.ground_C - details.ground_colour(scene)).max() < 0.002
            check_texture(values.texture, details.texture, 8 * number)
            middle = None if details.companion is None else (details.companion.x, details.companion.y)
            if middle is None:
                assert values.companion is None
            elif hidden(scene, details, xy_F2[number]) < 0.3:
                assert values.companion is not None
                place_error = np.hypot(values.companion.x - middle[0], values.companion.y - middle[1])
                assert place_error < (0.5 if is_apart else 1.0)
                colour_error = np.abs(values.companion.colour_C - details.companion_colour()).max()
                assert colour_error < (0.02 if is_apart else 0.06)


def check_texture(read: Texture, drawn: Texture, frame: int) -> None:
    """The kind; the direction to a degree, the contrast to 0.003, and with the phase all of the pattern to 0.015."""
    assert read.kind == drawn.kind
    moved = replace(drawn, phase=drawn.phase + drawn.speed * frame / PERIODS.get(drawn.kind, 1.0))
    difference = read.contrast * pattern(read, 1) - moved.contrast * pattern(moved, 1)
    assert np.sqrt((difference**2).mean()) < 0.015
    assert read.contrast == pytest.approx(drawn.contrast, abs=0.003)
    if drawn.kind != "plain":
        turn = np.pi / (2.0 if drawn.kind == "dots" else 1.0)
        assert abs((read.angle - drawn.angle + turn / 2) % turn - turn / 2) < np.radians(1.0)


def distance_to_companion(details: Details, xy_2: np.ndarray) -> float:
    """Pixels between the middles of subject and second object."""
    other = details.companion
    return float("inf") if other is None else float(np.hypot(other.x - xy_2[0], other.y - xy_2[1]))


def hidden(scene: Scene, details: Details, xy_2: np.ndarray) -> float:
    """What part of the second object is behind the subject."""
    assert details.companion is not None
    disc = coverage("circle", np.array([[details.companion.x, details.companion.y]]), COMPANION_RADIUS)[0]
    return float((disc * coverage(scene.shape, xy_2[None], details.size * RADIUS)[0]).sum() / disc.sum())


def test_the_scorer_reads_details_to_within_stated_errors() -> None:
    check_readings(8, seed=0)


@pytest.mark.slow
def test_the_scorer_reads_details_of_many_clips() -> None:
    check_readings(150, seed=1)


def test_without_details_a_clip_is_the_plain_one() -> None:
    np.testing.assert_array_equal(render_detailed(SCENE, Placement(), PLAIN, 5), render(SCENE, Placement(), 5))


def test_random_details_stay_in_their_ranges_and_keep_their_names() -> None:
    for scene, placement, details in clips(60, seed=2):
        assert np.abs([details.subject_tint, details.ground_tint]).max() <= TINT
        assert SIZES[0] <= details.size <= SIZES[1]
        assert LIGHTS[0] <= details.light <= LIGHTS[1]
        nearest = [
            min(palette, key=lambda name: np.linalg.norm(np.asarray(palette[name]) / 255.0 - colour))
            for palette, colour in (
                (COLOURS, details.subject_colour(scene)),
                (GROUNDS, details.ground_colour(scene)),
            )
        ]
        assert nearest == [scene.colour, scene.ground]
        if details.texture.kind != "plain":
            assert CONTRASTS[0] <= details.texture.contrast <= CONTRASTS[1]
            assert details.texture.speed == 0.0 or SPEEDS[0] <= abs(details.texture.speed) <= SPEEDS[1]
        frame = render_detailed(scene, placement, details, 1)
        assert frame.min() >= 0.0
        assert frame.max() <= 1.0


@pytest.mark.parametrize("kind", PERIODS)
def test_a_texture_repeats_after_its_period_and_moves_as_the_camera_pans(kind: str) -> None:
    """Straight on, a shift by whole pixels is a shift of the array; over a whole period the mean is 0."""
    texture = Texture(kind, angle=0.0, phase=0.2, across=0.1, contrast=1.0, speed=1.0)
    frames = pattern(texture, 17)
    np.testing.assert_allclose(frames[3][:, 3:], frames[0][:, :-3], atol=1e-4)
    if PERIODS[kind] < SIZE:
        np.testing.assert_allclose(frames[16], frames[0], atol=1e-4)
        assert abs(frames[0].mean()) < 0.01
    turned = pattern(replace(texture, angle=np.pi / 2), 1)[0]
    if kind != "dots":
        np.testing.assert_allclose(turned, frames[0].T, atol=1e-4)


def test_a_texture_is_no_second_object_and_no_residual() -> None:
    details = Details(texture=STRIPES)
    reading = read_frames(render_detailed(SCENE, Placement(), details, 4))
    assert {values.companion for values in reading.values} == {None}
    assert reading.residual_F.max() < 0.01


def test_an_empty_textured_ground_has_no_subject() -> None:
    ground = np.asarray(GROUNDS["grey"]) / 255.0 + 0.08 * pattern(STRIPES, 3)[..., None]
    reading = read_frames(ground.astype(np.float32))
    assert set(reading.shape) == {"none"}
    assert np.isnan(reading.xy_F2).all()
    assert {values.texture.kind for values in reading.values} == {"stripes"}
    assert reading.residual_F.max() < 0.01


def test_where_no_pixel_is_the_subjects_its_place_is_the_middle() -> None:
    """Frames that went far wrong have such subjects: their figures must stay numbers."""
    fit = _fit_shape(np.zeros((64, 64)))
    np.testing.assert_array_equal(fit.xy, [32.0, 32.0])
    assert fit.size == 0.0


def test_captions_name_details_sometimes_and_are_read_back() -> None:
    caption = SCENE.caption(0, texture="striped", companion="yellow")
    assert caption == "a red square moving side to side and a small yellow dot on a striped grey ground"
    assert parse_caption(caption) == SCENE
    assert SCENE.caption(1, ["ground"], texture="striped") == SCENE.caption(1, ["ground"])


def test_a_second_object_lies_behind_the_subject() -> None:
    details = Details(companion=Companion("blue", SIZE / 2, SIZE / 2))
    frame = render_detailed(SCENE, Placement(), details, 48)[12]  # in the middle of its way
    np.testing.assert_allclose(frame[SIZE // 2, SIZE // 2], np.asarray(COLOURS["red"]) / 255.0, atol=1e-6)
