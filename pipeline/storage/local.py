"""A local folder as a storage: files are finished beside their place, then renamed or linked.

Symbolic links within the folder are foreign. Listings leave them out, nothing is read, written or deleted through one,
and a path that leads over one is an error that names it: a link could lead out of OUT, and whoever can write there
would choose where to. The folder itself may be a link, or lie below one.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from miga.errors import OutputError, OutputFullError
from pipeline.storage.addresses import is_printable
from pipeline.storage.base import PROBE_PREFIX, FileInfo, Leftover, check_size, checked_path
from pipeline.terminal import escaped

PARTIAL_SUFFIX: Final = ".partial"
"""Ends the names of local files that are being written; a crash may leave one, and listings leave them out."""

_MAX_NAME_BYTES: Final = 255
_MAX_ROOT_BYTES: Final = 3800
"""Linux takes paths of 4095, and the names of a run's files need some of them."""

_PROCESS: Final = uuid.uuid4().hex[:16]
_NUMBERS: Final = itertools.count()
"""With the process id, which a fork changes, they name one file being written."""


class LocalStorage:
    """A folder."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(checked_root(str(root)))

    @property
    def root(self) -> str:
        """See `Storage`."""
        return str(self._root)

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place), suppress(FileNotFoundError, NotADirectoryError):
            return stat.S_ISREG(place.lstat().st_mode)
        return False

    def stat(self, path: str) -> FileInfo:
        """See `Storage`."""
        place = self._at(path, check=False)
        with _local_faults(place):
            return _info(path, place.lstat())

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage`."""
        return (path for path, entry in self._walk(prefix) if not entry.name.endswith(PARTIAL_SUFFIX))

    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """See `Storage`."""
        for path, entry in self._walk(prefix):
            if not entry.name.endswith(PARTIAL_SUFFIX):
                with suppress(FileNotFoundError):  # removed since
                    yield _info(path, entry.stat(follow_symlinks=False))

    def children(self, prefix: str = "") -> Sequence[str]:
        """See `Storage`."""
        return sorted(
            entry.name
            for entry in self._entries(prefix)
            if not entry.name.endswith(PARTIAL_SUFFIX) and (not prefix or not entry.is_symlink())
        )

    def _walk(self, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Paths of all files below a folder, sorted, and what is known of them; without recursion, however deep."""
        waiting: list[tuple[str, os.DirEntry[str] | None]] = [(prefix, None)]
        while waiting:
            path, found = waiting.pop()
            if found is not None and found.is_file(follow_symlinks=False):
                yield path, found
                continue
            start = f"{path}/" if path else ""
            entries = self._entries(path) if found is None else _scan(Path(found.path))
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                    waiting.append((start + entry.name, entry))

    def _entries(self, prefix: str) -> Sequence[os.DirEntry[str]]:
        return _scan(self._at(prefix, check=False) if prefix else self._root)

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place), open_regular(place) as file:
            check_size(str(place), os.fstat(file.fileno()).st_size, max_bytes)
            return file.read()

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place), open_regular(place) as file:
            file.seek(start)
            return file.read(num_bytes)

    def signed_address(self, path: str, valid_s: int) -> str:
        """See `Storage`; a folder has none."""
        raise OutputError(f"{self._root} is a folder, and only files in object storage have signed addresses", "")

    def get_file(self, path: str, local: str | Path) -> None:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place), open_regular(place) as original, write_local(Path(local)) as file:
            shutil.copyfileobj(original, file, 1 << 20)

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
            with _still_there(place):
                is_new = _link(partial, place)
            if not is_new:
                return self.stat(path).bytes == len(data) and self.read_bytes(path) == data
            _sync_folder(place.parent)
        return True

    def create_empty(self, path: str) -> bool:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place):
            try:
                _new(str(place)).close()
            except FileExistsError:
                return False
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
        for path, entry in self._walk():
            if entry.name.endswith(PARTIAL_SUFFIX) and entry.name.startswith("."):
                yield Leftover(kind="partial file", path=path)
            elif entry.name.startswith(PROBE_PREFIX):
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
        """Where a path is.

        Raises:
            OutputError: if a part of it is a link.
        """
        place = self._root
        with _local_faults(place / path):
            for part in (checked_path(path) if check else path).split("/"):
                place = place / part
                try:
                    is_link = stat.S_ISLNK(place.lstat().st_mode)
                except (FileNotFoundError, NotADirectoryError):
                    return self._root / path
                if is_link:
                    raise _link_within(place)
        return place


def _scan(folder: Path) -> Sequence[os.DirEntry[str]]:
    """What is in a folder; nothing if there is none."""
    with _local_faults(folder):
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _info(path: str, found: os.stat_result) -> FileInfo:
    return FileInfo(path=path, bytes=found.st_size, modified_s=found.st_mtime)


def checked_root(root: str) -> str:
    """The folder, absolute, if it is there or can be made.

    Raises:
        OutputError: if its path cannot be written down, is too long, leads over a link to what is not there, or over
            something that is no folder.
    """
    try:
        path = os.path.abspath(Path(root).expanduser())
    except RuntimeError:
        raise OutputError(f"{root}: there is no such user's home", "write the whole path, or ./~ for a name") from None
    except FileNotFoundError:
        raise OutputError("the working folder is not there any more", "change to one that is") from None
    try:
        path.encode()
    except UnicodeEncodeError:
        raise OutputError(
            f"OUT is not UTF-8: {escaped(path)}", "rename the folder, or choose another: it stands in files of text"
        ) from None
    if not is_printable(path):
        raise OutputError(f"OUT holds unprintable characters: {escaped(path)}", "name a folder without them")
    if "::" in path:
        raise OutputError(
            f"OUT holds '::': {path}", "name a folder without it: readers of a manifest's addresses take it for a chain"
        )
    encoded = path.encode()
    if len(encoded) > _MAX_ROOT_BYTES or any(len(part) > _MAX_NAME_BYTES for part in encoded.split(b"/")):
        raise OutputError(f"{path}: {_REMEDIES[errno.ENAMETOOLONG][0]}", _REMEDIES[errno.ENAMETOOLONG][1])
    place = Path(path)
    with _local_faults(place):
        for folder in (*reversed(place.parents), place):
            if not _is_folder(folder):
                break
    return path


def _is_folder(folder: Path) -> bool:
    """Whether there is one; False if there is nothing.

    Raises:
        OutputError: if there is something else.
    """
    try:
        if stat.S_ISDIR(folder.stat().st_mode):
            return True
    except FileNotFoundError:
        if folder.is_symlink():
            raise OutputError(
                f"the link {folder} points to {escaped(os.readlink(folder))}, which is not there",
                "mount the disk that it points to, or remove the link",
            ) from None
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutputError(f"the link {folder} leads back to itself", "remove it, or name a folder") from None
        raise
    raise OutputError(f"{folder} is a file, not a folder", "name a new or an empty folder as OUT")


def _link_within(place: Path) -> OutputError:
    return OutputError(
        f"{place} is a link, and no link within OUT is followed",
        "put the folder or file itself there (a whole OUT may lie behind a link), or remove the link",
    )


@contextmanager
def open_regular(place: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading: no link, and no pipe that would be waited for.

    Raises:
        OSError: as `open`.
        OutputError: if it is something else.
    """
    try:
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link_within(place) from error
        raise
    with open(handle, "rb") as file:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        if not stat.S_ISREG(kind):
            raise OutputError(f"{place} is no regular file", "it was not made by this program: move it away")
        yield file


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
        with _still_there(place):
            os.replace(partial, place)
        _sync_folder(place.parent)


@contextmanager
def _still_there(place: Path) -> Iterator[None]:
    """What was removed before it had its final name is not what the caller takes a `FileNotFoundError` for."""
    try:
        yield
    except FileNotFoundError as error:
        raise OutputError(
            f"{place} was removed while it was being written", "run the same command again: it resumes"
        ) from error


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
        kind = OutputFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
        raise kind(f"{place}: {what}", remedy) from error
