"""A run looked at in a browser, wherever OUT lies: its page and its videos over HTTP, to this machine alone.

What is answered, and nothing else:

    /  /report.html                    the page
    /report-files-DIGEST/NAME          what the page loads
    /video/SHARD/NAME.mp4              a video, or a range of it, so that a player can seek

There are no listings, and no other file of OUT: names are taken apart by patterns that hold no `..` and no `%`, and the
storage follows no link within OUT. The server listens on loopback. A page of another site that has its name lead there
(DNS rebinding) is refused by its Host header, and whatever else a browser would ask for on behalf of another site is
kept from it by `Cross-Origin-Resource-Policy`.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pipeline.records.references import VIDEO_NAME
from pipeline.report.page import FILES_PREFIX, REPORT_NAME
from pipeline.storage.base import Storage
from pipeline.upkeep.loopback import PATIENCE_S, LoopbackAnswer, LoopbackServer, PortTakenError

USUAL_PORT: Final = 8765

_VIDEO: Final = re.compile(rf"/video/(?P<shard>\d{{5,9}})/(?P<name>{VIDEO_NAME.pattern})", re.ASCII)
_PAGE_FILE: Final = re.compile(
    rf"/(?P<folder>{FILES_PREFIX}[0-9a-f]{{12}})/(?P<name>[a-z]+(-\d{{5,9}})?\.(js|jpg))", re.ASCII
)
_TYPES: Final = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".jpg": "image/jpeg"}


class RunServer(LoopbackServer):
    """Serves a run; it listens when it is made, and answers in `serve_forever`.

    Args:
        storage: of the run.
        page_folder: holds its page.
        port: 0 means any that is free.

    Raises:
        PortTakenError: if it is not.
    """

    def __init__(self, storage: Storage, page_folder: str | Path, port: int = 0) -> None:
        self.storage = storage.with_patience(PATIENCE_S)
        self.page_folder = Path(page_folder)
        super().__init__(_Answer, port)


class _Answer(LoopbackAnswer):
    server: RunServer

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path, errors="replace") if self.path.startswith("/") else ""
        if path in ("/", f"/{REPORT_NAME}"):
            self._send_page_file(Path(REPORT_NAME))
        elif found := _PAGE_FILE.fullmatch(path):
            self._send_page_file(Path(found["folder"]) / found["name"])
        elif found := _VIDEO.fullmatch(path):
            video = f"video/{found['shard']}/{found['name']}"
            self.send_video(self.server.storage, video, Path(video).stem)
        elif path == "/favicon.ico":  # every browser asks for it
            self.head(HTTPStatus.NO_CONTENT, {})
        else:
            self.say(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /")

    def _send_page_file(self, path: Path) -> None:
        try:
            data = (self.server.page_folder / path).read_bytes()
        except OSError:
            self.say(HTTPStatus.NOT_FOUND, "the page was made anew: reload it")
            return
        self.head(HTTPStatus.OK, {"Content-Type": _TYPES[path.suffix], "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)


def open_server(storage: Storage, page_folder: str | Path, port: int | None = None) -> RunServer:
    """A server on `port`, or on the usual one, or if that is taken on any that is free.

    Raises:
        PortTakenError: if `port` is not free.
    """
    if port is not None:
        return RunServer(storage, page_folder, port)
    try:
        return RunServer(storage, page_folder, USUAL_PORT)
    except PortTakenError:
        return RunServer(storage, page_folder, 0)
