"""A stand-in for the Hugging Face hub's HTTP API on loopback: data sets are made, and take commits and large files.

What a client of `huggingface_hub` asks for when it makes a repository and uploads a folder without Xet, as of its
version 2: creating, the kind of each file, a batch of large files, their content, a commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 34


@dataclass
class Hub:
    """What the hub holds.

    Attributes:
        made: name → what was asked of a data set when it was made.
        files: name of a data set → path → content.
        large: SHA-256 → content of a large file.
        num_sent: large files that came.
        refuse: status that every request gets, for tests of errors.
        asked: methods and paths, in order.
    """

    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    num_sent: int = 0
    refuse: int | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""


class _Answer(BaseHTTPRequestHandler):
    """The answer to one request."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.whole()
        path = self.path.partition("?")[0]
        hub = self.server.hub
        hub.asked.append(f"{self.command} {path}")
        if hub.refuse is not None:
            self.send({"error": "refused"}, hub.refuse)
        elif not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send({"error": "Invalid credentials"}, 401)
        else:
            self.route(path, body)

    do_GET = do_PUT = do_HEAD = do_POST

    def route(self, path: str, body: bytes) -> None:
        for pattern, action in self.PLACES:
            if found := re.fullmatch(pattern, path):
                action(self, found[1], body)
                return
        self.send({"error": f"no such place: {self.command} {path}"}, 404)

    def whole(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def take_large(self, digest: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.server.hub.large[digest] = body
        self.server.hub.num_sent += 1
        self.send({})

    def create(self, _: str, body: bytes) -> None:
        hub, asked = self.server.hub, json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in hub.made:
            self.send({"error": "You already created this dataset repo", "url": f"{hub.url}/datasets/{name}"}, 409)
            return
        hub.made[name] = asked
        hub.files[name] = {}
        self.send({"url": f"{hub.url}/datasets/{name}", "name": name, "id": "1"})

    def kinds(self, _: str, body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = ["lfs" if path.endswith((".mp4", ".parquet", ".tar")) else "regular" for path in paths]
        kinds = zip(paths, modes, strict=True)
        self.send({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in kinds]})

    def places(self, _: str, body: bytes) -> None:
        hub, objects = self.server.hub, []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in hub.large:
                answer["actions"] = {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}", "header": {}}}
            objects.append(answer)
        self.send({"transfer": "basic", "objects": objects})

    def commit(self, name: str, body: bytes) -> None:
        hub = self.server.hub
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                hub.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[name][value["path"]] = hub.large[value["oid"]]
        commit = "1" * 40
        self.send({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/datasets/{name}/commit/{commit}"})

    def about(self, name: str, _: bytes) -> None:
        siblings = [{"rfilename": path} for path in self.server.hub.files.get(name, {})]
        self.send({"id": name, "sha": "0" * 40, "private": True, "siblings": siblings, "tags": []})

    def take_card(self, _: str, body: bytes) -> None:
        self.send({"errors": [], "warnings": []})

    PLACES = (
        (r"/lfs/([0-9a-f]{64})", take_large),
        (r"/api/(repos)/create", create),
        (r"/api/datasets/([^/]+/[^/]+)/preupload/main", kinds),
        (r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", places),
        (r"/api/datasets/([^/]+/[^/]+)/commit/main", commit),
        (r"/api/datasets/([^/]+/[^/]+?)(?:/revision/main)?", about),
        (r"/api/(validate-yaml)", take_card),
    )

    def send(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    hub: Hub


@contextmanager
def hub_stub() -> Iterator[Hub]:
    """A hub that is empty."""
    with _Server(("127.0.0.1", 0), _Answer) as server:
        server.hub = Hub(url=f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.hub
        server.shutdown()
