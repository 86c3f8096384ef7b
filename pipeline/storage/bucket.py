"""What the object stores have in common: a prefix of a bucket, and requests that are made again until patience ends.

A server that is busy, resets connections, loses answers, falls silent or is gone for a while is asked again until
`patience_s` of wall clock is used up; nothing below tries again by itself but within an upload in parts, and a request
in which nothing moves is given up (`lanes.py`). What cannot get better (settings, permissions, a missing bucket, a full
one) fails at once.

    MIGA_STORAGE_PATIENCE_S    seconds that a server may be gone (default 300); a run's workers are told what its driver
                               has. MIGA_S3_PATIENCE_S is its older name, and is read where the other is not set.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Any, ClassVar, Final, Self, TypeVar

from miga.errors import OutputError
from pipeline.storage.addresses import check_address, without_secrets
from pipeline.storage.base import PROBE_PREFIX, FileInfo, Leftover, checked_path
from pipeline.storage.lanes import AwakeClock, Lane, Progress, Request

PATIENCE_S: Final = 300.0
PATIENCE_VARIABLES: Final = ("MIGA_STORAGE_PATIENCE_S", "MIGA_S3_PATIENCE_S")

CHUNK_BYTES: Final = 1 << 18
"""Of an answer's body, told to the watch as they come."""

IDLE_S: Final = 60.0
"""A request in which nothing moves for so long is given up, and made again."""
HASTY_S: Final = 60.0
"""With less patience, `_HASTY_IDLE_S` holds, on connections of their own: a lease's beats wait for no upload."""
_HASTY_IDLE_S: Final = 10.0
_LEAST_IDLE_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 15.0
_DELETES_AT_ONCE: Final = 8

_MAX_PREFIX_BYTES: Final = 850
"""Keys have at most 1024, and the names of a run's files need some of them."""

T = TypeVar("T")


class NotImplementedThereError(OutputError):
    """The server does not know a request or one of its headers."""


class BrokenAnswerError(Exception):
    """What arrived is not what the server said it sends."""


@dataclass(frozen=True, kw_only=True)
class ObjectVersion:
    """What lies at a key just now.

    Attributes:
        bytes: its size.
        tag: its ETag, which another content has not.
        modified: when it was put, as the server says it.
    """

    bytes: int
    tag: str
    modified: str


