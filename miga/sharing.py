"""What GPUs without a video of their own take of the videos of others, and which call is whose. Pure.

A *host* makes a video and has one GPU of its own; its *helpers* take calls of it. A host whose helpers take nothing but
candidates makes all other windows itself: while they grow the candidates of a search, it goes on with windows of
earlier passes and of Stage 2. It joins them only where it would have nothing to do.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Final, Generic, Literal, TypeAlias, TypeVar, get_args

Share: TypeAlias = Literal["windows", "candidates", "nothing"]
"""What helpers take: any window, windows of the candidates of self-reflection's searches alone, or nothing."""
SHARES: Final[tuple[Share, ...]] = get_args(Share)

MOST_VIDEOS: Final = 64
"""Videos that one GPU is thought to make at once: beyond that a call gains nothing by more."""

_T = TypeVar("_T")
_Entry: TypeAlias = tuple[bool, int, int, _T]
"""Whether it is no candidate's, its priority, its number, the call: in this order they are taken."""


def slots_of(share: Share, num_helpers: int) -> tuple[int, int]:
    """Slots that take the calls of candidates, and those that take others, of a host with so many helpers."""
    helping = 0 if share == "nothing" else num_helpers
    return 1 + helping, 1 + (helping if share == "windows" else 0)


class WaitingCalls(Generic[_T]):
    """Calls of one video that wait for a GPU: those of candidates first, then by priority, of equals the older.

    Args:
        share: what helpers take.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._numbers = itertools.count()
        self._candidates: list[_Entry[_T]] = []
        self._others: list[_Entry[_T]] = []
        self._for_host: list[_Entry[_T]] = []

    def put(self, call: _T, priority: int, *, is_candidate: bool, is_for_host: bool = False) -> None:
        """`call` waits from now on; with `is_for_host` no helper may take it."""
        waiting = self._for_host if is_for_host else self._candidates if is_candidate else self._others
        heapq.heappush(waiting, (not is_candidate, priority, next(self._numbers), call))

    @property
    def num_for_helpers(self) -> int:
        """Calls that a helper might take."""
        return sum(map(len, self._open_to_helpers()))

    def take_for_helper(self) -> _T | None:
        """The most urgent call that a helper may take; None if there is none."""
        return self._pop(self._open_to_helpers())

    def take_for_host(self, num_idle_helpers: int) -> _T | None:
        """The most urgent call that the host should take now; None if there is none.

        Args:
            num_idle_helpers: helpers that would take a call at once.
        """
        if self._share != "candidates":
            return self._pop([self._for_host, self._candidates, self._others])
        own = self._pop([self._for_host, self._others])
        if own is None and len(self._candidates) > num_idle_helpers:
            return self._pop([self._candidates])
        return own

    def take_all(self) -> list[_T]:
        """All that wait, in no order; none does any more."""
        waiting = [self._candidates, self._others, self._for_host]
        calls = [call for entries in waiting for *_, call in entries]
        for entries in waiting:
            entries.clear()
        return calls

    def _open_to_helpers(self) -> list[list[_Entry[_T]]]:
        if self._share == "nothing":
            return []
        return [self._candidates, self._others] if self._share == "windows" else [self._candidates]

    @staticmethod
    def _pop(queues: list[list[_Entry[_T]]]) -> _T | None:
        first = min((queue for queue in queues if queue), key=lambda queue: queue[0][:3], default=None)
        return None if first is None else heapq.heappop(first)[-1]
