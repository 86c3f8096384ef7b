"""A prompt file that is still the one it was: all that is read of it again is compared with the first reading.

A run reads its prompt file several times: for the fingerprint in run.json, to count the rows, to make them. A
`PromptFile` keeps a hash of each block of the first reading, and the file that `open` gives returns no byte of another
block. So no row is ever made of other bytes than those whose fingerprint stands in run.json, whenever and however
somebody edits the file. An edit is noticed by the file's size and time at every row, too, and then reading ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, Any, Final, TypeAlias

import fsspec
from fsspec.implementations.local import LocalFileSystem

from miga.errors import InputError, MigaError, OutputError
from pipeline.storage.addresses import check_address
from pipeline.storage.bucket_object import BucketObject
from pipeline.storage.open import is_in_bucket

Data: TypeAlias = bytes
"""Where `bytes` is a size."""

BLOCK_BYTES: Final = 256 << 10
_DIGEST_BYTES: Final = 32
_KEPT_BLOCKS: Final = 64
"""The columns of a Parquet file are read by turns."""

_REMOTE_LOOK_S: Final = 5.0
"""How often a file in object storage is asked for its size and time."""

KINDS: Final = (".txt", ".jsonl", ".csv", ".parquet")
"""By which the reader of a prompt file is chosen."""

_VERSION_KEYS: Final = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
_RESTORE: Final = (
    "put the file back as it was and run the same command: it resumes; changed prompts are for another OUT"
)


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """What a prompt file held when it was first read.

    Attributes:
        path: as the user gave it.
        where: the same, absolute.
        bytes: its size.
        sha256: of its content, in hex.
        blocks: SHA-256 of each `BLOCK_BYTES` of it, one after the other.
    """

    path: str
    where: str
    bytes: int
    sha256: str
    blocks: Data

    @classmethod
    def of(cls, path: str, chunks: Iterable[Data]) -> PromptFile:
        """That of a file with this content, which is cut anywhere."""
        whole, blocks, size, rest = hashlib.sha256(), bytearray(), 0, b""
        for chunk in chunks:
            whole.update(chunk)
            size += len(chunk)
            rest += chunk
            while len(rest) >= BLOCK_BYTES:
                blocks += hashlib.sha256(rest[:BLOCK_BYTES]).digest()
                rest = rest[BLOCK_BYTES:]
        if rest:
            blocks += hashlib.sha256(rest).digest()
        where = path if _is_address(path) else os.path.abspath(path)
        return cls(path=path, where=where, bytes=size, sha256=whole.hexdigest(), blocks=bytes(blocks))

    @cached_property
    def name(self) -> str:
        """Of the file, without its folder."""
        return _name_of(self.path)

    @cached_property
    def kind(self) -> str:
        """One of `KINDS`."""
        return PurePosixPath(self.name).suffix.lower()

    def open(self) -> SteadyFile:
        """The file for reading, from its start, with nothing but those bytes in it.

        Raises:
            InputError: if it cannot be opened; reading raises it where the file has changed.
        """
        return SteadyFile(self)


def look_at(path: str) -> PromptFile:
    """Reads a prompt file through, in constant memory.

    Raises:
        InputError: if it cannot be read, is no regular file, of an unknown kind, or is being written; or if its address
            holds credentials, which would stand in run.json.
    """
    check_address(path, InputError, "prompts")
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the path of the prompt file is not UTF-8: {path!a}", "rename the file, or the folder it is in"
        ) from error
    with contextlib.closing(_Raw(path)) as raw:
        _check_kind(path)
        file = PromptFile.of(path, raw.chunks())
        if raw.has_changed():
            raise InputError(f"{path} is being written", "wait until that is done, then run the same command again")
    return file


class SteadyFile(io.RawIOBase):
    """A `PromptFile` open for reading: binary, seekable. See there."""

    def __init__(self, source: PromptFile) -> None:
        super().__init__()
        self._source = source
        self._raw = _Raw(source.path)
        if self._raw.size not in (None, source.bytes):
            self._raw.close()
            raise self._changed(_difference(source, look_at(source.path)))
        self._at = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """As any file that is read."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to another place."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.bytes}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Reads up to the end of the block.

        Raises:
            InputError: if the file cannot be read, or has changed.
        """
        if self._at >= self._source.bytes:
            return 0
        number, start = divmod(self._at, BLOCK_BYTES)
        data = self._block(number)[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Ends reading."""
        if not self.closed:
            self._raw.close()
        super().close()

    def check(self) -> None:
        """Returns if the file looks as it did, by its size and time, or holds the same bytes still.

        Raises:
            InputError: if not.
        """
        if self._raw.has_changed():
            self._open_again()

    def _block(self, number: int) -> bytes:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        start = number * BLOCK_BYTES
        size = min(BLOCK_BYTES, self._source.bytes - start)
        data = self._read(start, size)
        if not self._is_block(number, data):
            self._open_again()
            data = self._raw.read(start, size)
            if not self._is_block(number, data):
                raise self._changed(f"bytes {start} to {start + size} are others now")
        self._kept[number] = data
        if len(self._kept) > _KEPT_BLOCKS:
            self._kept.popitem(last=False)
        return data

    def _read(self, start: int, size: int) -> bytes:
        try:
            return self._raw.read(start, size)
        except InputError:
            if self._raw.is_local:
                raise
            self._open_again()  # a bucket gives out no more of an object that has been replaced
            return self._raw.read(start, size)

    def _is_block(self, number: int, data: bytes) -> bool:
        at = number * _DIGEST_BYTES
        return hashlib.sha256(data).digest() == self._source.blocks[at : at + _DIGEST_BYTES]

    def _open_again(self) -> None:
        """Goes on with the file that lies there now, if it holds the same."""
        now = look_at(self._source.path)
        if now.sha256 != self._source.sha256:
            raise self._changed(_difference(self._source, now))
        self._raw.close()
        self._raw = _Raw(self._source.path)

    def _changed(self, how: str) -> InputError:
        return InputError(f"{self._source.path} was changed while the run read it: {how}", _RESTORE)


