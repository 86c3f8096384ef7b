"""Where a run keeps its files: a local folder, or a prefix of an S3 bucket, behind one small protocol.

Paths are relative, POSIX, and made by this program (prompts and ids never become path names). Nothing partial is ever
seen at a final name: locally a file is finished beside its place and renamed; on S3 an object is put whole. Every fault
is an `OutputError` that names the place and the remedy.

Not done through `fs.open(..., "wb")`: an exception inside it publishes what was written so far as if it were all.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from miga.errors import OutputError

PARTIAL_SUFFIX: Final = ".partial"
"""Ends the names of local files that are being written; a crash may leave one, and listings leave them out."""

S3_ATTEMPTS: Final = 10

_PART: Final = re.compile(r"[A-Za-z0-9._=-]{1,200}", re.ASCII)


class Storage(Protocol):
    """A tree of files. All paths are relative to its root."""

    @property
    def root(self) -> str:
        """The address it was opened with, made absolute."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file (not a folder) at `path`."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every file under the folder `prefix`, sorted; nothing if there is no such folder."""
        ...

    def children(self, prefix: str = "") -> Sequence[str]:
        """Names of the files and folders directly in the folder `prefix`, sorted."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """The file's content.

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

    def put_file(self, local: str | Path, path: str) -> None:
        """Puts a copy of a finished local file in place, whole or not at all."""
        ...

    def delete(self, path: str) -> None:
        """Removes a file; none there is fine."""
        ...

    def uri(self, path: str) -> str:
        """The address of a file for other programs: an absolute local path, or an s3:// address."""
        ...

    def probe(self) -> None:
        """Tries what the run will need.

        Raises:
            OutputError: if it cannot be written here, or a conditional write is not honoured.
        """
        ...


