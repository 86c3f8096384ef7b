"""What each network is shown, against tensors of VBench's own transforms."""

from __future__ import annotations

import numpy as np
import pytest

from miga.evaluation import preprocessing
from tests.miga.evaluation.filled import texture
from tests.miga.evaluation.recorded import arrays, figures

ARRAYS, STATISTICS = arrays("preprocessing"), figures("preprocessing")
KINDS = ("dino", "clip", "dinov2", "dreamsim", "imaging")


@pytest.mark.parametrize(
    "size", ["480x832", "144x176", *(pytest.param(size, marks=pytest.mark.slow) for size in ("320x512", "832x480"))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_as_a_network_takes_it(kind: str, size: str) -> None:
    height, width = map(int, size.split("x"))
    frames = preprocessing.as_tensor(texture(1, height, width, "prep"))
    found = getattr(preprocessing, kind)(frames)[0].numpy()
    wanted = STATISTICS[f"{size}/{kind}"]
    assert list(found.shape) == wanted["shape"]
    assert found.mean() == pytest.approx(wanted["mean"], abs=1e-4)
    for name, value in (("abs_mean", np.abs(found).mean()), ("min", found.min()), ("max", found.max())):
        if name in wanted:
            assert value == pytest.approx(wanted[name], abs=1e-4)
    if f"{size}/{kind}" in ARRAYS:
        assert np.abs(found[:, ::14, ::14] - ARRAYS[f"{size}/{kind}"]).max() < 1e-4


def test_sizes() -> None:
    for height, width, wanted in STATISTICS["shorter_side_224_sizes"]:
        assert list(preprocessing.shorter_side_size(height, width)) == wanted
    for height, width, mode, wanted in figures("formulas")["imaging_resize"]:
        assert list(preprocessing.imaging_size(height, width, mode)) == wanted


@pytest.mark.parametrize(("size", "multiple", "sides"), [((135, 150), 16, (5, 5, 4, 5)), ((120, 160), 8, (0, 0, 0, 0))])
def test_padding_repeats_the_edge(size: tuple[int, int], multiple: int, sides: tuple[int, ...]) -> None:
    frames = preprocessing.as_tensor(texture(1, *size, "prep"))
    found, added = preprocessing.padded(frames, multiple)
    assert added == sides
    left, right, top, bottom = sides
    wanted = np.pad(frames.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), "edge")
    assert np.array_equal(found.numpy(), wanted)
