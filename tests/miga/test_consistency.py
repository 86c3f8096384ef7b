"""The consistency score against Eq. 5-7 written out."""

from __future__ import annotations

import math

import pytest
import torch

from miga.consistency import ConsistencyMeter, consistency_score


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written_out(judged: torch.Tensor, reference: torch.Tensor) -> float:
    total = 0.0
    for a in judged:
        for b in reference:
            u, v = a.mean(0).flatten().tolist(), b.mean(0).flatten().tolist()
            dot = sum(x * y for x, y in zip(u, v, strict=True))
            total += dot / math.hypot(*u) / math.hypot(*v)
    return total / len(judged) / len(reference)


def test_equations_5_to_7() -> None:
    judged, reference = randn(3, 4, 5, 6, seed=1), randn(7, 4, 5, 6, seed=2)
    assert consistency_score(judged, reference) == pytest.approx(written_out(judged, reference), abs=1e-6)


def test_range_and_extremes() -> None:
    x = randn(1, 4, 5, 6)
    assert consistency_score(x, 3.0 * x) == pytest.approx(1.0, abs=1e-6)
    assert consistency_score(x, -x) == pytest.approx(-1.0, abs=1e-6)
    assert abs(consistency_score(randn(8, 4, 32, 32, seed=3), randn(8, 4, 32, 32, seed=4))) < 0.05
    assert consistency_score(torch.zeros(2, 4, 5, 6), x) == 0.0


def test_each_latent_counts_the_same_however_strong() -> None:
    """Every latent is normalised by itself, not the average over latents."""
    judged, reference = randn(2, 4, 5, 6, seed=1), randn(3, 4, 5, 6, seed=2)
    stronger = judged * torch.tensor([1.0, 50.0])[:, None, None, None]
    assert consistency_score(stronger, reference) == pytest.approx(consistency_score(judged, reference), abs=1e-6)


def test_half_precision_is_scored_in_float32() -> None:
    judged, reference = randn(2, 4, 5, 6, seed=1).bfloat16(), randn(3, 4, 5, 6, seed=2).bfloat16()
    assert consistency_score(judged, reference) == pytest.approx(
        written_out(judged.float(), reference.float()), abs=1e-6
    )


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 50])
def test_meter_scores_every_four_against_the_eight_before(chunk: int) -> None:
    x = randn(31, 4, 2, 3)
    meter = ConsistencyMeter()
    for part in x.split(chunk):
        meter.add(part)
    expected = [consistency_score(x[i : i + 4], x[i - 8 : i]) for i in (8, 12, 16, 20, 24)]
    assert meter.scores == expected
