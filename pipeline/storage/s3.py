"""A prefix of an S3 bucket as a storage: objects are put whole, large ones in parts that are aborted on failure.

How long a server may fail stands in `bucket.py`, what becomes of one that is silent in `lanes.py`.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from miga.errors import OutputError, OutputFullError
from pipeline.storage.base import FileInfo, Leftover, check_size
from pipeline.storage.bucket import (
    CHUNK_BYTES,
    HASTY_S,
    BrokenAnswerError,
    BucketStorage,
    NotImplementedThereError,
    ObjectVersion,
    check_content,
)
from pipeline.storage.lanes import ClientSettingsError, Lane, Progress, Request, SilentServerError, lane
from pipeline.storage.local import write_local
from pipeline.storage.s3_client import Body, present_settings, s3_client

MULTIPART_BYTES: Final = 64 << 20
"""Files of this size and more go up in parts."""

PART_BYTES: Final = 16 << 20
_MAX_PARTS: Final = 10_000
_PARTS_AT_ONCE: Final = 4
_PAGE: Final = 1000

BUCKET: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}|arn:aws[a-z-]*:s3[a-z-]*:[A-Za-z0-9:._-]{1,240}", re.ASCII
)


class S3Storage(BucketStorage):
    """A prefix of a bucket. Credentials, region and endpoint come from the environment, as for every AWS tool.

    Args:
        root: `s3://bucket/prefix`.
        patience_s: seconds for which a call goes on asking a server that fails; None means the environment's.
    """

    scheme = "s3"
    bucket_names = BUCKET
    credentials = "AWS_…"

    def __init__(self, root: str, patience_s: float | None = None) -> None:
        super().__init__(root, patience_s)
        self._settings = present_settings()

    def stat(self, path: str) -> FileInfo:
        """See `Storage`."""
        return self.ask(path, self._head(path))

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
            sha256 = answer.get("Metadata", {}).get("sha256")
            check_content(len(data), int(answer["ContentLength"]), sha256, hashlib.sha256(data))
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
                raise BrokenAnswerError(f"{len(data)} bytes came of {answer['ContentLength']}")
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
                    async for chunk in body.iter_chunks(CHUNK_BYTES):
                        progress.moved(len(chunk))
                        await asyncio.to_thread(file.write, chunk)  # a disk that hangs holds up this request alone
                        digest.update(chunk)
                        size += len(chunk)
                check_content(size, int(answer["ContentLength"]), answer.get("Metadata", {}).get("sha256"), digest)

        self.ask(path, read)

    def delete(self, path: str) -> None:
        """See `Storage`."""
        with suppress(FileNotFoundError):
            self.ask(path, _called("delete_object", self._at(path)))

    def leftovers(self) -> Iterator[Leftover]:
        """See `Storage`."""
        for upload in self._uploads(self._prefix):
            path = upload["Key"].removeprefix(self._prefix)
            yield Leftover(kind="upload in parts", path=path, token=upload["UploadId"])
        yield from super().leftovers()

    def remove_leftover(self, leftover: Leftover) -> None:
        """See `Storage`."""
        if leftover.kind == "upload in parts":
            self._abort(leftover.path, leftover.token)
        else:
            super().remove_leftover(leftover)

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
        return {"Bucket": self._bucket, "Key": self._key(path)}

    def look_at_key(self, key: str) -> ObjectVersion:
        """See `BucketStorage`."""
        found = self.ask(key, heading({"Bucket": self._bucket, "Key": key}))
        return ObjectVersion(
            bytes=int(found["ContentLength"]), tag=str(found["ETag"]), modified=str(found["LastModified"])
        )

    def read_key(self, key: str, start: int, stop: int, tag: str) -> bytes:
        """See `BucketStorage`."""
        at = {"Bucket": self._bucket, "Key": key}

        async def fetch(client: Any, progress: Progress) -> bytes:
            answer = await client.get_object(**at, Range=f"bytes={start}-{stop - 1}", IfMatch=tag)
            async with answer["Body"] as body:
                data = await whole_body(body, progress)
            if len(data) != stop - start:
                raise ConnectionError(f"{len(data)} bytes came, {stop - start} were asked for")
            return data

        return self.ask(key, fetch)

    def is_above_keys(self, key: str) -> bool:
        """See `BucketStorage`."""
        at = {"Bucket": self._bucket, "Prefix": f"{key.rstrip('/')}/", "MaxKeys": 1}

        async def look(client: Any, _: Progress) -> bool:
            return bool((await client.list_objects_v2(**at)).get("Contents"))

        return self.ask(key, look)

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

    def _put(self, path: str, data: bytes, sha256: str, if_absent: bool) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        about = {**self._at(path), "Metadata": {"sha256": sha256}, **condition}
        self.ask(path, _sending("put_object", about, data), len(data))

    def _multipart_bytes(self) -> int:
        return MULTIPART_BYTES

    def _put_parts(self, local: Path, path: str, size: int, sha256: str) -> None:
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
                self.with_patience(HASTY_S)._abort(path, upload)
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

    def _lane(self, name: str) -> Lane:
        return lane(f"s3 {name}", self._settings, s3_client)

    def _fault(self, path: str, error: Exception) -> Exception | None:
        """The error that a fault is to be raised as; None where it may pass."""
        place, text = self._place(path), self._text(error)
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


async def whole_body(body: Any, progress: Progress) -> bytes:
    """All bytes of an answer that is open, each told as it comes."""
    data = bytearray()
    async for chunk in body.iter_chunks(CHUNK_BYTES):
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
        return NotImplementedThereError(f"{place}: {text}", "use another S3 server")
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
        BrokenAnswerError,
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


def _md5(data: bytes) -> str:
    """What a server checks an upload by: the only checksum that all of them know."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
