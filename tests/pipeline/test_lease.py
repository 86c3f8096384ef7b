"""The lease: one holder at a time, taken over when it is dead, whatever clocks and the storage do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from miga.errors import LeaseHeldError, LeaseLostError, MigaError, OutputError, OutputFullError
from pipeline.records import lease as lease_module
from pipeline.records.lease import Lease, Owner
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.storage.s3 import S3Storage
from tests.faulty_s3 import FaultyS3
from tests.full_disk import fill_disk
from tests.pace import paced
from tests.processes import wait_for
from tests.silent_s3 import SilentS3

ROOT = Path(__file__).parents[2]
CLOUDS = [pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("gs", "az")]
"""test_storage.py and test_storage_clouds.py have their conditional writes among the fast tests."""
ELSEWHERE = Owner(host="elsewhere", boot_id="b", pid_space="pid:[1]", pid=1, process_start=1)


class Time:
    """A steady clock that only `wait` moves; `beats` are carried out as it passes them."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waited_s = 0.0
        self.at: list[tuple[float, Callable[[], object]]] = []

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.waited_s += seconds
        while self.at and self.at[0][0] <= self.waited_s:
            self.at.pop(0)[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(lease_module, "_now_s", lambda: clock.now_s)
    return clock


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), *CLOUDS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(
        tmp_path / "out" if request.param == "local" else request.getfixturevalue(f"{request.param}_root")
    )


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """For all leases of this process."""
    now_s = lease_module._now_s
    monkeypatch.setattr(lease_module, "_now_s", lambda: now_s() + seconds)


def never(seconds: float) -> None:
    raise AssertionError("nothing was to be waited for")


def test_epochs_count_up_and_a_released_lease_is_free_at_once(storage: Storage) -> None:
    for epoch in (1, 2, 3):
        with Lease.held(storage, owner=ELSEWHERE, wait=never) as lease:
            assert lease.epoch == epoch
            lease.check()
            lease.check_now()
    assert sorted(name for name in storage.children("lease") if name.endswith("json")) == [
        "000001.json",
        "000002.json",
        "000003.json",
    ]
    claim = json.loads(storage.read_bytes("lease/000002.json"))
    assert claim["owner"]["host"] == "elsewhere"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(claim["started_at"])).total_seconds()) < 600


def test_a_living_holder_keeps_it(storage: Storage, clock: Time) -> None:
    held = Lease.acquire(storage, ELSEWHERE, 30.0, never)
    clock.at = [(7.5, lambda: storage.write_bytes("lease/000001.beat", b"1"))]
    with pytest.raises(LeaseHeldError, match=r"process 1 on elsewhere, since 2") as caught:
        Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait)
    assert caught.value.hint
    assert clock.waited_s <= 10, "as soon as it shows"
    held.check_now()
    assert len(storage.children("lease")) == 2


def test_a_dead_one_elsewhere_is_taken_over_after_its_ttl(storage: Storage, clock: Time) -> None:
    dead = Lease.acquire(storage, ELSEWHERE, 30.0, never)
    said: list[str] = []
    taken = Lease.acquire(storage, ELSEWHERE, 10.0, clock.wait, said.append)
    assert taken.epoch == 2
    assert 30 <= clock.waited_s <= 33, "the longer of both times"
    assert len(said) == 1
    for look in (dead.check_now, dead.check_now, dead.check):
        with pytest.raises(LeaseLostError, match="another run has taken over"):
            look()
    taken.check_now()


def test_a_dead_one_of_this_machine_is_taken_over_at_once(storage: Storage) -> None:
    process = subprocess.Popen(["sleep", "60"])
    owner = Owner(
        host=Owner.this_process().host,
        boot_id=Owner.this_process().boot_id,
        pid_space=Owner.this_process().pid_space,
        pid=process.pid,
        process_start=lease_module._process_start(process.pid),
    )
    assert not owner.is_gone()
    Lease.acquire(storage, owner, 30.0, never)
    process.kill()
    wait_for(owner.is_gone, what="the process's end")  # not waited for: a zombie
    assert Lease.acquire(storage, owner, 30.0, never).epoch == 2
    process.wait()
    assert owner.is_gone()


