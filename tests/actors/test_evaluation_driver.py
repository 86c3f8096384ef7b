"""The driver of an evaluation with workers that are plain objects: deaths, errors, quarantine, resume. No Ray."""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.driver.evaluation import MAX_ATTEMPTS, EvaluationDriver, Job
from actors.driver.pool import Pool
from actors.worker.evaluation import EvaluationFailed, EvaluatorInfo
from miga.errors import MigaError
from pipeline.evaluation.records import EvaluatedRow
from pipeline.evaluation.scores import Result
from pipeline.evaluation.videos import Video

Answer = Callable[[Video, Sequence[str]], Any]


class _Reference:
    def __init__(self, answer: Callable[[], Any]) -> None:
        self._future: Future[Any] = Future()
        try:
            self._future.set_result(answer())
        except Exception as error:
            self._future.set_exception(error)

    def future(self) -> Future[Any]:
        return self._future


class _Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> _Reference:
        return _Reference(lambda: self._call(*arguments))


class _Actor:
    def __init__(self, answer: Answer) -> None:
        self.load = _Method(lambda: EvaluatorInfo(node="n", node_id="n", pid=1))
        self.evaluate = _Method(answer)
        self.num_steps = _Method(lambda: 0)


def _job(row: int, *measures: str, is_failed: bool = False) -> Job:
    return Job(Video(row=row, id=str(row), path=f"{row}.mp4"), measures, is_failed)


def _good(video: Video, measures: Sequence[str]) -> EvaluatedRow:
    return EvaluatedRow(video=video, results={name: Result(value=1.0, made_of="v1") for name in measures})


def _run(jobs: Sequence[Job], answer: Answer, workers: int = 2) -> tuple[list[EvaluatedRow], list[str], int]:
    recorded: list[EvaluatedRow] = []
    said: list[str] = []
    started: list[_Actor] = []

    def start() -> _Actor:
        started.append(_Actor(answer))
        return started[-1]

    driver = EvaluationDriver(jobs, workers, Pool(start, kill=lambda actor: None), recorded.append, said.append)
    driver.run(threading.Event())
    return recorded, said, len(started)


def test_every_video_is_evaluated_once() -> None:
    recorded, _, started = _run([_job(row, "temporal_flickering") for row in range(7)], _good)
    assert sorted(row.video.row for row in recorded) == list(range(7))
    assert all(list(row.results) == ["temporal_flickering"] for row in recorded)
    assert started == 2


def test_what_is_settled_needs_no_worker() -> None:
    recorded, _, started = _run([_job(0), _job(1, is_failed=True)], _good)
    assert (recorded, started) == ([], 0)


def test_only_what_is_missing_is_asked_for() -> None:
    asked: list[tuple[int, Sequence[str]]] = []

    def answer(video: Video, measures: Sequence[str]) -> EvaluatedRow:
        asked.append((video.row, measures))
        return _good(video, measures)

    _run([_job(0), _job(3, "imaging_quality"), _job(9, "sprites", "imaging_quality")], answer)
    assert sorted(asked) == [(3, ("imaging_quality",)), (9, ("sprites", "imaging_quality"))]


def test_a_bad_video_is_quarantined_and_the_others_go_on() -> None:
    def answer(video: Video, measures: Sequence[str]) -> Any:
        if video.row == 1:
            return EvaluationFailed(error_type="BadVideoError", error="cut off", scope="row", retryable=False)
        return _good(video, measures)

    recorded, said, _ = _run([_job(row, "sprites") for row in range(4)], answer)
    by_row = {row.video.row: row for row in recorded}
    assert by_row[1].error == "cut off"
    assert by_row[1].error_type == "BadVideoError"
    assert not any(by_row[row].error for row in (0, 2, 3))
    assert any("cut off" in line for line in said)


def test_all_videos_bad_is_no_fault_of_the_evaluation() -> None:
    bad = EvaluationFailed(error_type="BadVideoError", error="cut off", scope="row", retryable=False)
    recorded, _, _ = _run([_job(row, "sprites") for row in range(40)], lambda video, measures: bad)
    assert len(recorded) == 40


