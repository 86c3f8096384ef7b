"""What a run tells Prometheus, through Ray's metrics endpoint.

All of it is reported by the driver, which hears of everything: Ray makes a series per process that reports, so figures
reported by workers would have to be added up over thousands of dead ones. A run that was resumed has had several
drivers. Of those that ended Ray keeps the counters as long as the node lives, and drops the gauges: so queries sum,
counters are for rates, and what there is *now* is a gauge.

Of a histogram Ray exports exact counts per bucket, but a sum that it guesses from the middles of the buckets (16.4 for
17.2): quantiles are to be taken from the buckets, and means from counters.

`METRICS` is the whole list. Ray exports a name with `ray_` before it, and a counter with `_total` behind it
(`exported_names`). Tags are bounded: a model, a profile, a place in the pool, a node, a state, a class of errors; never
an id, a prompt or a path of a video.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ray.util import metrics

RowStatus = Literal["ok", "failed", "skipped"]
RetryReason = Literal["worker lost", "worker drained", "error", "not good enough"]
WorkerState = Literal["starting", "idle", "hosting", "helping", "draining", "retired"]

MAX_ERROR_TYPES: Final = 50
"""Classes of errors that get a series of their own; a user's model may raise any."""


REFRESH_EVERY_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric.

    Attributes:
        kind: as Prometheus has it.
        help: what it says, unit included.
        tags: beside `profile` and `model`, which all have.
        buckets: upper bounds of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# From the embedded model to a large one that is offloaded; they are closest where a window of a second or so lies.
_CALL_BUCKETS: Final = (
    0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 16.0, 32.0, 64.0, 128.0,
)  # fmt: skip
# S3 takes tens of milliseconds for a video, and minutes when it is in trouble.
_UPLOAD_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)

METRICS: Final[Mapping[str, MetricSpec]] = {
    "miga_rows": MetricSpec(
        kind="counter", help="Rows settled: ok, failed, or skipped (settled by an earlier driver)", tags=("status",)
    ),
    "miga_rows_settled": MetricSpec(
        kind="gauge", help="Rows that are settled: by this driver (ok, failed) or before (skipped)", tags=("status",)
    ),
    "miga_rows_expected": MetricSpec(kind="gauge", help="Rows of the prompt file, as far as they count"),
    "miga_rows_waiting": MetricSpec(kind="gauge", help="Rows read and not taken by a worker, given back ones too"),
    "miga_videos_in_flight": MetricSpec(kind="gauge", help="Videos that a worker is making"),
    "miga_uploads_in_flight": MetricSpec(kind="gauge", help="Videos made whose upload has not ended"),
    "miga_frames": MetricSpec(kind="counter", help="Frames of finished videos"),
    "miga_video_bytes": MetricSpec(kind="counter", help="Bytes of finished videos"),
    "miga_calls": MetricSpec(kind="counter", help="Network calls that GPUs made: windows; a guided one counts once"),
    "miga_call_seconds": MetricSpec(
        kind="histogram", help="Seconds of a network call (the mean of each report)", buckets=_CALL_BUCKETS
    ),
    "miga_worker_busy_seconds": MetricSpec(
        kind="counter",
        help="Seconds that a GPU was in network calls, its own videos' or lent; its rate is its busy share",
        tags=("worker", "node"),
    ),
    "miga_workers": MetricSpec(
        kind="gauge", help="Backbone actors: starting, idle, hosting, helping, draining or retired", tags=("state",)
    ),
    "miga_searches": MetricSpec(kind="counter", help="Self-reflection: searches run"),
    "miga_corrections": MetricSpec(kind="counter", help="Self-reflection: searches whose result was taken"),
    "miga_upload_lag_seconds": MetricSpec(
        kind="histogram", help="Seconds from a video's last pass to its settled row", buckets=_UPLOAD_BUCKETS
    ),
    "miga_retries": MetricSpec(kind="counter", help="Rows given back to the queue", tags=("reason",)),
    "miga_quarantined_rows": MetricSpec(
        kind="counter", help="Rows given up, by the class of the error", tags=("error_type",)
    ),
    "miga_checkpoints": MetricSpec(kind="counter", help="Checkpoints of videos written"),
    "miga_lost_work_seconds": MetricSpec(
        kind="counter", help="Seconds of hosts whose result was lost: since the last checkpoint of a lost attempt"
    ),
}  # fmt: skip
"""Name → what it is."""

