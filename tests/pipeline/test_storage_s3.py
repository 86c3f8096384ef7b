"""S3 that fails: busy, full, resetting connections, losing answers, slow, gone; and uploads killed half-way."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from miga.errors import OutputError
from pipeline.storage import bucket
from pipeline.storage import s3 as storage_s3
from pipeline.storage.open import open_storage
from pipeline.storage.s3 import S3Storage
from tests.faulty_s3 import FaultyS3, bucket_client
from tests.pace import paced
from tests.processes import wait_for

pytestmark = pytest.mark.s3

ROOT = Path(__file__).parents[2]
PART = 5 << 20
"""Bytes; servers take no smaller part but the last."""


@pytest.fixture
def proxy(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy that the environment leads to, and a storage in a hurry."""
    monkeypatch.setattr(bucket, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(bucket, "_MAX_PAUSE_S", 0.05)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def storage(proxy: FaultyS3, s3_root: str) -> S3Storage:
    return S3Storage(s3_root, patience_s=60)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_s3, "MULTIPART_BYTES", PART)
    monkeypatch.setattr(storage_s3, "PART_BYTES", PART)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of two parts and a bit."""
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(0).randbytes(2 * PART + 1234))
    return path


def objects(root: str) -> dict[str, bytes]:
    """Every object of the bucket, as another client sees them."""
    client, bucket = bucket_client(), root.split("/")[2]
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
    return {key.removeprefix("deep/prefix/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def uploads(root: str) -> list[str]:
    """Keys of the uploads that are not completed."""
    return [u["Key"] for u in bucket_client().list_multipart_uploads(Bucket=root.split("/")[2]).get("Uploads", ())]


@pytest.mark.parametrize("kind", ["busy", "error", "reset", "lose"])
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.sampled(3)
def test_every_call_rides_out_a_burst(
    storage: S3Storage, proxy: FaultyS3, s3_root: str, tmp_path: Path, kind: str, times: int
) -> None:
    def burst() -> None:
        proxy.fail(kind, times=times)  # type: ignore[arg-type]

    (tmp_path / "local").write_bytes(b"local")
    burst()
    assert storage.write_bytes("a/1", b"one")
    burst()
    assert storage.write_bytes("a/2", b"two", if_absent=True), "its own write, whatever became of the answer"
    burst()
    assert not storage.write_bytes("a/2", b"three", if_absent=True)
    burst()
    storage.put_file(tmp_path / "local", "a/3")
    burst()
    assert storage.read_bytes("a/1") == b"one"
    burst()
    assert storage.stat("a/3").bytes == 5
    burst()
    assert list(storage.list()) == ["a/1", "a/2", "a/3"]
    burst()
    assert storage.children("a") == ["1", "2", "3"]
    burst()
    storage.get_file("a/2", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"two"
    burst()
    storage.delete("a/1")
    burst()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/1")
    assert objects(s3_root) == {"a/2": b"two", "a/3": b"local"}


def test_nothing_below_tries_again(proxy: FaultyS3, s3_root: str) -> None:
    """Or a patience of seconds would be one of minutes."""
    proxy.fail("error", times=1000)
    with pytest.raises(OutputError, match="no usable answer"):
        S3Storage(s3_root, patience_s=0.0).write_bytes("a", b"1")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("kind", ["cut", "corrupt"])
def test_reads_are_verified(storage: S3Storage, proxy: FaultyS3, tmp_path: Path, kind: str) -> None:
    data = bytes(range(256)) * 1000
    storage.write_bytes("a", data)
    proxy.fail(kind, times=3, method="GET")  # type: ignore[arg-type]
    assert storage.read_bytes("a") == data
    proxy.fail(kind, times=3, method="GET")  # type: ignore[arg-type]
    storage.get_file("a", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["got"]


def test_a_read_that_never_comes_right_is_an_error(proxy: FaultyS3, s3_root: str, tmp_path: Path) -> None:
    storage = S3Storage(s3_root, patience_s=paced(0.3))
    storage.write_bytes("a", b"abc")
    proxy.fail("corrupt", times=1000, method="GET")
    with pytest.raises(OutputError, match="SHA-256"):
        storage.read_bytes("a")
    with pytest.raises(OutputError, match="SHA-256"):
        storage.get_file("a", tmp_path / "got")
    assert list(tmp_path.iterdir()) == []


def test_slow_answers(s3_root: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower than one try waits: the first try's write arrived all the same."""
    slow_s = paced(0.75)
    monkeypatch.setattr(bucket, "IDLE_S", slow_s / 3)
    monkeypatch.setattr(bucket, "_LEAST_IDLE_S", slow_s / 3)
    proxy.fail("slow", times=2, method="PUT", delay_s=slow_s)
    assert S3Storage(s3_root, patience_s=60).write_bytes("a", b"1", if_absent=True)
    assert [method for method, _ in proxy.requests].count("PUT") == 3
    assert objects(s3_root) == {"a": b"1"}


