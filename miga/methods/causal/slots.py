"""Which latent is in which slot of a cache, and who leaves when room is needed. Integers only.

A policy is a few lines: it is told that so many latents are to come, and makes room for them.

Legend: S, R, N and C as in Deep Forcing: latents of its sink, its recent ones, those kept in all, those in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from miga.cached_call import Compression


class Blend(Protocol):
    """`KvCache.blend`."""

    def __call__(self, into: Sequence[int], evicted: Sequence[int], keep: float) -> None:
        """See there."""
        ...


@dataclass
class SlotTable:
    """Cached latents in the order in which they are read, and the slots that are free.

    Args:
        num_slots: of the cache.

    Attributes:
        slots: of the cached latents, oldest first.
        latents: index in the video of each.
    """

    num_slots: int
    slots: list[int] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.slots)

    def free(self, count: int) -> tuple[int, ...]:
        """The first free slots; they stay free."""
        taken = set(self.slots)
        found = [slot for slot in range(self.num_slots) if slot not in taken][:count]
        assert len(found) == count, f"{count} slots wanted, {len(found)} of {self.num_slots} are free"
        return tuple(found)

    def put(self, slots: Sequence[int], first: int) -> None:
        """Latents from `first` on are in those slots."""
        self.slots += slots
        self.latents += range(first, first + len(slots))

    def drop(self, start: int, stop: int) -> tuple[int, ...]:
        """Those at places `start ... stop - 1` leave; their slots."""
        dropped = tuple(self.slots[start:stop])
        del self.slots[start:stop], self.latents[start:stop]
        return dropped


class Policy(Protocol):
    """Makes room in a cache."""

    def make_room(self, table: SlotTable, count: int, blend: Blend) -> Compression | None:
        """For `count` latents more, before they are first denoised.

        Returns:
            What the next call does in every layer, if more than slots is decided on there.
        """
        ...


@dataclass(frozen=True)
class Window:
    """The oldest leave once there are more than `size`, those being made included; the first `sink` never do."""

    size: int
    sink: int

    def make_room(self, table: SlotTable, count: int, blend: Blend) -> None:
        """See `Policy`."""
        if (excess := len(table) + count - self.size) > 0:
            table.drop(self.sink, self.sink + excess)


@dataclass(frozen=True)
class EmaSink:
    """A window whose sink remembers what leaves: `sink <- alpha * sink + (1 - alpha) * evicted`.

    Source: Reward Forcing.
    """

    size: int
    sink: int
    alpha: float

    def make_room(self, table: SlotTable, count: int, blend: Blend) -> None:
        """See `Policy`."""
        if (excess := len(table) + count - self.size) > 0:
            evicted = table.drop(self.sink, self.sink + excess)
            blend(table.slots[: len(evicted)], evicted, self.alpha)


@dataclass(frozen=True)
class Compressed:
    """A full window is compressed to `kept` latents: its sink, the tokens most looked at, its recent ones.

    Source: Deep Forcing's deep sink and participative compression. All counts include the block being made, and so
    do the recent ones: that is our reading.
    """

    size: int
    sink: int
    kept: int
    recent: int

    def make_room(self, table: SlotTable, count: int, blend: Blend) -> Compression | None:
        """See `Policy`."""
        if len(table) + count <= self.size:
            return None
        num_past = max(0, self.recent - count)
        stop = len(table) - num_past
        candidates = tuple(table.slots[self.sink : stop])
        num_top = self.kept - self.recent - self.sink
        table.drop(self.sink + num_top, stop)
        return Compression(candidates, tuple(table.slots[self.sink : self.sink + num_top]), num_past)


def flush(table: SlotTable, first: int, last: int) -> None:
    """All but the `first` and the `last` cached latents leave. Source: Infinity-RoPE's KV flush."""
    table.drop(min(first, len(table)), max(first, len(table) - last))
