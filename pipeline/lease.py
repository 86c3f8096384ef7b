"""Who writes in OUT: a lease with an epoch, so that two coordinators never work on one run.

    lease/000003.json        the third holder: who and where it is; made by one create-only write
    lease/000003.beat        a counter that the holder raises while it lives
    lease/000003.released    the holder ended by itself

Whoever makes the file of the next epoch holds the lease. It may, if the newest epoch was released, if its process is
gone from this machine, or if its beat stood still for as long as `ttl_s`, watched by the newcomer's own steady clock;
times of day are never compared, so a clock that jumps changes nothing. A holder that was taken for dead finds a higher
epoch at its next look and stops (`LeaseLostError`). What it may still write in between does no harm: sidecars are
create-only, and videos and checkpoints carry the epoch in their names.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from miga.errors import LeaseHeldError, LeaseLostError, OutputError
from pipeline.storage import Storage

FOLDER: Final = "lease"
TTL_S: Final = 30.0
BEATS_PER_TTL: Final = 4
_LOOKS_PER_TTL: Final = 20

_EPOCH_FILE: Final = re.compile(r"(\d{6,})\.json", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told apart from every other of its machine and of others.

    Attributes:
        host: name of the machine.
        boot_id: of the machine's kernel since it was started; empty where that is not to be had.
        pid_space: which numbering of processes `pid` is of: containers of one machine have their own.
        pid: of the process.
        process_start: clock ticks from the machine's start to the process's.
    """

    host: str
    boot_id: str = ""
    pid_space: str = ""
    pid: int
    process_start: int | None = None

    @classmethod
    def this_process(cls) -> Owner:
        """The process that calls."""
        return cls(
            host=platform.node(),
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            pid_space=_pid_space(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()),
        )

    def is_gone(self) -> bool:
        """Whether it surely ended: it ran on this machine, and its number is free or another process's now."""
        here = Owner.this_process()
        if not self.boot_id or (self.host, self.boot_id, self.pid_space) != (here.host, here.boot_id, here.pid_space):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        if self.process_start is None or not Path(f"/proc/{os.getpid()}/stat").exists():
            return False
        return _process_start(self.pid) not in (self.process_start, _HIDDEN)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """The content of an epoch's file."""

    epoch: int
    owner: Owner
    ttl_s: float
    started_at: str
    token: str

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> _Claim:
        values: dict[str, Any] = json.loads(data)
        return cls(**(values | {"owner": Owner(**values["owner"])}))


