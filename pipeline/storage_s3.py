"""A prefix of an S3 bucket as a storage: objects are put whole, large ones in parts that are aborted on failure.

A server that is busy, resets connections, loses answers or is gone for a while is asked again: by botocore a few
times, then here until `patience_s` is used up. What cannot get better (permissions, a missing bucket, a full one) fails
at once.

    MIGA_S3_PATIENCE_S    seconds that a server may be gone (default 300); a run's workers are told what its driver has
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from operator import methodcaller
from pathlib import Path
from typing import Any, Final, TypeVar

from miga.errors import OutputError
from pipeline.addresses import without_secrets
from pipeline.storage_base import PROBE_PREFIX, FileInfo, Leftover, checked_path
from pipeline.storage_local import write_local

S3_ATTEMPTS: Final = 10
"""Tries of one request by botocore (its standard mode) before it counts as failed here."""

PATIENCE_S: Final = 300.0
PATIENCE_VARIABLE: Final = "MIGA_S3_PATIENCE_S"

MULTIPART_BYTES: Final = 64 << 20
"""Files of this size and more go up in parts."""

PART_BYTES: Final = 16 << 20
_MAX_PARTS: Final = 10_000
_PARTS_AT_ONCE: Final = 4
_DELETES_AT_ONCE: Final = 8
_PAGE: Final = 1000
_FIRST_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 15.0
_HASTY_S: Final = 60.0

T = TypeVar("T")
Request = Callable[[Any], Awaitable[T]]


class S3Storage:
    """A prefix of a bucket. Credentials, region and endpoint come from the environment, as for every AWS tool.

    Args:
        root: `s3://bucket/prefix`.
        patience_s: seconds for which a call goes on asking a server that fails; None means the environment's.
    """

    def __init__(self, root: str, patience_s: float | None = None) -> None:
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not bucket or "//" in prefix or ".." in prefix.split("/"):
            raise OutputError(f"{root} names no place in a bucket", "write s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience_s = patience_of_environment() if patience_s is None else patience_s
        self._conditional = True
        self._fs = _s3_file_system(self._patience_s)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "patience_s": self._patience_s, "conditional": self._conditional}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["patience_s"])  # type: ignore[misc]
        self._conditional = state["conditional"]

    @property
    def root(self) -> str:
        """See `Storage`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def exists(self, path: str) -> bool:
        """See `Storage`."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def stat(self, path: str) -> FileInfo:
        """See `Storage`."""
        found = self._ask(path, lambda client: client.head_object(**self._at(path)))
        return FileInfo(
            path=path,
            bytes=int(found["ContentLength"]),
            modified_s=found["LastModified"].timestamp(),
            sha256=found.get("Metadata", {}).get("sha256"),
        )

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage`."""
        return (file.path for file in self.files(prefix))

    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """See `Storage`."""
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    path = item["Key"].removeprefix(self._prefix)
                    yield FileInfo(path=path, bytes=int(item["Size"]), modified_s=item["LastModified"].timestamp())

    def children(self, prefix: str = "") -> Sequence[str]:
        """See `Storage`."""
        start = self._folder(prefix)
        names: set[str] = set()
        for page in self._pages(prefix, Delimiter="/"):
            names |= {item["Key"].removeprefix(start) for item in page.get("Contents", ())}
            names |= {item["Prefix"].removeprefix(start).rstrip("/") for item in page.get("CommonPrefixes", ())}
        return sorted(name for name in names if name)

    def read_bytes(self, path: str) -> bytes:
        """See `Storage`."""

        async def read(client: Any) -> bytes:
            answer = await client.get_object(**self._at(path))
            async with answer["Body"] as body:
                data: bytes = await body.read()
            _check_sha256(answer, len(data), hashlib.sha256(data))
            return data

        return self._ask(path, read)

    def get_file(self, path: str, local: str | Path) -> None:
        """See `Storage`."""

        async def read(client: Any) -> None:
            answer = await client.get_object(**self._at(path))
            digest, size = hashlib.sha256(), 0
            with write_local(Path(local)) as file:
                async with answer["Body"] as body:
                    async for chunk in body.iter_chunks(1 << 20):
                        file.write(chunk)
                        digest.update(chunk)
                        size += len(chunk)
                _check_sha256(answer, size, digest)

        self._ask(path, read)

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
            self._put(path, data, hashlib.sha256(data).hexdigest(), {"IfNoneMatch": "*"} if if_absent else {})
        except FileExistsError:
            return self.read_bytes(path) == data
        return True

    def put_file(self, local: str | Path, path: str) -> None:
        """See `Storage`."""
        with open(local, "rb") as file:
            size, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        if size < MULTIPART_BYTES:
            self._put(path, Path(local).read_bytes(), sha256, {})
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

    def delete(self, path: str) -> None:
        """See `Storage`."""
        with suppress(FileNotFoundError):
            self._ask(path, lambda client: client.delete_object(**self._at(path)))

    def delete_many(self, paths: Iterable[str]) -> None:
        """See `Storage`.

        One request each: servers differ in which checksum they want with a request to delete many.
        """
        with ThreadPoolExecutor(_DELETES_AT_ONCE) as threads:
            for _ in threads.map(self.delete, paths):
                pass

    def leftovers(self) -> Iterator[Leftover]:
        """See `Storage`."""
        for upload in self._uploads(self._prefix):
            path = upload["Key"].removeprefix(self._prefix)
            yield Leftover(kind="upload in parts", path=path, token=upload["UploadId"])
        for name in self.children():
            if name.startswith(PROBE_PREFIX):
                yield Leftover(kind="probe", path=name)

    def remove_leftover(self, leftover: Leftover) -> None:
        """See `Storage`."""
        if leftover.kind == "upload in parts":
            self._abort(leftover.path, leftover.token)
        else:
            self.delete(leftover.path)

    def uri(self, path: str) -> str:
        """See `Storage`."""
        return f"s3://{self._bucket}/{self._prefix}{checked_path(path)}"

    def probe(self, single_coordinator: bool = False) -> None:
        """See `Storage`."""
        name = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        try:
            try:
                self.write_bytes(name, b"first", if_absent=True)
                is_honoured = not self.write_bytes(name, b"second", if_absent=True)
            except _NotImplementedThereError:
                is_honoured = False
        finally:
            self.delete(name)
        if is_honoured:
            return
        if not single_coordinator:
            raise OutputError(
                f"{self.root}: the server ignores If-None-Match, so two runs could overwrite each other",
                "use a server with conditional writes (AWS S3, MinIO, Ceph, moto) or a local folder; or set [run] "
                "single_coordinator = true if you make sure that no two runs ever write there at once",
            )
        self._conditional = False

    def with_patience(self, patience_s: float) -> S3Storage:
        """See `Storage`."""
        other = S3Storage(self.root, min(patience_s, self._patience_s))
        other._conditional = self._conditional
        return other

    # ---- objects ----

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_path(path)}

    def _folder(self, prefix: str) -> str:
        return f"{self._prefix}{prefix}/" if prefix else self._prefix

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        """A listing, a page of a thousand at a time."""
        token: dict[str, str] = {}
        while True:
            where = {"Bucket": self._bucket, "Prefix": self._folder(prefix), "MaxKeys": _PAGE, **options, **token}
            page = self._ask(prefix, methodcaller("list_objects_v2", **where))
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _put(self, path: str, data: bytes, sha256: str, condition: dict[str, str]) -> None:
        options: dict[str, Any] = {"ContentMD5": _md5(data), "Metadata": {"sha256": sha256}, **condition}
        self._ask(path, lambda client: client.put_object(**self._at(path), Body=data, **options))

    def _put_parts(self, local: Path, path: str, size: int, sha256: str) -> None:
        """Puts a large file. Nothing is at `path` before the last step, and the parts are removed if that fails."""
        part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
        metadata = {"sha256": sha256}
        answer = self._ask(path, lambda client: client.create_multipart_upload(**self._at(path), Metadata=metadata))
        upload: str = answer["UploadId"]
        threads = ThreadPoolExecutor(_PARTS_AT_ONCE)

        def send(number: int) -> dict[str, Any]:
            with open(local, "rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            about = {"UploadId": upload, "PartNumber": number, "ContentMD5": _md5(data)}
            sent = self._ask(path, lambda client: client.upload_part(**self._at(path), Body=data, **about))
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            parts = list(threads.map(send, range(1, -(-size // part_bytes) + 1)))
            self._complete(path, upload, parts, size, sha256)
        except BaseException:
            threads.shutdown(cancel_futures=True)  # a part that arrives after the abort would stay
            with suppress(OutputError):
                self.with_patience(_HASTY_S)._abort(path, upload)
            raise
        finally:
            threads.shutdown(cancel_futures=True)

    def _complete(self, path: str, upload: str, parts: Sequence[dict[str, Any]], size: int, sha256: str) -> None:
        """Makes the object of its parts; an upload that is not known any more was completed by a try before."""
        about = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            self._ask(path, lambda client: client.complete_multipart_upload(**self._at(path), **about))
        except FileNotFoundError as error:
            with suppress(FileNotFoundError):
                there = self.stat(path)
                if there.bytes == size and there.sha256 in (None, sha256):
                    return
            raise OutputError(
                f"{self.uri(path)}: its upload was aborted by someone else", "run the same command again: it resumes"
            ) from error

    def _abort(self, path: str, upload: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(path, lambda client: client.abort_multipart_upload(**self._at(path), UploadId=upload))

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Uploads in parts that are not completed."""
        markers: dict[str, str] = {}
        while True:
            where = {"Bucket": self._bucket, "Prefix": prefix, "MaxUploads": _PAGE, **markers}
            page = self._ask("", methodcaller("list_multipart_uploads", **where))
            yield from page.get("Uploads", ())
            if not page.get("IsTruncated"):
                return
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    # ---- requests ----

    def _ask(self, path: str, request: Request[T]) -> T:
        """What the server answers, asked again while it fails in a way that passes.

        Raises:
            FileNotFoundError: if there is no such object (or upload).
            FileExistsError: if a condition did not hold.
            OutputError: for every other fault, and once patience is used up.
        """
        from fsspec.asyn import sync

        async def run() -> T:
            client = await self._fs.set_session()
            return await request(await self._fs.get_s3(self._bucket) or client)

        began_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                answer: T = sync(self._fs.loop, run)
                return answer
            except OutputError:
                raise
            except Exception as error:
                fault = self._fault(path, error)
                if fault is not None:
                    raise fault from error
                left_s = self._patience_s - (time.monotonic() - began_s)
                if left_s <= 0:
                    raise OutputError(
                        f"{self._place(path)}: no usable answer for {self._patience_s:.0f} s, last: {_text(error)}",
                        "check credentials (AWS_…), the endpoint and the network; the same command then goes on from "
                        f"there ({PATIENCE_VARIABLE} sets for how long a server may be gone)",
                    ) from error
                time.sleep(min(left_s, pause_s * random.uniform(0.5, 1)))
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _fault(self, path: str, error: Exception) -> Exception | None:
        """The error that a fault is to be raised as; None where it may pass."""
        place, text = self._place(path), _text(error)
        answer = getattr(error, "response", None)
        if not isinstance(answer, dict):
            if _may_pass(error):
                return None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return OutputError(f"{place}: {text}", "free some space, then run the same command again: it resumes")
            if isinstance(error, OSError) or _is_of_botocore(error):
                return OutputError(f"{place}: {text}", "check credentials (AWS_…), region and endpoint")
            return error
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "NoSuchBucket":
            return OutputError(
                f"{self.root}: the bucket does not exist ({text})", "create the bucket, or check its name"
            )
        if code in _FULL or status == 507:
            return OutputError(
                f"{place}: the server has no space left ({text})",
                "free some space or raise the quota, then run the same command again: it resumes",
            )
        if code in _PASSING or status in (408, 429) or (status >= 500 and status != 501):
            return None
        return _refusal(place, code, status, text)

    def _place(self, path: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{path}"


class _NotImplementedThereError(OutputError):
    """The server does not know a request or one of its headers."""


class _BrokenAnswerError(Exception):
    """What arrived is not what the server said it sends."""


_FULL: Final = frozenset(("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull", "DiskFull"))
_PASSING: Final = frozenset(
    (
        "SlowDown",
        "Throttling",
        "RequestTimeout",
        "RequestLimitExceeded",
        "OperationAborted",
        "ConditionalRequestConflict",
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "ServiceUnavailable",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
    )
)
_CREDENTIALS: Final = "check the credentials (AWS_…) and the bucket's policy"


def _refusal(place: str, code: str, status: int, text: str) -> Exception:
    """The error for an answer that will not change."""
    if status == 412 or code == "PreconditionFailed":
        return FileExistsError(errno.EEXIST, text, place)
    if status == 404 or code in ("NoSuchKey", "NoSuchUpload"):
        return FileNotFoundError(errno.ENOENT, text, place)
    if code == "RequestTimeTooSkewed":
        return OutputError(f"{place}: {text}", "set this machine's clock")
    if code in ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"):
        return OutputError(f"{place}: {text}", "renew the credentials (AWS_…), then run the same command again")
    if status in (401, 403):
        return OutputError(f"{place}: permission denied ({text})", _CREDENTIALS)
    if status == 501 or code == "NotImplemented":
        return _NotImplementedThereError(f"{place}: {text}", "use another S3 server")
    return OutputError(f"{place}: {text}", "check the endpoint and the bucket's name")


def _may_pass(error: Exception) -> bool:
    """Whether a fault that is no answer of the server may be gone at the next try."""
    import aiohttp
    from botocore import exceptions as botocore

    if isinstance(error, aiohttp.InvalidURL):
        return False
    passing = (
        _BrokenAnswerError,
        ConnectionError,
        TimeoutError,
        aiohttp.ClientError,
        botocore.HTTPClientError,
        botocore.ConnectionError,
        botocore.IncompleteReadError,
        botocore.ResponseStreamingError,
        botocore.CredentialRetrievalError,
        botocore.MetadataRetrievalError,
    )
    return isinstance(error, passing)


def _is_of_botocore(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp")


def _text(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()) or type(error).__name__)


def _check_sha256(answer: dict[str, Any], size: int, digest: Any) -> None:
    """Raises if what was read is not as long as announced, or not what was put."""
    expected = answer.get("Metadata", {}).get("sha256")
    if size != int(answer["ContentLength"]) or expected not in (None, digest.hexdigest()):
        raise _BrokenAnswerError(
            f"{size} of {answer['ContentLength']} bytes arrived, or their SHA-256 is not {expected or 'known'}"
        )


def _md5(data: bytes) -> str:
    """What a server checks an upload by: the only checksum that all of them know."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def patience_of_environment() -> float:
    """Seconds that a server may be gone.

    Raises:
        OutputError: if the environment says no number.
    """
    text = os.environ.get(PATIENCE_VARIABLE)
    if text is None:
        return PATIENCE_S
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise OutputError(f"{PATIENCE_VARIABLE} is {text!r}, which is no number of seconds", "write a number, as 300")
    return value


def _s3_file_system(patience_s: float) -> Any:
    """s3fs for its session and event loop; requests go through its client, which takes a while to make."""
    is_hasty = patience_s < _HASTY_S
    attempts = min(2, S3_ATTEMPTS) if is_hasty else S3_ATTEMPTS
    timeout_s = max(1.0, min(10.0, patience_s)) if is_hasty else 60.0
    environment = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _shared_file_system(attempts, timeout_s, environment, os.getpid())


@lru_cache(maxsize=8)
def _shared_file_system(attempts: int, timeout_s: float, environment: frozenset[tuple[str, str]], pid: int) -> Any:
    """One for all storages of a process that have the same settings."""
    import s3fs  # half a second, and not needed for local folders

    return s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "retries": {"total_max_attempts": attempts, "mode": "standard"},
            "connect_timeout": min(10.0, timeout_s),
            "read_timeout": timeout_s,
            "max_pool_connections": 32,
            "request_checksum_calculation": "when_required",  # servers differ in which of the newer ones they know
            "response_checksum_validation": "when_required",
        },
    )
