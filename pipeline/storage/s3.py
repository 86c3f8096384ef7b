"""A prefix of an S3 bucket as a storage: objects are put whole, large ones in parts that are aborted on failure.

A server that is busy, resets connections, loses answers, falls silent or is gone for a while is asked again until
`patience_s` of wall clock is used up; nothing below tries again by itself, and a request in which nothing moves is
given up (`s3_client.py`). What cannot get better (settings, permissions, a missing bucket, a full one) fails at once.

    MIGA_S3_PATIENCE_S    seconds that a server may be gone (default 300); a run's workers are told what its driver has
"""

from __future__ import annotations

import asyncio
import base64
import copy
import errno
import hashlib
import os
import random
import re
import ssl
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from miga.errors import OutputError, OutputFullError
from pipeline.storage.addresses import check_address, without_secrets
from pipeline.storage.base import PROBE_PREFIX, FileInfo, Leftover, check_size, checked_path
from pipeline.storage.local import write_local
from pipeline.storage.s3_client import (
    AwakeClock,
    Body,
    ClientSettingsError,
    Progress,
    Request,
    SilentServerError,
    lane,
    present_settings,
)

PATIENCE_S: Final = 300.0
PATIENCE_VARIABLE: Final = "MIGA_S3_PATIENCE_S"

MULTIPART_BYTES: Final = 64 << 20
"""Files of this size and more go up in parts."""

PART_BYTES: Final = 16 << 20
_MAX_PARTS: Final = 10_000
_PARTS_AT_ONCE: Final = 4
_DELETES_AT_ONCE: Final = 8
_PAGE: Final = 1000
_CHUNK: Final = 1 << 18
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 15.0

IDLE_S: Final = 60.0
"""A request in which nothing moves for so long is given up, and made again."""
_HASTY_S: Final = 60.0
"""With less patience, `_HASTY_IDLE_S` holds, on connections of their own: a lease's beats wait for no upload."""
_HASTY_IDLE_S: Final = 10.0
_LEAST_IDLE_S: Final = 1.0

BUCKET: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}|arn:aws[a-z-]*:s3[a-z-]*:[A-Za-z0-9:._-]{1,240}", re.ASCII
)

_MAX_PREFIX_BYTES: Final = 850
"""Keys have at most 1024, and the names of a run's files need some of them."""

T = TypeVar("T")


