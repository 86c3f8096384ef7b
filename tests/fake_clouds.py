"""Servers of Google Cloud Storage and of Azure Blob Storage in this process, as far as obstore speaks to them.

    with FakeGoogle() as server:          # server.environment() leads to it; server.buckets holds what lies there
        server.make("bucket")

Written from the references of Google's XML API and of Azure's Blob service REST API: conditions, versions, errors with
their codes, ranges, listings in pages, uploads in parts, Azure's batches. Credentials are checked: Google's bearer
token and V4 signatures, the signatures of Azure's shared key and of its service SAS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

Headers: TypeAlias = dict[str, str]


@dataclass
class Kept:
    """An object."""

    data: bytes
    headers: Headers
    etag: str = field(default_factory=lambda: f'"0x{uuid.uuid4().hex[:16].upper()}"')
    generation: int = 0
    modified_s: float = field(default_factory=time.time)


@dataclass
class Answer:
    """What is said to a request."""

    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=dict)


@dataclass
class Asked:
    """A request. Names of headers are in lower case."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: Headers
    body: bytes
    target: str = ""


class FakeCloud:
    """What both servers have in common.

    Attributes:
        buckets: name → key → object.
        uploads: id → its bucket and key, and its parts by number.
        page: that a listing holds at most.

    Args:
        page: see above.
        tls: files of a certificate and its key; None: plain HTTP.
    """

    scheme: ClassVar[str]
    path: ClassVar[str] = ""
    """Of the endpoint, before the bucket's name."""

    def __init__(self, page: int = 1000, tls: tuple[Path, Path] | None = None) -> None:
        self.buckets: dict[str, dict[str, Kept]] = {}
        self.uploads: dict[str, dict[Any, Any]] = {}
        self.page = page
        self.lock = threading.RLock()
        self._generation = 1000
        kind = type("Handler", (_Handler,), {"cloud": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        self._server.daemon_threads = True
        scheme = "http"
        if tls is not None:
            context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeCloud:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, url: str | None = None) -> dict[str, str]:
        """Variables that lead to the server, or to the proxy at `url`."""
        raise NotImplementedError

    def make(self, bucket: str) -> None:
        """Makes a bucket."""
        self.buckets[bucket] = {}

    def content(self, bucket: str) -> dict[str, bytes]:
        """Key → content of all that lies in a bucket."""
        return {key: kept.data for key, kept in sorted(self.buckets[bucket].items())}

    def serve(self, asked: Asked) -> Answer:
        """What is said to a request."""
        if (refused := self.refusal(asked)) is not None:
            return refused
        with self.lock:
            if asked.bucket not in self.buckets:
                return self.no_bucket()
            return self.answer(asked, self.buckets[asked.bucket])

    def refusal(self, asked: Asked) -> Answer | None:
        raise NotImplementedError

    def no_bucket(self) -> Answer:
        raise NotImplementedError

    def answer(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        raise NotImplementedError

    def next_generation(self) -> int:
        self._generation += 1
        return self._generation

    def read(self, asked: Asked, kept: Kept | None, about: Headers, missing: Answer) -> Answer:
        """GET and HEAD of an object."""
        if kept is None:
            return missing
        headers = kept.headers | about | {"ETag": kept.etag, "Last-Modified": formatdate(kept.modified_s, usegmt=True)}
        if (wanted := asked.headers.get("if-match")) and wanted not in ("*", kept.etag):
            return self.error(412, "PreconditionFailed" if self.scheme == "gs" else "ConditionNotMet")
        data, status = kept.data, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", "")):
            start, end = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            if start >= len(data):
                return self.error(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        return Answer(status, data, headers)

    def error(self, status: int, code: str) -> Answer:
        """An error document."""
        body = (
            f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{code} it is</Message></Error>'
        )
        return Answer(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})

    def page_of(
        self, keys: list[str], prefix: str, delimiter: str, after: str
    ) -> tuple[list[str], list[str], str | None]:
        """Keys and common prefixes of a page, and the last of them if there are more."""
        found: list[tuple[str, bool]] = []
        for key in sorted(keys):
            if not key.startswith(prefix):
                continue
            head, slash, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entry = (prefix + head + slash, True) if slash else (key, False)
            if entry[0] > after and entry not in found:
                found.append(entry)
        shown = found[: self.page]
        last = shown[-1][0] if len(found) > len(shown) else None
        return [name for name, is_prefix in shown if not is_prefix], [name for name, p in shown if p], last


class FakeGoogle(FakeCloud):
    """The XML API of Google Cloud Storage."""

    scheme = "gs"
    token = "a-token-that-nobody-may-see"
    key: Any = None

    def environment(self, url: str | None = None) -> dict[str, str]:
        """See `FakeCloud`."""
        return {"GOOGLE_BASE_URL": url or self.url, "GOOGLE_BEARER_TOKEN": self.token}

    def service_account(self, folder: Path) -> Path:
        """A key file of a service account; what it signs is known from then on."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        text = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        about = {
            "type": "service_account",
            "client_email": "miga@project.iam.gserviceaccount.com",
            "private_key_id": "k",
            "private_key": text,
        }
        file = folder / "key.json"
        file.write_text(json.dumps(about))
        return file

    def refusal(self, asked: Asked) -> Answer | None:
        """See `FakeCloud`."""
        if "X-Goog-Signature" in asked.query:
            return None if self._is_signed(asked) else self.error(403, "SignatureDoesNotMatch")
        said = asked.headers.get("authorization", "").removeprefix("Bearer ")
        return None if said == self.token or self._is_of_account(said) else self.error(401, "AuthenticationRequired")

    def _is_of_account(self, token: str) -> bool:
        """Whether it is a JSON Web Token that the service account has signed by itself. Source: RFC 7515."""
        parts = token.split(".")
        if self.key is None or len(parts) != 3:
            return False
        signature, claims = (base64.urlsafe_b64decode(part + "==") for part in (parts[2], parts[1]))
        return self._is_by_key(signature, f"{parts[0]}.{parts[1]}") and json.loads(claims)["exp"] > time.time()

    def _is_by_key(self, signature: bytes, text: str) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        try:
            self.key.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True

    def _is_signed(self, asked: Asked) -> bool:
        """Source: "V4 signing process with your own program", Google Cloud Storage's documentation."""
        query = dict(asked.query)
        signature = bytes.fromhex(query.pop("X-Goog-Signature"))
        assert query["X-Goog-SignedHeaders"] == "host"
        canonical = "\n".join([
            asked.method,
            urlsplit(asked.target).path,
            "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items())),
"host:storage.googleapis.com",  # obstore signs for that host, whatever the endpoint
            "",
            "host",
            "UNSIGNED-PAYLOAD",
        ])  # fmt: skip
        scope = query["X-Goog-Credential"].partition("/")[2]
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join([query["X-Goog-Algorithm"], query["X-Goog-Date"], scope, digest])
        begun = datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        in_time = (datetime.now(UTC) - begun).total_seconds() < int(query["X-Goog-Expires"])
        return in_time and self._is_by_key(signature, text)

    def no_bucket(self) -> Answer:
        """See `FakeCloud`."""
        return self.error(404, "NoSuchBucket")

    def answer(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        """See `FakeCloud`."""
        if not asked.key:
            return self._list(asked, bucket)
        if "uploads" in asked.query or "uploadId" in asked.query:
            return self._upload(asked, bucket)
        kept = bucket.get(asked.key)
        if asked.method in ("GET", "HEAD"):
            about = {"x-goog-generation": str(kept.generation)} if kept is not None else {}
            return self.read(asked, kept, about, self.error(404, "NoSuchKey"))
        if asked.method == "DELETE":
            if kept is None:
                return self.error(404, "NoSuchKey")
            del bucket[asked.key]
            return Answer(204)
        wanted = asked.headers.get("x-goog-if-generation-match")
        if wanted is not None and int(wanted) != (kept.generation if kept is not None else 0):
            return self.error(412, "PreconditionFailed")
        return self._keep(asked, bucket, asked.body, asked.headers)

    def _keep(self, asked: Asked, bucket: dict[str, Kept], data: bytes, headers: Headers) -> Answer:
        about = {name: value for name, value in headers.items() if name.startswith("x-goog-meta-")}
        about["Content-Type"] = headers.get("content-type", "application/octet-stream")
        kept = bucket[asked.key] = Kept(data, about, generation=self.next_generation())
        return Answer(200, b"", {"ETag": kept.etag, "x-goog-generation": str(kept.generation)})

    def _upload(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        if "uploads" in asked.query:
            name = uuid.uuid4().hex
            self.uploads[name] = {"at": (asked.bucket, asked.key), "headers": asked.headers, "parts": {}}
            return Answer(200, f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId>"
                          "</InitiateMultipartUploadResult>".encode())  # fmt: skip
        upload = self.uploads.get(asked.query["uploadId"])
        if upload is None or upload["at"] != (asked.bucket, asked.key):
            return self.error(404, "NoSuchUpload")
        if asked.method == "PUT":
            etag = f'"{hashlib.md5(asked.body).hexdigest()}"'
            upload["parts"][int(asked.query["partNumber"])] = (etag, asked.body)
            return Answer(200, b"", {"ETag": etag})
        del self.uploads[asked.query["uploadId"]]
        if asked.method == "DELETE":
            return Answer(204)
        named = re.findall(r"<ETag>(.*?)</ETag>\s*<PartNumber>(\d+)</PartNumber>", asked.body.decode())
        parts = [upload["parts"][int(number)] for _, number in named]
        assert [etag for etag, _ in parts] == [etag.replace("&quot;", '"') for etag, _ in named]
        kept = self._keep(asked, bucket, b"".join(data for _, data in parts), upload["headers"])
        body = f"<ETag>{escape(kept.headers['ETag'])}</ETag>"
        body = f"<CompleteMultipartUploadResult>{body}</CompleteMultipartUploadResult>"
        return Answer(200, body.encode(), kept.headers)

    def _list(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        after = max(asked.query.get("start-after", ""), asked.query.get("continuation-token", ""))
        prefix, delimiter = asked.query.get("prefix", ""), asked.query.get("delimiter", "")
        keys, prefixes, more = self.page_of(list(bucket), prefix, delimiter, after)
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_iso(bucket[key].modified_s)}</LastModified>"
            f"<ETag>{escape(bucket[key].etag)}</ETag><Size>{len(bucket[key].data)}</Size></Contents>"
            for key in keys
        )
        items += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in prefixes)
        items += f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
        body = f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{items}</ListBucketResult>"
        return Answer(200, body.encode(), {"Content-Type": "application/xml"})


class FakeAzure(FakeCloud):
    """The Blob service of Azure Storage."""

    scheme = "az"
    account = "account"
    path = "/account"
    key = base64.b64encode(b"a-secret-that-nobody-may-see").decode()

    def environment(self, url: str | None = None) -> dict[str, str]:
        """See `FakeCloud`."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": (url or self.url) + self.path,
        }

    def refusal(self, asked: Asked) -> Answer | None:
        """See `FakeCloud`."""
        if "sig" in asked.query:
            return None if self._is_signed(asked) else self.error(403, "AuthenticationFailed")
        said = asked.headers.get("authorization", "")
        return None if self._is_of_account(asked, said) else self.error(403, "AuthenticationFailed")

    def _is_of_account(self, asked: Asked, said: str) -> bool:
        """Source: "Authorize with Shared Key", the Blob service's REST reference."""
        names = ("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date",
                 "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range")  # fmt: skip
        values = [asked.headers.get(name, "") for name in names]
        values[2] = "" if values[2] == "0" else values[2]
        own = sorted((name, value) for name, value in asked.headers.items() if name.startswith("x-ms-"))
        resource = f"/{self.account}{urlsplit(asked.target).path}"
        resource += "".join(f"\n{name.lower()}:{value}" for name, value in sorted(asked.query.items()))
        text = "\n".join([asked.method, *values, *(f"{name}:{value}" for name, value in own), resource])
        return said == f"SharedKey {self.account}:{self._signature(text)}"

    def _is_signed(self, asked: Asked) -> bool:
        """Source: "Create a service SAS", the Blob service's REST reference, for version 2020-12-06 and later."""
        query = asked.query
        resource = f"/blob/{self.account}/{asked.bucket}/{asked.key}"
        names = ("si", "sip", "spr", "sv", "sr", "", "", "rscc", "rscd", "rsce", "rscl", "rsct")
        parts = [query.get("sp", ""), query.get("st", ""), query.get("se", ""), resource]
        text = "\n".join([*parts, *(query.get(name, "") for name in names)])
        return query["sig"] == self._signature(text) and datetime.fromisoformat(query["se"]) > datetime.now(UTC)

    def _signature(self, text: str) -> str:
        return base64.b64encode(hmac.digest(base64.b64decode(self.key), text.encode(), "sha256")).decode()

    def no_bucket(self) -> Answer:
        """See `FakeCloud`."""
        return self.error(404, "ContainerNotFound")

    def answer(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        """See `FakeCloud`."""
        what = asked.query.get("comp")
        if what == "list":
            return self._list(asked, bucket)
        if what == "batch":
            return self._batch(asked, bucket)
        kept = bucket.get(asked.key)
        if asked.method in ("GET", "HEAD"):
            return self.read(asked, kept, {"x-ms-blob-type": "BlockBlob"}, self.error(404, "BlobNotFound"))
        if asked.method == "DELETE":
            return self._delete(asked.key, bucket)
        if what == "block":
            blocks = self.uploads.setdefault(f"{asked.bucket}/{asked.key}", {})
            blocks[asked.query["blockid"]] = asked.body
            return Answer(201)
        return self._write(asked, bucket, kept)

    def _write(self, asked: Asked, bucket: dict[str, Kept], kept: Kept | None) -> Answer:
        if asked.headers.get("if-none-match") == "*" and kept is not None:
            return self.error(409, "BlobAlreadyExists")
        if (wanted := asked.headers.get("if-match")) and (kept is None or wanted != kept.etag):
            return self.error(412, "ConditionNotMet")
        data = asked.body
        if asked.query.get("comp") == "blocklist":
            blocks = self.uploads.pop(f"{asked.bucket}/{asked.key}", {})
            names = re.findall(r"<(?:Uncommitted|Latest)>(.*?)</", data.decode())
            if not all(name in blocks for name in names):
                return self.error(400, "InvalidBlockList")
            data = b"".join(blocks[name] for name in names)
        elif asked.headers.get("x-ms-blob-type") != "BlockBlob":
            return self.error(400, "MissingRequiredHeader")
        about = {name: value for name, value in asked.headers.items() if name.startswith("x-ms-meta-")}
        about["Content-Type"] = asked.headers.get("x-ms-blob-content-type") or "application/octet-stream"
        kept = bucket[asked.key] = Kept(data, about)
        return Answer(201, b"", {"ETag": kept.etag, "Last-Modified": formatdate(kept.modified_s, usegmt=True)})

    def _delete(self, key: str, bucket: dict[str, Kept]) -> Answer:
        if bucket.pop(key, None) is None:
            return self.error(404, "BlobNotFound")
        return Answer(202)

    def _batch(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        """Source: "Blob Batch", the Blob service's REST reference."""
        names = re.findall(rb"DELETE (\S+) HTTP/1.1", asked.body)
        mark, said = f"batchresponse_{uuid.uuid4()}", b""
        for number, name in enumerate(names):
            place = unquote(urlsplit(name.decode()).path).removeprefix(self.path).lstrip("/")
            answer = self._delete(place.partition("/")[2], bucket)
            status = "202 Accepted" if answer.status == 202 else "404 The specified blob does not exist."
            headers = [f"{key}: {value}" for key, value in answer.headers.items()]
            lines = [f"--{mark}", "Content-Type: application/http", f"Content-ID: {number}", "",
                     f"HTTP/1.1 {status}", *headers, "x-ms-version: 2023-11-03", ""]  # fmt: skip
            said += "\r\n".join(lines).encode() + b"\r\n" + answer.body + b"\r\n"
        said += f"--{mark}--\r\n".encode()
        return Answer(202, said, {"Content-Type": f"multipart/mixed; boundary={mark}"})

    def _list(self, asked: Asked, bucket: dict[str, Kept]) -> Answer:
        prefix, delimiter = asked.query.get("prefix", ""), asked.query.get("delimiter", "")
        after = asked.query.get("marker", "")
        keys = [key for key in bucket if key >= asked.query.get("startFrom", "")]
        keys, prefixes, more = self.page_of(keys, prefix, delimiter, after)
        items = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties>"
            f"<Last-Modified>{formatdate(bucket[key].modified_s, usegmt=True)}</Last-Modified>"
            f"<Etag>{escape(bucket[key].etag.strip(chr(34)))}</Etag>"
            f"<Content-Length>{len(bucket[key].data)}</Content-Length>"
            f"<Content-Type>{bucket[key].headers['Content-Type']}</Content-Type><BlobType>BlockBlob</BlobType>"
            "</Properties></Blob>"
            for key in keys
        )
        items += "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in prefixes)
        body = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Prefix>{escape(prefix)}</Prefix>'
            f"<Blobs>{items}</Blobs><NextMarker>{escape(more or '')}</NextMarker></EnumerationResults>"
        )
        return Answer(200, body.encode(), {"Content-Type": "application/xml"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cloud: FakeCloud

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place = urlsplit(self.path)
        bucket, _, key = place.path.removeprefix(self.cloud.path).lstrip("/").partition("/")
        query = dict(parse_qsl(place.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.cloud.serve(Asked(self.command, unquote(bucket), unquote(key), query, headers, body, self.path))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
