"""Observers note the same whatever portions a video comes in; measures of what they noted are VBench's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miga.evaluation import preprocessing
from miga.evaluation.formulas import STATIC_SHARE, likeness, strongest_motion
from miga.evaluation.networks.amt import AmtS
from miga.evaluation.observers import (
    DifferenceObserver,
    EndsMotionObserver,
    FrameObserver,
    InterpolationObserver,
    MotionObserver,
    Observer,
    embedding,
    interpolation,
    optical_flow,
)
from tests.miga.evaluation.filled import GAINS, filled_like, texture
from tests.miga.evaluation.recorded import figures

CPU = torch.device("cpu")
MOTION_SMOOTHNESS = figures("networks")["motion_smoothness"]
MEANS = figures("networks")["motion_smoothness_with_mean_of_neighbours"]


def noted(observer: Observer, video: np.ndarray, portion: int) -> tuple[list[int], np.ndarray]:
    parts = [one for start in range(0, len(video), portion) for one in observer.add(video[start : start + portion])]
    parts += list(observer.finish())
    return np.concatenate([one.index_N for one in parts]).tolist(), np.concatenate([one.values_ND for one in parts])


def _network() -> torch.nn.Module:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 5), torch.nn.ReLU(), torch.nn.Flatten())
    network.load_state_dict(filled_like(network.state_dict(), 1.0))
    return network


def _mean(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    return ((first.astype(np.float32) + last) / 2).astype(np.uint8)


def _shift(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (second.astype(np.float32) - first)[..., :2].transpose(0, 3, 1, 2)


MAKERS = {
    "frames": lambda: FrameObserver(embedding(_network(), preprocessing.clip, CPU), batch=4),
    "some frames": lambda: FrameObserver(embedding(_network(), preprocessing.clip, CPU), batch=4, only={0, 16, 39}),
    "differences": DifferenceObserver,
    "triples": lambda: InterpolationObserver(_mean, {0, 2, 4, 30, 31, 37}, batch=2),
    "pairs": lambda: MotionObserver(_shift, {0, 3, 20, 36}, interval=3, batch=3),
}
INDEX = {
    "frames": list(range(40)),
    "some frames": [0, 16, 39],
    "differences": list(range(39)),
    "triples": [0, 2, 4, 30, 31, 37],
    "pairs": [0, 3, 20, 36],
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("portion", [1, 7, 32])
@pytest.mark.parametrize("kind", MAKERS)
def test_portions_do_not_matter(kind: str, portion: int) -> None:
    video = texture(40, 32, 40, "portions")
    index, values = noted(MAKERS[kind](), video, portion)
    whole_index, whole = noted(MAKERS[kind](), video, 40)
    assert index == whole_index == INDEX[kind]
    assert np.array_equal(values, whole)


def test_each_span_is_of_its_own_frames() -> None:
    video = texture(12, 32, 40, "spans")
    _, triples = noted(InterpolationObserver(_mean, {3}), video, 5)
    expected = np.abs(video[4].astype(float) - _mean(video[3:4], video[5:6])[0]).mean()
    assert triples == pytest.approx(expected)
    _, pairs = noted(MotionObserver(_shift, {2}, interval=4), video, 5)
    assert pairs == pytest.approx(strongest_motion(_shift(video[2:3], video[6:7])[0]))


def _smoothness_video(name: str) -> np.ndarray:
    net, other = texture(9, 130, 150, "net"), texture(1, 130, 150, "other")
    return {
        "texture_9": net,
        "texture_8": net[:8],
        "static_5": net[[0] * 5],
        "jump_5": np.concatenate([net[:2], other, net[:2]]),
    }[name]


@pytest.mark.parametrize("name", MEANS)
def test_motion_smoothness_with_means_for_a_network(name: str) -> None:
    video = _smoothness_video(name)
    _, values = noted(InterpolationObserver(_mean, range(0, len(video), 2)), video, 3)
    assert likeness(values[:, 0], "") == pytest.approx(MEANS[name]["score"], abs=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "jump_5" else [pytest.mark.slow]) for name in MOTION_SMOOTHNESS]
)
def test_motion_smoothness_by_amt(name: str) -> None:
    network = AmtS()
    network.load_state_dict(filled_like(network.state_dict(), GAINS["amt"]))
    video = _smoothness_video(name)
    observer = InterpolationObserver(interpolation(network, CPU), range(0, len(video), 2), batch=2)
    _, values = noted(observer, video, 7)
    # one pixel value more or less of 58,500 is 2e-5 of a grey level
    assert likeness(values[:, 0], "") == pytest.approx(MOTION_SMOOTHNESS[name]["score"], abs=1e-5)


def test_flow_of_padded_frames() -> None:
    class Copies(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return first, torch.cat([first[:, :1], second[:, 1:2]], dim=1)

    video = texture(2, 122, 131, "net")
    found = optical_flow(Copies(), CPU)(video[:1], video[1:])
    padded = np.pad(video, ((0, 0), (3, 3), (2, 3), (0, 0)), "edge")
    assert np.array_equal(found[0], np.stack([padded[0, ..., 0], padded[1, ..., 1]]))


@pytest.mark.parametrize("portion", [1, 7, 40])
def test_ends_of_stretches_both_ways(portion: int) -> None:
    video = texture(40, 32, 40, "portions")
    spans = [(0, 16), (16, 32), (24, 40), (0, 40)]
    index, values = noted(EndsMotionObserver(_shift, spans, 3, STATIC_SHARE), video, portion)
    pairs = [pair for start, stop in spans for pair in ((start, stop - 1), (stop - 1, start))]
    assert index == list(range(8))
    flows = [_shift(video[a : a + 1], video[b : b + 1])[0] for a, b in pairs]
    assert values[:, 0].tolist() == [strongest_motion(flow, STATIC_SHARE) for flow in flows]
