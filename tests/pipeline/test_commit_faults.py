"""A disk or a bucket that is full from any write on: nothing partial is seen, and the run goes on to the same end."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from miga.errors import OutputError
from pipeline.records import lease as lease_module
from pipeline.records.lease import Lease, Owner
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import open_run, shard_of
from pipeline.rows import ManifestRow
from pipeline.storage import bucket
from pipeline.storage import local as storage_local
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.verify import verify
from tests.fake_clouds import FakeCloud
from tests.faulty_s3 import FaultyS3
from tests.made_run import PER_SHARD, MadeRun, make_run, video_bytes

NUM_ROWS = 2
STALE = Owner(host="elsewhere", pid=1)


class Clock:
    """Steady, and moved by waiting alone."""

    now_s = 0.0

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_now_s", lambda: CLOCK.now_s)


@pytest.fixture
def plan(tmp_path: Path) -> MadeRun:
    """The run as it is undisturbed: what `work` is to arrive at."""
    return make_run(LocalStorage(tmp_path / "undisturbed"), tmp_path, NUM_ROWS)


def work(storage: Storage, plan: MadeRun, folder: Path) -> None:
    """Does to `storage` what a coordinator and its workers do; resumes."""
    open_run(storage, plan.record)
    run = MadeRun(storage, plan.prompts, plan.record, Manifest(storage, PER_SHARD))
    with Lease.held(storage, owner=STALE, ttl_s=60.0, wait=CLOCK.wait) as lease:
        for index in range(NUM_ROWS):
            shard = shard_of(index, PER_SHARD)
            if index not in run.manifest.statuses(shard):
                local = folder / f"{index}.mp4"
                local.write_bytes(video_bytes(index % 4))
                storage.put_file(local, run.video(index, epoch=lease.epoch))
                lease.check()
                assert run.manifest.record(run.row(index, epoch=lease.epoch))
            is_last = index == NUM_ROWS - 1 or shard_of(index + 1, PER_SHARD) != shard
            if is_last and not run.manifest.is_sealed(shard, len(run.manifest.statuses(shard))):
                lease.check_now()
                run.manifest.seal(shard)


def end_of(storage: Storage, plan: MadeRun, folder: Path) -> OutputError | None:
    """What `work` ends with."""
    try:
        work(storage, plan, folder)
    except OutputError as error:
        return error
    return None


def check_whole(storage: Storage) -> None:
    """Whatever can be seen is complete."""
    for path in storage.list():
        data = storage.read_bytes(path)
        if path.startswith("video/"):
            assert data == video_bytes(int(path.split("/")[2][:8]) % 4)
        elif path.startswith(("done/", "dead/")):
            ManifestRow.from_json(data.decode())
        elif path.startswith("manifest/"):
            pq.read_table(io.BytesIO(data))


def check_end(storage: Storage, plan: MadeRun) -> None:
    """The rows of the undisturbed run, each once, with its video's bytes; nothing else after gc."""
    assert verify(storage).faults == []
    collect_garbage(storage, ttl_s=60.0, wait=CLOCK.wait)
    found = verify(storage)
    assert [found.counts[name] for name in ("rows", "videos", "orphan_videos", "leftovers")] == [
        NUM_ROWS,
        NUM_ROWS,
        0,
        0,
    ]
    check_whole(storage)
    rows, expected = (list(manifest.read_rows()) for manifest in (Manifest(storage, PER_SHARD), plan.manifest))
    assert [(row.row, row.key, row.sha256) for row in rows] == [(row.row, row.key, row.sha256) for row in expected]


class FullDisk:
    """Of the calls that write, those from number `fails_from` on fail, until `is_freed`."""

    def __init__(self, fails_from: int) -> None:
        self.num_calls = 0
        self.fails_from = fails_from
        self.is_freed = False
        self.was_hit = False

    def step(self) -> None:
        self.num_calls += 1
        if not self.is_freed and self.num_calls >= self.fails_from:
            self.was_hit = True
            raise OSError(errno.ENOSPC, "No space left on device")

    def guarding(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self.step()
            return call(*arguments, **options)

        return guarded


class _File:
    """A file that takes half of what is written when the disk is full."""

    def __init__(self, file: BinaryIO, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: bytes) -> int:
        try:
            self._disk.step()
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], FullDisk]:
    new, link, replace = storage_local._new, os.link, os.replace

    def make(fails_from: int) -> FullDisk:
        disk = FullDisk(fails_from)
        monkeypatch.setattr(storage_local, "_new", lambda *how, **also: _File(disk.guarding(new)(*how, **also), disk))
        for name, call in (("fsync", lambda handle: None), ("link", link), ("replace", replace)):
            monkeypatch.setattr(os, name, disk.guarding(call))
        return disk

    return make


@pytest.mark.slow
def test_a_disk_that_is_full_from_any_write_on(
    plan: MadeRun, tmp_path: Path, full_disk: Callable[[int], FullDisk]
) -> None:
    for fails_from in range(1, 1000):
        storage = LocalStorage(tmp_path / f"out-{fails_from}")
        disk = full_disk(fails_from)
        error = end_of(storage, plan, tmp_path)
        assert error is None or ("no space left" in error.message and "it resumes" in error.hint)
        check_whole(storage)
        disk.is_freed = True
        work(storage, plan, tmp_path)
        check_end(storage, plan)
        if not disk.was_hit:
            break
    assert fails_from > 25, "it failed at every write in turn"


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.s3), "gs", "az"])
def root(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_root")
    return found


@pytest.fixture
def proxy(root: str, fake_clouds: dict[str, FakeCloud], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    monkeypatch.setattr(bucket, "_FIRST_PAUSE_S", 0.01)
    server = fake_clouds.get(root.partition("://")[0])
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"] if server is None else server.url) as proxy:
        leading = {"AWS_ENDPOINT_URL": proxy.url} if server is None else server.environment(proxy.url)
        for name, value in leading.items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.mark.slow
def test_a_bucket_that_is_full_from_any_write_on(plan: MadeRun, proxy: FaultyS3, root: str, tmp_path: Path) -> None:
    for fails_from in range(0, 1000, 4):
        storage = open_storage(f"{root}/{fails_from}", patience_s=60)
        passed = proxy.fail("slow", times=fails_from, method="PUT|POST")
        full = proxy.fail("full", times=10**6, method="PUT|POST")
        error = end_of(storage, plan, tmp_path)
        assert error is None or ("no space left" in error.message and "it resumes" in error.hint)
        was_hit = bool(full.num_hit)
        passed.times = full.times = 0
        check_whole(storage)
        work(storage, plan, tmp_path)
        check_end(storage, plan)
        if not was_hit:
            break
    assert fails_from >= 8, "it failed at every fourth write in turn"


@pytest.mark.parametrize("kind", ["busy", "reset", "lose"])
@pytest.mark.sampled(10)
def test_every_write_goes_wrong_once(
    plan: MadeRun, proxy: FaultyS3, root: str, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request to write fails at its first try, and is made again."""
    seen: set[tuple[str, str]] = set()
    next_fault = proxy.next_fault

    def first_time(method: str, target: str) -> Any:
        from tests.faulty_s3 import Fault

        if method in ("PUT", "POST", "DELETE") and (method, target) not in seen:
            seen.add((method, target))
            return Fault(kind)
        return next_fault(method, target)

    monkeypatch.setattr(proxy, "next_fault", first_time)
    storage = open_storage(root, patience_s=60)
    work(storage, plan, tmp_path)
    assert len(seen) >= 9
    check_end(storage, plan)
