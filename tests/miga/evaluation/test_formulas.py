"""VBench's formulas against figures of its own program."""

from __future__ import annotations

import math

import numpy as np
import pytest

from miga.evaluation import formulas
from miga.evaluation.clips import clip_spans, fused, mapped, mean_over_clips, mean_over_videos
from miga.evaluation.totals import overall_score, quality_total, semantic_total, total
from tests.miga.evaluation.filled import texture, unit
from tests.miga.evaluation.recorded import arrays, figures

RECORDED = figures("formulas")
FEATURES = arrays("features")


def test_the_filling_rule_is_the_recorded_one() -> None:
    assert unit("abc", 5).tolist() == pytest.approx(RECORDED["fill_rule_check"]['unit("abc",5)'], abs=1e-15)


@pytest.mark.parametrize("name", FEATURES)
def test_consistency_of_a_video(name: str) -> None:
    wanted = RECORDED["consistency"]["cases"][name]
    assert formulas.consistency(FEATURES[name]) == pytest.approx(wanted["subject"], abs=1e-6)
    assert formulas.consistency(FEATURES[name]) == pytest.approx(wanted["background"], abs=1e-6)


def test_consistency_of_a_data_set_weighs_frames() -> None:
    wanted = RECORDED["consistency"]["dataset_of_all_in_order"]
    scores = [formulas.consistency_scores(FEATURES[name]) for name in wanted["order"]]
    assert formulas.dataset_consistency(scores) == pytest.approx(wanted["subject_frame_weighted"], abs=1e-6)
    assert np.mean([score.mean() for score in scores]) == pytest.approx(wanted["mean_of_videos"], abs=1e-6)


@pytest.mark.parametrize("portion", [1, 7, 32])
def test_consistency_does_not_depend_on_portions(portion: int) -> None:
    features = unit("portions", 50 * 8).reshape(50, 8)
    meter = formulas.ConsistencyMeter()
    parts = [meter.add(features[start : start + portion]) for start in range(0, 50, portion)]
    assert np.concatenate(parts) == pytest.approx(formulas.consistency_scores(features), abs=1e-12)


def _flicker_video(name: str) -> np.ndarray:
    base = texture(1, 48, 80, "flick")[0]
    levels = {
        "linear_fade_0_to_180_by_20": range(0, 200, 20),
        "flicker_1": [100, 101] * 5,
        "flicker_8": [100, 108] * 5,
        "flicker_64": [100, 164] * 5,
        "black": [0] * 10,
        "black_white": [0, 255] * 5,
    }
    if name in levels:
        return np.stack([np.full((48, 80, 3), level, np.uint8) for level in levels[name]])
    if name == "moving_texture":
        return texture(17, 48, 80, "mov")
    if name == "two_frames":
        return texture(2, 48, 80, "two")
    video = np.stack([base] * (1 if name == "one_frame" else 10))
    if name == "one_swapped":
        video[5] = texture(1, 48, 80, "other")[0]
    return video


@pytest.mark.parametrize("name", [name for name in RECORDED["flicker"] if name != "one_frame"])
def test_temporal_flickering(name: str) -> None:
    assert formulas.temporal_flickering(_flicker_video(name)) == pytest.approx(
        RECORDED["flicker"][name]["score"], abs=1e-6
    )


def test_one_frame_has_neither_flicker_nor_consistency() -> None:
    with pytest.raises(formulas.TooShortError):
        formulas.temporal_flickering(_flicker_video("one_frame"))
    with pytest.raises(formulas.TooShortError):
        formulas.consistency(np.ones((1, 4)))


@pytest.mark.parametrize("name", RECORDED["dynamic_degree_flow"])
def test_dynamic_degree_of_flows(name: str) -> None:
    wanted = RECORDED["dynamic_degree_flow"][name]
    size = wanted["pairs"], 2, wanted["height"], wanted["width"]
    flows = (unit(f"flow/{name}", math.prod(size)).reshape(size) * wanted["scale"]).astype(np.float32)
    motions = [formulas.strongest_motion(flow) for flow in flows]
    assert motions == pytest.approx(wanted["pair_scores"], abs=1e-6)
    assert formulas.moving_threshold(*size[2:]) == wanted["threshold"]
    assert formulas.moving_count(wanted["pairs"] + 1) == wanted["count_num"]
    assert formulas.is_moving(motions, wanted["pairs"] + 1, *size[2:]) == wanted["moving"]


@pytest.mark.parametrize("name", RECORDED["static_filter_flow"])
def test_static_filter(name: str) -> None:
    wanted = RECORDED["static_filter_flow"][name]
    size = wanted["pairs"], 2, wanted["height"], wanted["width"]
    flows = (unit(f"flow/sf/{name}", math.prod(size)).reshape(size) * wanted["scale"]).astype(np.float32)
    motions = [formulas.strongest_motion(flow, formulas.STATIC_SHARE) for flow in flows]
    assert motions == pytest.approx(wanted["pair_scores"], abs=1e-6)
    assert formulas.is_static(motions, wanted["frames"], *size[2:]) == wanted["static"]


