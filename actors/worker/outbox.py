"""The news of a worker, kept until they are asked for."""

from __future__ import annotations

import threading
import time

from actors.messages import VideoEvent, VideoProgress


class Outbox:
    """Threads post to it; another waits for what they post.

    Progress alone wakes nobody: it is handed out with the next event, or when the one who waits has waited long enough.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[VideoEvent] = []
        self._progress: dict[tuple[int, int], VideoProgress] = {}
        self._is_urgent = False

    def post(self, event: VideoEvent) -> None:
        """Adds an event; of an attempt's progress only the last is kept."""
        with self._changed:
            if isinstance(event, VideoProgress):
                self._progress[event.row, event.attempt] = event
                return
            self._events.append(event)
            self._is_urgent = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> tuple[VideoEvent, ...]:
        """All that there is, progress first; waits for something worth telling, but no longer than that."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._is_urgent and (left_s := until_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            taken = (*self._progress.values(), *self._events)
            self._events, self._progress, self._is_urgent = [], {}, False
        return taken
