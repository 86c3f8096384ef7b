"""Requests to an object store that nothing can hold for ever.

Requests run on event loops of their own threads, each loop with a client that is made at the first request. A request
is given up when nothing has moved for a while, however many bytes it still had to send; one that goes on moving may
take as long as it needs, if only it is not slower than `SLOWEST_BYTES_PER_S`. What the network does is not trusted to
end anything: the caller's own thread watches the loop, and leaves it for a new one should it be stuck.

Time is counted in small steps of which each counts as at most `_MAX_STEP_S`: a process that was stopped for an hour
has not waited for an hour.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, Final, TypeVar

SLOWEST_BYTES_PER_S: Final = 16 << 10
"""A transfer that is slower on the whole is given up."""

_UNSEEN_BYTES: Final = 4 << 20
"""So much of a body may have left this process and not this machine (Linux's send buffers are that large)."""
UNSEEN_BYTES_PER_S: Final = 64 << 10
_STEP_S: Final = 1.0
_MAX_STEP_S: Final = 5.0
STUCK_S: Final = 10.0
"""After a request should have been given up, the loop has so long to do it."""
_READY_S: Final = 60.0
"""For making a client, which asks nobody, but reads megabytes of descriptions on what may be a busy machine."""
_CLOSING_S: Final = 2.0
_MAX_LANES: Final = 8

T = TypeVar("T")


class SilentServerError(Exception):
    """Nothing came for too long."""


class StuckLoopError(SilentServerError):
    """The thread that does all requests of a lane does nothing any more."""


class ClientSettingsError(Exception):
    """The client cannot be made of what the environment says."""


class AwakeClock:
    """Seconds that this process was awake since it was made, as far as `tick` was called now and then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._last_s = time.monotonic()

    def tick(self) -> None:
        """Counts what has passed since the last time."""
        now_s = time.monotonic()
        self.now_s += min(now_s - self._last_s, _MAX_STEP_S)
        self._last_s = now_s

    def forget(self) -> None:
        """Counts nothing of what has passed since the last time."""
        self._last_s = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleeps and counts it."""
        time.sleep(seconds)
        self.tick()


class Progress:
    """When a request is to be given up, which every byte that moves puts off.

    Args:
        clock: that the caller's thread moves.
        idle_s: seconds without a byte that are too long.
        body_bytes: that the request sends.
    """

    def __init__(self, clock: AwakeClock, idle_s: float, body_bytes: int = 0) -> None:
        self._clock = clock
        self.idle_s = idle_s + min(body_bytes, _UNSEEN_BYTES) / UNSEEN_BYTES_PER_S
        self._began_s = self._moved_s = clock.now_s
        self._moved_bytes = 0

    def moved(self, num_bytes: int) -> None:
        """Says that so many bytes went or came."""
        self._moved_bytes += num_bytes
        self._moved_s = self._clock.now_s

    def left_s(self) -> float:
        """Seconds until it is given up."""
        slowest_s = self._moved_bytes / SLOWEST_BYTES_PER_S
        return min(self._moved_s, self._began_s + slowest_s) + self.idle_s - self._clock.now_s

    def tick(self) -> None:
        """Moves the clock on."""
        self._clock.tick()


Request = Callable[[Any, Progress], Awaitable[T]]
"""Makes requests with a client, and notes what moves."""

MakeClient = Callable[[], AbstractAsyncContextManager[Any]]
"""Makes a client, which is ended with the block; a `ClientSettingsError` says why there can be none."""


class Lane:
    """An event loop in a thread of its own, with a client that is made at the first request.

    Args:
        make_client: of the kind that the requests need.
    """

    def __init__(self, make_client: MakeClient) -> None:
        self._make_client = make_client
        self._loop = asyncio.new_event_loop()
        self._making = asyncio.Lock()
        self._made = AsyncExitStack()
        self._client: Any = None
        self._num_asked = 0
        self._is_retired = self._is_closing = False
        threading.Thread(target=self._serve, name="miga-storage", daemon=True).start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def make_ready(self) -> None:
        """Makes the client, if this is the first time.

        Raises:
            ClientSettingsError: if it cannot be made of what the environment says.
            StuckLoopError: if the loop does not come to it.
        """
        if self._client is None:
            clock = AwakeClock()
            self._run(self._ready_client(), Progress(clock, _READY_S))

    def ask(self, request: Request[T], progress: Progress) -> T:
        """What a request gives.

        Raises:
            SilentServerError: if it had to be given up.
            Exception: whatever the request raises.
        """
        return self._run(self._within(request, progress), progress)

    def _run(self, what: Coroutine[Any, Any, T], progress: Progress) -> T:
        with _lock:
            if self._is_closing:
                what.close()
                raise SilentServerError("its connections are being closed")
            self._num_asked += 1
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return _result(future, progress)
        except StuckLoopError:
            _leave(self)
            raise
        finally:
            future.cancel()
            with _lock:
                self._num_asked -= 1
                if self._is_retired:
                    self.retire()

    def retire(self) -> None:
        """Closes it as soon as nobody asks any more; `_lock` is held."""
        self._is_retired = True
        if not self._num_asked and not self._is_closing:
            self._is_closing = True
            threading.Thread(target=self.close, daemon=True).start()

    async def _within(self, request: Request[T], progress: Progress) -> T:
        async def run() -> T:
            return await request(await self._ready_client(), progress)

        task = asyncio.ensure_future(run())
        task.add_done_callback(_taken_note_of)
        try:
            while (left_s := progress.left_s()) > 0:
                done, _ = await asyncio.wait({task}, timeout=max(left_s, 0.01))
                if done:
                    return task.result()
            raise SilentServerError(f"the server was silent for {progress.idle_s:.3g} s")
        finally:
            task.cancel()  # and not waited for: it may not let itself be cancelled

    async def _ready_client(self) -> Any:
        async with self._making:
            if self._client is None:
                self._client = await self._made.enter_async_context(self._make_client())
            return self._client

    def close(self) -> None:
        """Ends the client's connections and the loop, whatever is still being asked."""
        self.end_after(self.begin_closing(), _CLOSING_S)

    def begin_closing(self) -> Future[None] | None:
        """First half of `close`, which waits for nothing; None if the loop is closed already."""
        what = self._close()
        try:
            return asyncio.run_coroutine_threadsafe(what, self._loop)
        except RuntimeError:
            what.close()
            return None

    def end_after(self, closing: Future[None] | None, patience_s: float) -> None:
        """Second half of `close`."""
        if closing is not None:
            with suppress(Exception):  # whatever a connection that is being closed may raise
                closing.result(patience_s)
        with suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def _close(self) -> None:
        """Ends what was given up and not waited for, or is being asked by a thread that nobody waits for.

        A task that will not be cancelled is left, without the loop's complaint that it is.
        """
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if left:
            await asyncio.wait(left, timeout=_CLOSING_S / 2)
        await self._made.aclose()


def _result(future: Future[T], progress: Progress) -> T:
    step_s = min(_STEP_S, max(0.02, progress.idle_s / 8))
    while True:
        try:
            return future.result(step_s)
        except TimeoutError:
            if future.done():
                return future.result()
        progress.tick()
        if progress.left_s() < -STUCK_S:
            raise StuckLoopError("the thread of the requests is stuck")


def _taken_note_of(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


# ---- lanes that storages share ---------------------------------------------------------------------------------------

_lanes: dict[tuple[Any, ...], Lane] = {}
_lock = threading.Lock()


Settings = frozenset[tuple[str, str]]
"""What a client goes by, such as variables of the environment."""


def lane(name: str, settings: Settings, make_client: MakeClient) -> Lane:
    """This process's lane of that name and of those settings; what waits in one lane does not hold up another.

    Its client is made, at its first request, of what the environment says then.
    """
    with _lock:
        key = name, os.getpid(), settings
        found = _lanes.pop(key, None) or Lane(make_client)
        while len(_lanes) >= _MAX_LANES:
            _lanes.pop(next(iter(_lanes))).retire()
        _lanes[key] = found
        return found


def _leave(stuck: Lane) -> None:
    """Takes a lane out of use: the next request gets a new one."""
    with _lock:
        for key in [key for key, there in _lanes.items() if there is stuck]:
            del _lanes[key]


@atexit.register
def _close_all() -> None:
    mine = [there for key, there in list(_lanes.items()) if key[1] == os.getpid()]
    closing = [(there, there.begin_closing()) for there in mine]
    wait_for_all([future for _, future in closing if future is not None], _CLOSING_S)
    for there, future in closing:
        there.end_after(future, 0.0)