def test_how_many_pairs_have_to_move() -> None:
    for frames, needed in RECORDED["dynamic_degree_count_num"]:
        assert formulas.moving_count(frames) == needed
    for fps, interval in RECORDED["dynamic_degree_interval"]:
        assert formulas.thinning_interval(fps) == interval
    for case in RECORDED["dynamic_degree_check_move"]:
        assert formulas.is_moving(case["scores"], case["frames"], 480, 832) == case["moving"]
    assert formulas.moving_threshold(480, 832) == RECORDED["dynamic_degree_threshold_480x832"]


def test_two_thinned_frames_move_whatever_they_show() -> None:
    assert formulas.is_moving([0.0], 2, 480, 832)
    assert not formulas.is_moving([], 1, 480, 832)


def test_pairs_of_dynamic_degree_stay_within_their_clip() -> None:
    assert formulas.moving_pairs(0, 6, 16) == [(0, 2), (2, 4)]
    assert formulas.moving_pairs(129, 135, 16) == [(129, 131), (131, 133)]
    assert formulas.moving_pairs(0, 3, 8) == [(0, 1), (1, 2)]


def test_triples_of_motion_smoothness() -> None:
    for frames, pairs in figures("networks")["motion_smoothness_pairs"]:
        assert len(formulas.smoothness_starts(0, frames)) == pairs
    assert list(formulas.smoothness_starts(129, 135)) == [129, 131]


def test_aesthetic_head() -> None:
    head, wanted = arrays("aesthetic_head"), RECORDED["aesthetic"]
    features = unit("feat/clip_l14", 5 * 768).reshape(5, 768).astype(np.float32)
    scores = formulas.aesthetic_scores(features, head["weight"], head["bias"])
    assert scores == pytest.approx(wanted["per_frame"], abs=1e-6)
    assert scores.mean() == pytest.approx(wanted["video"], abs=1e-6)


@pytest.mark.parametrize(
    "case", RECORDED["split"], ids=lambda case: f"{case['frames']}@{case['fps']}x{case['duration']}"
)
def test_clips_of_a_long_video(case: dict) -> None:
    spans = clip_spans(case["frames"], case["fps"], case["duration"])
    assert [list(span) for span in spans] == case["clips"]


@pytest.mark.parametrize("fps", [0.5, 0.0])
def test_no_clips_of_no_frames(fps: float) -> None:
    with pytest.raises(ValueError, match="make no clips"):
        clip_spans(100, fps)


@pytest.mark.parametrize("case", RECORDED["fusion"], ids=lambda case: f"{case['dimension'][:3]}-{case['clip2clip']}")
def test_fusion_of_the_two_branches(case: dict) -> None:
    between = None if case["clip2clip"] == "missing" else case["clip2clip"]
    assert fused(case["dimension"], case["inclip"], between) == pytest.approx(case["fused"], abs=1e-6)
    if between is not None:
        assert mapped(case["dimension"], between) == pytest.approx(case["mapped"], abs=1e-6)


def test_mean_over_clips_and_over_videos() -> None:
    assert mean_over_clips([[0.9, 0.8], [0.4]]) == pytest.approx(RECORDED["reorganize"]["score"])
    assert mean_over_videos([[0.9, 0.8], [0.4]]) == pytest.approx(0.625)
    assert mean_over_videos([[0.9, 0.8], [0.4], []]) == pytest.approx(0.625)


def test_totals() -> None:
    wanted = RECORDED["totals"]
    values = {name.replace(" ", "_"): value for name, value in wanted["raw"].items()}
    assert quality_total(values) == pytest.approx(wanted["quality"], abs=1e-9)
    assert semantic_total(values) == pytest.approx(wanted["semantic"], abs=1e-9)
    assert total(values) == pytest.approx(wanted["total"], abs=1e-9)
    assert overall_score(values) == pytest.approx(wanted["os_miga"], abs=1e-9)


@pytest.mark.parametrize("missing", ["dynamic_degree", "scene"])
def test_no_total_where_a_dimension_is_missing(missing: str) -> None:
    values = {name.replace(" ", "_"): value for name, value in RECORDED["totals"]["raw"].items() if name != missing}
    values.pop(missing, None)
    assert total(values) is None
    assert total({**values, missing: math.nan}) is None


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    values = unit("bootstrap", 400)
    low, high = formulas.bootstrap_interval(values)
    assert low < values.mean() < high
    error = values.std() / 20  # of the mean of 400 values
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert formulas.bootstrap_interval([0.5]) == (0.5, 0.5)