class S3Storage:
    """A prefix of a bucket. Credentials, region and endpoint come from the environment, as for every AWS tool.

    Args:
        root: `s3://bucket/prefix`.
        patience_s: seconds for which a call goes on asking a server that fails; None means the environment's.
    """

    def __init__(self, root: str, patience_s: float | None = None) -> None:
        check_address(root, OutputError, "OUT")
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not BUCKET.fullmatch(bucket):
            raise OutputError(
                f"OUT: the address begins with no name of a bucket ({len(bucket)} characters before the first /)",
                "write s3://bucket/prefix; a bucket's name is of letters, digits, '.', '_' and '-'",
            )
        if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
            raise OutputError(f"{root} names no place in a bucket", "write s3://bucket/prefix")
        if len(prefix.encode()) > _MAX_PREFIX_BYTES:
            raise OutputError(
                f"OUT: the prefix has {len(prefix.encode())} bytes, and keys of a bucket at most 1024", "shorten it"
            )
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience_s = patience_of_environment() if patience_s is None else patience_s
        self._conditional = True
        self._settings = present_settings()

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
        return self.ask(path, self._head(path))

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

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """See `Storage`."""

        at = self._at(path)

        async def read(client: Any, progress: Progress) -> bytes:
            answer = await client.get_object(**at)
            async with answer["Body"] as body:
                check_size(self.uri(path), int(answer["ContentLength"]), max_bytes)
                data = await whole_body(body, progress)
            _check_sha256(answer, len(data), hashlib.sha256(data))
            return data

        return self.ask(path, read)

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """See `Storage`."""
        at = self._at(path)

        async def read(client: Any, progress: Progress) -> bytes:
            answer = await client.get_object(**at, Range=f"bytes={start}-{start + num_bytes - 1}")
            async with answer["Body"] as body:
                data = await whole_body(body, progress)
            if len(data) != int(answer["ContentLength"]):
                raise _BrokenAnswerError(f"{len(data)} bytes came of {answer['ContentLength']}")
            return data[:num_bytes]

        return self.ask(path, read)

    def signed_address(self, path: str, valid_s: int) -> str:
        """See `Storage`."""
        about = {**self._at(path), **({"ResponseContentType": "video/mp4"} if path.endswith(".mp4") else {})}

        async def sign(client: Any, _: Progress) -> str:
            address: str = await client.generate_presigned_url("get_object", Params=about, ExpiresIn=valid_s)
            return address

        return self.ask(path, sign)

    def get_file(self, path: str, local: str | Path) -> None:
        """See `Storage`."""

        at = self._at(path)

        async def read(client: Any, progress: Progress) -> None:
            answer = await client.get_object(**at)
            digest, size = hashlib.sha256(), 0
            with write_local(Path(local)) as file:
                async with answer["Body"] as body:
                    async for chunk in body.iter_chunks(_CHUNK):
                        progress.moved(len(chunk))
                        await asyncio.to_thread(file.write, chunk)  # a disk that hangs holds up this request alone
                        digest.update(chunk)
                        size += len(chunk)
                _check_sha256(answer, size, digest)

        self.ask(path, read)

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

    def create_empty(self, path: str) -> bool:
        """See `Storage`."""
        if not self._conditional and self.exists(path):
            return False
        try:
            self._put(path, b"", hashlib.sha256(b"").hexdigest(), {"IfNoneMatch": "*"} if self._conditional else {})
        except FileExistsError:
            return False
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
            self.ask(path, _called("delete_object", self._at(path)))

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
        other = copy.copy(self)
        other._patience_s = min(patience_s, self._patience_s)
        return other

    # ---- objects ----

    def _head(self, path: str) -> Request[FileInfo]:
        """What there is to know of an object."""
        ask = heading(self._at(path))

        async def head(client: Any, progress: Progress) -> FileInfo:
            found = await ask(client, progress)
            return FileInfo(
                path=path,
                bytes=int(found["ContentLength"]),
                modified_s=found["LastModified"].timestamp(),
                sha256=found.get("Metadata", {}).get("sha256"),
            )

        return head

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_path(path)}

    def _folder(self, prefix: str) -> str:
        return f"{self._prefix}{prefix}/" if prefix else self._prefix

    def _pages(self, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        """A listing, a page of a thousand at a time."""
        token: dict[str, str] = {}
        while True:
            where = {"Bucket": self._bucket, "Prefix": self._folder(prefix), "MaxKeys": _PAGE, **options, **token}
            page = self.ask(prefix, _listing(where))
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _put(self, path: str, data: bytes, sha256: str, condition: dict[str, str]) -> None:
        about = {**self._at(path), "Metadata": {"sha256": sha256}, **condition}
        self.ask(path, _sending("put_object", about, data), len(data))

    def _put_parts(self, local: Path, path: str, size: int, sha256: str) -> None:
        """Puts a large file. Nothing is at `path` before the last step, and the parts are removed if that fails."""
        part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
        about = {**self._at(path), "Metadata": {"sha256": sha256}}
        upload: str = self.ask(path, _called("create_multipart_upload", about, "UploadId"))["UploadId"]
        threads = ThreadPoolExecutor(_PARTS_AT_ONCE)

        def send(number: int) -> dict[str, Any]:
            with open(local, "rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            about = {**self._at(path), "UploadId": upload, "PartNumber": number}
            sent = self.ask(path, _sending("upload_part", about, data), len(data))
            return {"PartNumber": number, "ETag": sent.get("ETag", "")}

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
        about = {**self._at(path), "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            self.ask(path, _called("complete_multipart_upload", about))
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
            self.ask(path, _called("abort_multipart_upload", {**self._at(path), "UploadId": upload}))

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Uploads in parts that are not completed."""
        markers: dict[str, str] = {}
        while True:
            where = {"Bucket": self._bucket, "Prefix": prefix, "MaxUploads": _PAGE, **markers}
            page = self.ask("", _called("list_multipart_uploads", where))
            yield from page.get("Uploads", ())
            if not page.get("IsTruncated"):
                return
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    # ---- requests ----

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
        idle_s, name = (IDLE_S, "patient") if self._patience_s >= _HASTY_S else (_HASTY_IDLE_S, "hasty")
        while True:
            left_s = self._patience_s - clock.now_s
            try:
                there = lane(name, self._settings)
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
                        f"{self._place(path)}: no usable answer for {self._patience_s:.0f} s, last: {_text(error)}",
                        "check credentials (AWS_…), the endpoint and the network; the same command then goes on from "
                        f"there ({PATIENCE_VARIABLE} sets for how long a server may be gone)",
                    ) from error
                clock.sleep(min(left_s, pause_s * random.uniform(0.5, 1)))
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _fault(self, path: str, error: Exception) -> Exception | None:
        """The error that a fault is to be raised as; None where it may pass."""
        place, text = self._place(path), _text(error)
        code, status = _code(error), _status(error)
        if not status:
            return None if may_pass(error) else _fault_of_this_side(place, error, text)
        if code == "NoSuchBucket":
            return OutputError(
                f"{self.root}: the bucket does not exist ({text})", "create the bucket, or check its name"
            )
        if code in _FULL or status == 507:
            return OutputFullError(
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


async def whole_body(body: Any, progress: Progress) -> bytes:
    """All bytes of an answer that is open, each told as it comes."""
    data = bytearray()
    async for chunk in body.iter_chunks(_CHUNK):
        progress.moved(len(chunk))
        data += chunk
    return bytes(data)


def heading(at: Mapping[str, str]) -> Request[dict[str, Any]]:
    """Asks what there is to know of an object; GET, too, if refused: only that has a body to say what was wrong."""

    async def head(client: Any, _: Progress) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await client.head_object(**at)
        except Exception as error:
            if _status(error) in (301, 307, 400, 401, 403):
                answer = await client.get_object(**at, Range="bytes=0-0")
                answer["Body"].close()
            raise
        return found

    return head


def _called(name: str, options: Mapping[str, Any], key: str = "ResponseMetadata") -> Request[dict[str, Any]]:
    """The answer of a call, in which `key` must stand."""

    async def ask(client: Any, _: Progress) -> dict[str, Any]:
        answer: dict[str, Any] = await getattr(client, name)(**options)
        _ = answer[key]
        return answer

    return ask


def _listing(options: Mapping[str, Any]) -> Request[dict[str, Any]]:
    """A page; any other document would be taken for an empty one."""

    async def ask(client: Any, _: Progress) -> dict[str, Any]:
        page: dict[str, Any] = await client.list_objects_v2(**options)
        if not page.keys() & {"Name", "KeyCount", "IsTruncated"}:
            raise ValueError("it is no listing of a bucket")
        if page.get("IsTruncated") and page.get("NextContinuationToken") in (None, options.get("ContinuationToken")):
            raise ValueError("its pages have no end")
        return page

    return ask


def _sending(name: str, options: dict[str, Any], data: bytes) -> Request[dict[str, Any]]:
    return lambda client, progress: getattr(client, name)(**options, ContentMD5=_md5(data), Body=Body(data, progress))


def _code(error: Exception) -> str:
    """What a server's answer calls the error; empty if it is no answer."""
    answer = getattr(error, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def _status(error: Exception) -> int:
    """HTTP status of a server's answer; 0 if the error is none."""
    answer = getattr(error, "response", None)
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(answer, dict) else 0


_FULL: Final = frozenset(
    (
        "QuotaExceeded",
        "BucketQuotaExceeded",
        "XMinioAdminBucketQuotaExceeded",
        "InsufficientStorage",
        "XMinioStorageFull",
        "StorageFull",
        "DiskFull",
    )
)
_PASSING: Final = frozenset(
    (
        "SlowDown",
        "Throttling",
        "RequestThrottled",
        "BandwidthLimitExceeded",
        "RequestTimeout",
        "RequestLimitExceeded",
        "PriorRequestNotComplete",
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
_REGION: Final = frozenset(("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"))
_CREDENTIALS: Final = "check the credentials (AWS_…) and the bucket's policy"
_HINTS: Final = {
    "InvalidAccessKeyId": "the server does not know the key: check AWS_ACCESS_KEY_ID (or AWS_PROFILE) and the endpoint",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID: set both again",
}


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
    if code in _REGION or status in (301, 307):
        return OutputError(
            f"{place}: the bucket lies in another region ({text})", "set AWS_DEFAULT_REGION to the bucket's own"
        )
    if code == "InvalidBucketName":
        return OutputError(f"{place}: the server takes no bucket of that name ({text})", "check the bucket's name")
    if status in (401, 403):
        return OutputError(f"{place}: permission denied ({text})", _HINTS.get(code, _CREDENTIALS))
    if status == 501 or code == "NotImplemented":
        return _NotImplementedThereError(f"{place}: {text}", "use another S3 server")
    return OutputError(f"{place}: {text}", "check the endpoint and the bucket's name")


def _fault_of_this_side(place: str, error: Exception, text: str) -> Exception:
    """The error for what no server refused, and which will not pass."""
    from botocore import exceptions as botocore

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputFullError(f"{place}: {text}", "free some space, then run the same command again: it resumes")
    if isinstance(error, ClientSettingsError):
        return OutputError(f"{place}: no client can be made: {text}", "check the variables AWS_… and ~/.aws/config")
    if isinstance(error, botocore.NoCredentialsError | botocore.PartialCredentialsError):
        return OutputError(
            f"{place}: {text}", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of ~/.aws"
        )
    if isinstance(error, botocore.SSLError):
        return OutputError(
            f"{place}: {text}",
            "check that the endpoint speaks https, and name the authority of its certificate in AWS_CA_BUNDLE",
        )
    if isinstance(error, botocore.ProxyConnectionError):
        return OutputError(f"{place}: {text}", "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY")
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
        return OutputError(f"{place}: {text}", "check credentials (AWS_…), region and endpoint")
    return OutputError(
        f"{place}: the server's answer cannot be used: {type(error).__name__}: {text}",
        "check that AWS_ENDPOINT_URL (or endpoint_url in ~/.aws/config) is an S3 server's",
    )


_LASTING: Final = (ValueError, TypeError, LookupError, FileNotFoundError, PermissionError, NotADirectoryError)
"""Of causes: what a header, an address or a file that cannot be is refused with, however often it is tried."""
_LASTING_SSL: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL")


def may_pass(error: Exception) -> bool:
    """Whether a fault that is no answer of the server may be gone at the next try."""
    import aiohttp
    from botocore import exceptions as botocore

    if _lasts(error):
        return False
    passing = (
        _BrokenAnswerError,
        SilentServerError,
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


def _lasts(error: Exception) -> bool:
    """Whether what is at the bottom of a fault cannot pass: a setting, a certificate, a proxy that refuses."""
    import aiohttp

    cause: Any = error
    for _ in range(5):
        if isinstance(cause, (aiohttp.ClientConnectorCertificateError, *_LASTING)):
            return True
        if isinstance(cause, aiohttp.ClientHttpProxyError) and 400 <= cause.status < 500:
            return True
        if isinstance(cause, ssl.SSLError) and getattr(cause, "reason", None) in _LASTING_SSL:
            return True
        cause = getattr(cause, "kwargs", {}).get("error") or getattr(cause, "os_error", None) or cause.__cause__
        if cause is None:
            return False
    return False


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
