"""What every storage offers, and what they share; `pipeline.storage.open` says which there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from miga.errors import OutputError

PROBE_PREFIX: Final = ".probe-"
"""Begins the names of files that `probe` writes and removes; a crash may leave one."""

_PART: Final = re.compile(r"[A-Za-z0-9._=-]{1,200}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """A file as a listing shows it.

    Attributes:
        path: relative to the storage's root.
        bytes: its size.
        modified_s: seconds since 1970 by the storage's clock.
        sha256: of its content, hex, as noted when it was put; only `stat` has it, and only in a bucket.
    """

    path: str
    bytes: int
    modified_s: float
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a process that was killed while writing has left: never seen as a file, but it takes space.

    Attributes:
        kind: a local file half written, an upload in parts to S3 that was never completed, or a `probe`'s file.
        path: where the file would be, or is.
        token: names the upload among others of the same path.
    """

    kind: Literal["partial file", "upload in parts", "probe"]
    path: str
    token: str = ""


class Storage(Protocol):
    """A tree of files. All paths are relative to its root. It pickles.

    No link within a local folder is ever followed: listings leave links out (`children` of the root itself names them,
    so that a folder with links is not taken for an empty one), and a path that leads over one is an `OutputError`. The
    root may be a link, or lie below one.
    """

    @property
    def root(self) -> str:
        """The address it was opened with, made absolute."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file (not a folder) at `path`."""
        ...

    def stat(self, path: str) -> FileInfo:
        """Size and time of a file.

        Raises:
            FileNotFoundError: if there is none.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every file under the folder `prefix`, sorted; nothing if there is no such folder."""
        ...

    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """As `list`, with sizes."""
        ...

    def children(self, prefix: str = "") -> Sequence[str]:
        """Names of the files and folders directly in the folder `prefix`, sorted."""
        ...

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """The file's content.

        Args:
            path: of the file.
            max_bytes: a larger one is not read; None: any is.

        Raises:
            FileNotFoundError: if there is none.
            OutputError: if it is larger.
        """
        ...

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """Part of a file's content; less of it where the file ends sooner.

        Args:
            path: of the file.
            start: of the first byte; it is less than the file's size.
            num_bytes: at most.

        Raises:
            FileNotFoundError: if there is none.
        """
        ...

    def signed_address(self, path: str, valid_s: int) -> str:
        """An https address by which whoever has it can read a file for so many seconds; nobody is asked for it.

        Raises:
            OutputError: if there is no such address: for a local folder, or without credentials.
        """
        ...

    def get_file(self, path: str, local: str | Path) -> None:
        """Copies a file to a local one, whole or not at all.

        Raises:
            FileNotFoundError: if there is none.
        """
        ...

    def write_bytes(self, path: str, data: bytes, if_absent: bool = False) -> bool:
        """Puts a file in place, whole or not at all.

        Returns:
            Whether `path` now holds exactly `data`: False only with `if_absent`, where another content was there first.
        """
        ...

    def create_empty(self, path: str) -> bool:
        """Makes an empty file where there is nothing; file systems have room for one when they are full.

        Returns:
            Whether this call made it. False may also be said of an own try whose answer was lost.
        """
        ...

    def put_file(self, local: str | Path, path: str) -> None:
        """Puts a copy of a finished local file in place, whole or not at all, and sees that it is there."""
        ...

    def delete(self, path: str) -> None:
        """Removes a file; none there is fine."""
        ...

    def delete_many(self, paths: Iterable[str]) -> None:
        """Removes files; those not there are fine."""
        ...

    def leftovers(self) -> Iterator[Leftover]:
        """What killed processes have left, and what is being written just now."""
        ...

    def remove_leftover(self, leftover: Leftover) -> None:
        """Removes one of `leftovers`; gone already is fine."""
        ...

    def uri(self, path: str) -> str:
        """The address of a file for other programs: an absolute local path, or an address as s3://…."""
        ...

    def probe(self, single_coordinator: bool = False) -> None:
        """Tries what the run will need.

        Args:
            single_coordinator: the user's word that no second run will ever write here: then a server that ignores
                conditional writes is taken, and this storage makes them by looking first.

        Raises:
            OutputError: if it cannot be written here, or a conditional write is not honoured.
        """
        ...

    def with_patience(self, patience_s: float) -> Storage:
        """The same place, where every call gives up on a server that does not answer after so many seconds."""
        ...


def check_size(place: str, num_bytes: int, max_bytes: int | None) -> None:
    """Returns if a file is not larger than it may be.

    Raises:
        OutputError: if it is.
    """
    if max_bytes is not None and num_bytes > max_bytes:
        raise OutputError(
            f"{place} has {num_bytes:,} bytes, and at most {max_bytes:,} belong there",
            "it was not written by this program: move it away",
        )


def checked_path(path: str) -> str:
    """`path`, if it is one that storages take.

    Raises:
        ValueError: if it is absolute, climbs, or holds other than letters, digits, `.`, `_`, `=`, `-` and `/`.
    """
    parts = path.split("/")
    if not all(_PART.fullmatch(part) for part in parts) or any(part in (".", "..") for part in parts):
        raise ValueError(f"{path!r} is no path of a storage")
    return path
