"""Turns on something that only one can have at a time, such as the room on a card for either a call or a decode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

Turn: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Waits for one's turn, and has it until the block ends; `contextlib.nullcontext` where there are none."""


class Turns:
    """Lets in one at a time, in the order of asking.

    A plain lock would not do: a thread that asks again at once, as one that makes call after call does, keeps all
    others waiting for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = self._now_serving = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for one's turn, and has it until the block ends. Whoever has it must not ask again."""
        with self._changed:
            ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            self._changed.wait_for(lambda: self._now_serving == ticket)
        try:
            yield
        finally:
            with self._changed:
                self._now_serving += 1
                self._changed.notify_all()
