"""How far a run is, read from its OUT alone, while it runs or after: from lease and manifest. Nothing is written."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.records.lease import LeaseView, view_leases
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import manifest_path, read_run
from pipeline.rows import ManifestRow
from pipeline.storage.open import open_storage

State = Literal["running", "silent", "stopped", "finished", "not started"]

RATE_WINDOW_S: Final = 3600.0
"""Without a word of the run itself, its rate is that of the rows settled in the last hour of it."""
_MOST_TIMES: Final = 1000
_SLACK_S: Final = 5.0
_SUMMED: Final = ("num_frames", "bytes", "network_calls", "num_searches", "num_corrections", "denoise_s", "duration_s")


@dataclass
class _Shard:
    """What is remembered of a shard between two looks.

    Attributes:
        sealed: size and time of its file when it was read; None if it had none.
        rows: those not sealed when it was read, so that their sidecars need not be read again.
        made_at_s: when its last rows were made, seconds since 1970.
    """

    sealed: tuple[int, float] | None
    is_complete: bool
    rows: Mapping[int, ManifestRow]
    num_ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    made_at_s: list[float] = field(default_factory=list)


class RunStatus:
    """Looks at a run, as often as is wanted; shards whose rows are all made are read once.

    Args:
        out: of the run.
        now_s: seconds since 1970.
        clock: seconds of a clock that nobody sets: by it a beat that changes is known to be one, whatever the time.

    Raises:
        OutputError: if there is no run in `out`.
    """

    def __init__(
        self, out: str, now_s: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._storage = open_storage(out)
        self._record = read_run(self._storage)
        self._per_shard = self._record.settings.run.prompts_per_shard
        self._manifest = Manifest(self._storage, self._per_shard)
        self._now_s = now_s
        self._shards: dict[int, _Shard] = {}
        self._beat: tuple[int, object] | None = None
        self._beat_changed_s: float | None = None

    def look(self) -> dict[str, Any]:
        """Counts and totals of the rows settled so far, and how the run is.

        Raises:
            OutputError: if the storage, the lease or the manifest cannot be read.
        """
        leases = iter(view_leases(self._storage))
        newest = next(leases, None)
        self._look_at_shards()
        shards = list(self._shards.values())
        num_ok = sum(shard.num_ok for shard in shards)
        errors = sum((shard.errors for shard in shards), Counter[str]())
        sums = sum((shard.sums for shard in shards), Counter[str]())
        num_settled = num_ok + errors.total()
        rows = self._num_rows(newest, leases)
        state = self._state(newest, num_settled, rows)
        is_alive = state == "running"
        about = newest.about if newest is not None and is_alive else {}
        rate = _rate(shard.made_at_s for shard in shards)
        per_hour = _number(about.get("videos_per_hour")) if is_alive else rate
        left = None if rows is None else max(0, rows - num_settled)
        return {
            "out": self._storage.root,
            "model": self._record.model,
            "profile": self._record.profile,
            "prompts": self._record.prompts.path,
            "state": state,
            **self._holder(newest),
            "doing": _texts(about.get("doing")),
            "rows": rows,
            "settled": num_settled,
            "left": left,
            "percent": None if not rows else 100 * num_settled / rows,
            "ok": num_ok,
            "failed": errors.total(),
            "failed_by_reason": dict(errors),
            "calls_done": _number(about.get("calls_done")),
            "calls": _number(about.get("calls")),
            "videos_per_hour": rate if per_hour is None and is_alive else per_hour,
            "gpus": _number(about.get("gpus")),
            "gpus_busy": _number(about.get("gpus_busy")),
            "left_s": _time_left(about, is_alive, left, rate),
            "sealed_shards": len(self._manifest.sealed_shards()),
            "frames": sums["num_frames"],
            "video_seconds": float(sums["duration_s"]),
            "bytes": sums["bytes"],
            "network_calls": sums["network_calls"],
            "denoise_hours": sums["denoise_s"] / 3600,
            "searches": sums["num_searches"],
            "corrections": sums["num_corrections"],
        }

    # ---- the lease ----

    def _state(self, newest: LeaseView | None, num_settled: int, rows: int | None) -> State:
        is_finished = rows is not None and num_settled >= rows
        if newest is None:
            return "finished" if is_finished else "not started"
        if not newest.has_ended and self._is_alive(newest):
            return "running"
        if is_finished:
            return "finished"
        return "stopped" if newest.has_ended else "silent"

    def _is_alive(self, lease: LeaseView) -> bool:
        """Whether its beat is fresh by the clocks, or was seen to change since the last look."""
        beat, now_s = (lease.epoch, lease.beat), self._clock()
        if self._beat is not None and self._beat != beat:
            self._beat_changed_s = now_s
        self._beat = beat
        patience_s = lease.ttl_s + _SLACK_S
        has_changed = self._beat_changed_s is not None and now_s - self._beat_changed_s <= patience_s
        age_s = self._age_s(lease)
        return has_changed or (age_s is not None and age_s <= patience_s)

    def _age_s(self, lease: LeaseView) -> float | None:
        return None if lease.beat_at_s is None else max(0.0, self._now_s() - lease.beat_at_s)

    def _holder(self, lease: LeaseView | None) -> dict[str, Any]:
        owner = None if lease is None else lease.owner
        return {
            "command": None if lease is None else _text(lease.about.get("command")),
            "host": None if owner is None else owner.host,
            "pid": None if owner is None else owner.pid,
            "started_at": None if lease is None else lease.started_at or None,
            "last_beat_s": None if lease is None else self._age_s(lease),
        }

    def _num_rows(self, newest: LeaseView | None, earlier: Iterator[LeaseView]) -> int | None:
        """Rows of the run, as the last one that made all of them said."""
        lease = newest
        while lease is not None:
            rows = _number(lease.about.get("rows"))
            if rows is not None:
                return int(rows)
            lease = next(earlier, None)
        return None

    # ---- the manifest ----

    def _look_at_shards(self) -> None:
        sealed = {info.path: (info.bytes, info.modified_s) for info in self._storage.files("manifest")}
        for shard in self._manifest.shards():
            file, before = sealed.get(manifest_path(shard)), self._shards.get(shard)
            if before is None or not before.is_complete or before.sealed != file:
                self._shards[shard] = self._read(shard, file, before)

    def _read(self, shard: int, file: tuple[int, float] | None, before: _Shard | None) -> _Shard:
        rows = self._manifest.read_shard(shard, None if before is None else before.rows)
        found = _Shard(file, file is not None and len(rows) == self._per_shard, {})
        for row in rows:
            if row.status == "failed":
                found.errors[row.error_type or "unknown"] += 1
                found.is_complete = False  # it may be retried
                continue
            found.num_ok += 1
            for name in _SUMMED:
                found.sums[name] += getattr(row, name) or 0
        made = (row.created_at.timestamp() for row in rows if row.status == "ok")
        found.made_at_s = heapq.nlargest(_MOST_TIMES, made)
        if not found.is_complete:
            found.rows = {row.row: row for row in rows}
        return found


def status(out: str) -> dict[str, Any]:
    """One look at the run in `out`; see `RunStatus`.

    Raises:
        OutputError: as `RunStatus`.
    """
    return RunStatus(out).look()


def _rate(times: Iterable[list[float]]) -> float | None:
    """Videos an hour, over the last hour in which any was made."""
    latest = heapq.nlargest(_MOST_TIMES, (when_s for some in times for when_s in some))
    if latest:
        latest = [when_s for when_s in latest if latest[0] - when_s <= RATE_WINDOW_S]
    if len(latest) < 2 or latest[0] <= latest[-1]:
        return None
    return (len(latest) - 1) / (latest[0] - latest[-1]) * 3600


def _time_left(about: Mapping[str, Any], is_alive: bool, left: int | None, rate: float | None) -> float | None:
    """Seconds, as the run itself says, else by the rate of rows; None where neither is known."""
    if not is_alive:
        return None
    if (said := _number(about.get("left_s"))) is not None:
        return said
    return left / rate * 3600 if left is not None and rate else None


def _number(value: Any) -> float | None:
    """What another process wrote, if it is a number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