class Lease:
    """The right to write in OUT, once acquired; see `held`.

    Attributes:
        epoch: 1 for the first holder in an OUT; names of files carry it.
    """

    def __init__(self, storage: Storage, claim: _Claim) -> None:
        self.epoch: Final = claim.epoch
        self._storage = storage
        self._ttl_s = claim.ttl_s
        self._beat_storage = storage.with_patience(claim.ttl_s / BEATS_PER_TTL)
        self._lost: LeaseLostError | None = None
        self._sure_at_s = _now_s()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    @contextmanager
    def held(
        cls,
        storage: Storage,
        *,
        ttl_s: float = TTL_S,
        owner: Owner | None = None,
        wait: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[Lease]:
        """The lease for a `with` block, beating in a thread; released at its end.

        Raises:
            LeaseHeldError: as `acquire`.
        """
        lease = cls.acquire(storage, owner or Owner.this_process(), ttl_s, wait, say)
        lease.start()
        try:
            yield lease
        finally:
            lease.release()

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        owner: Owner,
        ttl_s: float,
        wait: Callable[[float], None],
        say: Callable[[str], None] | None = None,
    ) -> Lease:
        """Takes the next epoch.

        Args:
            storage: of OUT.
            owner: who takes it.
            ttl_s: seconds without a beat after which a holder counts as dead.
            wait: sleeps for so many seconds.
            say: told when the beat of an earlier holder has to be watched, which takes `ttl_s`.

        Raises:
            LeaseHeldError: if another run is alive there.
            OutputError: if the storage cannot be used.
        """
        while True:
            newest = _newest_epoch(storage)
            if newest:
                _await_end(storage, newest, ttl_s, wait, say)
            claim = _Claim(
                epoch=newest + 1,
                owner=owner,
                ttl_s=ttl_s,
                started_at=datetime.now(UTC).isoformat(timespec="seconds"),
                token=uuid.uuid4().hex,
            )
            if storage.write_bytes(_path(claim.epoch, "json"), claim.to_json(), if_absent=True):
                lease = cls(storage, claim)
                storage.write_bytes(_path(claim.epoch, "beat"), b"0")
                return lease

    def start(self) -> None:
        """Beats in a thread of its own from now on."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._beat, name="miga-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called before a commit: returns if nobody else can hold the lease by now.

        It asks the storage only while no beat has got through for `ttl_s`, and waits as long as the storage is patient.

        Raises:
            LeaseLostError: if another run has taken over.
            OutputError: if that cannot be found out.
        """
        if self._lost is not None:
            raise self._lost
        if _now_s() - self._sure_at_s >= self._ttl_s:
            self.check_now()

    def check_now(self) -> None:
        """Asks the storage who holds the lease; to be called before a shard is sealed and before files are deleted.

        Raises:
            LeaseLostError: if another run has taken over.
            OutputError: if that cannot be found out.
        """
        self._look(self._storage)

    def release(self) -> None:
        """Stops beating, and lets the next run begin at once; a storage that fails just now makes that one wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OutputError, LeaseLostError):
            self._look(self._beat_storage)
            self._beat_storage.write_bytes(_path(self.epoch, "released"), b"")

    def _look(self, storage: Storage) -> None:
        if self._lost is not None:
            raise self._lost
        epochs = _epochs(storage)
        if self.epoch not in epochs:
            where = storage.uri(_path(self.epoch, "json"))
            self._lost = LeaseLostError(
                f"the lease of this run, {where}, was removed", "run the same command again: it resumes"
            )
        elif epochs[-1] > self.epoch:
            self._lost = LeaseLostError(
                f"another run has taken over {storage.root} (epoch {epochs[-1]}; this one is {self.epoch})",
                "nothing is lost: leave it to that run, or run the same command again once it has ended",
            )
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._ttl_s / BEATS_PER_TTL):
            count += 1
            begun_s = _now_s()
            try:
                self._beat_storage.write_bytes(_path(self.epoch, "beat"), str(count).encode())
                self._look(self._beat_storage)
                self._sure_at_s = begun_s
            except LeaseLostError:
                return
            except OutputError:  # asked again at the next beat
                continue


def _await_end(
    storage: Storage,
    epoch: int,
    ttl_s: float,
    wait: Callable[[float], None],
    say: Callable[[str], None] | None,
) -> None:
    """Returns once the holder of `epoch` has ended, or counts as dead.

    Only time between looks that came through is counted, and of each such time no more than twice what was meant: while
    the storage or this process stood still, the holder may have had no chance to beat.

    Raises:
        LeaseHeldError: if it is alive.
    """
    try:
        claim = _Claim.from_json(storage.read_bytes(_path(epoch, "json")))
    except FileNotFoundError:  # removed since it was listed
        return
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{storage.uri(_path(epoch, 'json'))} is no lease of this program: {error}",
            "make sure that no run writes there, then delete that file",
        ) from error
    released = _path(epoch, "released")
    if storage.exists(released) or claim.owner.is_gone():
        return
    ttl_s = max(ttl_s, claim.ttl_s)
    if say is not None:
        say(f"{claim.owner} was writing here; watching for {ttl_s:.0f} s whether it still is")
    first, watched_s, step_s = _beat_of(storage, epoch), 0.0, ttl_s / _LOOKS_PER_TTL
    while watched_s < ttl_s:
        before_s = _now_s()
        wait(step_s)
        if _beat_of(storage, epoch) != first:
            raise LeaseHeldError(
                f"another run is writing in {storage.root}: {claim.owner}, since {claim.started_at}",
                "wait until it ends, or stop it; then the same command goes on from there",
            )
        if storage.exists(released) or claim.owner.is_gone():
            return
        watched_s += min(_now_s() - before_s, 2 * step_s)


def _epochs(storage: Storage) -> list[int]:
    names = map(_EPOCH_FILE.fullmatch, storage.children(FOLDER))
    return sorted(int(match[1]) for match in names if match)


def _newest_epoch(storage: Storage) -> int:
    return max(_epochs(storage), default=0)


def _beat_of(storage: Storage, epoch: int) -> bytes | None:
    try:
        return storage.read_bytes(_path(epoch, "beat"))
    except FileNotFoundError:
        return None


def _path(epoch: int, kind: str) -> str:
    return f"{FOLDER}/{epoch:06d}.{kind}"


def _now_s() -> float:
    """A clock that no one sets, and that goes on while the machine is suspended where there is such a one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


_HIDDEN: Final = -1
"""What stands for the start of a process that this user may not look at."""


def _process_start(pid: int) -> int | None:
    """Ticks from the machine's start to the process's; None if it has ended, or where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return _HIDDEN
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
