"""How a page refers to a video: relative to where the page lies, wherever that leads to the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

_LINKABLE: Final = frozenset({"s3", "gs", "az", "https", "http"})
_IN_STORAGE: Final = (
    "It lies in object storage ({scheme}://), which a page opened from disk cannot play: "
    "use `miga serve OUT`, or make the page with --presign 1d."
)


class Link(NamedTuple):
    """How the page refers to a video: `href` is empty where a browser must not follow it, `why` says why none plays."""

    href: str
    playable: bool
    why: str


class Links:
    """The links of one page.

    Args:
        out_uri: folder, or prefix of a bucket, of the run.
        page_folder: local folder that the page lies in; None means the run's own.
        served: whether the page is served, and the run's files below it: then `video/…` plays wherever OUT is.
        signed: gives the signed address of a file of the run by its path in OUT, valid for a while.

    Attributes:
        origins: `scheme://host` of every signed address that was given.
    """

    def __init__(
        self,
        out_uri: str,
        page_folder: str | Path | None = None,
        *,
        served: bool = False,
        signed: Callable[[str], str] | None = None,
    ) -> None:
        self.origins: set[str] = set()
        self._out = out_uri.rstrip("/") or "/"
        self._served = served
        self._signed = signed
        out = _local_path(self._out)
        self._local_out = None if "://" in out else os.path.abspath(out)
        self._page = self._local_out if page_folder is None else os.path.abspath(page_folder)
        self._up = _way(self._page, self._local_out) if self._page and self._local_out else None

    def to(self, uri: str) -> Link:
        """The link to the video at `uri`, which may be relative to OUT."""
        if not uri:
            return Link("", False, "The manifest names no file for this video.")
        within = uri.removeprefix(f"{self._out}/")
        is_within = within != uri and not any(part in ("", ".", "..") for part in within.split("/"))
        if is_within and self._served:
            return Link("./" + quote(within), True, "")
        if is_within and self._signed is not None:
            address = self._signed(within)
            scheme, place = urlsplit(address)[:2]
            self.origins.add(f"{scheme}://{place}")
            return Link(address, True, "")
        if is_within and self._up is not None:
            return Link(quote(f"{self._up}/{within}"), True, "")
        scheme = urlsplit(uri).scheme.lower() if "://" in uri else ""
        if scheme not in ("", "file"):
            why = _IN_STORAGE.format(scheme=scheme)
            if scheme in ("http", "https"):
                why = "It lies on the web, and this page asks nothing of the network."
            return Link(quote(uri, safe=":/%?=&") if scheme in _LINKABLE else "", False, why)
        return self._to_local(_local_path(uri))

    def _to_local(self, path: str) -> Link:
        if not os.path.isabs(path):
            if self._local_out is None:
                return Link("./" + quote(Path(os.path.normpath(path)).as_posix()), True, "")
            path = os.path.join(self._local_out, path)
        path = os.path.normpath(path)
        way = None if self._page is None else _way(self._page, path)
        return Link(Path(path).as_uri() if way is None else quote(way), True, "")


def link_to(uri: str, out_uri: str, page_folder: str | None = None) -> Link:
    """How a page in `page_folder` (by default in OUT itself) refers to the video at `uri`."""
    return Links(out_uri, page_folder).to(uri)


def _way(folder: str, path: str) -> str | None:
    """The relative path from `folder`; None where a link on the way would lead a browser, which knows none, astray."""
    way = os.path.relpath(path, folder)
    if not way.startswith(os.pardir):
        return "." if way == "." else f"./{Path(way).as_posix()}"
    try:
        is_straight = os.path.relpath(os.path.realpath(path), os.path.realpath(folder)) == way
    except ValueError:  # no path of a file system
        is_straight = False
    return Path(way).as_posix() if is_straight else None


def _local_path(uri: str) -> str:
    return os.path.normpath(unquote(urlsplit(uri).path)) if uri.lower().startswith("file://") else uri
