"""S3 that goes silent: every request ends, at whatever stage nothing more comes; slow and alive gets through."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miga.errors import OutputError
from pipeline.storage import bucket, lanes
from pipeline.storage import s3 as storage_s3
from pipeline.storage.bucket_object import BucketObject
from pipeline.storage.lanes import AwakeClock, Lane, Progress, SilentServerError, StuckLoopError, lane
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_client import Body, s3_client
from tests.faulty_s3 import bucket_client
from tests.pace import paced
from tests.silent_s3 import STAGES, SilentS3, Stage

pytestmark = pytest.mark.s3

PART = 5 << 20


@pytest.fixture
def proxy(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentS3]:
    idle_s = paced(0.4)
    for name, value in {
        "IDLE_S": idle_s,
        "_LEAST_IDLE_S": idle_s,
        "_FIRST_PAUSE_S": 0.02,
        "_MAX_PAUSE_S": 0.05,
    }.items():
        monkeypatch.setattr(bucket, name, value)
    with SilentS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def put(storage: S3Storage, _: Path) -> object:
    return storage.write_bytes("a", b"1" * 1000)


def put_if_absent(storage: S3Storage, _: Path) -> object:
    return storage.write_bytes("new/b", b"1", if_absent=True)


def put_empty(storage: S3Storage, _: Path) -> object:
    return storage.create_empty("new/c")


def get(storage: S3Storage, _: Path) -> object:
    return storage.read_bytes("a")


def get_file(storage: S3Storage, folder: Path) -> object:
    return storage.get_file("a", folder / "got")


def head(storage: S3Storage, _: Path) -> object:
    return storage.stat("a")


def list_all(storage: S3Storage, _: Path) -> object:
    return list(storage.list())


def delete(storage: S3Storage, _: Path) -> object:
    return storage.delete("nothing")


def put_parts(storage: S3Storage, folder: Path) -> object:
    return storage.put_file(folder / "large", "video/large.mp4")


CALLS: dict[str, tuple[Callable[[S3Storage, Path], object], str]] = {
    "put": (put, "PUT"),
    "put if absent": (put_if_absent, "PUT"),
    "put an empty one": (put_empty, "PUT"),
    "get": (get, "GET"),
    "get a file": (get_file, "GET"),
    "head": (head, "HEAD"),
    "list": (list_all, "GET"),
    "delete": (delete, "DELETE"),
    "begin parts": (put_parts, "POST"),
    "put parts": (put_parts, "PUT"),
}
WHOLE_BEFORE_THE_BODY = ("put", "put if absent", "put an empty one", "head", "delete", "put parts")
"""Their answer has no body, so nothing is missing where it would begin."""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_s3, "MULTIPART_BYTES", 1000)
    monkeypatch.setattr(storage_s3, "PART_BYTES", PART)
    monkeypatch.setattr(lanes, "UNSEEN_BYTES_PER_S", 1 << 30)
    (tmp_path / "large").write_bytes(bytes(2000))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.sampled(4)
def test_every_request_ends(proxy: SilentS3, s3_root: str, tmp_path: Path, call: str) -> None:
    """At whatever stage the server falls silent; and the same request, made again, comes through."""
    do, method = CALLS[call]
    storage = S3Storage(s3_root, patience_s=60.0)
    storage.write_bytes("a", b"1" * 1000)
    for stage in STAGES[1:]:
        if stage == "response body" and call in WHOLE_BEFORE_THE_BODY:
            continue
        stop = proxy.stop_at(stage, method=method)
        do(storage, tmp_path)
        assert stop.num_hit, stage
        proxy.speak()
    assert storage.read_bytes("a") == b"1" * 1000
    assert not any("expect" in headers for _, _, headers in proxy.requests), "100 Continue is never waited for"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_prompt_file_is_read_through_silence(proxy: SilentS3, s3_root: str, stage: Stage) -> None:
    data = b"".join(b"prompt %d\n" % number for number in range(200_000))
    bucket_client().put_object(Bucket=s3_root.split("/")[2], Key="in/a b (1).txt", Body=data)
    address = f"s3://{s3_root.split('/')[2]}/in/a b (1).txt"
    head = proxy.stop_at(stage, method="HEAD")
    file = BucketObject(address, patience_s=60.0)
    get = proxy.stop_at(stage, method="GET")
    assert file.read(0, len(data) + 10) == data
    assert file.read(1_500_000, 20) == data[1_500_000:1_500_020]
    assert (head.num_hit, get.num_hit) == (1, 1)


def test_a_prompt_file_that_nobody_sends_is_given_up(proxy: SilentS3, s3_root: str) -> None:
    address = f"s3://{s3_root.split('/')[2]}/in/p.txt"
    bucket_client().put_object(Bucket=s3_root.split("/")[2], Key="in/p.txt", Body=b"a\n")
    file = BucketObject(address, patience_s=0.0)
    proxy.stop_at("request headers", method="GET", times=1000)
    with pytest.raises(OutputError, match="no usable answer for 0 s"):
        file.read(0, 2)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_silence_that_does_not_end(proxy: SilentS3, s3_root: str, stage: Stage) -> None:
    storage = S3Storage(s3_root, patience_s=0.0)
    S3Storage(s3_root, patience_s=60.0).write_bytes("a", b"1" * 1000)
    stop = proxy.stop_at(stage, method="GET", times=1000)
    while not stop.num_hit:  # a busy machine may give up before the request is there
        with pytest.raises(OutputError, match=r"no usable answer for 0 s, last: the server was silent"):
            storage.read_bytes("a")


def test_a_connection_that_is_taken_and_never_read(
    proxy: SilentS3, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_LEAST_IDLE_S", 1.0)
    stop = proxy.stop_at("accept", times=1000)
    while not stop.num_hit:  # the first connection takes a while to be made ready
        with pytest.raises(OutputError, match="the server was silent for 1 s"):
            S3Storage(s3_root, patience_s=0.0).write_bytes("a", b"1")
    proxy.speak()
    assert S3Storage(s3_root, patience_s=60.0).write_bytes("a", b"1", if_absent=True)
    assert proxy.requests


@pytest.mark.usefixtures("large")
def test_nothing_is_left_of_parts_that_went_silent(proxy: SilentS3, s3_root: str, tmp_path: Path) -> None:
    proxy.stop_at("request body", method="PUT", target="partNumber", times=1000)
    with pytest.raises(OutputError, match="no usable answer"):
        S3Storage(s3_root, patience_s=0.3).put_file(tmp_path / "large", "video/large.mp4")
    client, bucket = bucket_client(), s3_root.split("/")[2]
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert not client.list_objects_v2(Bucket=bucket).get("Contents")


def test_a_silence_that_ends(proxy: SilentS3, s3_root: str) -> None:
    """On connections that are open, too."""
    storage = S3Storage(s3_root, patience_s=60.0)
    storage.write_bytes("a", b"1")
    proxy.silence(1.0)
    assert storage.write_bytes("b", b"2", if_absent=True)
    assert storage.read_bytes("b") == b"2"


def test_slow_and_alive_gets_through(proxy: SilentS3, s3_root: str, tmp_path: Path) -> None:
    """Far longer than a silence may be, in both directions; each try would be given up were it timed as a whole."""
    data = os.urandom(3 << 20)
    storage = S3Storage(s3_root, patience_s=60.0)
    proxy.bytes_per_s = 3 << 20
    storage.write_bytes("a", data)
    storage.get_file("a", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data
    assert storage.read_bytes("a") == data


# ---- what a request may take -----------------------------------------------------------------------------------------


class _Clock(AwakeClock):
    """Moved by hand."""

    def tick(self) -> None:
        pass


def test_silence_ends_a_request_and_progress_puts_that_off() -> None:
    clock = _Clock()
    progress = Progress(clock, 10.0)
    clock.now_s = 9.0
    assert progress.left_s() == pytest.approx(1.0)
    progress.moved(100 << 20)
    assert progress.left_s() == pytest.approx(10.0), "from the last byte on"
    clock.now_s = 19.0
    assert progress.left_s() <= 0


def test_a_trickle_ends_too() -> None:
    clock = _Clock()
    progress = Progress(clock, 60.0)
    while progress.left_s() > 0:
        assert clock.now_s < 120, "a byte every half minute keeps no request alive"
        clock.now_s += 30.0
        progress.moved(1)


def test_a_slow_transfer_does_not() -> None:
    clock = _Clock()
    progress = Progress(clock, 60.0)
    for _ in range(10_000):
        clock.now_s += 10.0
        progress.moved(lanes.SLOWEST_BYTES_PER_S * 10)
        assert progress.left_s() > 0


def test_what_is_sent_counts_as_it_leaves() -> None:
    clock = _Clock()
    progress = Progress(clock, 10.0)
    data = os.urandom(1 << 20)
    body = Body(data, progress)
    clock.now_s = 8.0
    assert progress.left_s() == pytest.approx(2.0)
    assert body.read(1 << 19) + body.read() == data
    assert progress.left_s() == pytest.approx(10.0)


def test_a_process_that_was_stopped_has_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(lanes.time, "monotonic", lambda: now_s)
    clock = AwakeClock()
    now_s += 1.0
    clock.tick()
    now_s += 3600.0
    clock.tick()
    assert clock.now_s == 1.0 + lanes._MAX_STEP_S


# ---- a loop that is stuck --------------------------------------------------------------------------------------------


def test_a_stuck_loop_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "STUCK_S", 0.1)
    for_ever = threading.Event()

    async def block(client: Any, progress: Progress) -> None:
        for_ever.wait()

    async def answer(client: Any, progress: Progress) -> str:
        return "answered"

    stuck = lane("test", frozenset(), s3_client)
    stuck.make_ready()
    with pytest.raises(StuckLoopError):
        stuck.ask(block, Progress(AwakeClock(), 0.1))
    other = lane("test", frozenset(), s3_client)
    assert other is not stuck
    other.make_ready()
    assert other.ask(answer, Progress(AwakeClock(), 60.0)) == "answered"
    for_ever.set()
    other.close()


def test_a_request_that_will_not_be_cancelled_is_not_waited_for() -> None:
    import asyncio

    ended = threading.Event()

    async def stubborn(client: Any, progress: Progress) -> None:
        while not ended.is_set():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ended.wait(0.01)

    there = Lane(s3_client)
    there.make_ready()
    with pytest.raises(SilentServerError, match="silent"):
        there.ask(stubborn, Progress(AwakeClock(), 0.1))
    ended.set()
    there.close()
