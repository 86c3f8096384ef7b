"""A prefix of a bucket of Google Cloud Storage, or of a container of Azure Blob Storage, as a storage.

Objects are put whole, large ones in parts that are aborted on failure. How long a server may fail stands in
`bucket.py`, what becomes of one that is silent in `lanes.py`.

What obstore gives of a fault is its text, which begins with what the server said; what it is follows from the status
and the code that stand there.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final, TypeVar

from miga.errors import OutputError, OutputFullError
from pipeline.storage.addresses import without_secrets
from pipeline.storage.base import FileInfo, check_size
from pipeline.storage.bucket import (
    CHUNK_BYTES,
    IDLE_S,
    BrokenAnswerError,
    BucketStorage,
    NotImplementedThereError,
    ObjectVersion,
    check_content,
)
from pipeline.storage.cloud_client import CloudClient, cloud_client, present_settings
from pipeline.storage.lanes import (
    UNSEEN_BYTES_PER_S,
    ClientSettingsError,
    Lane,
    Progress,
    Request,
    Settings,
    SilentServerError,
    lane,
)
from pipeline.storage.local import write_local

MULTIPART_BYTES: Final = 32 << 20
"""Files of this size and more go up in parts: what has left of one that goes up whole is not known."""

PART_BYTES: Final = 8 << 20
_MAX_PARTS: Final = 10_000
_PARTS_AT_ONCE: Final = 2
_PAGE: Final = 5000
_TYPES: Final = {".mp4": "video/mp4", ".html": "text/html; charset=utf-8", ".json": "application/json"}
"""By which a browser knows what to do with a signed address."""
_OTHER_TYPE: Final = "application/octet-stream"


_ANSWERED: Final[set[Settings]] = set()
"""Settings by which a server has answered: their credentials could be had."""

T = TypeVar("T")


class CloudStorage(BucketStorage):
    """A prefix of a bucket or container; see `GoogleStorage` and `AzureStorage`."""

    _refusals: ClassVar[dict[str, str]]
    """Code of an answer → what to do."""

    def __init__(self, root: str, patience_s: float | None = None) -> None:
        super().__init__(root, patience_s)
        self._settings = present_settings(self.scheme, self._bucket)

    def stat(self, path: str) -> FileInfo:
        """See `Storage`."""
        key = self._key(path)

        async def head(client: CloudClient, _: Progress) -> FileInfo:
            found = await client.store.get_async(key, options={"head": True})
            return FileInfo(
                path=path,
                bytes=int(found.meta["size"]),
                modified_s=found.meta["last_modified"].timestamp(),
                sha256=found.attributes.get("sha256"),
            )

        return self.ask(path, head)

    def files(self, prefix: str = "") -> Iterator[FileInfo]:
        """See `Storage`.

        Each page is asked for by the last path of the one before, so that one that fails is asked for again alone.
        """
        start, after = self._folder(prefix), None
        while True:
            page = self.ask(prefix, _listing(start, after))
            for item in page:
                if item["path"].startswith(start):
                    yield FileInfo(
                        path=item["path"].removeprefix(self._prefix),
                        bytes=int(item["size"]),
                        modified_s=item["last_modified"].timestamp(),
                    )
            if len(page) < _PAGE:
                return
            after = page[-1]["path"]

    def children(self, prefix: str = "") -> Sequence[str]:
        """See `Storage`."""
        start = self._folder(prefix)

        async def look(client: CloudClient, _: Progress) -> list[str]:
            found = await client.store.list_with_delimiter_async(start.rstrip("/") or None)
            return [*(item["path"] for item in found["objects"]), *found["common_prefixes"]]

        names = {path.removeprefix(start).rstrip("/") for path in self.ask(prefix, look) if path.startswith(start)}
        return sorted(name for name in names if name)

    def read_bytes(self, path: str, max_bytes: int | None = None) -> bytes:
        """See `Storage`."""
        key = self._key(path)

        async def read(client: CloudClient, progress: Progress) -> bytes:
            answer = await client.store.get_async(key)
            check_size(self.uri(path), int(answer.meta["size"]), max_bytes)
            data = await _whole(answer, progress)
            check_content(len(data), answer.meta["size"], answer.attributes.get("sha256"), hashlib.sha256(data))
            return data

        return self.ask(path, read)

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes:
        """See `Storage`."""
        return self.ask(path, _reading(self._key(path), start, start + num_bytes))

    def signed_address(self, path: str, valid_s: int) -> str:
        """See `Storage`."""
        key = self._key(path)

        async def sign(client: CloudClient, _: Progress) -> str:
            from obstore import sign_async

            return await sign_async(client.store, "GET", key, timedelta(seconds=valid_s))

        return self.ask(path, sign)

    def get_file(self, path: str, local: str | Path) -> None:
        """See `Storage`."""
        key = self._key(path)

        async def read(client: CloudClient, progress: Progress) -> None:
            answer = await client.store.get_async(key)
            digest, size = hashlib.sha256(), 0
            with write_local(Path(local)) as file:
                async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                    progress.moved(len(chunk))
                    await asyncio.to_thread(file.write, chunk)  # a disk that hangs holds up this request alone
                    digest.update(chunk)
                    size += len(chunk)
                check_content(size, answer.meta["size"], answer.attributes.get("sha256"), digest)

        self.ask(path, read)

    def delete(self, path: str) -> None:
        """See `Storage`."""
        key = self._key(path)

        async def remove(client: CloudClient, _: Progress) -> None:
            await client.store.delete_async(key)

        with suppress(FileNotFoundError):
            self.ask(path, remove)

    # ---- objects ----

    def look_at_key(self, key: str) -> ObjectVersion:
        """See `BucketStorage`."""

        async def head(client: CloudClient, _: Progress) -> ObjectVersion:
            found = await client.store.head_async(key)
            return ObjectVersion(
                bytes=int(found["size"]), tag=str(found["e_tag"]), modified=str(found["last_modified"])
            )

        return self.ask(key, head)

    def read_key(self, key: str, start: int, stop: int, tag: str) -> bytes:
        """See `BucketStorage`."""
        return self.ask(key, _reading(key, start, stop, tag))

    def is_above_keys(self, key: str) -> bool:
        """See `BucketStorage`."""

        async def look(client: CloudClient, _: Progress) -> bool:
            async for page in client.store.list(key.rstrip("/"), chunk_size=1):
                return bool(page)
            return False

        return self.ask(key, look)

    def _put(self, path: str, data: bytes, sha256: str, if_absent: bool) -> None:
        key, mode = self._key(path), "create" if if_absent else "overwrite"

        async def put(client: CloudClient, _: Progress) -> None:
            await client.store.put_async(key, data, attributes=_about(path, sha256), mode=mode, use_multipart=False)

        self.ask(path, put, len(data))

    def _multipart_bytes(self) -> int:
        return MULTIPART_BYTES

    def _put_parts(self, local: Path, path: str, size: int, sha256: str) -> None:
        key, part_bytes = self._key(path), max(PART_BYTES, -(-size // _MAX_PARTS))
        quarter_s = max(0.25, self._patience_s / 4)  # a part, its tries, the abort and its tries: all within patience
        in_flight_s = _PARTS_AT_ONCE * part_bytes / UNSEEN_BYTES_PER_S

        async def put(client: CloudClient, progress: Progress) -> None:
            progress.idle_s = 5 * quarter_s  # obstore's own limits end it before, and it aborts the upload then
            store = client.for_parts(min(IDLE_S + in_flight_s, quarter_s), quarter_s)
            with open(local, "rb") as file:
                parts = iter(partial(file.read, part_bytes), b"")
                await store.put_async(
                    key,
                    _told(parts, progress),
                    attributes=_about(path, sha256),
                    use_multipart=True,
                    chunk_size=part_bytes,
                    max_concurrency=_PARTS_AT_ONCE,
                )

        self.ask(path, put)

    # ---- requests ----

    def ask(self, path: str, request: Request[T], body_bytes: int = 0) -> T:
        """See `BucketStorage`."""
        answer = super().ask(path, request, body_bytes)
        _ANSWERED.add(self._settings)
        return answer

    def _lane(self, name: str) -> Lane:
        return lane(f"{self.scheme} {name}", self._settings, partial(cloud_client, self.scheme, self._bucket))

    @staticmethod
    def _text(error: Exception) -> str:
        said, details = _said(error)
        if found := _ANSWER.search(said):
            body = found[2]
            if document := _DOCUMENT.search(body):
                body = f"{document[1]}: {document[2]}"
            said = ("token request: " if "token request" in said else "") + ", ".join(
                filter(None, (found[1].strip(), body[:300]))
            )
        why = next((word for word in _WHY if word in details and word not in said), "")
        return without_secrets(said + (f" ({why})" if why else "") or type(error).__name__)

    def _fault(self, path: str, error: Exception) -> Exception | None:
        place, text = self._place(path), self._text(error)
        if isinstance(error, SilentServerError | BrokenAnswerError | ConnectionError | TimeoutError):
            return None
        if isinstance(error, ClientSettingsError):
            return OutputError(f"{place}: no client can be made: {text}", f"check the variables {self.credentials}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputFullError(f"{place}: {text}", "free some space, then run the same command again: it resumes")
        status, code = _status_and_code(error)
        if "token request" in text or (not status and "credential" in text.lower()):
            return self._fault_of_credentials(place, text, status)
        if not status:
            return self._fault_without_answer(place, error, text)
        if code in _NO_BUCKET:
            word = self.bucket_word
            return OutputError(
                f"{self.root}: the {word} does not exist ({text})", f"create the {word}, or check its name"
            )
        if code in _FULL or status == 507:
            return OutputFullError(
                f"{place}: the server has no space left ({text})",
                "free some space or raise the quota, then run the same command again: it resumes",
            )
        if code in _PASSING or status in (408, 429) or (status >= 500 and status != 501):
            return None
        return self._refusal(place, code, status, text)

    def _refusal(self, place: str, code: str, status: int, text: str) -> Exception | None:
        """The error for an answer that will not change."""
        if code in _IS_THERE or (status == 412 and not code):
            return FileExistsError(errno.EEXIST, text, place)
        if status == 409:
            return None
        if status == 404:
            return FileNotFoundError(errno.ENOENT, text, place)
        if status in (401, 403):
            hint = self._refusals.get(code, f"check the credentials ({self.credentials}) and what they may do there")
            return OutputError(f"{place}: permission denied ({text})", hint)
        if status == 501 or code == "NotImplemented":
            return NotImplementedThereError(f"{place}: {text}", "use another server")
        return OutputError(f"{place}: {text}", f"check the endpoint and the {self.bucket_word}'s name")

    def _fault_of_credentials(self, place: str, text: str, status: int) -> Exception | None:
        """For a token that could not be had: where there was one before, the cloud's own servers may be busy."""
        if status in (408, 429) or status >= 500 or (not status and self._settings in _ANSWERED):
            return None
        return OutputError(
            f"{place}: no credentials can be had: {text}", f"set {self.credentials}: see docs/storage.md"
        )

    def _fault_without_answer(self, place: str, error: Exception, text: str) -> Exception | None:
        details = str(error)
        if any(word in details for word in _LASTING):
            return OutputError(
                f"{place}: {text}",
                "check that the endpoint speaks https, and name the authority of its certificate in SSL_CERT_FILE",
            )
        if isinstance(error, FileNotFoundError) and error.errno is None:  # of an answer to a batch
            return FileNotFoundError(errno.ENOENT, text, place)
        if isinstance(error, OSError):
            return OutputError(f"{place}: {text}", "check the local disk")
        if "HTTP error" in text or "sending request" in text or "response body" in text or "error decoding" in text:
            return None
        return OutputError(
            f"{place}: the server's answer cannot be used: {type(error).__name__}: {text}",
            f"check that the endpoint is a server of {self._cloud}",
        )

    _cloud: ClassVar[str]


