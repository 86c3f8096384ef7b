"""The coordinator with workers of this process: what it tells them, what it does when they fail, what it writes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from actors.driver import coordinator as coordinator_module
from actors.driver.cluster_nodes import NodesView
from actors.driver.coordinator import Coordinator, RunParts
from actors.driver.inbox import Inbox
from actors.driver.pool import Pool
from actors.driver.progress import ProgressBoard
from actors.driver.recorder import Recorder
from actors.driver.rows import RowMaker
from actors.messages import (
    HelperFailed,
    Hosted,
    News,
    Question,
    VideoCheckpointed,
    VideoEvent,
    VideoFailed,
    VideoFinished,
    VideoMade,
    VideoProgress,
    VideoSuspended,
    VideoTask,
    WorkerInfo,
)
from actors.runtime import Slots
from jobs.benches.coordinator_speed import RESULT
from jobs.run.make import make_ledger
from jobs.run.plan import make_plan, run_record
from miga.errors import OutputError
from pipeline.config import RunConfig, RunSection, WorkersConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import checkpoint_folder, manifest_path, open_run, video_path
from pipeline.rows import PromptRow
from pipeline.scheduling.time_left import VideoCost
from pipeline.storage.open import open_storage
from pipeline.video import write_video
from tests.actors.hosts import MODEL

Script = Callable[["FakeActor", VideoTask], None]


class Answer:
    """Stands in for a reference of Ray."""

    def __init__(self, value: Any = None) -> None:
        self._future: Future[Any] = Future()
        if value is not None:
            self._future.set_result(value)

    def future(self) -> Future[Any]:
        return self._future


class FakeActor:
    """A worker that does with a task what its script says."""

    def __init__(self, cluster: FakeCluster, node: str) -> None:
        self.cluster, self.node = cluster, node
        self.tasks: list[VideoTask] = []
        self.helpers: list[tuple[tuple[int, int], list[str]]] = []
        self.suspended: list[tuple[int, int]] = []
        self.is_dead = self.is_killed = False
        self.hosted: tuple[Hosted, ...] = ()
        self.death: Exception = ActorDiedError()
        self._events: list[VideoEvent] = []
        self._asked: Answer | None = None

    def __getattr__(self, name: str) -> Any:
        method = object.__getattribute__(self, f"do_{name}")

        class Call:
            remote = staticmethod(method)

        return Call

    def do_load(self) -> Answer:
        info = {"device": "none", "node": self.node, "node_id": self.node, "revision": "none", "pid": 0}
        return Answer(WorkerInfo(**info, num_videos=self.cluster.num_videos))  # type: ignore[arg-type]

    def do_measure(self, *_: Any) -> Answer:
        return Answer(1.0)

    def do_begin(self, task: VideoTask, *_: Any) -> Answer:
        self.tasks.append(task)
        self.cluster.script(self, task)
        return Answer(True)

    def do_answer(self, question: bytes, *_: Any) -> Answer:
        self._asked = Answer()
        if (task := Question.unpacked(question).task) is not None:
            self.do_begin(task)
        self.say()
        return self._asked if self._asked is not None else self._last

    def do_set_helpers(self, row: int, attempt: int, helpers: list[tuple[str, Any]]) -> None:
        self.helpers.append(((row, attempt), [key for key, _ in helpers]))

    def do_suspend(self, row: int, attempt: int) -> None:
        self.suspended.append((row, attempt))
        self.cluster.on_suspend(self, row, attempt)

    def say(self, *events: VideoEvent) -> None:
        self._events += events
        if self._asked is None:
            return
        asked, self._last = self._asked, self._asked
        if self.is_dead:
            self._asked = None
            asked.future().set_exception(self.death)
        elif self._events:
            self._asked = None
            taken, self._events = tuple(self._events), []
            asked.future().set_result(News(events=taken, num_calls=1.0, busy_s=1.0, hosted=self.hosted).packed())

    def finish(self, task: VideoTask) -> None:
        row, attempt = task.row, task.attempt
        self.say(VideoMade(row=row, attempt=attempt), VideoFinished(row=row, attempt=attempt, result=RESULT))

    def die(self) -> None:
        self.is_dead = True
        self.say()


class FakeText:
    """Encodes nothing."""

    def prepare(self, prompts: Any) -> None:
        pass

    def when_encoded(self, prompts: Any, action: Callable[[], None]) -> None:
        action()

    def embeddings(self, prompts: list[str]) -> list[None]:
        return [None] * len(prompts)


class FakeLog:
    """What a tracker would be told."""

    is_due = True

    def __init__(self) -> None:
        self.rows: list[tuple[int, str]] = []
        self.looks: list[tuple[int, float, float]] = []

    def row_settled(self, row: Any) -> None:
        self.rows.append((row.row, row.status))

    def look(self, figures: Any, num_calls: float, busy_s: float, say: Any) -> None:
        self.looks.append((figures.get("settled", 0), num_calls, busy_s))


class FakeMetrics:
    is_due = False
    num_calls, busy_s = 12.0, 3.0

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class FakeCluster:
    """A run in `out`, and the actors that were started for it."""

    def __init__(self, out: Path, num_rows: int, script: Script, **config: Any) -> None:
        self.script, self.actors, self.lines = script, [], []  # type: ignore[var-annotated]
        self.on_suspend: Callable[[FakeActor, int, int], None] = lambda actor, row, attempt: None
        self.node, self.num_videos = "node-0", 1
        out.mkdir(exist_ok=True)
        prompts = out.with_suffix(".txt")
        prompts.write_text("".join(f"take {number}\n" for number in range(num_rows)))
        run = RunSection(**({"prompts_per_shard": 4} | config.pop("run", {})))
        workers = WorkersConfig(**({"num_actors": 2} | config.pop("workers", {})))
        plan = make_plan(str(prompts), str(out), RunConfig(model=MODEL, run=run, workers=workers, **config))
        self.plan, self.storage = plan, open_storage(out)
        record, _ = open_run(self.storage, run_record(plan))
        self.maker, self.manifest = RowMaker(record, plan.spec), Manifest(self.storage, run.prompts_per_shard)
        self.ledger, self.inbox = make_ledger(plan), Inbox()
        self.recorder = Recorder(self.storage, self.manifest, None, self.inbox.put)
        self.board = ProgressBoard(num_rows, quiet=True, cost_of=lambda num_frames: VideoCost(100))
        self.board.say = self.lines.append  # type: ignore[method-assign]
        parts = RunParts(
            config=plan.config,
            spec=plan.spec,
            rows=plan.rows(),
            num_rows=num_rows,
            calls_of=lambda row: 100.0,
            ledger=self.ledger,
            storage=self.storage,
            manifest=self.manifest,
            epoch=7,
            maker=self.maker,
            slots=Slots(num_actors=2, cpus=1.0, gpus=1.0),
        )
        self.pool = Pool(self.start_actor, kill=self.kill)
        text: Any = FakeText()
        metrics: Any = FakeMetrics()
        self.log: Any = FakeLog()
        self.coordinator = Coordinator(parts, self.inbox, self.pool, self.recorder, text, self.board, metrics, self.log)

    def start_actor(self) -> FakeActor:
        self.actors.append(FakeActor(self, self.node))
        return self.actors[-1]

    def kill(self, actor: FakeActor) -> None:
        actor.is_killed = True

    def run(self, stop: threading.Event | None = None) -> None:
        try:
            self.coordinator.run(stop or threading.Event())
        finally:
            self.recorder.close()

    def tell(self, *nodes: tuple[str, int], draining: frozenset[str] = frozenset()) -> None:
        """What the cluster is like from now on: nodes and their GPUs."""
        resources = {node: {"CPU": 16.0, "GPU": float(gpus)} for node, gpus in nodes}
        view = NodesView(frozenset(resources), draining, resources)
        self.inbox.put(partial(self.coordinator.nodes_changed, view))

    def tasks(self) -> list[VideoTask]:
        return [task for actor in self.actors for task in actor.tasks]


def finish(actor: FakeActor, task: VideoTask) -> None:
    actor.finish(task)


def check_complete(cluster: FakeCluster, num_rows: int, failed: tuple[int, ...] = ()) -> None:
    rows = list(cluster.manifest.read_rows())
    assert [row.row for row in rows] == list(range(num_rows))
    assert tuple(row.row for row in rows if row.status == "failed") == failed
    assert len(cluster.manifest.sealed_shards()) == -(-num_rows // 4)
    assert not list(cluster.storage.list("checkpoint"))
    check_progress(cluster, num_rows, len(failed))


def check_progress(cluster: FakeCluster, num_rows: int, num_failed: int) -> None:
    """Whatever happened on the way: nothing is left to do, and calls are those of the rows that were made."""
    cluster.board.close()
    cluster.board._look()
    figures = cluster.board.figures()
    assert (figures["settled"], figures["failed"]) == (num_rows, num_failed)
    assert figures["calls"] == figures["calls_done"], "no call is left"


def test_every_row_is_made_recorded_and_sealed_once(tmp_path: Path) -> None:
    cluster = FakeCluster(tmp_path / "out", 10, finish)
    cluster.run()
    check_complete(cluster, 10)
    assert sorted(task.row for task in cluster.tasks()) == list(range(10))
    assert all(task.path.endswith("-e7a1.mp4") for task in cluster.tasks())
    assert len(cluster.actors) == 2

    assert sorted(cluster.log.rows) == [(row, "ok") for row in range(10)]
    assert cluster.log.looks[-1][1:] == (12.0, 3.0)

    again = FakeCluster(tmp_path / "out", 10, finish)
    again.run()
    assert again.actors == [], "a run that is complete needs no worker"
    assert again.log.rows == [], "a log has each row once"


def test_a_dead_workers_row_is_made_elsewhere_from_its_checkpoint(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.row == 1 and task.attempt == 1:
            actor.say(
                VideoCheckpointed(row=1, attempt=1, path=f"{task.checkpoints}/e7a1-0001.safetensors", num_calls=9)
            )
            cluster.storage.write_bytes(f"{task.checkpoints}/e7a1-0001.safetensors", b"part")
            actor.die()
        elif task.row != 0:
            actor.finish(task)
        if task.attempt == 2:
            cluster.actors[0].finish(cluster.actors[0].tasks[0])

    cluster = FakeCluster(tmp_path / "out", 3, script, workers={"share": "nothing"})
    cluster.run()
    check_complete(cluster, 3)
    (first, second) = [task for task in cluster.tasks() if task.row == 1]
    assert (first.resume_from, second.resume_from) == (None, f"{first.checkpoints}/e7a1-0001.safetensors")
    assert second.path.endswith("-e7a2.mp4")
    assert any("goes back to the queue" in line for line in cluster.lines)
    assert any(actor.is_killed for actor in cluster.actors)


def test_a_row_whose_workers_are_killed_for_memory_is_given_up_after_some(tmp_path: Path) -> None:
    """Ray's memory monitor ends them with an error that is no death of an actor by its class."""

    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.row == 1:
            actor.death = OutOfMemoryError("killed due to the node running low on memory")
            actor.die()
        else:
            actor.finish(task)

    cluster = FakeCluster(tmp_path / "out", 3, script)
    cluster.run()
    assert sorted(task.attempt for task in cluster.tasks() if task.row == 1) == [1, 2, 3]
    assert cluster.manifest.statuses(0) == {0: "ok", 1: "failed", 2: "ok"}


