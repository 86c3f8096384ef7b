"""Which latents guide a window: by the formula, always earlier, distinct, ascending."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miga.guidance import guidance_indices


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.integers(0, 20), st.integers(1, 16))
def test_earlier_distinct_ascending_and_within_reach(start: int, count: int, width: int) -> None:
    chosen = guidance_indices(start, count, width)
    if start < count:
        assert chosen == ()
        return
    assert len(chosen) == count
    assert list(chosen) == sorted(set(chosen))
    if count:
        assert max(0, start - count * width) <= chosen[0]
        assert chosen[-1] < start
        assert len({b - a for a, b in itertools.pairwise(chosen)}) <= 1, "uniformly spaced"


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), st.integers(1, 20), st.integers(2, 16))
def test_by_the_formula(start: int, count: int, width: int) -> None:
    if start < count:
        return
    far = [start - (width // 2 + j * width) for j in range(count - 1, -1, -1)]
    near = [start - (j + 1) * (start // count) for j in range(count - 1, -1, -1)]
    assert list(guidance_indices(start, count, width)) == (far if start >= count * width else near)


@pytest.mark.parametrize(
    ("start", "count", "width", "expected"),
    [
        (40, 4, 7, (16, 23, 30, 37)),  # Wan's settings: the middle of each of the last four groups
        (28, 4, 7, (4, 11, 18, 25)),
        (27, 4, 7, (3, 9, 15, 21)),  # less room than four groups: as far apart as fits
        (10, 4, 7, (2, 4, 6, 8)),
        (4, 4, 7, (0, 1, 2, 3)),
        (3, 4, 7, ()),
        (24, 6, 4, (2, 6, 10, 14, 18, 22)),  # VideoCrafter2's settings
        (9, 3, 1, (6, 7, 8)),  # no zigzag: the latents right before
        (5, 0, 7, ()),
    ],
)
def test_written_out(start: int, count: int, width: int, expected: tuple[int, ...]) -> None:
    assert guidance_indices(start, count, width) == expected
