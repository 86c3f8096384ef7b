"""A client of an S3 server that no request can hold for ever.

Requests run on event loops of their own threads. A request is given up when nothing has moved for a while, however many
bytes it still had to send; one that goes on moving may take as long as it needs, if only it is not slower than
`SLOWEST_BYTES_PER_S`. What the network does is not trusted to end anything: the caller's own thread watches the loop,
and leaves it for a new one should it be stuck. "100 Continue" is never asked for, since a server that does not send it
could not be told from one that is slow to.

Time is counted in small steps of which each counts as at most `_MAX_STEP_S`: a process that was stopped for an hour
has not waited for an hour.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, TypeVar

SLOWEST_BYTES_PER_S: Final = 16 << 10
"""A transfer that is slower on the whole is given up."""

_UNSEEN_BYTES: Final = 4 << 20
"""So much of a body may have left this process and not this machine (Linux's send buffers are that large)."""
_UNSEEN_BYTES_PER_S: Final = 64 << 10
_STEP_S: Final = 1.0
_MAX_STEP_S: Final = 5.0
STUCK_S: Final = 10.0
"""After a request should have been given up, the loop has so long to do it."""
_READY_S: Final = 60.0
"""For making a client, which asks nobody, but reads megabytes of descriptions on what may be a busy machine."""
_CONNECT_S: Final = 10.0
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
        self.idle_s = idle_s + min(body_bytes, _UNSEEN_BYTES) / _UNSEEN_BYTES_PER_S
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


class Body(io.BytesIO):
    """What a request sends; each part that is taken of it is progress."""

    def __init__(self, data: bytes, progress: Progress) -> None:
        super().__init__(data)
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BytesIO`."""
        data = super().read(size)
        self._progress.moved(len(data))
        return data


Request = Callable[[Any, Progress], Awaitable[T]]
"""Makes requests with a client of aiobotocore, and notes what moves."""


class Lane:
    """An event loop in a thread of its own, with a client that is made at the first request."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._making = asyncio.Lock()
        self._client: Any = None
        self._num_asked = 0
        threading.Thread(target=self._loop.run_forever, name="miga-s3", daemon=True).start()

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
        self._num_asked += 1
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return _result(future, progress)
        except StuckLoopError:
            _leave(self)
            raise
        finally:
            future.cancel()
            self._num_asked -= 1

    @property
    def is_busy(self) -> bool:
        """Whether it is being asked."""
        return self._num_asked > 0

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
                self._client = await _make_client()
            return self._client

    def close(self) -> None:
        """Ends the client's connections and the loop."""
        with suppress(Exception):  # whatever a connection that is being closed may raise
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_CLOSING_S)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _close(self) -> None:
        if self._client is not None:
            await self._client.__aexit__(None, None, None)


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


async def _make_client() -> Any:
    """A client that tries once, and sends bodies without asking first."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    config = AioConfig(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_CONNECT_S,
        read_timeout=None,  # `Progress` knows better
        max_pool_connections=32,
        request_checksum_calculation="when_required",  # servers differ in which of the newer ones they know
        response_checksum_validation="when_required",
    )
    try:
        session = AioSession()
        session.register_component("data_loader", _descriptions())
        client = await session.create_client("s3", config=config).__aenter__()
    except Exception as error:  # of many modules, for whatever stands in the environment
        raise ClientSettingsError(" ".join(str(error).split()) or type(error).__name__) from error
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


@lru_cache(maxsize=1)
def _descriptions() -> Any:
    """Of services, which take longer to read than all else that a client needs."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


# ---- lanes that storages share ---------------------------------------------------------------------------------------

_lanes: dict[tuple[Any, ...], Lane] = {}
_lock = threading.Lock()


Settings = frozenset[tuple[str, str]]
"""Variables of the environment that a client goes by."""


def present_settings() -> Settings:
    """Those that stand there now."""
    return frozenset(
        (variable, value)
        for variable, value in os.environ.items()
        if variable.startswith("AWS_") or variable == "REQUESTS_CA_BUNDLE" or variable.lower().endswith("_proxy")
    )


def lane(name: str, settings: Settings) -> Lane:
    """This process's lane of that name and of those settings; what waits in one lane does not hold up another.

    Its client is made, at its first request, of what the environment says then.
    """
    with _lock:
        key = name, os.getpid(), settings
        found = _lanes.pop(key, None) or Lane()
        while len(_lanes) >= _MAX_LANES:
            oldest = _lanes.pop(next(iter(_lanes)))
            if not oldest.is_busy:
                threading.Thread(target=oldest.close, daemon=True).start()
        _lanes[key] = found
        return found


def _leave(stuck: Lane) -> None:
    """Takes a lane out of use: the next request gets a new one."""
    with _lock:
        for key in [key for key, there in _lanes.items() if there is stuck]:
            del _lanes[key]


@atexit.register
def _close_all() -> None:
    for key, there in list(_lanes.items()):
        if key[1] == os.getpid():
            there.close()