_COMMON_TAGS: Final = ("profile", "model")
_KINDS: Final[Mapping[str, type[metrics.Metric]]] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
WORKER_STATES: Final[tuple[WorkerState, ...]] = get_args(WorkerState)


def exported_names(name: str) -> tuple[str, ...]:
    """What Prometheus sees of the metric `name` of `METRICS`."""
    match METRICS[name].kind:
        case "counter":
            return (f"ray_{name}_total",)
        case "gauge":
            return (f"ray_{name}",)
        case "histogram":
            return tuple(f"ray_{name}_{part}" for part in ("bucket", "count", "sum"))


@dataclass
class _Attempt:
    """What is remembered of an attempt until it is over."""

    saved_s: float
    reason: RetryReason = "worker lost"
    made_s: float | None = None


class RunMetrics:
    """The figures of one run, as its driver knows them. To be made once Ray is up.

    Counters are added up here and told to Ray with the next `refresh`: telling it costs as much as settling a row does.

    Args:
        profile: of the sampler.
        model: its name.
        num_rows: of the run; None if it is not known.

    Attributes:
        num_calls: network calls that GPUs have made for this driver.
        busy_s: seconds that they were in them.
    """

    def __init__(self, profile: str, model: str, num_rows: int | None) -> None:
        common = {"profile": profile, "model": model}
        self._metrics: dict[str, Any] = {}
        self._error_types: set[str] = set()
        self._gpus: dict[str, tuple[float, float]] = {}
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        self._settled: dict[RowStatus, int] = dict.fromkeys(get_args(RowStatus), 0)
        self._untold: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._num_rows = num_rows
        self._refreshed_s = 0.0
        self.num_calls = self.busy_s = 0.0
        for name, spec in METRICS.items():
            tags = (*_COMMON_TAGS, *spec.tags)
            metric = (
                metrics.Histogram(name, spec.help, boundaries=list(spec.buckets), tag_keys=tags)
                if spec.kind == "histogram"
                else _KINDS[spec.kind](name, spec.help, tag_keys=tags)
            )
            self._metrics[name] = metric.set_default_tags(common)

    @property
    def is_due(self) -> bool:
        """Whether it is time for `refresh`."""
        return time.monotonic() - self._refreshed_s >= REFRESH_EVERY_S

    def refresh(self, workers: Mapping[WorkerState, int], waiting: int, in_flight: int, uploading: int) -> None:
        """What there is now, and what was counted. To be called whenever it is due, and at the end.

        Ray drops a gauge that has not been set for a while.

        Args:
            workers: how many are in each state; in those not named there are none.
            waiting: rows that no worker has taken.
            in_flight: videos being made.
            uploading: videos being uploaded.
        """
        self._refreshed_s = time.monotonic()
        for state in WORKER_STATES:
            self._metrics["miga_workers"].set(workers.get(state, 0), tags={"state": state})
        self._metrics["miga_rows_waiting"].set(waiting)
        self._metrics["miga_videos_in_flight"].set(in_flight)
        self._metrics["miga_uploads_in_flight"].set(uploading)
        for status, count in self._settled.items():
            self._metrics["miga_rows_settled"].set(count, tags={"status": status})
        if self._num_rows is not None:
            self._metrics["miga_rows_expected"].set(self._num_rows)
        for (name, tags), value in self._untold.items():
            self._metrics[name].inc(value, tags=dict(tags))
        self._untold.clear()

    def row_settled(self, status: RowStatus) -> None:
        """A row is recorded, or was found recorded."""
        self._settled[status] += 1
        self._add("miga_rows", 1, status=status)

    def gpu(self, worker: str, node: str, num_calls: float, busy_s: float) -> None:
        """What a worker's GPU has done so far: network calls, and the seconds in them. Counted from the last time.

        Where a figure has fallen, another process has taken the worker's name, and began at nothing.
        """
        calls_before, busy_before_s = self._gpus.get(worker, (0.0, 0.0))
        if num_calls < calls_before or busy_s < busy_before_s:
            calls_before, busy_before_s = 0.0, 0.0
        self._gpus[worker] = (num_calls, busy_s)
        calls, seconds = num_calls - calls_before, busy_s - busy_before_s
        self._add("miga_worker_busy_seconds", seconds, worker=worker, node=node)
        self._add("miga_calls", calls)
        self.num_calls += calls
        self.busy_s += seconds
        for _ in range(int(num_calls) - int(calls_before)):  # one branch of a guided call is half of one
            self._metrics["miga_call_seconds"].observe(seconds / calls)

    def began(self, row: int, attempt: int) -> None:
        """A worker has taken a row."""
        self._attempts[row, attempt] = _Attempt(time.monotonic())

    def saved(self, row: int, attempt: int) -> None:
        """A checkpoint of the attempt is in storage."""
        self._add("miga_checkpoints", 1)
        if found := self._attempts.get((row, attempt)):
            found.saved_s = time.monotonic()

    def suspended(self, row: int, attempt: int) -> None:
        """The attempt has stopped behind a checkpoint, as it was asked to."""
        if found := self._attempts.get((row, attempt)):
            found.saved_s, found.reason = time.monotonic(), "worker drained"

    def erred(self, row: int, attempt: int) -> None:
        """The attempt has ended in an error; the row may get another."""
        if found := self._attempts.get((row, attempt)):
            found.reason = "error"

    def rejected(self, row: int, attempt: int) -> None:
        """The attempt's video is not good enough; the row gets another."""
        if found := self._attempts.get((row, attempt)):
            found.reason = "not good enough"

    def given_back(self, row: int, attempt: int) -> None:
        """The row waits again; unless something else was said of the attempt before, its worker was lost."""
        if found := self._attempts.pop((row, attempt), None):
            self._add("miga_retries", 1, reason=found.reason)
            if found.reason not in ("worker drained", "not good enough"):
                self._add("miga_lost_work_seconds", time.monotonic() - found.saved_s)

    def made(self, row: int, attempt: int) -> None:
        """All passes of the attempt are done."""
        if found := self._attempts.get((row, attempt)):
            found.made_s = time.monotonic()

    def committed(
        self, row: int, attempt: int, *, num_frames: int, num_bytes: int, num_searches: int, num_corrections: int
    ) -> None:
        """The video is in its place, and its row is settled."""
        self.row_settled("ok")
        self._add("miga_frames", num_frames)
        self._add("miga_video_bytes", num_bytes)
        self._add("miga_searches", num_searches)
        self._add("miga_corrections", num_corrections)
        found = self._attempts.pop((row, attempt), None)
        if found is not None and found.made_s is not None:
            self._metrics["miga_upload_lag_seconds"].observe(time.monotonic() - found.made_s)

    def quarantined(self, row: int, attempt: int, error_type: str) -> None:
        """A row is given up."""
        self._attempts.pop((row, attempt), None)
        self.row_settled("failed")
        if error_type not in self._error_types and len(self._error_types) >= MAX_ERROR_TYPES:
            error_type = "other"
        self._error_types.add(error_type)
        self._add("miga_quarantined_rows", 1, error_type=error_type)

    def _add(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray refuses to count by nothing
            self._untold[name, tuple(tags.items())] += value
