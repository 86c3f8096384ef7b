"""The plan of a pass: every latent kept exactly once, whatever the settings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miga.windows import Window, assert_partition, plan_lookahead, plan_pass, plan_streamed, tile


@dataclass(frozen=True)
class PassSettings:
    num_latents: int
    window: int
    stride: int
    num_guidance: int
    zigzag_width: int
    offset: int

    def plan(self) -> list[Window]:
        return [
            *plan_pass(self.num_latents, self.window, self.stride, self.num_guidance, self.zigzag_width, self.offset)
        ]


@st.composite
def admitted(draw: st.DrawFn) -> PassSettings:
    """All that a config admits: a guided window still holds its stride of local latents."""
    window = draw(st.integers(2, 24))
    stride = draw(st.integers(1, window))
    return PassSettings(
        num_latents=draw(st.integers(1, 160)),
        window=window,
        stride=stride,
        num_guidance=draw(st.integers(0, window - stride)),
        zigzag_width=draw(st.sampled_from([width for width in range(1, window + 1) if window % width == 0])),
        offset=draw(st.integers(0, stride - 1)),
    )


def kept_positions(plan: list[Window]) -> list[int]:
    """Read as a pass reads it: through `positions` and `kept`."""
    return [position for window in plan for position in window.positions[window.kept]]


@settings(max_examples=150, deadline=None)
@given(admitted())
def test_every_latent_is_kept_exactly_once(chosen: PassSettings) -> None:
    assert kept_positions(chosen.plan()) == list(range(chosen.num_latents))


@settings(max_examples=150, deadline=None)
@given(admitted())
def test_what_a_window_sees_and_keeps(chosen: PassSettings) -> None:
    plan = chosen.plan()
    for number, window in enumerate(plan):
        assert 1 <= len(window.positions) <= chosen.window
        assert len(set(window.positions)) == len(window.positions)
        assert min(window.positions) >= 0
        assert max(window.positions) < chosen.num_latents
        assert window.keep_start == window.start, "the first of the local part are kept"
        if number < len(plan) - 1:
            assert window.keep_stop - window.keep_start <= chosen.stride
        assert list(window.guidance) == sorted(window.guidance)
        assert all(position < window.start for position in window.guidance)
        assert len(window.guidance) in (0, chosen.num_guidance)
    assert plan[-1].stop == plan[-1].keep_stop == chosen.num_latents


@settings(max_examples=150, deadline=None)
@given(admitted())
def test_guidance_stands_before_every_window_that_has_room_for_it(chosen: PassSettings) -> None:
    plan = chosen.plan()
    if chosen.num_latents <= chosen.window:
        assert plan == [Window((), 0, chosen.num_latents, 0, chosen.num_latents)]
        return
    for window in plan:
        guided = chosen.num_guidance > 0 and window.start >= chosen.num_guidance
        assert bool(window.guidance) == guided
        local = chosen.window - chosen.num_guidance if guided else chosen.window
        assert window.stop == min(chosen.num_latents, window.start + local)
    assert plan[-1].start == chosen.num_latents - (chosen.window - chosen.num_guidance)


@settings(max_examples=150, deadline=None)
@given(admitted())
def test_number_of_windows_is_that_of_the_paper(chosen: PassSettings) -> None:
    """Alg. 7, line 6: n_iter = ceil((L - f0 + m) / stride) + 1."""
    expected = 1
    if chosen.num_latents > chosen.window:
        expected = -(-(chosen.num_latents - chosen.window + chosen.num_guidance) // chosen.stride) + 1
    plan = [*plan_pass(chosen.num_latents, chosen.window, chosen.stride, chosen.num_guidance, chosen.zigzag_width)]
    assert len(plan) == expected


@st.composite
def with_lead(draw: st.DrawFn) -> tuple[PassSettings, int]:
    chosen = draw(admitted().filter(lambda chosen: chosen.stride < chosen.window))
    return chosen, 1


@settings(max_examples=150, deadline=None)
@given(with_lead())
def test_only_the_first_latent_is_kept_from_position_0_of_a_plain_window(chosen: tuple[PassSettings, int]) -> None:
    s, lead = chosen
    plan = [*plan_pass(s.num_latents, s.window, s.stride, s.num_guidance, s.zigzag_width, s.offset, lead)]
    assert kept_positions(plan) == list(range(s.num_latents))
    for window in plan:
        assert len(window.positions) <= s.window
        assert window.positions == sorted(window.positions)
        if window.start == 0:
            assert window.kept.start == 0
        elif window.start < s.num_guidance or s.num_guidance == 0:
            assert window.guidance == (window.start - 1,), "the one latent before"
            assert window.kept.start == 1
        else:
            assert window.kept.start == s.num_guidance >= lead
        full = window.stop == s.num_latents or len(window.positions) == s.window
        assert full, "a window is as long as the network's"


@settings(max_examples=150, deadline=None)
@given(admitted(), st.booleans())
def test_the_streamed_plan_is_that_of_the_whole_queue(chosen: PassSettings, lead: bool) -> None:
    room = chosen.window - lead
    if chosen.stride > room:
        return
    offset = chosen.offset if chosen.num_latents - chosen.offset >= room else 0
    whole = [*plan_pass(chosen.num_latents, chosen.window, chosen.stride, offset=offset, lead=int(lead))]
    of_pass = (chosen.window, chosen.stride, chosen.offset, int(lead))
    for skip in range(len(whole) + 2):
        assert list(plan_streamed(chosen.num_latents, *of_pass, skip=skip)) == whole[skip:]
    endless = list(
        itertools.islice(plan_streamed(None, chosen.window, chosen.stride, chosen.offset, int(lead)), len(whole))
    )
    assert_partition(endless, endless[-1].keep_stop)
    if chosen.num_latents - chosen.offset >= room + chosen.stride:
        alike = [window for window in whole if window.keep_stop <= chosen.num_latents - room]
        assert [(w.positions, w.start) for w in endless[: len(alike) - 1]] == [
            (w.positions, w.start) for w in alike[:-1]
        ], "it begins like that of a video with an end"


def test_a_plan_with_context_written_out() -> None:
    assert [*plan_pass(12, window=6, stride=3, lead=1)] == [
        Window((), 0, 6, 0, 3),
        Window((2,), 3, 8, 3, 6),
        Window((5,), 6, 11, 6, 7),
        Window((6,), 7, 12, 7, 12),
    ]
    assert [*plan_pass(13, window=6, stride=3, num_guidance=2, zigzag_width=3, offset=1, lead=1)] == [
        Window((), 0, 6, 0, 1),
        Window((0,), 1, 6, 1, 4),
        Window((0, 2), 4, 8, 4, 7),
        Window((3, 6), 7, 11, 7, 9),
        Window((5, 8), 9, 13, 9, 13),
    ]
    assert list(itertools.islice(plan_streamed(None, 6, 3, offset=2, lead=1), 3)) == [
        Window((), 0, 6, 0, 2),
        Window((1,), 2, 7, 2, 5),
        Window((4,), 5, 10, 5, 8),
    ]


def test_a_plan_written_out() -> None:
    assert [*plan_pass(13, window=6, stride=3, num_guidance=2, zigzag_width=2)] == [
        Window((), 0, 6, 0, 3),
        Window((1, 2), 3, 7, 3, 6),
        Window((3, 5), 6, 10, 6, 9),
        Window((6, 8), 9, 13, 9, 13),
    ]
    assert [*plan_pass(14, window=6, stride=3)][-2:] == [Window((), 6, 12, 6, 8), Window((), 8, 14, 8, 14)]
    assert [*plan_pass(6, window=6, stride=3, num_guidance=2)] == [Window((), 0, 6, 0, 6)]


def test_border_offset_shifts_all_borders_but_the_last() -> None:
    assert list(tile(20, capacity=6, stride=3)) == [
        (0, 0, 3),
        (3, 3, 6),
        (6, 6, 9),
        (9, 9, 12),
        (12, 12, 14),
        (14, 14, 20),
    ]
    assert list(tile(20, 6, 3, offset=2)) == [(0, 0, 2), (2, 2, 5), (5, 5, 8), (8, 8, 11), (11, 11, 14), (14, 14, 20)]
    assert list(tile(8, 6, 6, offset=5)) == [(0, 0, 2), (2, 2, 8)]


@st.composite
def lookahead(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Context of half a window, a stride no longer than the other half."""
    window = draw(st.integers(2, 24))
    return window // 2, draw(st.integers(1, 120)), window, draw(st.integers(1, window - window // 2))


