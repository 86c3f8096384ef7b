from __future__ import annotations

import json

import pytest

from pipeline.scheduling.estimate import CostModel, estimate_run


def test_sums_and_bases() -> None:
    cost = CostModel(seconds_per_call=2.0, bytes_per_second=1000, fps=10, num_workers=4, seconds_per_frame=0.1)
    result = estimate_run({100: 6, 200: 2}, lambda n: (n, 2 * n), cost, bad_rows=1)
    assert result["videos"] == 8
    assert result["bad_rows"] == 1
    assert (result["network_calls"], result["network_calls_max"]) == (1000, 2000)
    assert result["estimated_hours"] == pytest.approx((2000 + 100) / 4 / 3600)
    assert result["estimated_hours_max"] == pytest.approx((4000 + 100) / 4 / 3600)
    assert result["estimated_bytes"] == 100_000
    json.dumps(result, allow_nan=False)


def test_calls_without_guidance_cost_less() -> None:
    """100 calls of 6 s with two forwards each are 600 s; with one forward in 40 of them, 480 s."""
    cost = CostModel(seconds_per_call=6.0, forwards_per_call=2, bytes_per_second=1, fps=10)
    result = estimate_run({10: 1}, lambda n: (100, 200), cost, forwards_of=lambda n: (160, 360))
    assert (result["network_calls"], result["network_calls_max"]) == (100, 200)
    assert (result["network_forwards"], result["network_forwards_max"]) == (160, 360)
    assert result["estimated_hours"] * 3600 == pytest.approx(480)
    assert result["estimated_hours_max"] * 3600 == pytest.approx(360 * 3)
    assert "6 s a call of two forwards" in result["basis"]["estimated_hours"]


def test_one_video_is_not_shared_among_workers() -> None:
    cost = CostModel(seconds_per_call=1, bytes_per_second=1, fps=1, num_workers=100)
    assert estimate_run({10: 1}, lambda n: 3600, cost)["estimated_hours"] == pytest.approx(1)
    assert estimate_run({10: 1, 11: 99}, lambda n: 3600 if n == 10 else 1, cost)["estimated_hours"] == pytest.approx(1)


def test_nothing_to_do_costs_nothing() -> None:
    result = estimate_run({}, lambda n: n, CostModel(seconds_per_call=1, bytes_per_second=1, fps=1))
    assert (result["videos"], result["network_calls"], result["estimated_hours"], result["estimated_bytes"]) == (0,) * 4


@pytest.mark.parametrize("values", [{"num_workers": 0}, {"fps": 0}, {"seconds_per_call": -1}, {"forwards_per_call": 0}])
def test_senseless_costs(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot be"):
        CostModel(**({"seconds_per_call": 1, "bytes_per_second": 1, "fps": 1} | values))  # type: ignore[arg-type]
