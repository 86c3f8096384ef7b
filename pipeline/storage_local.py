"""A local folder as a storage: files are finished beside their place, then renamed or linked."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from miga.errors import OutputError
from pipeline.storage_base import PROBE_PREFIX, FileInfo, Leftover, checked_path

PARTIAL_SUFFIX: Final = ".partial"
"""Ends the names of local files that are being written; a crash may leave one, and listings leave them out."""

_PROCESS: Final = uuid.uuid4().hex[:16]
_NUMBERS: Final = itertools.count()
"""With the process id, which a fork changes, they name one file being written."""


class LocalStorage:
    """A folder."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(os.path.abspath(Path(root).expanduser()))
        with _local_faults(self._root):
            there = next(folder for folder in (self._root, *self._root.parents) if folder.exists())
            if not there.is_dir():
                raise OutputError(f"{there} is a file, not a folder", "name a new or an empty folder as OUT")

    @property
    def root(self) -> str:
        """See `Storage`."""
        return str(self._root)

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        with _local_faults(self._at(path)):
            return self._at(path).is_file()

    def stat(self, path: str) -> FileInfo:
        """See `Storage`."""
        place = self._at(path, check=False)
        with _local_faults(place):
            found = place.stat()
        return FileInfo(path=path, bytes=found.st_size, modified_s=found.st_mtime)

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage`."""
        for name in self.children(prefix):
            path = f"{prefix}/{name}" if prefix else name
            if self._at(path, check=False).is_dir():
                yield from self.list(path)
            else:
                yield path

    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """See `Storage`."""
        for path in self.list(prefix):
            try:
                yield self.stat(path)
            except FileNotFoundError:  # removed since
                continue

    def children(self, prefix: str = "") -> Sequence[str]:
        """See `Storage`."""
        folder = self._at(prefix, check=False) if prefix else self._root
        with _local_faults(folder):
            try:
                return sorted(name for name in os.listdir(folder) if not name.endswith(PARTIAL_SUFFIX))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def read_bytes(self, path: str) -> bytes:
        """See `Storage`."""
        with _local_faults(self._at(path)):
            return self._at(path).read_bytes()

    def get_file(self, path: str, local: str | Path) -> None:
        """See `Storage`."""
        copy_whole(self._at(path), Path(local))

    def write_bytes(self, path: str, data: bytes, if_absent: bool = False) -> bool:
        """See `Storage`."""
        place = self._at(path)
        if not if_absent:
            with write_local(place) as file:
                file.write(data)
            return True
        with _local_faults(place), _partial(place) as partial:
            with _new(partial, buffering=0) as file:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            if not _link(partial, place):
                return place.read_bytes() == data
            _sync_folder(place.parent)
        return True

    def put_file(self, local: str | Path, path: str) -> None:
        """See `Storage`."""
        place = self._at(path)
        copy_whole(Path(local), place)
        if (there := self.stat(path).bytes) != (sent := os.path.getsize(local)):
            raise OutputError(f"{place} has {there} bytes after {sent} were written", "check the disk")

    def delete(self, path: str) -> None:
        """See `Storage`."""
        with _local_faults(self._at(path)):
            self._at(path).unlink(missing_ok=True)

    def delete_many(self, paths: Iterable[str]) -> None:
        """See `Storage`."""
        folders = set()
        for path in paths:
            self.delete(path)
            folders.add(self._at(path).parent)
        for folder in folders - {self._root}:
            with suppress(OSError):
                folder.rmdir()  # goes only if it is empty

    def leftovers(self) -> Iterator[Leftover]:
        """See `Storage`."""
        for folder, _, names in os.walk(self._root):
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), self._root)
                if name.endswith(PARTIAL_SUFFIX) and name.startswith("."):
                    yield Leftover(kind="partial file", path=path)
                elif name.startswith(PROBE_PREFIX):
                    yield Leftover(kind="probe", path=path)

    def remove_leftover(self, leftover: Leftover) -> None:
        """See `Storage`."""
        place = self._at(leftover.path, check=False)
        with _local_faults(place):
            place.unlink(missing_ok=True)

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return str(self._at(path))

    def probe(self, single_coordinator: bool = False) -> None:
        """See `Storage`."""
        name = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        try:
            self.write_bytes(name, b"probe", if_absent=True)
        finally:
            if self._root.is_dir():
                self.delete(name)

    def with_patience(self, patience_s: float) -> LocalStorage:
        """See `Storage`; a disk answers or fails, so it is this one."""
        return self

    def _at(self, path: str, check: bool = True) -> Path:
        return self._root / (checked_path(path) if check else path)


def copy_whole(source: Path, place: Path) -> None:
    """Copies a local file to `place`, whole or not at all.

    Raises:
        FileNotFoundError: if there is no `source`.
        OutputError: if it cannot be written, or `source` not be read.
    """
    with write_local(place) as file, open(source, "rb") as original:
        shutil.copyfileobj(original, file, 1 << 20)


@contextmanager
def write_local(place: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `place` once the block has ended well, and nowhere otherwise.

    Raises:
        OutputError: if it cannot be written.
    """
    with _local_faults(place), _partial(place) as partial:
        with _new(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
        _sync_folder(place.parent)


@contextmanager
def _partial(place: Path) -> Iterator[str]:
    """A name beside `place` for a file being written; gone at the end, whatever happens."""
    folder, name = os.path.split(place)
    partial = f"{folder}/.{name}.{_PROCESS}-{os.getpid()}-{next(_NUMBERS)}{PARTIAL_SUFFIX}"
    try:
        yield partial
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)


def _new(partial: str, buffering: int = -1) -> BinaryIO:
    """The file, new and open; its folder is made where there is none, or `delete_many` has removed it meanwhile."""
    for _ in range(3):
        with suppress(FileNotFoundError):
            return open(partial, "xb", buffering)
        os.makedirs(os.path.dirname(partial), exist_ok=True)
    return open(partial, "xb", buffering)


def _link(partial: str, place: Path) -> bool:
    """Gives a finished file its final name unless that is taken.

    File systems without hard links get a check and a rename instead, which is safe for one run at a time only.
    """
    try:
        os.link(partial, place)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if place.exists():
            return False
        os.replace(partial, place)
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlive a power cut, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


_REMEDIES: Final = {
    errno.ENOSPC: ("no space left on the device", "free some space, then run the same command again: it resumes"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again: it resumes"),
    errno.EACCES: ("permission denied", "choose a folder that you may write to"),
    errno.EPERM: ("permission denied", "choose a folder that you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a folder that you may write to"),
    errno.ENOTDIR: ("a part of the path is a file", "name a new or an empty folder as OUT"),
    errno.EEXIST: ("a part of the path is a file", "name a new or an empty folder as OUT"),
    errno.EISDIR: ("there is a folder where a file belongs", "name a new or an empty folder as OUT"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter OUT"),
}


@contextmanager
def _local_faults(place: Path) -> Iterator[None]:
    """Faults of the file system as `OutputError`; a missing file stays `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        what, remedy = _REMEDIES.get(error.errno or 0, (str(error), "check the disk"))
        raise OutputError(f"{place}: {what}", remedy) from error
