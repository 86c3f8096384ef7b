"""Who writes in OUT: a lease with an epoch, so that two coordinators never work on one run.

    lease/000003.json        the third holder: who and where it is; made by one create-only write
    lease/000003.beat        a counter that the holder raises while it lives; below it, how far it is, as JSON
    lease/000003.released    the holder ended by itself

Whoever makes the file of the next epoch holds the lease. It may, if the newest epoch was released, if its process is
gone from this machine, or if its beat stood still for as long as `ttl_s`, watched by the newcomer's own steady clock;
times of day are never compared, so a clock that jumps changes nothing. A holder that was taken for dead finds a higher
epoch at its next look and stops (`LeaseLostError`). What it may still write in between does no harm: sidecars are
create-only, and videos and checkpoints carry the epoch in their names.

Where there is no room left, an empty file of the next epoch is a lease, too, for work that only deletes: file systems
make empty files when they are full. Whose it is nobody knows then, so its beat is watched, whoever is gone. A beat that
finds no room writes an empty file anew, which shows by its time, and is compared for being another one only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from miga.errors import LeaseHeldError, LeaseLostError, OutputError, OutputFullError
from miga.outside_data import OutsideDataError, parse_json_object, validated
from pipeline.storage.base import Storage
from pipeline.terminal import escaped

FOLDER: Final = "lease"
TTL_S: Final = 30.0
BEATS_PER_TTL: Final = 4
_LOOKS_PER_TTL: Final = 20

RELEASE_S: Final = 30.0
"""A lease that could not be released in this time is left: the next run then waits for its beat to stand still."""
_MAX_TTL_S: Final = 3600.0
_MAX_EPOCH: Final = 999_999_999
_MAX_BYTES: Final = 4096
_MAX_NOTE_BYTES: Final = _MAX_BYTES - 64

_EPOCH_FILE: Final = re.compile(r"(\d{6}|[1-9]\d{6,8})\.json", re.ASCII)
"""Other names in the folder are not this program's."""


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

    host: Annotated[str, Field(max_length=255)]
    boot_id: Annotated[str, Field(max_length=64)] = ""
    pid_space: Annotated[str, Field(max_length=64)] = ""
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    process_start: Annotated[int, Field(ge=-1, lt=2**63)] | None = None

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
        return f"process {self.pid} on {escaped(self.host)}"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """The content of an epoch's file."""

    epoch: Annotated[int, Field(ge=1, le=_MAX_EPOCH)]
    owner: Owner
    ttl_s: Annotated[float, Field(gt=0, le=_MAX_TTL_S)]
    started_at: Annotated[str, Field(max_length=64)]
    token: Annotated[str, Field(max_length=64)]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, epoch: int) -> _Claim:
        """What `to_json` wrote for that epoch.

        Raises:
            OutsideDataError: if it is not that.
        """
        claim = validated(cls, parse_json_object(data))
        if claim.epoch != epoch:
            raise OutsideDataError(f"it is of epoch {claim.epoch}")
        return claim


