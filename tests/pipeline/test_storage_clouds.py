"""Google Cloud Storage and Azure Blob Storage that fail or go silent; what lies there, and what the user is told."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from miga.errors import InputError, OutputError
from pipeline.prompts.read import read_prompts
from pipeline.storage import bucket, cloud, lanes
from pipeline.storage.addresses import without_secrets
from pipeline.storage.bucket import BucketStorage
from pipeline.storage.bucket_object import BucketObject
from pipeline.storage.open import bucket_storage, open_storage
from tests.fake_clouds import FakeCloud, FakeGoogle
from tests.faulty_s3 import FaultyS3
from tests.pace import paced
from tests.processes import wait_for
from tests.silent_s3 import STAGES, SilentS3

ROOT = Path(__file__).parents[2]
PART = 1 << 20


@pytest.fixture(params=["gs", "az"])
def root(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_root")
    return found


@pytest.fixture
def server(root: str, fake_clouds: dict[str, FakeCloud]) -> FakeCloud:
    return fake_clouds[root.partition("://")[0]]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(bucket, "_MAX_PAUSE_S", 0.05)


def lead_to(url: str, server: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment leads to a proxy."""
    for name, value in server.environment(url).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def proxy(server: FakeCloud, hurry: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy that the environment leads to."""
    with FaultyS3(server.url) as proxy:
        lead_to(proxy.url, server, monkeypatch)
        yield proxy


@pytest.fixture
def storage(proxy: FaultyS3, root: str) -> BucketStorage:
    return opened(root, 60.0)


def opened(root: str, patience_s: float) -> BucketStorage:
    storage = bucket_storage(root, patience_s)
    assert storage is not None
    return storage


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "MULTIPART_BYTES", PART)
    monkeypatch.setattr(cloud, "PART_BYTES", PART)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of two parts and a bit."""
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(0).randbytes(2 * PART + 1234))
    return path


def objects(server: FakeCloud, root: str) -> dict[str, bytes]:
    """Every object of the bucket, as the server knows them."""
    return {key.removeprefix("deep/prefix/"): data for key, data in server.content(root.split("/")[2]).items()}


# ---- a server that fails ---------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["busy", "throttled", "error", "reset", "lose"])
@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.sampled(7)
def test_every_call_rides_out_a_burst(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, root: str, tmp_path: Path, kind: Any, times: int
) -> None:
    def burst() -> None:
        proxy.fail(kind, times=times)

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
    assert storage.read_range("a/3", 1, 2) == b"oc"
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
    assert objects(server, root) == {"a/2": b"two", "a/3": b"local"}


def test_nothing_below_tries_again(proxy: FaultyS3, root: str) -> None:
    """Or a patience of seconds would be one of minutes."""
    proxy.fail("error", times=1000)
    with pytest.raises(OutputError, match="no usable answer for 0 s, last: 500"):
        opened(root, 0.0).write_bytes("a", b"1")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("kind", ["cut", "corrupt"])
def test_reads_are_verified(storage: BucketStorage, proxy: FaultyS3, tmp_path: Path, kind: Any) -> None:
    data = bytes(range(256)) * 1000
    storage.write_bytes("a", data)
    proxy.fail(kind, times=3, method="GET")
    assert storage.read_bytes("a") == data
    proxy.fail(kind, times=3, method="GET")
    storage.get_file("a", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["got"]


@pytest.mark.sampled(3)
def test_a_read_that_never_comes_right_is_an_error(
    proxy: FaultyS3, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(root, 60.0).write_bytes("a", b"abc")
    storage = opened(root, 0.3)
    monkeypatch.setattr(bucket, "_LEAST_IDLE_S", paced(10.0))  # so that the last fault is not a silence
    proxy.fail("corrupt", times=1000, method="GET")
    with pytest.raises(OutputError, match="SHA-256"):
        storage.read_bytes("a")
    with pytest.raises(OutputError, match="SHA-256"):
        storage.get_file("a", tmp_path / "got")
    assert list(tmp_path.iterdir()) == []


def test_an_outage_is_waited_for_and_one_that_does_not_end_is_told(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, root: str
) -> None:
    proxy.is_gone = True
    back = threading.Timer(0.5, setattr, (proxy, "is_gone", False))
    back.start()
    assert storage.write_bytes("a", b"1", if_absent=True)
    back.join()
    assert objects(server, root) == {"a": b"1"}
    proxy.is_gone = True
    with pytest.raises(OutputError, match=r"no usable answer for \d+ s") as caught:
        opened(root, 0.3).write_bytes("a", b"2")
    assert f"{root}/a" in caught.value.message
    assert "goes on from there" in caught.value.hint
    assert "MIGA_STORAGE_PATIENCE_S" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("full", "no space left", "it resumes"),
        ("quota", "no space left", "it resumes"),
        ("denied", "permission denied", "credentials"),
    ],
)
def test_what_cannot_get_better_fails_at_once(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, root: str, kind: Any, message: str, hint: str
) -> None:
    proxy.fail(kind, times=1000)
    for put in (lambda: storage.write_bytes("a", b"1"), lambda: storage.write_bytes("b", b"1", if_absent=True)):
        asked = len(proxy.requests)
        with pytest.raises(OutputError, match=message) as caught:
            put()
        assert hint in caught.value.hint
        assert len(proxy.requests) - asked == 1, "asked once"
    assert objects(server, root) == {}


