"""Which workers have nothing to do, and which hosts they are lent to. Pure; each step costs O(log workers).

A *host* makes a video; a *helper* is a worker without a video of its own that computes single windows for a host. A
helper goes to the host that needs it most: the one with the most work left per speed of those who are at it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

_SLACK: Final = 64
"""Outdated entries that a heap may hold beyond its valid ones before it is built anew."""


class IdleWorkers:
    """Workers that may take a row, the fastest first; of equally fast ones the one that has waited longest."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._stamps: dict[str, int] = {}
        self._next_stamp = 0

    def __len__(self) -> int:
        return len(self._stamps)

    def __contains__(self, worker: str) -> bool:
        return worker in self._stamps

    def __iter__(self) -> Iterator[str]:
        return iter(self._stamps)

    def add(self, worker: str, speed: float) -> None:
        """`worker` has nothing to do from now on."""
        self._next_stamp += 1
        self._stamps[worker] = self._next_stamp
        heapq.heappush(self._heap, (-speed, self._next_stamp, worker))

    def discard(self, worker: str) -> None:
        """`worker` is no longer to be had."""
        if self._stamps.pop(worker, None) is not None and len(self._heap) > 2 * len(self._stamps) + _SLACK:
            self._heap = [entry for entry in self._heap if self._stamps.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def take(self, excluded: Collection[str] = ()) -> str | None:
        """Takes out the fastest worker that is not one of the excluded; None if there is none."""
        passed: list[tuple[float, int, str]] = []
        found: str | None = None
        while found is None and self._heap:
            entry = heapq.heappop(self._heap)
            if self._stamps.get(entry[2]) != entry[1]:
                continue
            if entry[2] in excluded:
                passed.append(entry)
            else:
                found = entry[2]
                del self._stamps[found]
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found


@dataclass
class _Host:
    """A worker that makes a video.

    Attributes:
        work: of the whole video, in the unit of `work_of`.
        share: of it that is done.
        speed: of the host and its helpers together.
        most: helpers that the video has windows for.
        helpers: name → speed.
        stamp: of its valid entry in the heap; 0 if it has none.
    """

    work: float
    share: float
    speed: float
    most: int
    helpers: dict[str, float] = field(default_factory=dict)
    stamp: int = 0

    @property
    def need(self) -> float:
        """Time that the rest takes with the helpers it has."""
        return max(0.0, 1.0 - self.share) * self.work / self.speed


class Lending:
    """Hosts and their helpers.

    The heap holds at most one valid entry a host. Its key may be too high, for progress and new helpers only lower the
    need: it is put right when the entry comes to the top, so an event of progress costs nothing here.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._host_of: dict[str, str] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._next_stamp = 0

    def start(self, host: str, *, work: float, share: float, speed: float, parallelism: int) -> None:
        """`host` begins a video of so much work, `share` of it done, with windows for `parallelism` workers at once."""
        self._hosts[host] = _Host(work, share, speed, parallelism - 1)
        self._queue(host)

    def progress(self, host: str, share: float) -> None:
        """So much of the host's video is done."""
        found = self._hosts[host]
        found.share = max(found.share, share)

    def close(self, host: str) -> None:
        """The host gets no more helpers: it is about to end."""
        self._hosts[host].most = 0

    def end(self, host: str) -> tuple[str, ...]:
        """The host makes nothing any more; returns its helpers, which are free."""
        helpers = tuple(self._hosts.pop(host).helpers)
        for helper in helpers:
            del self._host_of[helper]
        return helpers

    def neediest(self) -> str | None:
        """The host that a helper shortens most; None if none has windows for another."""
        while self._heap:
            key, stamp, name = self._heap[0]
            host = self._hosts.get(name)
            if host is None or host.stamp != stamp:
                heapq.heappop(self._heap)
            elif len(host.helpers) >= host.most or host.need <= 0:
                heapq.heappop(self._heap)
                host.stamp = 0
            elif host.need < -key:
                heapq.heapreplace(self._heap, (-host.need, stamp, name))
            else:
                return name
        return None

    def lend(self, host: str, helper: str, speed: float) -> None:
        """`helper` works for `host` from now on."""
        found = self._hosts[host]
        found.helpers[helper] = speed
        found.speed += speed
        self._host_of[helper] = host

    def take_back(self, helper: str) -> str:
        """`helper` works for nobody any more; returns whom it worked for."""
        name = self._host_of.pop(helper)
        host = self._hosts[name]
        host.speed -= host.helpers.pop(helper)
        self._queue(name)
        return name

    def least_missed(self, helpers: Iterable[str]) -> str | None:
        """Of these helpers the one whose host needs it least."""
        return min(helpers, key=lambda helper: self._hosts[self._host_of[helper]].need, default=None)

    def host_of(self, helper: str) -> str:
        """Whom the helper works for."""
        return self._host_of[helper]

    def helpers(self, host: str) -> tuple[str, ...]:
        """The helpers of a host, in the order in which they came."""
        return tuple(self._hosts[host].helpers)

    def _queue(self, name: str) -> None:
        host = self._hosts[name]
        if len(host.helpers) >= host.most or host.need <= 0:
            return
        self._next_stamp += 1
        host.stamp = self._next_stamp
        heapq.heappush(self._heap, (-host.need, host.stamp, name))
        if len(self._heap) > 2 * len(self._hosts) + _SLACK:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def _is_valid(self, entry: tuple[float, int, str]) -> bool:
        host = self._hosts.get(entry[2])
        return host is not None and host.stamp == entry[1]