def test_who_is_gone() -> None:
    me = Owner.this_process()
    assert not me.is_gone()
    assert replace(me, process_start=(me.process_start or 0) + 1).is_gone(), "its number is another process's now"
    assert not replace(me, process_start=None).is_gone()
    free = next(pid for pid in range(4_000_000, 1, -1) if not Path(f"/proc/{pid}").exists())
    assert replace(me, pid=free).is_gone()
    for other in ({"host": "x"}, {"boot_id": "x"}, {"boot_id": ""}, {"pid_space": "pid:[1]"}):
        assert not replace(me, pid=free, **other).is_gone(), "of a process elsewhere nothing is known"


def test_two_that_start_at_once(storage: Storage) -> None:
    """One holds it in the end. Who was given it and came to no beat within `ttl_s` since has lost it, and knows."""
    barrier, ttl_s = threading.Barrier(4), paced(2.0)
    got: list[object] = []

    def start() -> None:
        barrier.wait()
        try:
            lease = Lease.acquire(storage, Owner.this_process(), ttl_s, time.sleep)
        except LeaseHeldError as error:
            got.append(error)
        else:
            lease.start()
            got.append(lease)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    *earlier, last = sorted((each for each in got if isinstance(each, Lease)), key=lambda lease: lease.epoch)
    last.check_now()
    for lease in earlier:
        with pytest.raises(LeaseLostError):
            lease.check_now()
    for lease in (*earlier, last):
        lease.release()


def test_released_while_it_is_watched(storage: Storage, clock: Time) -> None:
    first = Lease.acquire(storage, ELSEWHERE, 30.0, never)
    clock.at = [(5.0, first.release)]
    assert Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait).epoch == 2
    assert clock.waited_s < 8


