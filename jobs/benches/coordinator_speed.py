"""What the coordinator itself takes: rows a second with workers that do nothing, and memory over a million rows."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, cast

import ray

from actors.driver.coordinator import Coordinator
from actors.driver.inbox import Inbox
from actors.driver.metrics import RunMetrics
from actors.driver.pool import Pool
from actors.driver.progress import ProgressBoard
from actors.driver.recorder import Recorder
from actors.messages import News, Question, VideoEvent, VideoFinished, VideoMade, VideoResult, VideoTask, WorkerInfo
from actors.runtime import Slots, ray_session
from actors.worker.backbone import CONCURRENCY_GROUPS
from actors.worker.outbox import Outbox
from jobs.benches.device_clock import process_memory_bytes
from jobs.run.make import make_ledger, make_rows, run_parts
from jobs.run.plan import Plan, make_plan, run_record
from miga.reflection import ReflectionTrace
from pipeline.config import RunConfig, WorkersConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import open_run
from pipeline.rows import BadRow, ManifestRow, PromptRow
from pipeline.storage.open import open_storage

MEMORY_FOLDER: Final = "/dev/shm"
MODEL: Final = "simulated:wan?call_s=0&decode_s=0"
RESULT: Final = VideoResult(
    uri="",
    bytes=5_000_000,
    sha256="0" * 64,
    num_frames=161,
    fps=16.0,
    height=480,
    width=832,
    duration_s=10.06,
    num_calls=1,
    encode_text_s=0.0,
    denoise_s=0.0,
    decode_s=0.0,
    encode_video_s=0.0,
    upload_s=0.0,
    gpu_s=0.0,
    num_helper_calls=0.0,
    peak_memory_bytes=0,
    device="none",
    node="none",
    latents_uri=None,
    trace=ReflectionTrace(tuple(range(38)), (0.5,) * 38, (False,) * 38, (False,) * 38),
    final_consistency=(0.5,) * 8,
)
"""As large as that of a video of 161 frames with self-reflection."""


def _events(task: VideoTask) -> list[VideoEvent]:
    row, attempt = task.row, task.attempt
    return [VideoMade(row=row, attempt=attempt), VideoFinished(row=row, attempt=attempt, result=RESULT)]


class NoWorker:
    """A worker, as the coordinator sees it, whose videos take no time and leave no file."""

    def __init__(self) -> None:
        self._outbox = Outbox()

    def load(self) -> WorkerInfo:
        """See `BackboneWorker`."""
        return WorkerInfo(device="none", node="none", node_id="", revision="none", pid=0)

    def measure(self, *_: Any) -> float:
        """See `BackboneWorker`."""
        return 1.0

    @ray.method(concurrency_group="control")
    def begin(self, task: VideoTask, *_: Any) -> None:
        """See `BackboneWorker`."""
        for event in _events(task):
            self._outbox.post(event)

    @ray.method(num_returns=0, concurrency_group="control")
    def set_helpers(self, *_: Any) -> None:
        """See `BackboneWorker`."""

    @ray.method(concurrency_group="news", enable_task_events=False)
    def answer(self, question: bytes, *_: Any) -> bytes:
        """See `BackboneWorker`."""
        asked = Question.unpacked(question)
        if asked.task is not None:
            self.begin(asked.task)
        return News(events=self._outbox.take(asked.timeout_s)).packed()


def bench_rows_per_second(num_rows: int, num_workers: int) -> list[dict[str, Any]]:
    """Rows a second through real actors, with every row's sidecar and every shard written.

    To a folder in memory, where there is one: else much of the time is the disk's, which is asked to keep each sidecar.
    """
    places = [place for place in (MEMORY_FOLDER, tempfile.gettempdir()) if os.path.isdir(place)]
    return [_rows_per_second(num_rows, num_workers, place) for place in places]


def _rows_per_second(num_rows: int, num_workers: int, place: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="miga-bench-", dir=place) as folder:
        plan = _plan(Path(folder), num_rows, WorkersConfig(num_actors=num_workers, lookahead=4 * num_workers))
        storage = open_storage(plan.out)
        record, _ = open_run(storage, run_record(plan))
        manifest, ledger = Manifest(storage, plan.config.run.prompts_per_shard), make_ledger(plan)
        board = _Times(num_rows)
        with ray_session(plan.config.workers, has_simulated_gpus=True) as slots:
            remote: Any = ray.remote
            kind = remote(concurrency_groups=CONCURRENCY_GROUPS)(NoWorker).options(num_cpus=slots.cpus)
            parts = run_parts(plan, record, storage, manifest, ledger, 1, slots)
            started_s = time.process_time()
            metrics = RunMetrics(record.profile, record.model, num_rows)
            make_rows(plan, parts, None, board, metrics, threading.Event(), kind.remote)
        assert len(list(manifest.read_rows())) == num_rows
    seconds = board.last_s - board.first_s
    return {
        "OUT in": place,
        "rows": num_rows,
        "workers": num_workers,
        "s": seconds,
        "rows a second": (num_rows - 1) / seconds,
        "processor of the coordinator, ms a row": 1e3 * (time.process_time() - started_s) / num_rows,
    }


def _plan(folder: Path, num_rows: int, workers: WorkersConfig) -> Plan:
    prompts = folder / "prompts.jsonl"
    with prompts.open("w") as file:
        for number in range(num_rows):
            file.write(json.dumps({"prompt": f"a red circle, take {number}"}) + "\n")
    return make_plan(str(prompts), f"{folder}/out", RunConfig(model=MODEL, workers=workers))


class _Times(ProgressBoard):
    """When the first and the last row were recorded."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows, quiet=True)
        self.first_s = self.last_s = 0.0

    def row_done(self, row: PromptRow, result: VideoResult) -> None:
        """See `ProgressBoard`."""
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s
        super().row_done(row, result)


