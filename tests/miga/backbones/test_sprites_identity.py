"""Identity drift: nothing where a clip goes on, the right attribute where one changes, by as much as it changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from miga.backbones.sprites.details import Companion, Details, Texture, render_detailed
from miga.backbones.sprites.identity import (
    ALL,
    ATTRIBUTES,
    PAN,
    SPREAD,
    identity_drift,
    identity_over_time,
    look_of,
    pan_velocity,
    texture_distance,
)
from miga.backbones.sprites.scorer import Reading, SecondObject, Values, read_frames
from miga.backbones.sprites.world import Placement, Scene, all_scenes

SCENE = Scene("red", "circle", "grey", "horizontal")
DETAILS = Details(
    subject_tint=(0.05, -0.02, 0.03),
    ground_tint=(-0.03, 0.04, 0.02),
    size=0.9,
    light=0.95,
    texture=Texture("stripes", angle=0.5, phase=0.2, contrast=0.08),
    companion=Companion("blue", 9.0, 10.0),
)


def frames_of(*parts: tuple[Details, int]) -> np.ndarray:
    return np.concatenate([render_detailed(SCENE, Placement(), details, count) for details, count in parts])


def drift(changed: Details, first: Details = DETAILS) -> dict[str, float]:
    """Of a video whose second half shows other details."""
    return identity_drift(read_frames(frames_of((first, 12), (changed, 12))), 12)


def test_a_clip_that_goes_on_has_no_drift() -> None:
    found = identity_drift(read_frames(frames_of((DETAILS, 36))), 12)
    assert max(found[name] for name in ATTRIBUTES) < 0.003
    assert found[ALL] < 0.02


def test_a_panning_camera_is_no_drift_and_another_speed_is() -> None:
    """Stripes that move are the same stripes; how much faster or slower they get is told in pixels a frame."""
    panning = replace(DETAILS, texture=replace(DETAILS.texture, speed=0.5))
    reading = read_frames(frames_of((panning, 72)))
    velocity_2 = pan_velocity([values.texture for values in reading.values])
    np.testing.assert_allclose(velocity_2, [0.5 * np.cos(0.5), 0.5 * np.sin(0.5)], atol=0.02)
    found = identity_drift(reading, 36)
    assert found["texture"] < 0.01
    assert found[PAN] < 0.02
    assert drift(DETAILS, panning)[PAN] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("changed", "name", "expected"),
    [
        (replace(DETAILS, subject_tint=(0.05, -0.02, 0.03 - 0.08)), "subject tint", 0.95 * 0.08 / np.sqrt(3)),
        (replace(DETAILS, ground_tint=(-0.03, 0.04, -0.06)), "ground tint", 0.95 * 0.08 / np.sqrt(3)),
        (replace(DETAILS, size=0.9 * 1.1), "size", np.log(1.1)),
        (replace(DETAILS, companion=replace(DETAILS.companion, colour="green")), "second object", None),
        (replace(DETAILS, companion=None), "second object", None),
        (replace(DETAILS, texture=replace(DETAILS.texture, phase=0.7)), "texture", None),
        (replace(DETAILS, texture=Texture()), "texture", None),
    ],
)
def test_what_changes_is_what_drifts(changed: Details, name: str, expected: float | None) -> None:
    """All of a tint's change but what all colours have in common, which is brightness; of others, only what changes."""
    found = drift(changed)
    if expected is not None:
        assert found[name] == pytest.approx(expected, rel=0.2)
    assert found[name] > 0.3 * SPREAD[name]
    shared = {"brightness", "subject tint", "ground tint"} if "tint" in name else set()
    others = {other: found[other] / SPREAD[other] for other in ATTRIBUTES if other != name}
    assert max(others.values()) < found[name] / SPREAD[name]
    assert max(scaled for other, scaled in others.items() if other not in shared) < 0.05
    assert found[ALL] == pytest.approx(np.mean([min(found[one] / SPREAD[one], 1.0) for one in ATTRIBUTES]), abs=0.03)


def test_less_light_is_brightness() -> None:
    found = drift(replace(DETAILS, light=0.86))
    scaled = {name: found[name] / SPREAD[name] for name in ATTRIBUTES}
    assert max(scaled, key=lambda name: scaled[name]) == "brightness"


def test_a_subject_that_is_lost_is_another_one() -> None:
    reading = read_frames(frames_of((replace(DETAILS, texture=Texture()), 12)))
    nobody = Values(np.full(3, np.nan), reading.values[0].ground_C, np.nan, Texture(), reading.values[0].companion)
    lost = replace(reading, values=(*reading.values[:6], *([nobody] * 6)))
    over_time = identity_over_time(look_of(lost[:6]), lost)
    assert over_time[:6].max() < 0.05
    assert over_time[6:] == pytest.approx(np.full(6, 2 / 6), abs=0.05)


def test_attributes_that_prompts_change_are_left_out() -> None:
    found = identity_drift(read_frames(frames_of((DETAILS, 12), (replace(DETAILS, size=1.05), 12))), 12, {"size"})
    assert np.isnan(found["size"])
    assert found[ALL] < 0.02


def test_a_video_of_one_clip_has_no_drift_to_tell() -> None:
    assert np.isnan(list(identity_drift(read_frames(frames_of((DETAILS, 6))), 6).values())).all()


@pytest.mark.parametrize("kind", ["stripes", "gradient", "dots"])
def test_a_direction_may_be_written_in_several_ways(kind: str) -> None:
    texture = Texture(kind, angle=0.3, phase=0.15, across=0.4 if kind == "dots" else 0.0, contrast=0.08)
    turned = (
        replace(texture, angle=0.3 + np.pi / 2, phase=0.4, across=-0.15 % 1.0)
        if kind == "dots"
        else replace(texture, angle=0.3 + np.pi, phase=-0.15 % 1.0)
    )
    assert texture_distance(texture, turned) < 1e-4
    moved = replace(turned, phase=turned.phase + 0.3)
    assert texture_distance(texture, moved) > 0.02
    assert texture_distance(texture, moved, pans=True) < 1e-4
    assert np.linalg.norm(pan_velocity([texture] * 4 + [turned] * 4)) < 1e-6


@pytest.mark.slow
def test_the_unit_of_identity_is_the_distance_between_clips_of_one_caption() -> None:
    """`SPREAD` against pairs of details drawn by the world, without the scorer's errors."""
    rng, scenes = np.random.default_rng(0), all_scenes()
    sums: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
    for _ in range(3000):
        scene = scenes[int(rng.integers(len(scenes)))]
        one, other = (exact(scene, Details.random(scene, rng)) for _ in range(2))
        found = identity_drift(Reading.joined([one, other]), 1)
        for name in ATTRIBUTES:
            sums[name].append(found[name])
    assert {name: np.nanmean(values) for name, values in sums.items()} == pytest.approx(SPREAD, rel=0.06)


def exact(scene: Scene, details: Details) -> Reading:
    """What a scorer without errors would read off one frame, the subject far from the second object."""
    other = details.companion
    values = Values(
        subject_C=details.subject_colour(scene),
        ground_C=details.ground_colour(scene),
        size=details.size,
        texture=details.texture,
        companion=other and SecondObject(details.companion_colour(), other.x, other.y, 78),
    )
    return Reading((scene.colour,), (scene.shape,), (scene.ground,), np.full((1, 2), 1e3), np.zeros(1), (values,))