def _difference(then: PromptFile, now: PromptFile) -> str:
    if then.bytes != now.bytes:
        return f"it had {then.bytes} bytes and has {now.bytes} now"
    starts = range(0, len(then.blocks), _DIGEST_BYTES)
    end = _DIGEST_BYTES
    first = next((i for i in starts if then.blocks[i : i + end] != now.blocks[i : i + end]), 0) // end * BLOCK_BYTES
    return f"it still has {now.bytes} bytes, but other ones, from byte {first} on or soon after"


def read_bytes(path: str, most: int) -> bytes:
    """A whole file at a path or an address.

    Raises:
        InputError: if it cannot be read, or has more bytes than `most`.
    """
    with contextlib.closing(_Raw(path)) as raw:
        if raw.size is not None and raw.size > most:
            raise InputError(f"{path} has {raw.size:,} bytes", f"at most {most:,} are read")
        parts, size = [], 0
        for chunk in raw.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                raise InputError(f"{path} has more than {most:,} bytes", "name a smaller file")
        return b"".join(parts)


class _Raw:
    """The bytes that lie at an address, whatever they are; every fault is an `InputError`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.is_local, self._object = False, None
        with _faults(path):
            if is_in_bucket(path):
                self._object = BucketObject(path)
            else:
                self._fs, self._fs_path = _file_system(path)
                self.is_local = isinstance(self._fs, LocalFileSystem)
                self._file = self._open_local() if self.is_local else self._open_remote()
        self._at = 0
        self._stamp = self._stamp_now()
        self._looked_s = time.monotonic()

    def _open_local(self) -> IO[bytes]:
        mode = os.stat(self._fs_path).st_mode
        if stat.S_ISDIR(mode):
            raise _folder(self._path)
        if not stat.S_ISREG(mode):
            raise InputError(
                f"{self._path} is a pipe or a device, and a prompt file is read more than once",
                "write it into a file first",
            )
        return open(self._fs_path, "rb", buffering=0)

    def _open_remote(self) -> IO[bytes]:
        self._fs.invalidate_cache()
        if self._fs.info(self._fs_path)["type"] == "directory":
            raise _folder(self._path)
        file: IO[bytes] = self._fs.open(self._fs_path, "rb")
        return file

    @property
    def size(self) -> int | None:
        """When it was opened; None where that is not known."""
        size: int | None = self._stamp[0]
        return size

    def close(self) -> None:
        if self._object is None:
            self._file.close()

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on; fewer at the end only."""
        parts = []
        with _faults(self._path):
            if self._object is not None:
                data = self._object.read(start, size)
                self._at = start + len(data)
                return data
            if start != self._at:
                self._file.seek(start)
                self._at = start
            while size and (data := self._file.read(size)):
                parts.append(data)
                size -= len(data)
                self._at += len(data)
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """All of it, from the start."""
        while data := self.read(self._at, BLOCK_BYTES):
            yield data

    def has_changed(self) -> bool:
        """Whether size or time are others than when it was opened."""
        if not self.is_local:
            if time.monotonic() - self._looked_s < _REMOTE_LOOK_S:
                return False
            self._looked_s = time.monotonic()
        return self._stamp_now() != self._stamp

    def _stamp_now(self) -> tuple[Any, ...]:
        if self.is_local:
            about = os.fstat(self._file.fileno())
            return about.st_size, about.st_mtime_ns
        with _faults(self._path):
            if self._object is not None:
                return astuple(self._object.version())
            self._fs.invalidate_cache()
            info = self._fs.info(self._fs_path)
            return (info.get("size"), *(str(info.get(key)) for key in _VERSION_KEYS))


