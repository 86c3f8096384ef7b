"""A proxy before a server of objects (S3, Google, Azure) that fails as told, and fixtures' helpers for S3 servers."""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.pace import paced

Kind = Literal[
    "busy",
    "throttled",
    "error",
    "full",
    "quota",
    "denied",
    "aborted",
    "reset",
    "lose",
    "slow",
    "cut",
    "corrupt",
    "hold",
]

_ANSWERS: dict[str, tuple[int, str]] = {
    "busy": (503, "SlowDown"),
    "throttled": (429, "TooManyRequests"),
    "error": (500, "InternalError"),
    "full": (507, "InsufficientStorage"),
    "quota": (403, "QuotaExceeded"),
    "denied": (403, "AccessDenied"),
    "aborted": (404, "NoSuchUpload"),
}


@dataclass
class Fault:
    """What happens to the next `times` requests that match, or to every so many of them.

    busy, throttled, error, full, quota, denied, aborted: an error is answered, and the server never sees the request.
    reset: the connection is reset before the server sees the request.
    lose: the server does what was asked, then the connection is reset.
    slow: the answer comes `delay_s` later.
    cut: half of the answer's body comes, then the connection is reset.
    corrupt: the first byte of the answer's body is another.
    hold: the request waits until `released` is set, then the connection is reset.

    Attributes:
        client_port: from which the last request came that it struck.
    """

    kind: Kind
    times: int = 1
    method: str = ".*"
    target: str = ""
    delay_s: float = 0.0
    every: int = 1
    num_seen: int = 0
    num_hit: int = 0
    client_port: int | None = None
    released: threading.Event = field(default_factory=threading.Event)

    def takes(self, method: str, target: str) -> bool:
        """Whether the request is one of its; counted, if so."""
        matches = re.fullmatch(self.method, method) is not None and re.search(self.target, target) is not None
        if self.num_hit >= self.times or not matches:
            return False
        self.num_seen += 1
        is_hit = self.num_seen % self.every == 0
        self.num_hit += is_hit
        return is_hit


class FaultyS3:
    """The proxy; `with FaultyS3(url) as proxy` and `proxy.url` in place of `url`.

    Attributes:
        requests: method and target of all that came, in order.
        is_gone: while set, every connection is reset at once.
    """

    def __init__(self, backend_url: str) -> None:
        address = urlsplit(backend_url)
        self.backend = (address.hostname or "127.0.0.1", address.port or 80)
        self.requests: list[tuple[str, str]] = []
        self.is_gone = False
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyS3:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.recover()
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self, kind: Kind, times: int = 1, method: str = ".*", target: str = "", delay_s: float = 0.0, every: int = 1
    ) -> Fault:
        """Makes `times` requests fail whose method and target (path and query) match: the next, or every so many."""
        fault = Fault(kind, times, method, target, delay_s, every)
        with self._lock:
            self._faults.append(fault)
        return fault

    def recover(self) -> None:
        """Nothing fails any more, and what came so far is forgotten."""
        with self._lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()
            self.requests.clear()
            self.is_gone = False

    def next_fault(self, method: str, target: str) -> Fault | None:
        """The fault of a request that has come."""
        with self._lock:
            self.requests.append((method, target))
            for fault in self._faults:
                if fault.takes(method, target):
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end as they like here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer's body waits 40 ms for its headers to be acknowledged
    server: _Server

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.next_fault(self.command, self.path) or Fault("slow")
        fault.client_port = self.client_address[1]
        if fault.kind in _ANSWERS:
            self._answer(*_ANSWERS[fault.kind])
            return
        if fault.kind == "hold":
            fault.released.wait()
        if proxy.is_gone or fault.kind in ("reset", "hold"):
            self._reset()
            return
        status, headers, data = self._forward(body)
        if fault.kind == "lose":
            self._reset()
            return
        time.sleep(fault.delay_s)
        self._hand_on(status, headers, data, fault.kind)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _hand_on(self, status: int, headers: list[tuple[str, str]], data: bytes, kind: Kind) -> None:
        if kind == "corrupt" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", (length or "0") if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)
        if kind == "cut":
            self._reset()

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.proxy.backend, timeout=paced(60))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, code: str) -> None:
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told to fail</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment of an S3 server: moto's in this process, or the one that MIGA_TEST_S3_ENDPOINT names."""
    if endpoint := os.environ.get("MIGA_TEST_S3_ENDPOINT"):
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        yield {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"} | {n: os.environ[n] for n in names}
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


def bucket_client() -> Any:
    """A client of boto3, which shares nothing with the code under test but botocore."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"})
    )