# ---- memory ----


class _Answer:
    """Stands in for a reference of Ray."""

    def __init__(self, value: Any = None) -> None:
        self._future: Future[Any] = Future()
        if value is not None:
            self._future.set_result(value)

    def future(self) -> Future[Any]:
        return self._future

    def give(self, value: Any) -> None:
        self._future.set_result(value)


class _LocalActor:
    """A worker in this process that answers at once."""

    def __init__(self) -> None:
        self._events: list[VideoEvent] = []
        self._asked: _Answer | None = None

    def __getattr__(self, name: str) -> Any:
        """The call of that name, with its `remote`."""
        method = object.__getattribute__(self, f"_{name}")

        class Call:
            remote = staticmethod(method)

        return Call

    def _load(self) -> _Answer:
        return _Answer(WorkerInfo(device="none", node="none", node_id="", revision="none", pid=0))

    def _measure(self, *_: Any) -> _Answer:
        return _Answer(1.0)

    def _begin(self, task: VideoTask, *_: Any) -> _Answer:
        self._events += _events(task)
        if self._asked is not None:
            self._asked.give(self._taken())
            self._asked = None
        return _Answer(True)

    def _answer(self, question: bytes, *_: Any) -> _Answer:
        if (task := Question.unpacked(question).task) is not None:
            self._events += _events(task)
        if self._events:
            return _Answer(self._taken())
        self._asked = _Answer()
        return self._asked

    def _set_helpers(self, *_: Any) -> None:
        pass

    def _taken(self) -> bytes:
        taken, self._events = tuple(self._events), []
        return News(events=taken).packed()


class _NoStorage:
    """Keeps nothing."""

    def children(self, prefix: str = "") -> list[str]:
        return []


class _NoManifest:
    """Keeps nothing but counts."""

    def __init__(self) -> None:
        self.num_rows = self.num_shards = 0

    def record(self, row: ManifestRow) -> bool:
        row.to_json()
        return True

    def settled(self, shard: int) -> tuple[dict[int, str], bool, dict[int, str]]:
        return {}, False, {}

    def seal(self, shard: int, known: dict[int, ManifestRow]) -> int:
        self.num_shards += 1
        self.num_rows += len(known)
        return len(known)


class _NoText:
    """Encodes nothing."""

    def prepare(self, prompts: Sequence[str]) -> None:
        pass

    def when_encoded(self, prompts: Sequence[str], action: Callable[[], None]) -> None:
        action()

    def embeddings(self, prompts: Sequence[str]) -> list[None]:
        return [None] * len(prompts)


class _NoMetrics:
    """Tells nobody."""

    is_due = False

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def bench_memory_of_rows(num_rows: int, num_workers: int) -> list[dict[str, Any]]:
    """Resident memory of a coordinator in this process, whose workers and storage do nothing, as rows go by."""
    marks: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        workers = WorkersConfig(num_actors=num_workers, lookahead=2)
        plan = _plan(Path(folder), num_rows, workers)
        record, manifest, inbox, ledger = run_record(plan), _NoManifest(), Inbox(), make_ledger(plan)
        slots = Slots(num_actors=num_workers, cpus=1.0, gpus=0.0)
        storage: Any = _NoStorage()
        parts = run_parts(plan, record, storage, cast(Any, manifest), ledger, 1, slots)
        every = max(1, num_rows // 10)
        object.__setattr__(parts, "rows", _marked(parts.rows, every, marks))
        recorder = Recorder(storage, cast(Any, manifest), None, inbox.put)
        board = ProgressBoard(num_rows, quiet=True)
        pool = Pool(_LocalActor, kill=lambda actor: None)
        coordinator = Coordinator(parts, inbox, pool, recorder, cast(Any, _NoText()), board, cast(Any, _NoMetrics()))
        started_s = time.monotonic()
        coordinator.run(threading.Event())
        seconds = time.monotonic() - started_s
        recorder.close()
    assert manifest.num_rows == num_rows
    first = marks[0][1]
    return [
        {
            "rows": rows,
            "resident, MiB": resident / 2**20,
            "growth, MiB": (resident - first) / 2**20,
            "rows a second": num_rows / seconds,
        }
        for rows, resident in marks
    ]


def _marked(
    rows: Iterable[PromptRow | BadRow], every: int, marks: list[tuple[int, int]]
) -> Iterator[PromptRow | BadRow]:
    """The rows, with a look at the memory at every so many, and behind the last."""
    count = 0
    for count, row in enumerate(rows, 1):
        if count % every == 1 or every == 1:
            gc.collect()
            marks.append((count, process_memory_bytes()[0]))
        yield row
    marks.append((count, process_memory_bytes()[0]))