def _check_kind(path: str) -> None:
    suffix = PurePosixPath(_name_of(path)).suffix.lower()
    if suffix not in KINDS:
        kinds = ", ".join(KINDS)
        hint = "write a JSON object a line and call it .jsonl" if suffix == ".json" else f"use one of {kinds}"
        raise InputError(f"{path}: unknown kind of prompt file {suffix!r}; known: {kinds}", hint)


def _name_of(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def _is_address(path: str) -> bool:
    return "://" in path


def _file_system(path: str) -> tuple[Any, str]:
    """The file system of a path or address, and the path in it; "::" has no meaning of its own in either."""
    if not _is_address(path):
        return LocalFileSystem(), LocalFileSystem._strip_protocol(path)
    kind: Any = fsspec.get_filesystem_class(path.partition("://")[0])
    return kind(**kind._get_kwargs_from_urls(path)), kind._strip_protocol(path)


def _folder(path: str) -> InputError:
    return InputError(f"{path} is a folder, not a prompt file", "name one .txt, .jsonl, .csv or .parquet file")


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """Whatever keeps a file from being opened or read, as an `InputError`."""
    try:
        yield
    except OutputError as error:  # of a bucket
        raise InputError(f"{path} cannot be read: {error.message}", error.hint) from error
    except MigaError:
        raise
    except FileNotFoundError as error:
        raise InputError(*_not_there(path)) from error
    except IsADirectoryError as error:
        raise _folder(path) from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied", "check its permissions or credentials") from error
    except ImportError as error:
        raise InputError(f"{path} cannot be read: {error}", "install the fsspec package of that kind of storage") from (
            error
        )
    except Exception as error:  # of fsspec and the client libraries under it, which share no base and document none
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read: {text[:500]}", _advice(path)) from error


def _not_there(path: str) -> tuple[str, str]:
    if not _is_address(path) and os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist", "restore what it points to"
    return f"{path} does not exist", "check the path; relative paths start at the working folder"


def _advice(path: str) -> str:
    advice: dict[str, Callable[[], str]] = {
        "hf": lambda: "check the address and HF_TOKEN, and that HF_HUB_OFFLINE is not set; or download the file first",
    }
    scheme = path.partition("://")[0] if _is_address(path) else ""
    return (
        advice[scheme]()
        if scheme in advice
        else "use a local path or an address that begins with s3://, gs:// or az://"
    )
