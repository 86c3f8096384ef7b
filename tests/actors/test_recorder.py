"""The recorder: what is settled is written whatever else is stuck, told once it is there, and sealed last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.driver import recorder as recorder_module
from actors.driver.inbox import Inbox
from actors.driver.recorder import Recorder, Threads
from miga.errors import OutputError
from pipeline.records.manifest import Manifest
from pipeline.rows import ManifestRow
from pipeline.storage.local import LocalStorage
from tests.made_run import PER_SHARD, MadeRun, make_run
from tests.pace import paced

PATIENCE_S = 20.0


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    """Rows to settle elsewhere."""
    return make_run(LocalStorage(tmp_path / "made"), tmp_path, PER_SHARD)


class _Slow(Manifest):
    """Holds every write until it is let go."""

    def __init__(self, storage: LocalStorage) -> None:
        super().__init__(storage, PER_SHARD)
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()

    def record(self, row: ManifestRow) -> bool:
        self.begun.release()
        assert self.go_on.wait(paced(PATIENCE_S))
        return super().record(row)


def test_threads_do_all_that_they_are_brought_before_they_end() -> None:
    threads, done = Threads(3), []
    for number in range(1000):
        threads.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    threads.close()
    assert sorted(done) == list(range(1000))


def test_one_thread_does_it_in_the_order_of_arrival() -> None:
    threads, done = Threads(1), []
    for number in range(100):
        threads.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    threads.close()
    assert done == list(range(100))


def test_what_waits_behind_slow_work_has_all_threads_at_it() -> None:
    """All of them meet at a barrier, which none passes alone."""
    threads, meeting = Threads(4), threading.Barrier(4)
    passed: list[int] = []

    def meet() -> None:
        passed.append(meeting.wait(paced(PATIENCE_S)))

    for _ in range(8):
        threads.submit(meet)
    threads.close()
    assert sorted(passed) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_threads_that_fell_asleep_are_woken_again() -> None:
    threads = Threads(2)
    for _ in range(50):
        is_done = threading.Event()
        threads.submit(is_done.set)
        assert is_done.wait(paced(PATIENCE_S))
    threads.close()


def test_a_row_is_told_of_and_its_shard_sealed_only_once_its_sidecar_is_there(made: MadeRun, tmp_path: Path) -> None:
    storage, inbox = LocalStorage(tmp_path / "out"), Inbox()
    manifest = _Slow(storage)
    recorder = Recorder(storage, manifest, None, inbox.put)
    rows, told = list(made.manifest.read_rows()), []
    for row in rows:
        recorder.record(row, lambda row=row: told.append((row.row, row.row in manifest.statuses(0))))  # type: ignore[misc]
    recorder.seal(0)
    assert manifest.begun.acquire(timeout=paced(PATIENCE_S))
    inbox.run(0.01)
    assert (told, recorder.is_idle, manifest.sealed_shards()) == ([], False, [])
    manifest.go_on.set()
    while not recorder.is_idle:
        inbox.run(paced(PATIENCE_S))
    recorder.close()
    assert sorted(told) == [(row.row, True) for row in rows]
    here = {row.row: storage.uri(made.video(row.row)) for row in rows}
    assert list(Manifest(storage, PER_SHARD).read_rows()) == [replace(row, uri=here[row.row]) for row in rows]
    assert manifest.sealed_shards() == [0]


def test_a_write_that_fails_is_raised_where_the_coordinator_hears(made: MadeRun, tmp_path: Path) -> None:
    storage, inbox = LocalStorage(tmp_path / "out"), Inbox()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "done").write_text("a file where a folder belongs")
    recorder = Recorder(storage, Manifest(storage, PER_SHARD), None, inbox.put)
    told: list[Callable[[], None]] = []
    recorder.record(next(made.manifest.read_rows()), lambda: told.append(recorder.close))
    with pytest.raises(OutputError, match="part of the path is a file"):
        inbox.run(paced(PATIENCE_S))
    assert recorder.is_idle
    assert told == []
    recorder.close()


def test_who_brings_more_than_may_wait_waits(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 2)
    storage, inbox = LocalStorage(tmp_path / "out"), Inbox()
    manifest = _Slow(storage)
    recorder = Recorder(storage, manifest, None, inbox.put)
    row, brought = next(made.manifest.read_rows()), threading.Semaphore(0)

    def bring() -> None:
        for _ in range(3):
            recorder.record(row, lambda: None)
            brought.release()

    bringing = threading.Thread(target=bring)
    bringing.start()
    assert brought.acquire(timeout=paced(PATIENCE_S))
    assert brought.acquire(timeout=paced(PATIENCE_S))
    assert not brought.acquire(timeout=0.1)
    manifest.go_on.set()
    assert brought.acquire(timeout=paced(PATIENCE_S))
    bringing.join(paced(PATIENCE_S))
    recorder.close()
