"""An OpenAI-compatible endpoint on loopback that fails as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Endpoint", dict[str, Any]], Any]
"""Given a request, what to answer: text; a status; (status, headers); or the name of a fault, such as "half"."""


class Endpoint(ThreadingHTTPServer):
    """Its `requests` are the bodies that came, its `headers` what came with them."""

    daemon_threads = True

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.most_at_once = self.at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Answer(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body | {"path": self.path})
            self.server.headers.append(dict(self.headers.items()))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self._behave(self.server.behave(self.server, body))
        except OSError:
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _behave(self, how: Any) -> None:
        status, headers = how if isinstance(how, tuple) else (how if isinstance(how, int) else 200, {})
        data = json.dumps({"choices": [{"message": {"content": how}}]}).encode()
        if how == "hang up":
            self.close_connection = True
            return
        if how == "silent":
            time.sleep(1.5)
            self.close_connection = True
            return
        if how == "garbage":
            data = b"<html>502</html>"
        elif how == "torn":  # half a JSON that says it is whole
            data = data[: len(data) // 2]
        elif how == "empty":
            data = b'{"choices": []}'
        elif status != 200:
            data = b'{"error": {"message": "not now"}}'
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if how == "half" else data)
        if how == "half":
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def endpoint(behave: Behaviour) -> Iterator[Endpoint]:
    server = Endpoint(behave)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def question_of(body: dict[str, Any]) -> str:
    """The question of a request, without the order behind it."""
    text: str = body["messages"][1]["content"][-1]["text"]
    return text.removesuffix(" Answer with yes or no only.")