# ---- conditions ------------------------------------------------------------------------------------------------------


def test_of_many_that_create_at_once_one_does(root: str, server: FakeCloud) -> None:
    """What the lease and the ledger rest on."""
    storage, barrier, won = opened(root, 60.0), threading.Barrier(8), []

    def create(number: int) -> None:
        barrier.wait()
        if storage.write_bytes("lease/000001.json", b"%d" % number, if_absent=True):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects(server, root) == {"lease/000001.json": b"%d" % won[0]}


def test_a_create_whose_answer_was_lost_is_known_as_its_own(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, root: str
) -> None:
    lost = proxy.fail("lose", method="PUT", target="mine")
    assert storage.write_bytes("mine", b"1", if_absent=True)
    assert lost.num_hit == 1
    assert [method for method, _ in proxy.requests] == ["PUT", "PUT", "GET"], "refused as there already, and read back"
    proxy.fail("reset", method="PUT", target="theirs")
    opened(root, 60.0).with_patience(60.0).write_bytes("theirs", b"2")
    assert not storage.write_bytes("theirs", b"1", if_absent=True)
    assert objects(server, root) == {"mine": b"1", "theirs": b"2"}


def test_a_server_that_ignores_conditions_is_refused(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It might as well never get them."""
    kind = type(opened(root, 1.0))
    put = kind._put
    monkeypatch.setattr(kind, "_put", lambda self, path, data, sha256, _: put(self, path, data, sha256, False))
    storage = opened(root, 60.0)
    with pytest.raises(OutputError, match="ignores") as caught:
        storage.probe()
    assert "single_coordinator" in caught.value.hint
    assert storage.children() == []
    storage.probe(single_coordinator=True)
    assert storage.write_bytes("a", b"1", if_absent=True)
    assert not storage.write_bytes("a", b"2", if_absent=True)


# ---- uploads in parts ------------------------------------------------------------------------------------------------

STEPS = {
    "gs": {"begin": "uploads", "part": "partNumber=2", "complete": r"uploadId=[^&]*$"},
    "az": {"begin": "comp=block&", "part": "comp=block&", "complete": "comp=blocklist"},
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", ["busy", "reset", "lose"])
@pytest.mark.parametrize("step", ["begin", "part", "complete"])
@pytest.mark.sampled(5)
def test_large_files_go_up_in_parts_whatever_fails(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, root: str, large: Path, kind: Any, step: str
) -> None:
    fault = proxy.fail(kind, times=2, method="PUT|POST", target=STEPS[server.scheme][step])
    storage.put_file(large, "video/a.mp4")
    assert fault.num_hit == 2
    assert objects(server, root) == {"video/a.mp4": large.read_bytes()}
    assert storage.stat("video/a.mp4").sha256 == hashlib.sha256(large.read_bytes()).hexdigest()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("step", ["part", "complete"])
def test_an_upload_that_fails_is_aborted(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, root: str, large: Path, step: str
) -> None:
    """Azure has nothing to abort: blocks that no list names are never seen, and go by themselves."""
    proxy.fail("denied", times=1000, method="PUT|POST", target=STEPS[server.scheme][step])
    with pytest.raises(OutputError, match="permission denied"):
        storage.put_file(large, "video/a.mp4")
    assert objects(server, root) == {}
    assert server.scheme == "az" or not server.uploads


@pytest.mark.usefixtures("small_parts")
def test_nothing_is_left_of_parts_that_went_silent(
    server: FakeCloud, root: str, large: Path, hurry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SilentS3(server.url) as proxy:
        lead_to(proxy.url, server, monkeypatch)
        proxy.stop_at("request body", method="PUT", target="partNumber|comp=block&", times=1000)
        with pytest.raises(OutputError, match="no usable answer for 1 s"):
            opened(root, 1.0).put_file(large, "video/large.mp4")
    assert objects(server, root) == {}
    assert server.scheme == "az" or not server.uploads


# ---- a server that is silent -----------------------------------------------------------------------------------------


@pytest.fixture
def silent(server: FakeCloud, hurry: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentS3]:
    idle_s = paced(0.25)
    monkeypatch.setattr(bucket, "IDLE_S", idle_s)
    monkeypatch.setattr(bucket, "_LEAST_IDLE_S", idle_s)
    with SilentS3(server.url) as proxy:
        lead_to(proxy.url, server, monkeypatch)
        yield proxy


CALLS: dict[str, tuple[Callable[[BucketStorage, Path], object], str]] = {
    "put": (lambda storage, _: storage.write_bytes("a", b"1" * 1000), "PUT"),
    "put if absent": (lambda storage, _: storage.write_bytes("new/b", b"1", if_absent=True), "PUT"),
    "put an empty one": (lambda storage, _: storage.create_empty("new/c"), "PUT"),
    "get": (lambda storage, _: storage.read_bytes("a"), "GET"),
    "get a file": (lambda storage, folder: storage.get_file("a", folder / "got"), "GET"),
    "get a range": (lambda storage, _: storage.read_range("a", 10, 100), "GET"),
    "head": (lambda storage, _: storage.stat("a"), "HEAD"),
    "list": (lambda storage, _: list(storage.list()), "GET"),
    "children": (lambda storage, _: storage.children(), "GET"),
    "delete": (lambda storage, _: storage.delete("nothing"), "DELETE|POST"),
}
WHOLE_BEFORE_THE_BODY = ("put", "put if absent", "put an empty one", "head", "delete")
"""Their answer has no body that is waited for, so nothing is missing where it would begin."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.sampled(20)
def test_every_request_ends(silent: SilentS3, root: str, tmp_path: Path, call: str) -> None:
    """At whatever stage the server falls silent; and the same request, made again, comes through."""
    do, method = CALLS[call]
    storage = opened(root, 60.0)
    storage.write_bytes("a", b"1" * 1000)
    for stage in STAGES[1:]:
        if stage == "response body" and call in WHOLE_BEFORE_THE_BODY:
            continue
        stop = silent.stop_at(stage, method=method)
        do(storage, tmp_path)
        assert stop.num_hit, stage
        silent.speak()
    assert storage.read_bytes("a") == b"1" * 1000
    assert not any("expect" in headers for _, _, headers in silent.requests), "100 Continue is never waited for"


def test_silence_ends_with_patience_and_leaves_no_threads(silent: SilentS3, root: str) -> None:
    storage = opened(root, 0.0)
    silent.silence()
    counts = []
    for _ in range(6):
        begun_s = time.monotonic()
        with pytest.raises(OutputError, match="no usable answer for 0 s, last: the server was silent"):
            storage.read_bytes("a")
        assert time.monotonic() - begun_s < paced(30.0)
        own = sum(thread.name == "miga-storage" for thread in threading.enumerate())
        counts.append(len(os.listdir("/proc/self/task")) - threading.active_count() + own)  # the proxy has some, too
    assert max(counts[3:]) <= max(counts[:3]), "requests that were given up hold no thread"


@pytest.mark.sampled(3)
def test_a_silence_that_ends(silent: SilentS3, root: str) -> None:
    """On connections that are open, too."""
    storage = opened(root, 60.0)
    storage.write_bytes("a", b"1")
    silent.silence(0.7)
    assert storage.write_bytes("b", b"2", if_absent=True)
    assert storage.read_bytes("b") == b"2"


@pytest.mark.slow
def test_slow_and_alive_gets_through(silent: SilentS3, root: str, tmp_path: Path) -> None:
    """Far longer than a silence may be; each try would be given up were it timed as a whole."""
    data = os.urandom(2 << 20)
    storage = opened(root, 60.0)
    silent.bytes_per_s = 2 << 20
    storage.write_bytes("a", data)
    storage.get_file("a", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data
    assert storage.read_bytes("a") == data


# ---- listings, addresses, prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [3, 1000])
def test_many_pages(
    storage: BucketStorage, proxy: FaultyS3, server: FakeCloud, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Also where the server's pages and those that are asked for are not the same."""
    monkeypatch.setattr(cloud, "_PAGE", 4)
    monkeypatch.setattr(server, "page", page)
    names = [f"{number:05d}" for number in range(8)]
    for name in names:
        storage.write_bytes(f"done/{name}", b"")
    storage.write_bytes("done/00003/deeper", b"")
    storage.write_bytes("done.json", b"")
    proxy.fail("busy", times=5, method="GET", every=2)
    assert list(storage.list("done")) == sorted([*(f"done/{name}" for name in names), "done/00003/deeper"])
    assert list(storage.children("done")) == names
    assert storage.children() == ["done", "done.json"]
    storage.delete_many([*storage.list("done"), "done/none"])
    assert storage.children() == ["done.json"]


def fetched(address: str, headers: dict[str, str]) -> Any:
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers))


def test_a_signed_address_is_read_without_credentials(
    root: str, server: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(server, FakeGoogle):
        monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.service_account(tmp_path)))
    storage = opened(root, 60.0)
    storage.write_bytes("video/00000/a.mp4", b"0123456789")
    address = storage.signed_address("video/00000/a.mp4", 3600)
    with fetched(address, {"Range": "bytes=2-4"}) as answer:
        assert (answer.status, answer.read(), answer.headers["Content-Type"]) == (206, b"234", "video/mp4")
    for other in (address.replace("a.mp4", "b.mp4"), address[:-4] + "AAAA"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetched(other, {})
    signature = "sig=" if server.scheme == "az" else "X-Goog-Signature="
    assert signature in address
    assert address.partition(signature)[2][:20] not in without_secrets(f"GET {address} failed")


def test_prompts_from_a_bucket(root: str, server: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = opened(root, 60.0)
    storage.write_bytes("p.jsonl", b'{"prompt": "a"}\n\xff\n{"prompt": "b"}')
    rows = list(read_prompts(storage.uri("p.jsonl"), seed=0, num_frames=9))
    assert [row.prompts for row in rows] == [("a",), (), ("b",)]
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(storage.uri("none.jsonl"), seed=0, num_frames=9)
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(root, seed=0, num_frames=9)
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(root.replace("bucket-", "other-") + "/p.jsonl", seed=0, num_frames=9)


def test_an_object_that_is_replaced_is_noticed(root: str, server: FakeCloud) -> None:
    name = root.split("/")[2]
    at = f"{root.partition('://')[0]}://{name}/in/a b (1)%20é.txt"
    opened(f"{root.rpartition('/deep')[0]}", 60.0)._put("x", b"1", "", False)
    kept = server.buckets[name].pop("x")
    kept.data = b"prompt\n" * 300_000
    server.buckets[name]["in/a b (1)%20é.txt"] = kept
    file = BucketObject(at, patience_s=60.0)
    assert file.read(1_500_000, 20) == kept.data[1_500_000:1_500_020]
    before = file.version()
    kept.etag = '"0xANOTHER"'
    assert file.version() != before
    with pytest.raises(FileExistsError):
        file.read(0, 7)


@pytest.mark.usefixtures("gs_root", "az_root")
def test_addresses_as_other_programs_write_them() -> None:
    assert open_storage("gcs://bucket/x").root == "gs://bucket/x"
    assert open_storage("abfs://box/x").root == open_storage("abfss://box/x").root == "az://box/x"
    with pytest.raises(OutputError, match="names a storage account") as caught:
        open_storage("abfss://box@mine.dfs.core.windows.net/x")
    assert "AZURE_STORAGE_ACCOUNT_NAME=mine" in caught.value.hint
    assert "az://box/" in caught.value.hint
    for bad in ("gs://", "gs:///x", "gs://UPPER/x", "gs://b/../x", "az://b_c/x", "az://b//x", "gs://key:secret@b/x"):
        with pytest.raises(OutputError):
            open_storage(bad)


# ---- answers that will not change ------------------------------------------------------------------------------------


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status, body, num_asked = 200, b"", 0

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        type(self).num_asked += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer


@pytest.fixture
def answering(server: FakeCloud, hurry: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Answering]]:
    kind = type("_Kind", (_Answering,), {})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    lead_to(f"http://127.0.0.1:{listening.server_port}", server, monkeypatch)
    yield kind
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (403, "AuthenticationFailed", "permission denied", "credentials|AZURE_STORAGE_ACCOUNT_KEY"),
        (401, "NoAuthenticationInformation", "permission denied", "credentials"),
        (404, "NoSuchBucket", "does not exist", "create the"),
        (404, "ContainerNotFound", "does not exist", "create the"),
        (400, "InvalidUri", "InvalidUri: said so", "endpoint"),
        (501, "NotImplemented", "said so", "another server"),
    ],
)
def test_answers_that_will_not_change_are_not_waited_for(
    root: str, answering: type[_Answering], status: int, code: str, message: str, hint: str
) -> None:
    answering.status = status
    answering.body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said so</Message></Error>".encode()
    storage = opened(root, 300.0)
    for call in (lambda: storage.read_bytes("a"), storage.children, lambda: storage.write_bytes("a", b"1")):
        answering.num_asked = 0
        with pytest.raises(OutputError, match=message) as caught:
            call()
        assert any(part in caught.value.hint for part in hint.split("|"))
        assert answering.num_asked == 1


