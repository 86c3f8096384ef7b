"""Measures of drift against recorded figures and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from miga.evaluation import drift
from tests.miga.evaluation.filled import unit
from tests.miga.evaluation.recorded import figures

RECORDED = figures("drift")


def _per_frame(name: str) -> list[float]:
    index = np.arange(100)
    return {
        "flat": np.full(100, 0.7),
        "linear_fall": 0.7 - 0.003 * index,
        "fall_then_recover": 0.7 - 0.004 * np.minimum(index, 99 - index),
        "last_frame_only": np.where(index == 99, 0.1, 0.7),
    }[name].tolist()


@pytest.mark.parametrize("name", RECORDED["start_end"])
def test_start_end_contrast(name: str) -> None:
    wanted = RECORDED["start_end"][name]
    values = wanted["per_frame"] if isinstance(wanted["per_frame"], list) else _per_frame(name)
    found = drift.start_end(values)
    assert found is not None
    assert drift.end_length(wanted["frames"]) == wanted["k"]
    assert found.absolute == pytest.approx(wanted["absolute"], abs=1e-6)
    assert found.signed == pytest.approx(wanted["signed_end_minus_start"], abs=1e-6)
    assert (found.start, found.end) == pytest.approx((wanted["start"], wanted["end"]), abs=1e-6)


def test_one_value_has_no_ends() -> None:
    assert drift.start_end([0.5]) is None


@pytest.mark.parametrize("name", RECORDED["video_drift_error"])
def test_video_drift_error(name: str) -> None:
    wanted = RECORDED["video_drift_error"][name]
    clips = wanted["per_clip"]
    assert drift.video_drift_error(clips) == pytest.approx(wanted["linear"], abs=1e-9)
    assert drift.video_drift_error(clips, "log") == pytest.approx(wanted["log"], abs=1e-9)
    weights = sum(range(1, len(clips)))
    assert drift.normalised_drift_error(clips) == pytest.approx(wanted["linear"] / weights, abs=1e-9)


def test_video_drift_error_of_a_first_clip_of_0() -> None:
    assert math.isinf(drift.video_drift_error([0.0, 0.5]))
    assert math.isnan(drift.video_drift_error([0.0, 0.0]))


def test_normalised_drift_error_of_a_relative_change_everywhere_is_that_change() -> None:
    for count in (2, 5, 50):
        assert drift.normalised_drift_error([0.5] + [0.4] * (count - 1)) == pytest.approx(0.2)


@pytest.mark.parametrize("portion", [1, 7, 32])
def test_curve_of_distances(portion: int) -> None:
    features = unit("curve", 60 * 5).reshape(60, 5)
    curve = drift.DistanceCurve([2, 10, 50, 100])
    for start in range(0, 60, portion):
        curve.add(features[start : start + portion])
    norm = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = {d: np.mean([norm[i] @ norm[i + d] for i in range(60 - d)]) for d in (2, 10, 50)}
    assert curve.values == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("portion", [1, 7, 32])
def test_cosine_of_the_ends(portion: int) -> None:
    features = unit("ends", 60 * 5).reshape(60, 5)
    ends = drift.EndFeatures(60)
    for start in range(0, 60, portion):
        ends.add(features[start : start + portion])
    norm = features / np.linalg.norm(features, axis=1, keepdims=True)
    first, last = norm[:9].mean(axis=0), norm[-9:].mean(axis=0)
    assert ends.cosine == pytest.approx(first @ last / np.linalg.norm(first) / np.linalg.norm(last), abs=1e-12)
