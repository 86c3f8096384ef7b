"""What is served to this machine alone: a server on loopback, and videos of runs with ranges, so that players can seek.

A page of another site that has its name lead here (DNS rebinding) is refused by its Host header, and whatever else a
browser would ask for on behalf of another site is kept from it by `Cross-Origin-Resource-Policy`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final, TypeVar

from miga.errors import OutputError, UsageError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.terminal import escaped, say

HOST: Final = "127.0.0.1"
PATIENCE_S: Final = 20.0
"""A player waits no longer for the server of a bucket."""

_NO_VIDEO: Final = "there is no such video: see `miga verify OUT`"
_CHUNK_BYTES: Final = 2 << 20
_IDLE_S: Final = 60.0
_OWN_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_AUTHORITY: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", re.ASCII)
_RANGE: Final = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII)

T = TypeVar("T")


class PortTakenError(UsageError):
    """Another program listens there."""


class LoopbackServer(ThreadingHTTPServer):
    """Listens on loopback when it is made, and answers in `serve_forever`.

    Args:
        answer: answers the requests.
        port: 0 means any that is free.

    Raises:
        PortTakenError: if it is not.
    """

    daemon_threads = True

    def __init__(self, answer: type[LoopbackAnswer], port: int = 0) -> None:
        try:
            super().__init__((HOST, port), answer)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise PortTakenError(f"cannot listen on port {port} of {HOST}: {why}", "give another: --port 0") from error

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no fault; anything else is said, and the server goes on."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            say(f"miga: a request failed: {type(error).__name__}: {error}")


class LoopbackAnswer(BaseHTTPRequestHandler):
    """The answer to one request after another of a connection: subclasses say what is there, in `answer`."""

    protocol_version = "HTTP/1.1"
    server_version = "miga"
    sys_version = ""
    timeout: ClassVar[float] = _IDLE_S
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def answer(self) -> None:
        """Answers a GET or HEAD from this machine."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answers."""
        self._guarded(self.answer)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answers, or refuses to."""
        self._guarded(self.answer_post)

    def answer_post(self) -> None:
        """Answers a POST from this machine; there is none unless a subclass says so."""
        self.refuse()

    def refuse(self) -> None:
        """Says that there is no such method."""
        self.close_connection = True  # what else was sent is not read
        self.say(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_CONNECT = do_TRACE = refuse

    def _guarded(self, answer: Callable[[], None]) -> None:
        try:
            if self._is_for_this_machine():
                answer()
            else:
                self.close_connection = True  # what else was sent is not read
                self.say(HTTPStatus.FORBIDDEN, "this server answers to http://localhost and http://127.0.0.1 alone")
        except (ConnectionError, TimeoutError):  # the reader has seen enough
            self.close_connection = True

    def _is_for_this_machine(self) -> bool:
        given = self.headers.get_all("Host") or []
        found = _AUTHORITY.fullmatch(given[0].strip()) if len(given) == 1 else None
        return found is not None and found["name"].lower() in _OWN_NAMES

    def send_video(self, storage: Storage, path: str, name: str) -> None:
        """Sends a video of a run, or the range of it that is asked for.

        Args:
            storage: of the run.
            path: of the video in it.
            name: what its tag (ETag) is made of.
        """
        size = self._asked(storage, lambda: storage.stat(path).bytes)
        if size is None:
            return
        if not size:  # a pipe, or a video that is none
            self.say(HTTPStatus.NOT_FOUND, _NO_VIDEO)
            return
        tag = f'"{name}-{size}"'
        about = {
            "ETag": tag,
            "Accept-Ranges": "bytes",
            "Content-Type": "video/mp4",
            "Cache-Control": "private, no-cache",
        }
        if tag in (self.headers.get("If-None-Match") or ""):
            self.head(HTTPStatus.NOT_MODIFIED, about)
            return
        status, wanted = HTTPStatus.OK, (0, size)
        if self._asks_for_range(tag):
            status, wanted = HTTPStatus.PARTIAL_CONTENT, self._range(size)
            if wanted[0] >= wanted[1]:
                about = {"Content-Range": f"bytes */{size}"}
                self.say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the video has {size} bytes", about)
                return
            about["Content-Range"] = f"bytes {wanted[0]}-{wanted[1] - 1}/{size}"
        about["Content-Length"] = str(wanted[1] - wanted[0])
        if self.command == "HEAD":
            self.head(status, about)
        else:
            self._send_chunks(status, about, storage, self._chunks(storage, path, *wanted))

    def _send_chunks(
        self, status: HTTPStatus, about: dict[str, str], storage: Storage, chunks: Iterator[bytes]
    ) -> None:
        """Sends the answer once its first part is there: until then it can be another."""
        first = self._asked(storage, lambda: next(chunks, b""))
        if first is None:
            return
        self.head(status, about)
        self.wfile.write(first)
        try:
            for chunk in chunks:
                self.wfile.write(chunk)
        except (FileNotFoundError, OutputError):  # the reader sees that the answer is too short
            self.close_connection = True

    def _asked(self, storage: Storage, ask: Callable[[], T]) -> T | None:
        """What the storage says; None where the reader has been told why it says nothing.

        A link, or what else is no file of a run, is not there; a bucket's server that does not answer is another thing.
        """
        try:
            return ask()
        except FileNotFoundError:
            self.say(HTTPStatus.NOT_FOUND, _NO_VIDEO)
        except OutputError as error:
            if isinstance(storage, LocalStorage):
                self.say(HTTPStatus.NOT_FOUND, _NO_VIDEO)
            else:
                self.say(HTTPStatus.BAD_GATEWAY, error.message)
        return None

    def _chunks(self, storage: Storage, path: str, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            data = storage.read_range(path, start, min(_CHUNK_BYTES, end - start))
            if not data:
                raise FileNotFoundError(path)  # shorter than it was
            start += len(data)
            yield data

    def _asks_for_range(self, tag: str) -> bool:
        """Whether the Range header is one that is to be heeded. Source: RFC 9110, sections 13.1.5 and 14.2."""
        found = _RANGE.fullmatch(self.headers.get("Range") or "")
        if found is None or found[1] == found[2] == "" or self.headers.get("If-Range", tag) != tag:
            return False
        return not (found[1] and found[2]) or int(found[1]) <= int(found[2])

    def _range(self, size: int) -> tuple[int, int]:
        """The first byte that is asked for, and the one after the last."""
        found = _RANGE.fullmatch(self.headers["Range"])
        assert found is not None
        if not found[1]:
            return max(size - int(found[2]), 0), size
        return int(found[1]), min(int(found[2]) + 1, size) if found[2] else size

    # ---- answers ----

    def say(self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> None:
        """Answers with a line of text."""
        data = f"{escaped(text)}\n".encode()
        about = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(data)), **(headers or {})}
        self.head(status, about)
        if self.command != "HEAD":
            self.wfile.write(data)

    def head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        """Sends status and headers."""
        self.send_response(status)
        for name, value in {**_ALWAYS, **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a player asks a hundred times."""


_ALWAYS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def serve_until_stopped(server: LoopbackServer) -> None:
    """Answers requests until the process is told to stop (Ctrl-C)."""
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()