def open_storage(out: str | Path) -> Storage:
    """The storage at `out`: a folder (made when first written to) or `s3://bucket/prefix`. It pickles.

    Raises:
        OutputError: if `out` is neither, such as a file.
    """
    text = str(out)
    if text.startswith("s3://"):
        return S3Storage(text)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        raise OutputError(f"{text}: this kind of storage is not known", "use a folder or s3://bucket/prefix")
    if not text.strip() or "\0" in text:
        raise OutputError(f"OUT is {text!r}, which names no folder", "name a folder or s3://bucket/prefix")
    return LocalStorage(text)


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

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage`."""
        for name in self.children(prefix):
            path = f"{prefix}/{name}" if prefix else name
            if self._at(path, check=False).is_dir():
                yield from self.list(path)
            else:
                yield path

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

    def write_bytes(self, path: str, data: bytes, if_absent: bool = False) -> bool:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place), _partial(place) as partial:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not if_absent:
                os.replace(partial, place)
            elif not _link(partial, place):
                return place.read_bytes() == data
            _sync_folder(place.parent)
        return True

    def put_file(self, local: str | Path, path: str) -> None:
        """See `Storage`."""
        place = self._at(path)
        with _local_faults(place), _partial(place) as partial:
            with open(local, "rb") as source, open(partial, "xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, place)
            _sync_folder(place.parent)

    def delete(self, path: str) -> None:
        """See `Storage`."""
        with _local_faults(self._at(path)):
            self._at(path).unlink(missing_ok=True)

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return str(self._at(path))

    def probe(self) -> None:
        """See `Storage`."""
        name = f".probe-{uuid.uuid4().hex}"
        try:
            self.write_bytes(name, b"probe", if_absent=True)
        finally:
            if self._root.is_dir():
                self.delete(name)

    def _at(self, path: str, check: bool = True) -> Path:
        return self._root / (checked_path(path) if check else path)


class S3Storage:
    """A prefix of a bucket. Credentials, region and endpoint come from the environment, as for every AWS tool."""

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not bucket or "//" in prefix or ".." in prefix.split("/"):
            raise OutputError(f"{root} names no place in a bucket", "write s3://bucket/prefix")
        self._base = f"{bucket}/{prefix}".rstrip("/")
        self._fs = _s3_file_system()

    @property
    def root(self) -> str:
        """See `Storage`."""
        return f"s3://{self._base}"

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        place = self._at(path)
        with self._faults(path):
            return bool(self._fs.isfile(place))

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage`."""
        start = f"{self._base}/{prefix}".rstrip("/")
        with self._faults(prefix):
            found = self._fs.find(start)
        yield from sorted(path.removeprefix(self._base + "/") for path in found if path != start)

    def children(self, prefix: str = "") -> Sequence[str]:
        """See `Storage`."""
        start = f"{self._base}/{prefix}".rstrip("/")
        with self._faults(prefix):
            try:
                found = self._fs.ls(start, detail=False, refresh=True)
            except FileNotFoundError:
                return []
        names = (path.rstrip("/").removeprefix(start).strip("/") for path in found)
        return sorted(name for name in names if name)

    def read_bytes(self, path: str) -> bytes:
        """See `Storage`."""
        place = self._at(path)
        with self._faults(path):
            return bytes(self._fs.cat_file(place))

    def write_bytes(self, path: str, data: bytes, if_absent: bool = False) -> bool:
        """See `Storage`.

        A conditional put may be told "exists" for its own write, when the answer to a first try was lost; so what is
        there is read back and compared.
        """
        place = self._at(path)
        with self._faults(path):
            if not if_absent:
                self._fs.pipe_file(place, data)
                return True
            try:
                self._fs.pipe_file(place, data, mode="create")
            except OSError as error:
                if not _says_exists(error):
                    raise
                try:
                    return bytes(self._fs.cat_file(place)) == data
                except FileNotFoundError:
                    raise error from None
            return True

    def put_file(self, local: str | Path, path: str) -> None:
        """See `Storage`."""
        place = self._at(path)
        with self._faults(path):
            self._fs.put_file(str(local), place)

    def delete(self, path: str) -> None:
        """See `Storage`."""
        place = self._at(path)
        with self._faults(path):
            try:
                self._fs.rm_file(place)
            except FileNotFoundError:
                return

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return f"s3://{self._at(path)}"

    def probe(self) -> None:
        """See `Storage`."""
        name = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(name, b"first", if_absent=True)
        try:
            if self.write_bytes(name, b"second", if_absent=True):
                raise OutputError(
                    f"{self.root}: the server ignores If-None-Match, so two runs could overwrite each other",
                    "use a server with conditional writes (AWS S3, MinIO, Ceph, moto), or a local folder",
                )
        finally:
            self.delete(name)

    def _at(self, path: str) -> str:
        return f"{self._base}/{checked_path(path)}"

    @contextmanager
    def _faults(self, path: str) -> Iterator[None]:
        """Faults of the server as `OutputError`; a missing object stays `FileNotFoundError`."""
        try:
            yield
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error) or "NoSuchBucket" in str(error):
                raise OutputError(f"{self.root}: {error}", "create the bucket, or check its name") from error
            raise
        except PermissionError as error:
            raise OutputError(
                f"s3://{self._base}/{path}: permission denied ({error})",
                "check the credentials and the bucket's policy",
            ) from error
        except (OSError, ValueError) as error:
            raise OutputError(f"s3://{self._base}/{path}: {error}", "check the endpoint and the network") from error
        except Exception as error:  # botocore's own, which share no base with OSError
            if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
                raise
            raise OutputError(
                f"s3://{self._base}/{path}: {error}", "check credentials (AWS_…), region and endpoint"
            ) from error


def checked_path(path: str) -> str:
    """`path`, if it is one that storages take.

    Raises:
        ValueError: if it is absolute, climbs, or holds other than letters, digits, `.`, `_`, `=`, `-` and `/`.
    """
    parts = path.split("/")
    if not all(_PART.fullmatch(part) for part in parts) or any(part in (".", "..") for part in parts):
        raise ValueError(f"{path!r} is no path of a storage")
    return path


def _s3_file_system() -> Any:
    import s3fs  # half a second, and not needed for local folders

    return s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"retries": {"max_attempts": S3_ATTEMPTS, "mode": "standard"}},
    )


def _says_exists(error: OSError) -> bool:
    """Whether a conditional put may have been refused because there is an object; servers differ in how they say it."""
    text = str(error).lower()
    return isinstance(error, FileExistsError) or error.errno == errno.EINVAL or "precondition" in text.replace("-", "")


@contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A name beside `place` for a file being written; gone at the end, whatever happens."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, place: Path) -> bool:
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