@pytest.mark.parametrize("step", ["load", "measure"])
def test_a_worker_that_is_killed_for_memory_before_it_is_ready_is_replaced(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, left = getattr(FakeActor, f"do_{step}"), [1]

    def killed_once(actor: FakeActor, *arguments: Any) -> Answer:
        if not left:
            return answer(actor, *arguments)
        left.pop()
        died = Answer()
        died.future().set_exception(OutOfMemoryError("killed due to the node running low on memory"))
        return died

    monkeypatch.setattr(FakeActor, f"do_{step}", killed_once)
    cluster = FakeCluster(tmp_path / "out", 2, finish)
    cluster.run()
    check_complete(cluster, 2)


def test_a_run_goes_on_from_the_newest_whole_checkpoint_that_an_earlier_one_left(tmp_path: Path) -> None:
    cluster = FakeCluster(tmp_path / "out", 2, finish)
    rows = list(cluster.plan.rows())
    folder = checkpoint_folder(0, 1, cluster.maker.key(rows[1]))
    for name in ("e1a1-0001", "e1a1-0002", "e2a1-0001", "e3a1-0002"):  # the last without its first part
        cluster.storage.write_bytes(f"{folder}/{name}.safetensors", b"part")
    cluster.run()
    assert {task.row: task.resume_from for task in cluster.tasks()} == {0: None, 1: f"{folder}/e2a1-0001.safetensors"}
    check_complete(cluster, 2)


def test_a_row_that_fails_is_recorded_with_its_reason(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.row == 2:
            row, attempt = task.row, task.attempt
            error = {"error_type": "NonFiniteError", "error": "NaN", "scope": "row", "retryable": False}
            actor.say(VideoFailed(row=row, attempt=attempt, **error))  # type: ignore[arg-type]
        else:
            actor.finish(task)

    cluster = FakeCluster(tmp_path / "out", 5, script)
    cluster.run()
    check_complete(cluster, 5, failed=(2,))
    assert [row.error for row in cluster.manifest.read_rows() if row.status == "failed"] == ["NaN"]


def out_of_memory(task: VideoTask) -> VideoFailed:
    error: dict[str, Any] = {"error_type": "WorkerError", "error": "no memory", "scope": "worker", "retryable": True}
    return VideoFailed(row=task.row, attempt=task.attempt, needs_new_process=True, **error)


def test_a_worker_out_of_memory_is_started_anew_and_the_row_tried_once_more(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.row == 0 or (task.row == 1 and task.attempt == 1):
            actor.say(out_of_memory(task))
        else:
            actor.finish(task)

    cluster = FakeCluster(tmp_path / "out", 4, script, workers={"num_actors": 1})
    cluster.run()
    check_complete(cluster, 4, failed=(0,))
    assert [len(actor.tasks) for actor in cluster.actors[:3]].count(1) >= 2
    assert len(cluster.actors) == 4, "each of the three times another process"


def test_a_helper_that_erred_is_started_anew(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if len(cluster.actors) == 2:
            actor.say(HelperFailed(helper="worker-1#2", error="no memory", is_dead=False))
        if len(cluster.actors) == 3:
            actor.finish(task)

    cluster = FakeCluster(tmp_path / "out", 1, script)

    def start() -> FakeActor:
        actor = FakeCluster.start_actor(cluster)
        if len(cluster.actors) == 3:
            cluster.inbox.put(lambda: cluster.actors[0].finish(cluster.actors[0].tasks[0]))
        return actor

    cluster.pool._start_actor = start
    cluster.run()
    check_complete(cluster, 1)
    assert cluster.actors[1].is_killed
    assert not cluster.actors[0].is_killed


def test_idle_workers_are_named_to_a_host_as_helpers(tmp_path: Path) -> None:
    waiting: list[Callable[[], None]] = []

    def script(actor: FakeActor, task: VideoTask) -> None:
        waiting.append(lambda: actor.finish(task))
        if task.row == 1:
            waiting.pop(0)()  # row 0 ends: its worker has nothing to do
            cluster.inbox.put(lambda: cluster.inbox.put(lambda: cluster.inbox.put(waiting.pop)))
            cluster.inbox.put(lambda: cluster.inbox.put(lambda: cluster.inbox.put(lambda: actor.finish(task))))

    cluster = FakeCluster(tmp_path / "out", 2, script, num_frames=161)
    cluster.run()
    check_complete(cluster, 2)
    told = [entry for actor in cluster.actors for entry in actor.helpers if entry[0] == (1, 1) and entry[1]]
    assert len(told) == 1
    assert len(told[0][1]) == 1
    assert told[0][1][0].startswith("worker-")


def test_a_silent_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "_POLL_S", 0.01)

    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.attempt == 2:
            actor.finish(task)
        else:
            cluster.tell(("node-0", 1))
            threading.Timer(0.2, lambda: cluster.tell(("node-0", 1))).start()

    cluster = FakeCluster(tmp_path / "out", 1, script, workers={"num_actors": 1, "silent_after_s": 0.1})
    cluster.run()
    check_complete(cluster, 1)
    assert len(cluster.actors) == 2
    assert cluster.actors[0].is_killed
    assert any("has not answered" in line for line in cluster.lines)


def test_a_draining_nodes_video_is_saved_and_made_elsewhere(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if actor is cluster.actors[0] and task.attempt == 1:
            cluster.node = "node-1"
            for _ in range(3):  # what the cluster is like is told every few seconds
                cluster.tell(("node-0", 1), ("node-1", 1), draining=frozenset(["node-0"]))
        else:
            actor.finish(task)

    def saved(actor: FakeActor, row: int, attempt: int) -> None:
        path = f"{actor.tasks[-1].checkpoints}/e7a1-0001.safetensors"
        actor.say(
            VideoCheckpointed(row=row, attempt=attempt, path=path, num_calls=5),
            VideoSuspended(row=row, attempt=attempt),
        )

    cluster = FakeCluster(tmp_path / "out", 1, script, workers={"num_actors": 1})
    cluster.on_suspend = saved
    cluster.run()
    check_complete(cluster, 1)
    assert cluster.actors[0].suspended == [(0, 1)]
    assert cluster.actors[0].is_killed
    assert cluster.actors[1].tasks[0].resume_from is not None
    (row,) = cluster.manifest.read_rows()
    assert row.attempt == 2
    assert [line for line in cluster.lines if "drained with" in line] == ["worker-0 is drained with its node"]


def test_the_pool_grows_and_shrinks_with_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "IDLE_S", 0.0)
    sizes: list[int] = []

    def script(actor: FakeActor, task: VideoTask) -> None:
        def then() -> None:
            sizes.append(len(cluster.pool))
            actor.finish(task)

        if task.row == 0:
            cluster.tell(("node-0", 2), ("node-1", 3))
        cluster.inbox.put(lambda: cluster.inbox.put(then))

    cluster = FakeCluster(tmp_path / "out", 12, script, workers={"num_actors": None, "share": "nothing"})
    cluster.run()
    check_complete(cluster, 12)
    assert max(sizes) == 5
    assert len(cluster.actors) == 5


def test_more_actors_than_there_is_room_for_are_asked_for_where_there_is_work(tmp_path: Path) -> None:
    """So that an autoscaler adds nodes: but no more than the rows that are left can use."""
    cluster = FakeCluster(
        tmp_path / "out", 3, finish, workers={"num_actors": None, "max_actors": 50, "share": "nothing"}
    )
    cluster.run()
    check_complete(cluster, 3)
    assert 1 <= len(cluster.actors) <= 6


def test_stopping_saves_what_is_in_the_making(tmp_path: Path) -> None:
    stop = threading.Event()

    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.row:
            stop.set()
        else:
            actor.finish(task)

    def saved(actor: FakeActor, row: int, attempt: int) -> None:
        if row == 0:
            return  # it is made already, and has not been heard of yet
        path = f"{actor.tasks[-1].checkpoints}/e7a1-0001.safetensors"
        cluster.storage.write_bytes(path, b"part")
        actor.say(VideoSuspended(row=row, attempt=attempt))

    cluster = FakeCluster(tmp_path / "out", 9, script)
    cluster.on_suspend = saved
    with pytest.raises(KeyboardInterrupt):
        cluster.run(stop)
    begun = {task.row for task in cluster.tasks()}
    assert {row for actor in cluster.actors for row, _ in actor.suspended} | {0} == begun
    assert [row.row for row in cluster.manifest.read_rows()] == [0], "what was finished is written down"

    after = FakeCluster(tmp_path / "out", 9, finish)
    after.run()
    check_complete(after, 9)
    resumed = {task.row for task in after.tasks() if task.resume_from}
    assert resumed == begun - {0}


def test_a_worker_that_dies_again_and_again_is_given_up_and_the_run_ends(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        actor.die()

    cluster = FakeCluster(tmp_path / "out", 40, script, workers={"num_actors": 1}, run={"max_attempts": 100})
    cluster.run()
    assert cluster.ledger.abort_reason is not None
    assert "no worker is left" in cluster.ledger.abort_reason
    assert len(cluster.actors) == 4


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("miga-record")]


def broken(cluster: FakeCluster, row: int) -> str:
    """A row's sidecar whose content is of no use any more; nothing is sealed."""
    (path,) = [path for path in cluster.storage.list("done") if f"/{row:08d}-" in path]
    cluster.storage.write_bytes(path, b'{"num_frames": "x"}')
    for shard in cluster.manifest.sealed_shards():
        cluster.storage.delete(manifest_path(shard))
    return path


def test_a_row_whose_record_is_broken_is_made_anew_and_the_run_ends_well(tmp_path: Path) -> None:
    first = FakeCluster(tmp_path / "out", 6, finish)
    first.run()
    path = broken(first, 1)
    again = FakeCluster(tmp_path / "out", 6, finish)
    again.run()
    check_complete(again, 6)
    assert [task.row for task in again.tasks()] == [1], "there is no video of it"
    assert any(path in line and "settled anew" in line for line in again.lines)
    assert again.storage.read_bytes(path) == b'{"num_frames": "x"}', "nothing is overwritten"
    third = FakeCluster(tmp_path / "out", 6, finish)
    third.run()
    assert third.tasks() == []


def test_a_record_that_is_broken_is_written_anew_from_the_rows_video(tmp_path: Path) -> None:
    first = FakeCluster(tmp_path / "out", 6, finish)
    first.run()
    path = broken(first, 1)
    row = next(row for row in first.plan.rows() if row.index == 1)
    assert isinstance(row, PromptRow)
    place = tmp_path / "out" / video_path(0, 1, first.maker.key(row), 7, 1)
    write_video([np.zeros((row.num_frames, 16, 16, 3), np.uint8)], place, fps=16, num_frames=row.num_frames)
    again = FakeCluster(tmp_path / "out", 6, finish)
    again.run()
    check_complete(again, 6)
    assert again.tasks() == []
    assert any(path in line and "from its video" in line for line in again.lines)
    made = again.manifest.read_shard(0)[1]
    assert (made.uri, made.key) == (str(place), first.maker.key(row))
    assert made.num_latents == again.plan.spec.num_latents(row.num_frames)
    assert made.sha256 == hashlib.sha256(place.read_bytes()).hexdigest()


def test_a_shard_file_that_is_broken_names_the_remedy_before_anything_is_made(tmp_path: Path) -> None:
    first = FakeCluster(tmp_path / "out", 6, finish)
    first.run()
    first.storage.write_bytes(manifest_path(0), b"PAR1")
    again = FakeCluster(tmp_path / "out", 6, finish)
    with pytest.raises(OutputError, match="is broken") as caught:
        again.run()
    assert "miga repair" in caught.value.hint
    assert again.tasks() == []


def test_progress_is_of_calls_and_goes_back_with_the_row(tmp_path: Path) -> None:
    """A video is at 40 of 100 calls when its worker dies; what the next attempt says counts from there."""
    seen: list[tuple[int, list[str]]] = []

    def look() -> None:
        cluster.board._look()
        figures = cluster.board.figures()
        seen.append((figures["calls_done"], figures["doing"]))

    def script(actor: FakeActor, task: VideoTask) -> None:
        look()
        if task.attempt == 1:
            actor.hosted = (Hosted(row=0, attempt=1, num_calls=40),)
            actor.say(VideoProgress(row=0, attempt=1, num_latents_done=0, num_calls=44))
            cluster.inbox.put(look)
            cluster.inbox.put(actor.die)
        else:
            cluster.inbox.put(lambda: actor.finish(task))

    cluster = FakeCluster(tmp_path / "out", 1, script, workers={"num_actors": 1})
    cluster.run()
    check_complete(cluster, 1)
    assert [calls for calls, _ in seen] == [0, 40, 0]
    assert all(doing == [] for _, doing in seen[:2]), "loading and encoding are over once a video is begun"


# ---- workers that make several videos at once ----


def test_a_worker_is_told_of_as_many_rows_as_it_makes_at_once(tmp_path: Path) -> None:
    """They end together, in one answer: those that follow are all begun, too, and every row has its own figures."""
    held: list[VideoTask] = []
    bars: list[set[int]] = []

    def script(actor: FakeActor, task: VideoTask) -> None:
        held.append(task)
        if len(held) < 3:
            return
        actor.hosted = tuple(Hosted(row=each.row, attempt=1, num_calls=10 * each.row) for each in held)
        bars.append({making.row.index for making in cluster.board._making.values()})
        events: list[VideoEvent] = [VideoMade(row=each.row, attempt=1) for each in held]
        events += [VideoFinished(row=each.row, attempt=1, result=RESULT) for each in held]
        held.clear()
        cluster.inbox.put(lambda: actor.say(*events))

    cluster = FakeCluster(tmp_path / "out", 9, script, workers={"num_actors": 1})
    cluster.num_videos = 3
    cluster.run()
    check_complete(cluster, 9)
    assert sorted(task.row for task in cluster.tasks()) == list(range(9))
    assert bars == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]


def test_a_dead_worker_gives_back_all_rows_and_each_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if task.attempt > 1:
            actor.finish(task)
            return
        path = f"{task.checkpoints}/e7a1-{task.row + 1:04d}.safetensors"
        if task.row != 1:
            cluster.storage.write_bytes(path, b"part")
            actor.say(VideoCheckpointed(row=task.row, attempt=1, path=path, num_calls=9))
        if len(actor.tasks) == 3:
            cluster.inbox.put(actor.die)

    cluster = FakeCluster(tmp_path / "out", 3, script, workers={"num_actors": 1})
    cluster.num_videos = 3
    cluster.run()
    check_complete(cluster, 3)
    again = {task.row: task.resume_from for task in cluster.tasks() if task.attempt == 2}
    assert again == {
        row: None if row == 1 else f"{cluster.tasks()[row].checkpoints}/e7a1-{row + 1:04d}.safetensors"
        for row in range(3)
    }


def test_a_row_that_fails_leaves_the_others_of_its_worker_at_work(tmp_path: Path) -> None:
    def script(actor: FakeActor, task: VideoTask) -> None:
        if len(actor.tasks) < 3:
            return
        if task.row == 2:
            failed = VideoFailed(row=1, attempt=1, error_type="E", error="no", scope="row", retryable=False)
            cluster.inbox.put(lambda: actor.say(failed))
        for each in [actor.tasks[0], *actor.tasks[2:]]:
            if task.row == 3:
                cluster.inbox.put(partial(actor.finish, each))

    cluster = FakeCluster(tmp_path / "out", 4, script, workers={"num_actors": 1})
    cluster.num_videos = 3
    cluster.run()
    check_complete(cluster, 4, failed=(1,))
    assert [task.attempt for task in cluster.tasks()] == [1] * 4


def test_stopping_saves_every_row_of_a_worker(tmp_path: Path) -> None:
    stop = threading.Event()

    def script(actor: FakeActor, task: VideoTask) -> None:
        if len(actor.tasks) == 3:
            stop.set()

    def saved(actor: FakeActor, row: int, attempt: int) -> None:
        actor.say(VideoSuspended(row=row, attempt=attempt))

    cluster = FakeCluster(tmp_path / "out", 3, script, workers={"num_actors": 1})
    cluster.num_videos, cluster.on_suspend = 3, saved
    with pytest.raises(KeyboardInterrupt):
        cluster.run(stop)
    assert cluster.actors[0].suspended == [(0, 1), (1, 1), (2, 1)]
    assert cluster.ledger.is_idle