def test_an_outage_is_waited_for(storage: S3Storage, proxy: FaultyS3, s3_root: str) -> None:
    proxy.is_gone = True
    back = threading.Timer(1.0, setattr, (proxy, "is_gone", False))
    back.start()
    assert storage.write_bytes("a", b"1", if_absent=True)
    back.join()
    assert objects(s3_root) == {"a": b"1"}


def test_an_outage_that_does_not_end(proxy: FaultyS3, s3_root: str) -> None:
    storage = S3Storage(s3_root, patience_s=paced(0.5))
    proxy.is_gone = True
    with pytest.raises(OutputError, match=r"no usable answer for \d+ s") as caught:
        storage.write_bytes("a", b"1")
    assert f"{s3_root}/a" in caught.value.message
    assert "goes on from there" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("full", "no space left", "it resumes"),
        ("quota", "no space left", "it resumes"),
        ("denied", "permission denied", "credentials"),
    ],
)
def test_what_cannot_get_better_fails_at_once(
    storage: S3Storage, proxy: FaultyS3, s3_root: str, tmp_path: Path, kind: str, message: str, hint: str
) -> None:
    (tmp_path / "local").write_bytes(b"local")
    proxy.fail(kind, times=1000)  # type: ignore[arg-type]
    for put in (
        lambda: storage.write_bytes("a", b"1"),
        lambda: storage.write_bytes("b", b"1", if_absent=True),
        lambda: storage.put_file(tmp_path / "local", "c"),
    ):
        asked = len(proxy.requests)
        with pytest.raises(OutputError, match=message) as caught:
            put()
        assert hint in caught.value.hint
        assert len(proxy.requests) - asked == 1, "asked once"
    assert objects_behind(proxy, s3_root) == {}


def objects_behind(proxy: FaultyS3, root: str) -> dict[str, bytes]:
    """`objects`, past the proxy."""
    there = os.environ["AWS_ENDPOINT_URL"]
    os.environ["AWS_ENDPOINT_URL"] = f"http://{proxy.backend[0]}:{proxy.backend[1]}"
    try:
        return objects(root)
    finally:
        os.environ["AWS_ENDPOINT_URL"] = there


def test_a_full_server_leaves_what_was_there_before(storage: S3Storage, proxy: FaultyS3, s3_root: str) -> None:
    storage.write_bytes("a", b"old")
    proxy.fail("full", method="PUT")
    with pytest.raises(OutputError, match="no space left"):
        storage.write_bytes("a", b"new")
    assert objects(s3_root) == {"a": b"old"}
    assert storage.write_bytes("a", b"new"), "and goes on once there is space"


def test_secrets_stay_out_of_messages(s3_root: str, monkeypatch: pytest.MonkeyPatch, proxy: FaultyS3) -> None:
    secret = "0123456789abcdefSECRET"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    fault = storage_s3.S3Storage(s3_root)._fault("a", OSError(f"cannot sign with {secret}"))
    assert secret not in str(fault)
    assert "[AWS_SECRET_ACCESS_KEY]" in str(fault)


