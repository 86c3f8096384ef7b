"""Long-range guidance: which earlier, cleaner latents a window is shown.

Source: MIGA Eq. 8 and Alg. 7, "uniformly sample m_guid latents from the min(m_guid * L_zig, l - 1) before l"
(`nearest`); section 3.3, "latents at the head of the queue" (`head`); decisions/0012.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple


class Sources(NamedTuple):
    """How many guidance latents of a window come from where.

    Attributes:
        anchors: finished latents that are kept beside the queue.
        head: from the queue's head, its cleanest.
        spread: evenly from the head to the window.
        nearest: right before the window, as in Eq. 8.
    """

    anchors: int = 0
    head: int = 0
    spread: int = 0
    nearest: int = 0

    @property
    def in_queue(self) -> int:
        """Those that come from the queue."""
        return self.head + self.spread + self.nearest

    def lacking(self, num_anchors: int) -> Sources:
        """The same where only so many anchors are there: the nearest latents make up for the others."""
        held = min(self.anchors, num_anchors)
        return self._replace(anchors=held, nearest=self.nearest + self.anchors - held)


SOURCES: Final = Sources._fields
MOST: Final = 4096
"""Of a number in such a text; a window holds no more."""


def parse_sources(text: str, num_guidance: int) -> Sources:
    """What a text such as "nearest", "head:1,nearest:2" or "head:1,nearest" stands for.

    Args:
        text: sources with a number each; one of them may stand without, and takes the rest.
        num_guidance: `m_guid`, guidance latents in all.

    Raises:
        ValueError: saying what is wrong with it.
    """
    counts: dict[str, int | None] = {}
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if name not in SOURCES:
            raise ValueError(f"{name!r} is none of {', '.join(SOURCES)}")
        if name in counts:
            raise ValueError(f"{name!r} stands there twice")
        if colon and not (number.isdecimal() and number.isascii() and len(number) <= 4 and int(number) <= MOST):
            raise ValueError(f"{number!r} is no number of latents")
        counts[name] = int(number) if colon else None
    said = sum(count for count in counts.values() if count is not None)
    open_names = [name for name, count in counts.items() if count is None]
    if len(open_names) > 1:
        raise ValueError(f"{' and '.join(open_names)} stand without a number: one source may, and takes the rest")
    if said > num_guidance or (said < num_guidance and not open_names):
        raise ValueError(f"these are {said} latents, and num_guidance_latents = {num_guidance}")
    return Sources(**{name: num_guidance - said if count is None else count for name, count in counts.items()})


def guidance_indices(start: int, num_guidance: int, zigzag_width: int) -> tuple[int, ...]:
    """Positions of the nearest guidance latents of a window, ascending. Source: Eq. 8.

    With room for it, one from the middle of each of the last `num_guidance` groups; nearer the head, as far apart as
    there is room. At `zigzag_width` 1 the middle of a group would be the window's own first latent, so the
    latents right before it are taken.

    Args:
        start: position of the window's first local latent.
        num_guidance: `m_guid`.
        zigzag_width: `L_zig`.

    Returns:
        `num_guidance` positions below `start`; none if fewer latents stand before it.
    """
    if start < num_guidance:
        return ()
    if start >= num_guidance * zigzag_width:
        nearest, spacing = max(1, zigzag_width // 2), zigzag_width
    else:
        nearest = spacing = start // num_guidance
    return tuple(start - (nearest + back * spacing) for back in reversed(range(num_guidance)))


def head_indices(room: int, num_guidance: int, zigzag_width: int) -> tuple[int, ...]:
    """Positions of the guidance latents at the head, ascending: one from the middle of each of the first groups.

    With less room than that many groups, from the middle of as many equal parts of it, cut to whole latents.

    Args:
        room: latents before the window.
        num_guidance: how many; at most `room`.
        zigzag_width: `L_zig`.
    """
    spacing = min(zigzag_width, room // max(1, num_guidance))
    return tuple(spacing // 2 + spacing * number for number in range(num_guidance))


def spread_indices(room: int, num_guidance: int) -> tuple[int, ...]:
    """Positions from the middle of `num_guidance` equal parts of the latents before a window, ascending.

    Args:
        room: latents before the window.
        num_guidance: how many; at most `room`.
    """
    return tuple((2 * number + 1) * room // (2 * num_guidance) for number in range(num_guidance))


def even_choice(count: int, num_wanted: int) -> tuple[int, ...]:
    """Of `count` things in a row, `num_wanted` evenly: the first and the last are among them; of one alone, the first.

    Args:
        count: how many there are.
        num_wanted: at most as many.
    """
    return tuple(number * (count - 1) // max(1, num_wanted - 1) for number in range(num_wanted))


def source_indices(start: int, sources: Sources, zigzag_width: int, own: int = 0) -> tuple[int, ...]:
    """Positions of the guidance latents that a window takes from the queue, ascending.

    A latent that two sources ask for is given to the first of head, spread, nearest; the other takes the free one
    closest to it, of two the later. Where fewer latents stand behind `own` than head and spread ask for, the nearest
    make up for them.

    Args:
        start: position of the window's first local latent.
        sources: how many from where.
        zigzag_width: `L_zig`.
        own: position from which on head and spread are taken (that of the first latent under the window's prompt).

    Returns:
        `sources.in_queue` positions below `start`; none if fewer latents stand before it.
    """
    if start < sources.in_queue:
        return ()
    room = max(0, start - own)
    num_head = min(sources.head, room)
    num_spread = min(sources.spread, room - num_head)
    num_nearest = sources.in_queue - num_head - num_spread
    wanted = [
        *(own + position for position in head_indices(room, num_head, zigzag_width)),
        *(own + position for position in spread_indices(room, num_spread)),
        *reversed(guidance_indices(start, num_nearest, zigzag_width)),
    ]
    taken: set[int] = set()
    for position in wanted:
        free = (other for other in range(start) if other not in taken)
        taken.add(min(free, key=lambda other: (abs(other - position), -other)))
    return tuple(sorted(taken))


def told_positions(places: Sequence[int], max_gap: int) -> tuple[int, ...]:
    """Positions in time that a network is told of the latents of a window, from 0 on.

    Args:
        places: index in the video of each; those before the window's own may repeat or run back.
        max_gap: two neighbours lie as far apart as they do in the video, at most so far and at least 1.
    """
    positions = [0]
    for before, place in itertools.pairwise(places):
        positions.append(positions[-1] + min(max(1, place - before), max_gap))
    return tuple(positions)


def is_contiguous(positions: Iterable[int]) -> bool:
    """Whether they are 0, 1, 2, …"""
    return all(position == number for number, position in enumerate(positions))