@pytest.mark.parametrize("deaths", [1, MAX_ATTEMPTS])
def test_a_dead_worker_is_replaced_and_its_video_tried_again(deaths: int) -> None:
    died: list[int] = []

    def answer(video: Video, measures: Sequence[str]) -> EvaluatedRow:
        if video.row == 0 and len(died) < deaths:
            died.append(1)
            raise RayActorError
        return _good(video, measures)

    recorded, _, started = _run([_job(row, "sprites") for row in range(3)], answer)
    by_row = {row.video.row: row for row in recorded}
    assert started == 2 + min(deaths, MAX_ATTEMPTS - 1)  # none is started for nothing
    assert sorted(by_row) == [0, 1, 2]
    assert bool(by_row[0].error) == (deaths == MAX_ATTEMPTS)
    assert by_row[0].attempt == min(deaths + 1, MAX_ATTEMPTS)


def test_an_unexpected_error_is_tried_once_more() -> None:
    tried: list[int] = []

    def answer(video: Video, measures: Sequence[str]) -> Any:
        tried.append(1)
        if len(tried) == 1:
            return EvaluationFailed(error_type="RuntimeError", error="once", scope="worker", retryable=True)
        return _good(video, measures)

    recorded, _, _ = _run([_job(0, "sprites")], answer, workers=1)
    assert len(tried) == 2
    assert not recorded[0].error


def test_an_error_of_the_run_ends_it() -> None:
    failed = EvaluationFailed(error_type="ModelError", error="the weights are gone", scope="run", retryable=False)
    with pytest.raises(MigaError, match="the weights are gone"):
        _run([_job(row, "imaging_quality") for row in range(3)], lambda video, measures: failed)


def test_it_stops_when_asked_to() -> None:
    stop = threading.Event()
    stop.set()
    driver = EvaluationDriver(
        [_job(0, "sprites")], 1, Pool(lambda: _Actor(_good), kill=lambda actor: None), print, print
    )
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop)


class _Silent:
    """The answer of a call that never comes."""

    def remote(self, *arguments: Any) -> Any:
        class Reference:
            def future(self) -> Future[Any]:
                return Future()

        return Reference()


@pytest.mark.parametrize("answers", [True, False], ids=["says how far it is", "says nothing"])
def test_a_worker_that_hangs_is_replaced_and_its_video_given_up(answers: bool) -> None:
    """One place alone: the video is to blame, not the place, so the rest go on there."""
    recorded: list[EvaluatedRow] = []
    said: list[str] = []
    num_started = 0

    class Actor(_Actor):
        def __init__(self) -> None:
            nonlocal num_started
            num_started += 1
            super().__init__(_good)
            good, self.evaluate = self.evaluate, self
            self._good = good
            if not answers:
                self.num_steps = _Silent()  # type: ignore[assignment]

        def remote(self, video: Video, measures: Sequence[str]) -> Any:
            return _Silent().remote() if video.row == 1 else self._good.remote(video, measures)

    pool = Pool(Actor, kill=lambda actor: None)
    jobs = [_job(row, "sprites") for row in range(4)]
    EvaluationDriver(jobs, 1, pool, recorded.append, said.append, stalled_after_s=0.05).run(threading.Event())
    by_row = {row.video.row: row for row in recorded}
    assert sorted(by_row) == [0, 1, 2, 3]
    assert "has come no further for 0.05 s" in by_row[1].error
    assert "given up after 3 attempts" in by_row[1].error
    assert not any(by_row[row].error for row in (0, 2, 3))
    assert num_started == MAX_ATTEMPTS + 1


def test_a_slow_video_that_comes_further_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a millisecond whenever it is looked at, so a busy machine changes nothing."""
    ticks = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks) / 1000)
    monkeypatch.setattr("actors.driver.evaluation.time", clock)
    recorded: list[EvaluatedRow] = []
    open_call: Future[Any] = Future()
    steps = iter(range(10_000))

    class Slow(_Actor):
        def __init__(self) -> None:
            super().__init__(_good)
            self.evaluate = self  # type: ignore[assignment]
            self.num_steps = _Method(self._step)

        def _step(self) -> int:
            if (number := next(steps)) == 12:
                open_call.set_result(_good(self.video, self.measures))
            return number

        def remote(self, video: Video, measures: Sequence[str]) -> Any:
            self.video, self.measures = video, measures

            class Reference:
                def future(self) -> Future[Any]:
                    return open_call

            return Reference()

    said: list[str] = []
    driver = EvaluationDriver(
        [_job(0, "sprites")], 1, Pool(Slow, kill=lambda actor: None), recorded.append, said.append, stalled_after_s=0.03
    )
    driver.run(threading.Event())
    assert next(ticks) > 60  # several times as long as a video may stand still
    assert [row.error for row in recorded] == [""]
    assert said == []