# ---- uploads in parts ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", ["busy", "reset", "lose"])
@pytest.mark.parametrize("target", ["uploads", "partNumber=2", r"uploadId=[^&]*$"], ids=["begin", "part", "complete"])
@pytest.mark.sampled(8)
def test_large_files_go_up_in_parts_whatever_fails(
    storage: S3Storage, proxy: FaultyS3, s3_root: str, large: Path, kind: str, target: str
) -> None:
    proxy.fail(kind, times=3, method="PUT|POST", target=target)  # type: ignore[arg-type]
    storage.put_file(large, "video/a.mp4")
    assert sum("partNumber" in target for _, target in proxy.requests) >= 3
    assert objects(s3_root) == {"video/a.mp4": large.read_bytes()}
    assert storage.stat("video/a.mp4").sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    for left in storage.leftovers():  # an upload whose beginning was answered into the void
        storage.remove_leftover(left)
    assert uploads(s3_root) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("target", ["partNumber=3", r"uploadId=[^&]*$"], ids=["part", "complete"])
def test_an_upload_that_fails_is_aborted(
    storage: S3Storage, proxy: FaultyS3, s3_root: str, large: Path, target: str
) -> None:
    proxy.fail("full", times=1000, method="PUT|POST", target=target)
    with pytest.raises(OutputError, match="no space left"):
        storage.put_file(large, "video/a.mp4")
    assert objects(s3_root) == {}
    assert uploads(s3_root) == []


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_someone_else_aborts_is_an_error_and_no_object(
    storage: S3Storage, proxy: FaultyS3, s3_root: str, large: Path
) -> None:
    proxy.fail("aborted", times=2, method="POST", target=r"uploadId=[^&]*$")
    with pytest.raises(OutputError, match="aborted by someone else"):
        storage.put_file(large, "video/a.mp4")
    assert objects(s3_root) == {}
    assert uploads(s3_root) == []


KILLED = """
import sys
from pipeline.storage import bucket
from pipeline.storage import s3 as storage_s3
storage_s3.MULTIPART_BYTES = storage_s3.PART_BYTES = 5 << 20
from pipeline.storage.open import open_storage
open_storage(sys.argv[1]).put_file(sys.argv[2], "video/a.mp4")
"""


@pytest.mark.slow
def test_a_process_killed_within_an_upload_leaves_no_object(
    storage: S3Storage, proxy: FaultyS3, s3_root: str, large: Path
) -> None:
    held = proxy.fail("hold", times=100, method="PUT", target="partNumber=3")
    process = subprocess.Popen([sys.executable, "-c", KILLED, s3_root, str(large)], cwd=ROOT)
    try:
        wait_for(lambda: held.num_hit, what="the last part")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    held.released.set()
    assert objects(s3_root) == {}
    assert uploads(s3_root) == ["deep/prefix/video/a.mp4"]
    other = open_storage(f"{s3_root}-2")
    assert list(other.leftovers()) == [], "prefixes that begin alike are apart"
    for left in storage.leftovers():
        storage.remove_leftover(left)
        storage.remove_leftover(left)
    assert uploads(s3_root) == []


# ---- servers of other kinds ------------------------------------------------------------------------------------------