@settings(max_examples=150, deadline=None)
@given(lookahead())
def test_lookahead_keeps_every_queued_latent_once_and_no_context(chosen: tuple[int, int, int, int]) -> None:
    num_context, num_latents, window, stride = chosen
    plan = [*plan_lookahead(num_context, num_latents, window, stride)]
    assert kept_positions(plan) == list(range(num_context, num_context + num_latents))
    for entry in plan:
        assert not entry.guidance
        assert 0 <= entry.start < entry.stop <= num_context + num_latents
        assert entry.stop - entry.start == min(window, num_context + num_latents)
        assert entry.keep_stop - entry.keep_start <= stride
        before = entry.keep_start - entry.start
        assert before >= num_context, "it keeps its right half: half a window of cleaner ones stands before"


def test_a_lookahead_plan_written_out() -> None:
    assert [*plan_lookahead(num_context=3, num_latents=8, window=6, stride=3)] == [
        Window((), 0, 6, 3, 6),
        Window((), 3, 9, 6, 9),
        Window((), 5, 11, 9, 11),
    ]


@pytest.mark.parametrize(
    "plan",
    [
        [Window((), 0, 4, 0, 3), Window((), 2, 6, 2, 6)],
        [Window((), 0, 4, 0, 3), Window((), 4, 6, 4, 6)],
        [Window((), 0, 4, 0, 4)],
        [Window((), 0, 4, 0, 6)],
    ],
    ids=["kept twice", "left out", "end left out", "kept unseen"],
)
def test_a_wrong_plan_is_caught(plan: list[Window]) -> None:
    with pytest.raises(AssertionError):
        assert_partition(plan, 6)
