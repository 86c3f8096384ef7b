"""The plan of a pass: which windows cover a queue, what each sees and what it keeps. Integers only.

Source: MIGA Alg. 3 and Alg. 7; decisions/0001 (which of the readings, and why).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from miga.guidance import Sources, even_choice, source_indices


class Window(NamedTuple):
    """One call of the network; every number is a position in the queue.

    Attributes:
        guidance: earlier latents put before the local part; their outputs are dropped.
        start, stop: the local part, half open.
        keep_start, keep_stop: the latents whose outputs are kept, within the local part.
        anchors: latents beside the queue that are put before all others, by their number there; dropped too.
    """

    guidance: tuple[int, ...]
    start: int
    stop: int
    keep_start: int
    keep_stop: int
    anchors: tuple[int, ...] = ()

    @property
    def positions(self) -> list[int]:
        """Positions of the latents of the queue that the network sees, in order; anchors stand before them."""
        return [*self.guidance, *range(self.start, self.stop)]

    def indices(self, first: int) -> list[int]:
        """Index in the video of every latent that the network sees, in a queue whose head is latent `first`."""
        return [first + position for position in self.positions]

    @property
    def kept(self) -> slice:
        """Where the kept latents stand among those of the queue that the network sees."""
        offset = len(self.guidance) - self.start
        return slice(self.keep_start + offset, self.keep_stop + offset)

    def shifted(self, by: int) -> Window:
        """The same window where every position is counted from another latent."""
        guidance = tuple(position + by for position in self.guidance)
        return self._replace(
            guidance=guidance,
            start=self.start + by,
            stop=self.stop + by,
            keep_start=self.keep_start + by,
            keep_stop=self.keep_stop + by,
        )

    def keeping_from(self, position: int) -> Window:
        """The same window, where nothing before a position is kept."""
        return self._replace(keep_start=max(self.keep_start, position))


class Stretch(NamedTuple):
    """Latents of a queue that stand under one prompt, and what windows that begin there may be shown from further back.

    Attributes:
        start: position of the first; the stretch ends where the next one starts.
        own: position from which on head and spread guidance may come.
        anchors: number of the first anchor, and of the one behind the last.
    """

    start: int = 0
    own: int = 0
    anchors: tuple[int, int] = (0, 0)


def tile(num_latents: int, capacity: int, stride: int, offset: int = 0) -> Iterator[tuple[int, int, int]]:
    """Starts and kept ranges that keep every latent of a queue exactly once.

    Windows keep their first latents: the noisier ones behind are context. The last one keeps all of its own, so the
    one before it is cut.

    Args:
        num_latents: length of the queue, more than `capacity`.
        capacity: local latents of a window.
        stride: latents kept of a window.
        offset: where the first stride starts (the border offset), less than `stride`.

    Yields:
        (start, keep_start, keep_stop) per window, in order.
    """
    last = num_latents - capacity
    starts = [0] if offset else []
    starts += range(offset, last, stride)
    borders = [*(start for start in starts if start < last), last]
    for start, end in zip(borders, [*borders[1:], num_latents], strict=True):
        yield start, start, end


@functools.lru_cache(maxsize=4096)
def plan_pass(
    num_latents: int,
    window: int,
    stride: int,
    num_guidance: int = 0,
    zigzag_width: int = 1,
    offset: int = 0,
    lead: int = 0,
    sources: Sources | None = None,
    stretches: tuple[Stretch, ...] = (Stretch(),),
) -> tuple[Window, ...]:
    """The windows of one pass over a queue.

    How many there are, where they start and what they keep depends on the first seven alone.

    Args:
        num_latents: length of the queue.
        window: `f0`, latents that the network takes.
        stride: `S`, latents kept per window.
        num_guidance: `m`, guidance latents of a window that has that many before it.
        zigzag_width: `L_zig`, the spacing of the guidance latents.
        offset: border offset, 0 for the paper's plan.
        lead: latents of context put before a window that starts behind the head and has no guidance.
        sources: where the guidance latents come from, `num_guidance` in all; None: all of them the nearest.
        stretches: by prompt, in order; the first starts at or before the head.

    Returns:
        Windows in order; together they keep every latent exactly once.
    """
    sources = sources or Sources(nearest=num_guidance)
    if num_latents <= window:
        anchors = _anchors(stretches[0], min(sources.anchors, window - num_latents))
        return (Window((), 0, num_latents, 0, num_latents, anchors),)
    capacity = window - max(num_guidance, lead)
    plan = []
    for start, keep_start, keep_stop in tile(num_latents, capacity, stride, offset):
        stretch = next(each for each in reversed(stretches) if each.start <= start)
        anchors = _anchors(stretch, sources.anchors)
        guidance = source_indices(start, sources.lacking(len(anchors)), zigzag_width, stretch.own)
        if start and not guidance and not anchors:
            guidance = tuple(range(start - lead, start))
        stop = min(num_latents, start + window - len(anchors) - len(guidance))
        plan.append(Window(guidance, start, stop, keep_start, keep_stop, anchors))
    assert_partition(plan, num_latents)
    return tuple(plan)


def _anchors(stretch: Stretch, num_wanted: int) -> tuple[int, ...]:
    """Numbers of the anchors that a window of a stretch is shown."""
    first, stop = stretch.anchors
    return tuple(first + number for number in even_choice(stop - first, min(num_wanted, stop - first)))


def plan_streamed(
    num_latents: int | None, window: int, stride: int, offset: int = 0, lead: int = 0, *, skip: int = 0
) -> Iterator[Window]:
    """The windows of a pass of Stage 2, which has no long-range guidance, one by one.

    Args:
        num_latents: length of the video; None if it has no end (and so no last window).
        window: `f0`.
        stride: `S`.
        offset: border offset, taken as 0 where less than a window would be left behind it.
        lead: latents of context put before every window but the first; it sees as many fewer of its own.
        skip: windows that are left out before the first, at no cost.

    Yields:
        Windows in order, positions counted from the video's first latent; `num_latents` known, they are exactly those
        of a pass over the whole queue.
    """
    if num_latents is not None and num_latents <= window:
        if not skip:
            yield Window((), 0, num_latents, 0, num_latents)
        return
    if num_latents is not None and num_latents - offset < window - lead:
        offset = 0
    last = None if num_latents is None else num_latents - (window - lead)  # the last window's first latent
    for number in itertools.count(skip):
        start, end = (_border(place, stride, offset) for place in (number, number + 1))
        if last is not None and num_latents is not None and start >= last:
            if number and _border(number - 1, stride, offset) >= last:
                return
            start, end = last, num_latents
        elif last is not None:
            end = min(end, last)
        before = tuple(range(start - lead, start)) if start else ()
        stop = start + window - len(before)
        yield Window(before, start, stop if num_latents is None else min(stop, num_latents), start, end)


def _border(number: int, stride: int, offset: int) -> int:
    """Where a window begins in a pass without end; before a border offset there is one window more."""
    return max(0, offset + (number - 1) * stride) if offset else number * stride


@functools.lru_cache(maxsize=64)
def plan_lookahead(num_context: int, num_latents: int, window: int, stride: int) -> tuple[Window, ...]:
    """FIFO-Diffusion's plan: windows over context and queue together keep their right half.

    Args:
        num_context: clean latents before the head, about half a window.
        num_latents: length of the queue.
        window: `f0`.
        stride: latents kept per window.

    Returns:
        Windows whose positions count the context too; they keep positions `num_context ...` exactly once.
    """
    total = num_context + num_latents
    plan = []
    for keep_start in range(num_context, total, stride):
        start = max(0, min(keep_start - num_context, total - window))
        plan.append(Window((), start, min(total, start + window), keep_start, min(total, keep_start + stride)))
    assert_partition(plan, total, num_context)
    return tuple(plan)


def assert_partition(plan: Sequence[Window], num_latents: int, first: int = 0) -> None:
    """Every position from `first` on is kept exactly once, by a window that sees it."""
    expected = first
    for window in plan:
        assert window.keep_start == expected, f"kept twice or never at {expected}: {plan}"
        assert window.start <= window.keep_start < window.keep_stop <= window.stop, (
            f"keeps what it cannot see: {window}"
        )
        expected = window.keep_stop
    assert expected == num_latents, f"kept {expected} of {num_latents}: {plan}"