class Lease:
    """The right to write in OUT, once acquired; see `held`.

    Attributes:
        epoch: 1 for the first holder in an OUT; names of files carry it.
    """

    def __init__(
        self, storage: Storage, epoch: int, ttl_s: float, about: Callable[[], Mapping[str, Any]] | None = None
    ) -> None:
        self.epoch: Final = epoch
        self._about = about
        self._storage = storage
        self._ttl_s = ttl_s
        self._beat_storage = storage.with_patience(ttl_s / BEATS_PER_TTL)
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
        room_needed: bool = True,
        about: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Iterator[Lease]:
        """The lease for a `with` block, beating in a thread; released at its end.

        Args:
            storage: of OUT.
            ttl_s: as in `acquire`, and so are all that follow.
            owner: who takes it.
            wait: sleeps.
            say: told what is waited for.
            room_needed: False for work that only deletes.
            about: plain values that go with every beat.

        Raises:
            LeaseHeldError, OutputFullError: as `acquire`.
        """
        lease = cls.acquire(storage, owner or Owner.this_process(), ttl_s, wait, say, room_needed, about)
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
        room_needed: bool = True,
        about: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Lease:
        """Takes the next epoch.

        Args:
            storage: of OUT.
            owner: who takes it.
            ttl_s: seconds without a beat after which a holder counts as dead.
            wait: sleeps for so many seconds.
            say: told when the beat of an earlier holder has to be watched, which takes `ttl_s`.
            room_needed: False for work that only deletes: then a full disk is no reason to refuse.
            about: plain values that go with every beat, for whoever wants to know how far the holder is; it is asked
                in the beating thread.

        Raises:
            LeaseHeldError: if another run is alive there.
            OutputFullError: if there is no room, not even for an empty file where that would do.
            OutputError: if the storage cannot be used, or a file of the lease is not this program's.
        """
        while True:
            newest = _newest_epoch(storage)
            if newest:
                _await_end(storage, newest, ttl_s, wait, say)
            if newest >= _MAX_EPOCH:
                raise OutputError(
                    f"{storage.uri(_path(newest, 'json'))} is the last epoch that there can be",
                    "it was not written by this program: move it away, or name another OUT",
                )
            claim = _Claim(
                epoch=newest + 1,
                owner=owner,
                ttl_s=ttl_s,
                started_at=datetime.now(UTC).isoformat(timespec="seconds"),
                token=uuid.uuid4().hex,
            )
            found = _put_claim(storage, claim, room_needed)
            if found is not None:
                lease = cls(storage, claim.epoch, found, about)
                with suppress(OutputFullError):  # as of any beat
                    _put_beat(storage, claim.epoch, 0, lease._note())
                return lease

    def start(self) -> None:
        """Beats in a thread of its own from now on."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._live, name="miga-lease", daemon=True)
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
        """Stops beating, and lets the next run begin at once; a storage that fails just now makes that one wait.

        It returns after `RELEASE_S` at the latest, whatever the storage does: all that it asks of it is asked in the
        beating thread, which ends with the process.
        """
        self._stop.set()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join(RELEASE_S)

    def _live(self) -> None:
        self._beat()
        storage = self._storage.with_patience(min(RELEASE_S, self._ttl_s) / BEATS_PER_TTL)
        with suppress(OutputError, LeaseLostError, OSError):
            self._look(storage)
            storage.write_bytes(_path(self.epoch, "released"), b"")

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

    def _note(self) -> bytes:
        """What goes with a beat: one line of JSON, or nothing."""
        if self._about is None:
            return b""
        try:
            note = json.dumps(self._about(), allow_nan=False).encode()
        except ValueError:  # a figure that is no number
            return b""
        return note if len(note) <= _MAX_NOTE_BYTES else b""

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._ttl_s / BEATS_PER_TTL):
            count += 1
            begun_s = _now_s()
            try:
                _put_beat(self._beat_storage, self.epoch, count, self._note())
                self._look(self._beat_storage)
                self._sure_at_s = begun_s
            except LeaseLostError:
                return
            except (OutputError, OSError):  # asked again at the next beat
                continue


@dataclass(frozen=True, kw_only=True)
class LeaseView:
    """What a lease says to those who only look.

    Attributes:
        epoch: its number.
        owner: who took it; None where that is not known (an empty file).
        started_at: when, ISO 8601, by its clock; empty where that is not known.
        ttl_s: seconds without a beat after which it counts as dead.
        has_ended: whether it was released, or its process is surely gone.
        beat_at_s: its last beat, seconds since 1970 by the storage's clock; None if there was none.
        beat: what is another after each beat; None if there was none.
        about: what went with the last one.
    """

    epoch: int
    owner: Owner | None
    started_at: str
    ttl_s: float
    has_ended: bool
    beat_at_s: float | None
    beat: object
    about: Mapping[str, Any]


def view_leases(storage: Storage) -> Iterator[LeaseView]:
    """The leases of OUT, the newest first. Nothing is written.

    Raises:
        OutputError: if the storage cannot be read, or a file is none of a lease.
    """
    for epoch in reversed(_epochs(storage)):
        try:
            claim = _read_claim(storage, epoch)
        except FileNotFoundError:  # removed since it was listed
            continue
        released = storage.exists(_path(epoch, "released"))
        beat = _beat_of(storage, epoch)
        yield LeaseView(
            epoch=epoch,
            owner=None if claim is None else claim.owner,
            started_at="" if claim is None else claim.started_at,
            ttl_s=TTL_S if claim is None else claim.ttl_s,
            has_ended=released or (claim is not None and claim.owner.is_gone()),
            beat_at_s=None if beat is None else beat[1],
            beat=beat,
            about={} if beat is None else _note_of(beat[2]),
        )


def _note_of(beat: bytes) -> Mapping[str, Any]:
    """What went with a beat: nothing where that is not to be understood."""
    note = beat.partition(b"\n")[2]
    try:
        return parse_json_object(note) if note else {}
    except OutsideDataError:
        return {}


def _put_claim(storage: Storage, claim: _Claim, room_needed: bool) -> float | None:
    """Makes the file of an epoch.

    Returns:
        The time to live that others will go by; None if the epoch is another's.

    Raises:
        OutputFullError: if there is no room, not even for an empty file where that would do.
    """
    path = _path(claim.epoch, "json")
    try:
        return claim.ttl_s if storage.write_bytes(path, claim.to_json(), if_absent=True) else None
    except OutputFullError:
        if room_needed:
            raise
    _remove_superseded(storage, claim.epoch - 1)
    try:
        return claim.ttl_s if storage.write_bytes(path, claim.to_json(), if_absent=True) else None
    except OutputFullError:
        return min(claim.ttl_s, TTL_S) if storage.create_empty(path) else None


def _remove_superseded(storage: Storage, newest: int) -> None:
    """Removes what epochs before the newest have left: nobody asks for it any more, and it takes room.

    The newest's own file stays: its number must not be given twice.
    """
    storage.delete_many(_path(epoch, kind) for epoch in _epochs(storage) if epoch < newest for kind in _KINDS)


def _put_beat(storage: Storage, epoch: int, count: int, note: bytes = b"") -> None:
    path = _path(epoch, "beat")
    try:
        storage.write_bytes(path, str(count).encode() + (b"\n" + note if note else b""))
    except OutputFullError:
        storage.write_bytes(path, b"")


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
        claim = _read_claim(storage, epoch)
    except FileNotFoundError:  # removed since it was listed
        return
    who = "another command" if claim is None else str(claim.owner)

    def has_ended() -> bool:
        return storage.exists(_path(epoch, "released")) or (claim is not None and claim.owner.is_gone())

    if has_ended():
        return
    ttl_s = max(ttl_s, TTL_S if claim is None else claim.ttl_s)
    if say is not None:
        say(f"{who} was writing here; watching for {ttl_s:.0f} s whether it still is")
    first, watched_s, step_s = _beat_of(storage, epoch), 0.0, ttl_s / _LOOKS_PER_TTL
    while watched_s < ttl_s:
        before_s = _now_s()
        wait(step_s)
        if _beat_of(storage, epoch) != first:
            since = "" if claim is None else f", since {escaped(claim.started_at)}"
            raise LeaseHeldError(
                f"another run is writing in {storage.root}: {who}{since}",
                "wait until it ends, or stop it; then the same command goes on from there",
            )
        if has_ended():
            return
        watched_s += min(_now_s() - before_s, 2 * step_s)


def _read_claim(storage: Storage, epoch: int) -> _Claim | None:
    """Who has made an epoch; None if its file is empty, so that nobody knows.

    Raises:
        FileNotFoundError: if there is no such epoch.
        OutputError: if its file is damaged, or another's.
    """
    path = _path(epoch, "json")
    data = storage.read_bytes(path, max_bytes=_MAX_BYTES)
    if not data:
        return None
    try:
        return _Claim.from_json(data, epoch)
    except OutsideDataError as error:
        raise OutputError(
            f"{storage.uri(path)} is no lease of this program: {error}",
            "make sure that no run writes there, then put an empty file in its place (and do not delete it: its number "
            "must not be given twice)",
        ) from error


def _epochs(storage: Storage) -> list[int]:
    names = map(_EPOCH_FILE.fullmatch, storage.children(FOLDER))
    return sorted(int(match[1]) for match in names if match)


def _newest_epoch(storage: Storage) -> int:
    return max(_epochs(storage), default=0)


def _beat_of(storage: Storage, epoch: int) -> tuple[int, float, bytes] | None:
    """What is another after each beat; None if there was none."""
    path = _path(epoch, "beat")
    try:
        found = storage.stat(path)
        content = storage.read_bytes(path) if found.bytes <= _MAX_BYTES else b""
    except FileNotFoundError:
        return None
    return found.bytes, found.modified_s, content


_KINDS: Final = ("json", "beat", "released")


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
