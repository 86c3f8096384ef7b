"""Figures as people read them."""

from __future__ import annotations

import math

import pytest

from pipeline.figures import count, duration, rate, share, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (4.24, "4.2 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"),
        (335.0, "5 min 35 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h"), (7800.0, "2 h 10 min"),
        (86_399.0, "1 d"), (90_000.0, "1 d 1 h"), (33_530_400.0, "388 d 2 h"), (-70.0, "-1 min 10 s"),
        (None, "?"), (math.inf, "?"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"), (812, "812 B"), (1000, "1.0 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
        (2.6e9, "2.6 GB"), (80_363_162_880, "80.4 GB"), (99.94e9, "99.9 GB"), (99.96e9, "100 GB"), (5e21, "5000 EB"),
    ],
)  # fmt: skip
def test_sizes(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 3, "0 %"), (1, 3, "33 %"), (41, 100, "41 %"), (1, 1000, "0.1 %"), (9999, 10_000, "99.9 %"), (3, 3, "100 %"),
        (0, 0, "100 %"), (29, 100, "29 %"),
    ],
)  # fmt: skip
def test_shares_say_all_of_it_only_for_all_of_it(part: float, whole: float, text: str) -> None:
    assert share(part, whole) == text


def test_counts_and_rates() -> None:
    assert count(12_345.4) == "12,345"
    assert rate(12.34 / 3600, "videos") == "12.3 videos/h"
    assert rate(4200 / 3600, "videos") == "4,200 videos/h"
    assert rate(0.05 / 3600, "videos") == "0.05 videos/h"
