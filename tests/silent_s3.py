"""A proxy before an S3 server, on raw sockets, that goes silent: connections stay open, and nothing comes.

    with SilentS3(url) as proxy:                          # proxy.url in place of url
        proxy.stop_at("request headers", method="PUT")    # the next PUT: read up to there, then nothing more
        proxy.silence(20.0)                               # from now on no byte passes, either way, for 20 s
        proxy.silence()                                   # … until told
        proxy.speak()                                     # everything passes again
        proxy.bytes_per_s = 100_000                       # bodies pass slowly, both ways

Stages of `stop_at`, in the order in which a request passes them:

    accept              the connection is taken, nothing is read
    request headers     read, but "100 Continue" never comes (where the request asks for it), nor anything else
    continue            "100 Continue" was sent, the body is not read
    request body        read whole; the server behind never sees the request
    done                the server behind did what was asked; nothing is answered
    response headers    the status line and half of the headers come
    response body       all headers and half of the body come

A request without a body passes "continue" as if it had an empty one, and an answer without a body (to HEAD, or DELETE)
stops at "response body" after its headers, where it is whole.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from tests.pace import paced

Stage = Literal["accept", "request headers", "continue", "request body", "done", "response headers", "response body"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

_CHUNK: Final = 1 << 14


class _EndedError(Exception):
    """The connection ends here."""


@dataclass
class Stop:
    """Requests that go silent; `num_hit` counts them."""

    stage: Stage
    method: str = ".*"
    target: str = ""
    times: int = 1
    num_hit: int = 0

    def takes(self, stage: Stage, method: str, target: str) -> bool:
        """Whether the request, which has come to `stage`, goes no further; counted, if so."""
        if stage != self.stage or self.num_hit >= self.times:
            return False
        if stage != "accept" and not (re.fullmatch(self.method, method) and re.search(self.target, target)):
            return False
        self.num_hit += 1
        return True


@dataclass
class _Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


@dataclass
class SilentS3:
    """The proxy.

    Attributes:
        backend_url: of the server behind.
        requests: method, target and headers of all requests whose headers were read, in order.
        bytes_per_s: of bodies, either way; 0: as fast as it goes.
        host: address of this machine that it listens on.
    """

    backend_url: str
    bytes_per_s: float = 0.0
    host: str = "127.0.0.1"
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        address = urlsplit(self.backend_url)
        self._backend = (address.hostname or "127.0.0.1", address.port or 80)
        self._stops: list[Stop] = []
        self._silent_until_s = 0.0
        self._changed = threading.Condition()
        self._era = 0
        self._is_closed = False
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self.url = f"http://{self.host}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> SilentS3:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed = True
        self._listener.close()
        self.speak()

    def stop_at(self, stage: Stage, method: str = ".*", target: str = "", times: int = 1) -> Stop:
        """The next `times` requests that match go silent there, until `speak`, which ends their connections.

        Args:
            stage: see above; at "accept" nothing is known of a request, so every connection counts.
            method: a regular expression for all of it.
            target: a regular expression for a part of path and query.
            times: how many.
        """
        stop = Stop(stage, method, target, times)
        with self._changed:
            self._stops.append(stop)
        return stop

    def silence(self, seconds: float = float("inf")) -> None:
        """From now on no byte passes, on connections that are open too; then everything goes on where it was."""
        with self._changed:
            self._silent_until_s = time.monotonic() + seconds
            self._changed.notify_all()

    def speak(self) -> None:
        """Ends the silence, and all stops."""
        with self._changed:
            self._era += 1
            self._stops.clear()
            self._silent_until_s = 0.0
            self._changed.notify_all()

    # ---- a connection ----

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, _EndedError, http.client.HTTPException):
            data = b""
            self._pass("accept")
            while True:
                request, data = self._read_request(connection, data)
                status, reason, headers, answer = self._forward(request)
                self._pass("done", request)
                head = _head(status, reason, headers, answer, request.method)
                if self._takes("response headers", request):
                    connection.sendall(head[: len(head) // 2])
                    self._wait()
                self._await_voice()
                connection.sendall(head)
                body = b"" if request.method == "HEAD" else answer
                if self._takes("response body", request):
                    connection.sendall(body[: len(body) // 2])
                    self._wait()
                self._send_body(connection, body)

    def _read_request(self, connection: socket.socket, data: bytes) -> tuple[_Request, bytes]:
        while b"\r\n\r\n" not in data:
            data += self._receive(connection)
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        request = _Request(method, target, [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)])
        self.requests.append((method, target, {name.lower(): value for name, value in request.headers}))
        self._pass("request headers", request)
        if request.header("expect").lower() == "100-continue":
            self._await_voice()
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._pass("continue", request)
        length = int(request.header("content-length") or 0)
        while len(data) < length:
            data += self._receive(connection, paced=True)
        request.body, data = data[:length], data[length:]
        self._pass("request body", request)
        return request, data

    def _forward(self, request: _Request) -> tuple[int, str, list[tuple[str, str]], bytes]:
        backend = http.client.HTTPConnection(*self._backend, timeout=paced(60))
        headers = {name: value for name, value in request.headers if name.lower() not in ("expect", "connection")}
        try:
            backend.request(request.method, request.target, body=request.body, headers=headers)
            answer = backend.getresponse()
            return answer.status, answer.reason, answer.getheaders(), answer.read()
        finally:
            backend.close()

    def _receive(self, connection: socket.socket, paced: bool = False) -> bytes:
        self._await_voice()
        if paced:
            self._pace(_CHUNK)
        data = connection.recv(_CHUNK)
        if not data:
            raise _EndedError
        return data

    def _send_body(self, connection: socket.socket, body: bytes) -> None:
        for start in range(0, len(body), _CHUNK):
            self._await_voice()
            self._pace(_CHUNK)
            connection.sendall(body[start : start + _CHUNK])

    def _pace(self, num_bytes: int) -> None:
        if self.bytes_per_s:
            time.sleep(num_bytes / self.bytes_per_s)

    # ---- silence ----

    def _takes(self, stage: Stage, request: _Request | None) -> bool:
        method, target = (request.method, request.target) if request is not None else ("", "")
        with self._changed:
            return any(stop.takes(stage, method, target) for stop in self._stops)

    def _pass(self, stage: Stage, request: _Request | None = None) -> None:
        self._await_voice()
        if self._takes(stage, request):
            self._wait()

    def _wait(self) -> None:
        """Until `speak`, then the connection ends."""
        with self._changed:
            era = self._era
            self._changed.wait_for(lambda: self._era != era)
        raise _EndedError

    def _await_voice(self) -> None:
        with self._changed:
            while (left_s := self._silent_until_s - time.monotonic()) > 0:
                self._changed.wait(min(left_s, 3600.0))


def _head(status: int, reason: str, headers: list[tuple[str, str]], answer: bytes, method: str) -> bytes:
    kept = [(n, v) for n, v in headers if n.lower() not in ("transfer-encoding", "connection", "content-length")]
    length = {name.lower(): value for name, value in headers}.get("content-length")
    kept.append(("Content-Length", (length or "0") if method == "HEAD" else str(len(answer))))
    if status in (204, 304):
        kept.pop()
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in kept)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