@pytest.fixture
def _conditions_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not know If-None-Match might as well never get it."""
    put = S3Storage._put
    monkeypatch.setattr(S3Storage, "_put", lambda self, path, data, sha256, _: put(self, path, data, sha256, False))


@pytest.mark.usefixtures("_conditions_ignored")
def test_a_server_that_ignores_conditions_is_refused(storage: S3Storage) -> None:
    with pytest.raises(OutputError, match="ignores If-None-Match") as caught:
        storage.probe()
    assert "single_coordinator" in caught.value.hint
    assert storage.children() == []


@pytest.mark.usefixtures("_conditions_ignored")
def test_unless_the_user_says_that_nobody_else_writes(storage: S3Storage) -> None:
    storage.probe(single_coordinator=True)
    assert storage.write_bytes("a", b"1", if_absent=True)
    assert not storage.write_bytes("a", b"2", if_absent=True)
    assert not storage.with_patience(5).write_bytes("a", b"2", if_absent=True)
    assert storage.read_bytes("a") == b"1"


def test_the_flag_changes_nothing_where_conditions_hold(storage: S3Storage, proxy: FaultyS3, s3_root: str) -> None:
    storage.probe(single_coordinator=True)
    before = len(proxy.requests)
    storage.write_bytes("a", b"1", if_absent=True)
    assert [method for method, _ in proxy.requests[before:]] == ["PUT"]


def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(OutputError, match="s3://bucket/x/a: no usable answer"):
        S3Storage("s3://bucket/x", patience_s=0.1).write_bytes("a", b"1")


@pytest.mark.parametrize("text", ["", "soon", "-1", "inf"])
def test_a_patience_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGA_S3_PATIENCE_S", text)
    with pytest.raises(OutputError, match="MIGA_S3_PATIENCE_S"):
        open_storage("s3://bucket/x")


def test_many_pages(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_s3, "_PAGE", 3)
    names = [f"{number:05d}" for number in range(8)]
    for name in names:
        storage.write_bytes(f"done/{name}", b"")
    storage.write_bytes("done/00003/deeper", b"")
    assert list(storage.list("done")) == sorted([*(f"done/{name}" for name in names), "done/00003/deeper"])
    assert list(storage.children("done")) == names
    storage.delete_many(storage.list("done"))
    assert storage.children() == []


# ---- what will not pass ----------------------------------------------------------------------------------------------


class _Answering(BaseHTTPRequestHandler):
    """A server of one answer, and of no body to HEAD."""

    protocol_version = "HTTP/1.1"
    status, body, num_asked = 200, b"", 0

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        type(self).num_asked += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response_only(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("x-amz-bucket-region", "eu-west-1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Answering]]:
    kind = type("_Kind", (_Answering,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    values = {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield kind
    server.shutdown()
    server.server_close()


def error_document(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said so</Message></Error>".encode()


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (403, "InvalidAccessKeyId", "permission denied", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "permission denied", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "permission denied", "credentials"),
        (403, "RequestTimeTooSkewed", "said so", "clock"),
        (400, "ExpiredToken", "said so", "renew the credentials"),
        (400, "InvalidToken", "said so", "renew the credentials"),
        (301, "PermanentRedirect", "another region", "AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", "another region", "AWS_DEFAULT_REGION"),
        (400, "InvalidBucketName", "takes no bucket of that name", "bucket's name"),
        (404, "NoSuchBucket", "bucket does not exist", "create the bucket"),
        (400, "Whatever", "said so", "endpoint"),
    ],
)
def test_answers_that_will_not_change_are_not_waited_for(
    answering: type[_Answering], status: int, code: str, message: str, hint: str
) -> None:
    answering.status, answering.body = status, error_document(code)
    storage = S3Storage("s3://bucket/x", patience_s=300.0)
    for method in ("exists", "read_bytes", "children"):
        if method == "exists" and status == 404:
            continue  # an answer to HEAD does not say what it is that is not there
        answering.num_asked = 0
        with pytest.raises(OutputError, match=message) as caught:
            getattr(storage, method)("a")
        assert hint in caught.value.hint
        assert answering.num_asked <= 6


def test_a_server_that_is_none_of_s3(answering: type[_Answering]) -> None:
    answering.body = b"<html>welcome</html>"
    storage = S3Storage("s3://bucket/x", patience_s=300.0)
    for call in (storage.children, storage.stat, storage.exists):
        with pytest.raises(OutputError, match="cannot be used") as caught:
            call("a")
        assert "endpoint" in caught.value.hint


def test_plain_http_where_tls_is_expected(answering: type[_Answering], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:"))
    with pytest.raises(OutputError) as caught:
        S3Storage("s3://bucket/x", patience_s=300.0).exists("a")
    assert "https" in caught.value.hint


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="credentials") as caught:
        S3Storage("s3://bucket/x", patience_s=300.0).exists("a")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