def test_a_clock_that_jumps_changes_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, for the holder and for the newcomer: only times of day jump."""
    real, ttl_s = time.time, paced(1.0)
    with Lease.held(storage, ttl_s=ttl_s) as lease:
        for jump_s in (10 * 365 * 86400.0, -10 * 365 * 86400.0):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
            lease.check()
            lease.check_now()
            with pytest.raises(LeaseHeldError):
                Lease.acquire(storage, ELSEWHERE, ttl_s, time.sleep)
        lease.check_now()
        assert lease.epoch == 1


def test_a_newcomer_that_was_asleep_itself_watches_on(storage: Storage, clock: Time) -> None:
    """A machine that was suspended saw nothing of the beats there were meanwhile, or of those that could not be."""
    Lease.acquire(storage, ELSEWHERE, 30.0, never)

    def sleep_long() -> None:
        clock.now_s += 3600

    clock.at = [
        (5.0, sleep_long),
        (10.0, lambda: storage.write_bytes("lease/000001.beat", b"1")),
    ]
    with pytest.raises(LeaseHeldError):
        Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait)


def test_a_lease_that_was_removed_is_lost(storage: Storage) -> None:
    with Lease.held(storage) as lease:
        storage.delete("lease/000001.json")
        with pytest.raises(LeaseLostError, match="was removed"):
            lease.check_now()


SOUND = {"epoch": 1, "owner": asdict(ELSEWHERE), "ttl_s": 30.0, "started_at": "2026-11-21T00:00:00+00:00", "token": "t"}


def damaged(**changes: Any) -> bytes:
    return json.dumps(SOUND | changes).encode()


def of_owner(**changes: Any) -> bytes:
    return damaged(owner=asdict(ELSEWHERE) | changes)


@pytest.mark.parametrize(
    "content",
    [
        b"{}", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"{", b"[" * 3000, b"x" * 5000, b"\0" * 100,
        damaged(owner=None), damaged(owner=[]), damaged(ttl_s="30"), damaged(ttl_s=0), damaged(ttl_s=-1),
        damaged(ttl_s=1e12), damaged(epoch=2), damaged(epoch="1"), damaged(epoch=10**30), damaged(started_at=3),
        of_owner(pid=0), of_owner(pid=-1), of_owner(pid=2**70), of_owner(pid=2**31), of_owner(pid="1"),
        of_owner(pid=True), of_owner(host=5), of_owner(host="x" * 300), of_owner(process_start=2**70),
    ],
    ids=lambda content: content[:25].decode("latin-1"),
)  # fmt: skip
def test_a_damaged_or_foreign_file_in_its_place(tmp_path: Path, content: bytes) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_bytes("lease/000001.json", content)
    with pytest.raises(OutputError, match=r"000001\.json (is no lease|has 5,000 bytes)") as caught:
        Lease.acquire(storage, ELSEWHERE, 1.0, never)
    assert caught.value.hint


def test_the_remedy_for_a_damaged_file(storage: Storage, clock: Time) -> None:
    """Emptied, it is watched as one of whom nothing is known, and its number is not given twice."""
    storage.write_bytes("lease/000003.json", b"{")
    with pytest.raises(OutputError) as caught:
        Lease.acquire(storage, ELSEWHERE, 1.0, never)
    assert "empty file" in caught.value.hint
    assert "do not delete it" in caught.value.hint
    storage.write_bytes("lease/000003.json", b"")
    assert Lease.acquire(storage, ELSEWHERE, 1.0, clock.wait).epoch == 4
    assert clock.waited_s >= 30, "the usual time, since the file names none"


def test_a_host_that_is_more_than_a_name_is_not_acted_on(storage: Storage, clock: Time) -> None:
    storage.write_bytes("lease/000001.json", of_owner(host="\x1b[31mx\x9b"))
    clock.at = [(5.0, lambda: storage.write_bytes("lease/000001.beat", b"1"))]
    with pytest.raises(LeaseHeldError) as caught:
        Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait)
    assert r"\x1b[31mx\x9b" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0\xff" * 10, b"9" * 10_000, b"{}"])
@pytest.mark.sampled(3)
def test_a_beat_may_hold_anything(storage: Storage, clock: Time, content: bytes) -> None:
    Lease.acquire(storage, ELSEWHERE, 30.0, never)
    storage.write_bytes("lease/000001.beat", content)
    assert Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait).epoch == 2
    clock.at = [(clock.waited_s + 5.0, lambda: storage.write_bytes("lease/000002.beat", content))]
    with pytest.raises(LeaseHeldError):
        Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait)


@pytest.mark.parametrize("name", ["0000001.json", "9999999999999999999999.json", "000001.json.txt", "٠٠٠٠٠١.json", "x"])
def test_names_that_are_none_of_its_own_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / name).write_bytes(b"mine")
    with Lease.held(LocalStorage(tmp_path), wait=never) as lease:
        assert lease.epoch == 1
        lease.check_now()
    assert (tmp_path / "lease" / name).read_bytes() == b"mine"


def test_the_last_epoch_there_can_be(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_bytes("lease/999999999.json", b"")
    storage.write_bytes("lease/999999999.released", b"")
    with pytest.raises(OutputError, match="the last epoch") as caught:
        Lease.acquire(storage, ELSEWHERE, 1.0, never)
    assert caught.value.hint


# ---- no room ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_has_room_for_the_lease_of_a_deletion(tmp_path: Path, clock: Time) -> None:
    storage = LocalStorage(tmp_path)
    with pytest.raises(OutputFullError, match="no space left"):
        Lease.acquire(storage, ELSEWHERE, 30.0, never)
    assert storage.children("lease") == []
    first = Lease.acquire(storage, ELSEWHERE, 600.0, never, room_needed=False)
    assert (first.epoch, storage.stat("lease/000001.json").bytes) == (1, 0)
    first.check_now()
    for room_needed in (False, True):
        clock.at = [(clock.waited_s + 7.5, lambda: lease_module._put_beat(storage, 1, 5))]
        with pytest.raises(LeaseHeldError, match="another command"):
            Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait, room_needed=room_needed)
    first.check_now()
    second = Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait, room_needed=False)
    assert second.epoch == 2, "its beat stood still"
    with pytest.raises(LeaseLostError):
        first.check_now()
    second.release()
    assert Lease.acquire(storage, ELSEWHERE, 30.0, never, room_needed=False).epoch == 3


@pytest.mark.usefixtures("full_disk")
def test_of_two_that_start_at_once_on_a_full_disk_one_gets_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.create_empty("lease/000001.json")
    assert not storage.create_empty("lease/000001.json")


@pytest.mark.usefixtures("full_disk")
def test_a_living_run_is_respected_on_a_full_disk(tmp_path: Path, clock: Time) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "000001.json").write_bytes(damaged())
    clock.at = [(7.5, lambda: lease_module._put_beat(storage, 1, 5))]
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"):
        Lease.acquire(storage, ELSEWHERE, 30.0, clock.wait, room_needed=False)


@pytest.mark.s3
def test_old_leases_make_room_in_a_full_bucket(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota that nothing goes into until something was deleted."""
    for _ in range(3):
        with Lease.held(storage, wait=never):
            pass
    write, is_full = type(storage).write_bytes, True

    def write_bytes(self: Storage, path: str, data: bytes, if_absent: bool = False) -> bool:
        if is_full and len(self.children("lease")) > 6:
            raise OutputFullError("full")
        return write(self, path, data, if_absent)

    monkeypatch.setattr(type(storage), "write_bytes", write_bytes)
    with pytest.raises(OutputFullError):
        Lease.acquire(storage, ELSEWHERE, 30.0, never)
    lease = Lease.acquire(storage, ELSEWHERE, 30.0, never, room_needed=False)
    assert lease.epoch == 4
    assert "000003.json" in storage.children("lease"), "its number must not be given again"
    assert json.loads(storage.read_bytes("lease/000004.json"))["epoch"] == 4