class GoogleStorage(CloudStorage):
    """A prefix of a bucket of Google Cloud Storage, `gs://bucket/prefix`."""

    scheme = "gs"
    bucket_names = re.compile(r"[a-z0-9][a-z0-9._-]{0,221}", re.ASCII)
    credentials = "GOOGLE_APPLICATION_CREDENTIALS"
    _condition_name = "x-goog-if-generation-match"
    _cloud = "Google Cloud Storage"
    _refusals: ClassVar[dict[str, str]] = {
        "SignatureDoesNotMatch": "the key in GOOGLE_APPLICATION_CREDENTIALS is not valid: make another",
    }


class AzureStorage(CloudStorage):
    """A prefix of a container of Azure Blob Storage, `az://container/prefix`; the environment names the account."""

    scheme = "az"
    bucket_names = re.compile(r"\$?[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
    bucket_word = "container"
    credentials = "AZURE_STORAGE_…"
    _cloud = "Azure Blob Storage"
    _refusals: ClassVar[dict[str, str]] = {
        "AuthenticationFailed": "the account's key, or the signature, is not valid: check AZURE_STORAGE_ACCOUNT_KEY "
        "and AZURE_STORAGE_SAS_TOKEN, and this machine's clock",
        "AuthorizationPermissionMismatch": "the role or signature lacks a permission: a run reads, writes, lists and "
        "deletes (Storage Blob Data Contributor)",
    }


_FULL: Final = frozenset(
    ("QuotaExceeded", "quotaExceeded", "InsufficientStorage", "AccountCapacityExceeded", "StorageQuotaExceeded")
)
_NO_BUCKET: Final = frozenset(("NoSuchBucket", "ContainerNotFound"))
_IS_THERE: Final = frozenset(("BlobAlreadyExists", "ConditionNotMet", "PreconditionFailed"))
_PASSING: Final = frozenset(
    ("SlowDown", "ServerBusy", "InternalError", "OperationTimedOut", "ContainerBeingDeleted", "NoSuchUpload")
)
_LASTING: Final = ("InvalidCertificate", "InvalidContentType", "builder error", "URL scheme is not allowed")
_WHY: Final = (
    "ConnectionRefused",
    "ConnectionReset",
    "dns error",
    "IncompleteMessage",
    "UnexpectedEof",
    "InvalidCertificate",
    "InvalidContentType",
    "TimedOut",
)
_ANSWER: Final = re.compile(r"status code: (\d{3}[^:<]{0,60}):? ?(.*)")
_DOCUMENT: Final = re.compile(r"<Code>(\w{1,64})</Code>.*?<Message>(.{0,300}?)\s*</Message>")
_REQUEST: Final = re.compile(r"Error performing [A-Z]+ \S+ in \S+ - ")
"""Its address may be signed, and what it is about stands in every message."""
_CODE: Final = re.compile(r"<Code>(\w{1,64})</Code>")


def _said(error: Exception) -> tuple[str, str]:
    """What a fault says of itself on one line, and the details that obstore adds for whoever mends it."""
    said, _, details = str(error).partition("\n\nDebug source")
    return _REQUEST.sub("", " ".join(said.split())), details


def _status_and_code(error: Exception) -> tuple[int, str]:
    """HTTP status of the answer that a fault tells of (0: of none), and what the answer calls it (may be empty)."""
    said = _said(error)[0]
    status, code = _ANSWER.search(said), _CODE.search(said)
    return int(status[1][:3]) if status else 0, code[1] if code else ""


def _about(path: str, sha256: str) -> dict[str, str]:
    return {"sha256": sha256, "Content-Type": _TYPES.get(PurePosixPath(path).suffix, _OTHER_TYPE)}


def _listing(start: str, after: str | None) -> Request[Sequence[Any]]:
    """A page: what lies in a folder, after a path."""

    async def look(client: CloudClient, _: Progress) -> Sequence[Any]:
        async for page in client.store.list(start.rstrip("/") or None, offset=after, chunk_size=_PAGE):
            found: Sequence[Any] = page
            return found
        return ()

    return look


def _reading(key: str, start: int, stop: int, tag: str | None = None) -> Request[bytes]:
    """Part of an object; fewer bytes at its end only."""

    async def read(client: CloudClient, progress: Progress) -> bytes:
        options: dict[str, Any] = {"range": (start, stop)} | ({} if tag is None else {"if_match": tag})
        answer = await client.store.get_async(key, options=options)
        data = await _whole(answer, progress)
        first, end = answer.range
        if first != start or len(data) != end - first:
            raise BrokenAnswerError(f"{len(data)} bytes came of {end - first}")
        return data

    return read


async def _whole(answer: Any, progress: Progress) -> bytes:
    """All bytes of an answer, each told as it comes."""
    data = bytearray()
    async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
        progress.moved(len(chunk))
        data += memoryview(chunk)
    return bytes(data)


def _told(parts: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    """The parts, each told when it is taken."""
    for part in parts:
        progress.moved(len(part))
        yield part
