"""Everything that the coordinator hears, in one queue: answers of actors, results of threads, the cluster's state.

Whatever is ready calls in from a thread of its own; what is to be done about it runs in the coordinator's thread. So
ten thousand open calls cost nothing until they are answered.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias

import ray

Action: TypeAlias = Callable[[], None]


class Inbox:
    """Actions that wait for the coordinator's thread."""

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Action] = queue.SimpleQueue()

    def put(self, action: Action) -> None:
        """Has an action run soon; any thread may call this."""
        self._actions.put(action)

    def when_ready(self, reference: ray.ObjectRef, action: Callable[[Future[Any]], None]) -> None:
        """Has `action` run once a call is answered, whose `Future.result` gives the answer or raises."""

        def ready(future: Future[Any], _kept: ray.ObjectRef = reference) -> None:
            self._actions.put(partial(action, future))

        reference.future().add_done_callback(ready)

    def run(self, timeout_s: float) -> None:
        """Runs what is there, in order of arrival; if that is nothing, waits for something, but no longer than that."""
        until_s = time.monotonic() + timeout_s
        try:
            action = self._actions.get(timeout=timeout_s)
            while True:
                action()
                if time.monotonic() > until_s:  # whoever calls has other things to look after
                    return
                action = self._actions.get_nowait()
        except queue.Empty:
            return