def test_a_server_of_another_kind(root: str, answering: type[_Answering]) -> None:
    answering.body = b"<html>welcome</html>"
    storage = opened(root, 300.0)
    for call in (storage.probe, lambda: storage.stat("a"), lambda: storage.read_bytes("a")):
        with pytest.raises(OutputError, match="cannot be used") as caught:
            call()
        assert "endpoint" in caught.value.hint


def test_plain_http_where_tls_is_expected(
    root: str, server: FakeCloud, answering: type[_Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "GOOGLE_BASE_URL" if server.scheme == "gs" else "AZURE_STORAGE_ENDPOINT"
    monkeypatch.setenv(variable, os.environ[variable].replace("http:", "https:"))
    with pytest.raises(OutputError) as caught:
        opened(root, 300.0).exists("a")
    assert "https" in caught.value.hint


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, one of 127.0.0.1 that it has signed, and the key of that."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, encoding = datetime.now(UTC), serialization.Encoding.PEM
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]
    for number, file in enumerate(("ca.pem", "server.pem")):
        made = (
            x509.CertificateBuilder(names[0], names[number], keys[number].public_key(), 1 + number)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(keys[0], hashes.SHA256())
        )
        (folder / file).write_bytes(made.public_bytes(encoding))
    formats = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(keys[1].private_bytes(encoding, *formats))
    return folder / "ca.pem", folder / "server.pem", folder / "key.pem"


def test_a_server_with_a_certificate_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurry: None) -> None:
    authority, *own = certificates(tmp_path)
    with FakeGoogle(tls=(own[0], own[1])) as server:
        server.make("bucket")
        lead_to(server.url, server, monkeypatch)
        with pytest.raises(OutputError, match="InvalidCertificate") as caught:
            opened("gs://bucket/x", 300.0).write_bytes("a", b"1")
        assert "SSL_CERT_FILE" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert opened("gs://bucket/x", 300.0).write_bytes("a", b"1", if_absent=True)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AZURE_STORAGE_ACCOUNT_NAME": None}, "no storage account of Azure is named"),
        ({"AZURE_STORAGE_ACCOUNT_KEY": "no-key!"}, "AZURE_STORAGE_ACCOUNT_KEY is no key of an account"),
        ({"AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0\n"}, "AZURE_STORAGE_ACCOUNT_KEY ends in a line break"),
        ({"AZURE_STORAGE_ENDPOINT": "host"}, "AZURE_STORAGE_ENDPOINT is 'host', which is no address"),
        ({"AZURE_STORAGE_ENDPOINT": "https://x/?sig=secret"}, "AZURE_STORAGE_ENDPOINT holds .* a signature"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "half;of=one"}, "AZURE_STORAGE_CONNECTION_STRING names no account"),
        ({"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE is '/no/such.pem': there is no such file"),
    ],
)
def test_settings_of_azure_that_cannot_work(
    az_root: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None], message: str
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(OutputError, match=message) as caught:
        open_storage(az_root)
    assert caught.value.hint
    assert "no-key!" not in str(caught.value)
    assert "secret" not in str(caught.value)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("{", "holds no credentials"),
        ("[]", "holds no credentials"),
        ('{"type": "external_account"}', "credentials of type 'external_account' are not known"),
    ],
)
def test_a_file_of_google_that_cannot_work(
    gs_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(OutputError, match=f"GOOGLE_APPLICATION_CREDENTIALS is .*: .*{message}") as caught:
        open_storage(gs_root)
    assert "gcloud" in caught.value.hint


def test_the_emulator_variable_of_googles_own_tools(
    gs_root: str, fake_clouds: dict[str, FakeCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_BASE_URL")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_clouds["gs"].url.removeprefix("http://"))
    assert open_storage(gs_root).write_bytes("a", b"1", if_absent=True)


@pytest.mark.parametrize("names", ["connection string", "of the az tool"])
def test_other_ways_to_name_an_account(az_root: str, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    account, key = os.environ["AZURE_STORAGE_ACCOUNT_NAME"], os.environ["AZURE_STORAGE_ACCOUNT_KEY"]
    url = os.environ["AZURE_STORAGE_ENDPOINT"]
    whole = f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={url}/;"
    own: dict[str, str | None] = {"AZURE_STORAGE_ACCOUNT_NAME": None, "AZURE_STORAGE_ACCOUNT_KEY": None}
    if names == "connection string":
        set_all(monkeypatch, own | {"AZURE_STORAGE_ENDPOINT": None, "AZURE_STORAGE_CONNECTION_STRING": whole})
    else:
        set_all(monkeypatch, own | {"AZURE_STORAGE_ACCOUNT": account, "AZURE_STORAGE_KEY": key})
    assert open_storage(az_root).write_bytes("a", b"1", if_absent=True)


def test_secrets_stay_out_of_messages(az_root: str, monkeypatch: pytest.MonkeyPatch, hurry: None) -> None:
    signature = "sv=2023-11-03&sig=AbCdEf0123456789%3D"
    key = base64.b64encode(b"another secret of mine").decode()
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", signature)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="no usable answer") as caught:
        opened(az_root, 0.1).write_bytes("a", b"1")
    assert "AbCdEf" not in str(caught.value)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=x;AccountKey={key}")
    assert key not in without_secrets(f"cannot use AccountKey={key}; of x")


def test_no_credentials_of_google_at_all(gs_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Elsewhere than on Google's machines: said at once, whatever the patience."""
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({"client_email": "x", "private_key": "no key"}))
    with pytest.raises(OutputError, match=r"no (client|credentials)") as caught:
        opened(gs_root, 300.0).exists("a")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


# ---- lanes -----------------------------------------------------------------------------------------------------------

LEFT_ALONE = """
import asyncio, threading
from contextlib import asynccontextmanager
from pipeline.storage.lanes import AwakeClock, Progress, SilentServerError, lane

@asynccontextmanager
async def client():
    yield "a client"

async def stubborn(client, progress):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def pending(client, progress):
    await asyncio.sleep(3600)

first = lane("given up", frozenset(), client)
try:
    first.ask(stubborn, Progress(AwakeClock(), 0.1))
except SilentServerError:
    print("given up", flush=True)
for number in range(10):
    other = lane(f"asked at the end {number}", frozenset(), client)
    threading.Thread(target=other.ask, args=(pending, Progress(AwakeClock(), 3600.0)), daemon=True).start()
"""


def test_a_process_ends_without_a_word_about_what_was_still_asked() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_ALONE], cwd=ROOT, capture_output=True, text=True, timeout=paced(60), check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "given up\n")
    assert "Task was destroyed" not in ended.stderr
    assert "never awaited" not in ended.stderr


def test_lanes_that_are_not_used_any_more_end(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    storage = opened(root, 60.0)
    for number in range(lanes._MAX_LANES + 4):
        monkeypatch.setenv("AZURE_STORAGE_NOTHING", str(number))
        monkeypatch.setenv("GOOGLE_NOTHING", str(number))
        opened(root, 60.0).write_bytes("a", b"1")
    assert storage.read_bytes("a") == b"1"
    wait_for(
        lambda: sum(thread.name == "miga-storage" for thread in threading.enumerate()) <= lanes._MAX_LANES + 2,
        what="the threads of lanes that were left to end",
    )