# ---- a storage that hangs --------------------------------------------------------------------------------------------


def test_release_returns_whatever_the_storage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within a beat that never ends."""
    storage, hangs, for_ever = LocalStorage(tmp_path), threading.Event(), threading.Event()
    monkeypatch.setattr(lease_module, "RELEASE_S", 0.2)

    def hang(*_: object, **also: object) -> bool:
        hangs.set()
        for_ever.wait()
        return True

    with Lease.held(storage, ttl_s=1.0):
        monkeypatch.setattr(LocalStorage, "write_bytes", hang)
        assert hangs.wait(paced(60.0))
    monkeypatch.undo()
    assert not storage.exists("lease/000001.released")
    for_ever.set()


@pytest.mark.slow
@pytest.mark.s3
def test_a_process_ends_though_the_server_is_silent(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SilentS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        holder = hold(s3_root, paced(2.0))
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "1\n"
            stop = proxy.stop_at("request headers", method="PUT", target="beat")
            wait_for(lambda: stop.num_hit, what="a beat that nothing is said to")
            proxy.silence()
            assert holder.stdin is not None
            holder.stdin.close()
            assert holder.wait(paced(120)) == 0
        finally:
            holder.kill()
            holder.wait()


def test_the_holder_beats_and_notices_by_itself(storage: Storage) -> None:
    with Lease.held(storage, ttl_s=paced(1.0)) as lease:
        wait_for(lambda: storage.read_bytes("lease/000001.beat") not in (b"0", b"1"), what="the second beat")
        lease.check()
        storage.write_bytes("lease/000002.json", storage.read_bytes("lease/000001.json").replace(b"1", b"2", 1))

        def is_lost() -> bool:
            try:
                lease.check()
            except LeaseLostError:
                return True
            return False

        wait_for(is_lost, what="the loss of the lease")
    assert not storage.exists("lease/000001.released"), "what is lost is not released"


@pytest.fixture
def proxy(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.s3
def test_a_holder_cut_off_from_the_storage_commits_no_more(proxy: FaultyS3, s3_root: str) -> None:
    """Its beats fail; the other side takes over; once it is back, it stops."""
    behind = f"http://{proxy.backend[0]}:{proxy.backend[1]}"
    with Lease.held(S3Storage(s3_root, patience_s=0.5), ttl_s=1.0, owner=ELSEWHERE) as lease:
        lease.check()
        proxy.is_gone = True

        def refuses() -> bool:
            try:
                lease.check()
            except OutputError:
                return True
            return False

        wait_for(refuses, what="the holder's doubt")
        os.environ["AWS_ENDPOINT_URL"] = behind
        other = Lease.acquire(open_storage(s3_root), ELSEWHERE, 1.0, time.sleep)
        assert other.epoch == 2
        proxy.is_gone = False
        wait_for(lambda: isinstance(outcome(lease), LeaseLostError), what="the loss of the lease")
        other.check_now()


@pytest.mark.s3
def test_a_short_outage_costs_nothing(proxy: FaultyS3, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = S3Storage(s3_root, patience_s=30)
    ttl_s = paced(1.0)
    with Lease.held(storage, ttl_s=ttl_s, owner=ELSEWHERE) as lease:
        proxy.is_gone = True
        pass_time(monkeypatch, ttl_s)
        threading.Timer(0.3, setattr, (proxy, "is_gone", False)).start()
        lease.check()
        assert not proxy.is_gone, "it waited"
        lease.check_now()
    with Lease.held(storage, ttl_s=ttl_s, owner=ELSEWHERE, wait=never) as lease:
        assert lease.epoch == 2, "released at its end"


def outcome(lease: Lease) -> MigaError | None:
    try:
        lease.check_now()
    except MigaError as error:
        return error
    return None


def test_a_full_disk_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    refused = threading.Event()

    def full(handle: int) -> None:
        refused.set()
        raise OSError(28, "No space left on device")

    ttl_s = paced(1.0)
    with Lease.held(storage, ttl_s=ttl_s) as lease:
        monkeypatch.setattr(os, "fsync", full)
        assert refused.wait(10 * ttl_s)
        beat = storage.read_bytes("lease/000001.beat")
        pass_time(monkeypatch, ttl_s)
        lease.check()
        assert storage.read_bytes("lease/000001.beat") == beat
        monkeypatch.undo()
        wait_for(lambda: storage.read_bytes("lease/000001.beat") != beat, what="beats again")
        lease.check()


HOLDER = """
import sys, time
from pipeline.records.lease import Lease
from pipeline.storage.open import open_storage
with Lease.held(open_storage(sys.argv[1]), ttl_s=float(sys.argv[2])) as lease:
    print(lease.epoch, flush=True)
    sys.stdin.read()
"""


def hold(root: str, ttl_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, root, str(ttl_s)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.sampled(2)
def test_a_second_process_is_refused_until_the_first_is_killed(storage: Storage) -> None:
    ttl_s = paced(2.0)
    first = hold(storage.root, ttl_s)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "1\n"
        with pytest.raises(LeaseHeldError, match=f"process {first.pid} on "):
            Lease.acquire(storage, Owner.this_process(), ttl_s, time.sleep)
        first.send_signal(signal.SIGSTOP)
        with Lease.held(storage, ttl_s=ttl_s) as lease:
            assert lease.epoch == 2, "one that stands still is dead to the others"
            first.send_signal(signal.SIGCONT)
            assert first.stdin is not None
            first.stdin.close()
            assert first.wait(paced(30)) == 0
            assert not storage.exists("lease/000001.released")
            lease.check_now()
    finally:
        first.kill()
        first.wait()
    second = hold(storage.root, ttl_s)
    try:
        assert second.stdout is not None
        assert second.stdout.readline() == "3\n"
    finally:
        second.kill()
        second.wait()
    assert Lease.acquire(storage, Owner.this_process(), 60.0, never).epoch == 4, "killed on this machine: at once"