class BucketStorage(ABC):
    """A prefix of a bucket. Credentials and endpoint come from the environment, as for every tool of that cloud.

    Args:
        root: `scheme://bucket/prefix`.
        patience_s: seconds for which a call goes on asking a server that fails; None means the environment's.
    """

    scheme: ClassVar[str]
    bucket_names: ClassVar[Pattern[str]]
    bucket_word: ClassVar[str] = "bucket"
    credentials: ClassVar[str]
    """What a hint says of where they come from."""

    def __init__(self, root: str, patience_s: float | None = None) -> None:
        check_address(root, OutputError, "OUT")
        word = self.bucket_word
        shape = f"{self.scheme}://{word}/prefix"
        bucket, _, prefix = root.removeprefix(f"{self.scheme}://").rstrip("/").partition("/")
        if not self.bucket_names.fullmatch(bucket):
            raise OutputError(
                f"OUT: the address begins with no name of a {word} ({len(bucket)} characters before the first /)",
                f"write {shape}; a {word}'s name is of letters, digits, '.', '_' and '-'",
            )
        if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
            raise OutputError(f"{root} names no place in a {word}", f"write {shape}")
        if len(prefix.encode()) > _MAX_PREFIX_BYTES:
            raise OutputError(
                f"OUT: the prefix has {len(prefix.encode())} bytes, and keys of a {word} at most 1024", "shorten it"
            )
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience_s = patience_of_environment() if patience_s is None else patience_s
        self._conditional = True

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "patience_s": self._patience_s, "conditional": self._conditional}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["patience_s"])  # type: ignore[misc]
        self._conditional = state["conditional"]

    @property
    def root(self) -> str:
        """See `Storage`."""
        return f"{self.scheme}://{self._bucket}/{self._prefix}".rstrip("/")

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    @abstractmethod
    def stat(self, path: str) -> FileInfo:
        """See `Storage`."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage`."""
        return (file.path for file in self.files(prefix))

    @abstractmethod
    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """See `Storage`."""

    @abstractmethod
    def children(self, prefix: str = "") -> Sequence[str]:
        """See `Storage`."""

    @abstractmethod
    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """See `Storage`."""

    @abstractmethod
    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """See `Storage`."""

    @abstractmethod
    def signed_address(self, path: str, valid_s: int) -> str:
        """See `Storage`."""

    @abstractmethod
    def get_file(self, path: str, local: str | Path) -> None:
        """See `Storage`."""

    def write_bytes(self, path: str, data: bytes, if_absent: bool = False) -> bool:
        """See `Storage`.

        A conditional put may be told "exists" for its own write, when the answer to a first try was lost; so what is
        there is read back and compared.
        """
        if if_absent and not self._conditional:
            if self.exists(path):
                return self.read_bytes(path) == data
            if_absent = False
        try:
            self._put(path, data, hashlib.sha256(data).hexdigest(), if_absent)
        except FileExistsError:
            return self.read_bytes(path) == data
        return True

    def create_empty(self, path: str) -> bool:
        """See `Storage`."""
        if not self._conditional and self.exists(path):
            return False
        try:
            self._put(path, b"", hashlib.sha256(b"").hexdigest(), self._conditional)
        except FileExistsError:
            return False
        return True

    def put_file(self, local: str | Path, path: str) -> None:
        """See `Storage`."""
        with open(local, "rb") as file:
            size, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        if size < self._multipart_bytes():
            self._put(path, Path(local).read_bytes(), sha256, False)
        else:
            self._put_parts(Path(local), path, size, sha256)
        try:
            there = self.stat(path)
        except FileNotFoundError:
            there = None
        if there is None or there.bytes != size or there.sha256 not in (None, sha256):
            raise OutputError(
                f"{self.uri(path)}: {size} bytes were sent, but "
                + ("nothing is there" if there is None else f"{there.bytes} bytes or another content are there"),
                "check the server: it lost an upload that it had acknowledged",
            )

    @abstractmethod
    def delete(self, path: str) -> None:
        """See `Storage`."""

    def delete_many(self, paths: Iterable[str]) -> None:
        """See `Storage`.

        One request each: servers differ in how they are asked to delete many, and in what they say of one that is gone.
        """
        with ThreadPoolExecutor(_DELETES_AT_ONCE) as threads:
            for _ in threads.map(self.delete, paths):
                pass

    def leftovers(self) -> Iterator[Leftover]:
        """See `Storage`."""
        for name in self.children():
            if name.startswith(PROBE_PREFIX):
                yield Leftover(kind="probe", path=name)

    def remove_leftover(self, leftover: Leftover) -> None:
        """See `Storage`."""
        self.delete(leftover.path)

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return f"{self.scheme}://{self._bucket}/{self._key(path)}"

    def probe(self, single_coordinator: bool = False) -> None:
        """See `Storage`."""
        name = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        try:
            try:
                self.write_bytes(name, b"first", if_absent=True)
                is_honoured = not self.write_bytes(name, b"second", if_absent=True)
            except NotImplementedThereError:
                is_honoured = False
        finally:
            self.delete(name)
        if is_honoured:
            return
        if not single_coordinator:
            raise OutputError(
                f"{self.root}: the server ignores {self._condition_name}, so two runs could overwrite each other",
                "use a server with conditional writes (AWS S3, MinIO, Ceph, Google Cloud Storage, Azure Blob Storage) "
                "or a local folder; or set [run] single_coordinator = true if you make sure that no two runs ever "
                "write there at once",
            )
        self._conditional = False

    def with_patience(self, patience_s: float) -> Self:
        """See `Storage`."""
        other = copy.copy(self)
        other._patience_s = min(patience_s, self._patience_s)
        return other

    # ---- objects ----

    _condition_name: ClassVar[str] = "If-None-Match"

    @abstractmethod
    def look_at_key(self, key: str) -> ObjectVersion:
        """What lies at any key of the bucket, whatever its prefix.

        Raises:
            FileNotFoundError: if nothing does.
        """

    @abstractmethod
    def read_key(self, key: str, start: int, stop: int, tag: str) -> bytes:
        """Bytes of the object at any key of the bucket, if it is the one with that tag.

        Raises:
            FileNotFoundError: if there is none.
            FileExistsError: if there is another one.
        """

    @abstractmethod
    def is_above_keys(self, key: str) -> bool:
        """Whether there are keys that begin with `key` and a slash."""

    def _key(self, path: str) -> str:
        return self._prefix + checked_path(path)

    def _folder(self, prefix: str) -> str:
        return f"{self._prefix}{prefix}/" if prefix else self._prefix

    @abstractmethod
    def _put(self, path: str, data: bytes, sha256: str, if_absent: bool) -> None:
        """Puts an object whole, with its checksum beside it.

        Raises:
            FileExistsError: if there is one, with `if_absent`.
        """

    @abstractmethod
    def _multipart_bytes(self) -> int:
        """Files of this size and more go up in parts."""

    @abstractmethod
    def _put_parts(self, local: Path, path: str, size: int, sha256: str) -> None:
        """Puts a large file. Nothing is at `path` before the last step, and the parts are removed if that fails."""

    # ---- requests ----

    @abstractmethod
    def _lane(self, name: str) -> Lane:
        """The lane of that name for requests to this bucket's server."""

    @abstractmethod
    def _fault(self, path: str, error: Exception) -> Exception | None:
        """The error that a fault is to be raised as; None where it may pass."""

    def ask(self, path: str, request: Request[T], body_bytes: int = 0) -> T:
        """What the server answers, asked again while it fails in a way that passes.

        Args:
            path: that it is about, for messages.
            request: makes it.
            body_bytes: that it sends.

        Raises:
            FileNotFoundError: if there is no such object (or upload).
            FileExistsError: if a condition did not hold.
            OutputError: for every other fault, and once patience is used up.
        """
        clock, pause_s = AwakeClock(), _FIRST_PAUSE_S
        idle_s, name = (IDLE_S, "patient") if self._patience_s >= HASTY_S else (_HASTY_IDLE_S, "hasty")
        while True:
            left_s = self._patience_s - clock.now_s
            try:
                there = self._lane(name)
                there.make_ready()
                clock.forget()
                return there.ask(request, Progress(clock, max(_LEAST_IDLE_S, min(idle_s, left_s)), body_bytes))
            except OutputError:
                raise
            except Exception as error:
                clock.tick()
                fault = self._fault(path, error)
                if fault is not None:
                    raise fault from error
                left_s = self._patience_s - clock.now_s
                if left_s <= 0:
                    raise OutputError(
                        f"{self._place(path)}: no usable answer for {self._patience_s:.0f} s, "
                        f"last: {self._text(error)}",
                        f"check credentials ({self.credentials}), the endpoint and the network; the same command then "
                        f"goes on from there ({PATIENCE_VARIABLES[0]} sets for how long a server may be gone)",
                    ) from error
                clock.sleep(min(left_s, pause_s * random.uniform(0.5, 1)))
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _place(self, path: str) -> str:
        return f"{self.scheme}://{self._bucket}/{self._prefix}{path}"

    @staticmethod
    def _text(error: Exception) -> str:
        """What a fault says of itself, on one line."""
        return without_secrets(" ".join(str(error).split()) or type(error).__name__)


def check_content(size: int, announced: int, sha256: str | None, digest: Any) -> None:
    """Returns if what was read is as long as announced, and what was put.

    Raises:
        BrokenAnswerError: if it is not.
    """
    if size != announced or sha256 not in (None, digest.hexdigest()):
        raise BrokenAnswerError(f"{size} of {announced} bytes arrived, or their SHA-256 is not {sha256 or 'known'}")


def patience_of_environment() -> float:
    """Seconds that a server may be gone.

    Raises:
        OutputError: if the environment says no number.
    """
    name = next((name for name in PATIENCE_VARIABLES if name in os.environ), None)
    if name is None:
        return PATIENCE_S
    text = os.environ[name]
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise OutputError(f"{name} is {text!r}, which is no number of seconds", "write a number, as 300")
    return value
