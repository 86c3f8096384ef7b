"""A run whose actors make videos in step, from prompt file to manifest: all parts are the real ones but for Ray.

Actors are workers of this process, called in threads; one that is killed is heard of no more.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError

from actors.driver.coordinator import Coordinator
from actors.driver.inbox import Inbox
from actors.driver.pool import Pool
from actors.driver.progress import ProgressBoard
from actors.driver.recorder import Recorder
from actors.messages import Embedding, WorkerSettings
from actors.runtime import Slots
from actors.text_encoder import TextEncoderWorker
from actors.worker.backbone import BackboneWorker
from jobs.run.make import costs_of, make_ledger, run_parts, worker_settings
from jobs.run.plan import Plan, make_plan, run_record
from miga.backbones.registry import load_backbone
from miga.checkpoint import load_checkpoints
from miga.errors import RowError
from miga.video import VideoRun
from pipeline.config import RunConfig, RunSection, WorkersConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import open_run
from pipeline.rows import ManifestRow, PromptRow, first_frames
from pipeline.scheduling.ledger import Ledger
from pipeline.storage.open import open_storage
from tests.actors.test_coordinator import FakeMetrics

SLOTS = Slots(num_actors=1, cpus=1.0, gpus=0.0)


class LocalActor:
    """A worker of this process, as Ray would show it."""

    def __init__(self, settings: WorkerSettings, is_dead: Callable[[BackboneWorker], bool]) -> None:
        self.worker, self._is_dead = BackboneWorker(settings), is_dead
        self._threads = {name: ThreadPoolExecutor(1) for name in ("news", "others")}
        self.is_killed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(object.__getattribute__(self, "worker"), name)
        threads = self._threads["news" if name == "answer" else "others"]

        class Call:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return Reference(threads.submit(self._call, method, *arguments))

        return Call

    def _call(self, method: Any, *arguments: Any) -> Any:
        if self.is_killed:
            raise ActorDiedError
        answer = method(*arguments)
        if self.is_killed or self._is_dead(self.worker):
            raise ActorDiedError
        return answer


class Reference:
    """Of a call's answer."""

    def __init__(self, answer: Future[Any]) -> None:
        self._answer = answer

    def future(self) -> Future[Any]:
        return self._answer


class Text:
    """Encodes at once."""

    def __init__(self, model: str) -> None:
        self._encoder = TextEncoderWorker(model, None, 1)

    def prepare(self, prompts: Any) -> None:
        pass

    def when_encoded(self, prompts: Any, action: Callable[[], None]) -> None:
        action()

    def embeddings(self, prompts: list[str]) -> list[Embedding]:
        return [self._encoder.encode(prompt) for prompt in prompts]


class Made:
    """A run, made.

    Attributes:
        lines: what was said.
        workers: those that were started.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        rows: list[dict[str, Any]],
        is_dead: Callable[[BackboneWorker, Ledger], bool] = lambda worker, ledger: False,
        **run: Any,
    ) -> None:
        prompts, out = folder / "prompts.jsonl", folder / "out"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = RunConfig(
            model=str(model), profile="longlive-infinity", num_frames=69,
            workers=WorkersConfig(num_actors=1, videos_per_actor=2), run=RunSection(keep_latents=True, **run),
        )  # fmt: skip
        self.plan: Plan = make_plan(str(prompts), str(out), config)
        self.out, self.lines, self.workers = out, [], []  # type: ignore[var-annotated]
        storage = open_storage(out)
        record, _ = open_run(storage, run_record(self.plan))
        manifest, inbox = Manifest(storage, 1000), Inbox()
        recorder = Recorder(storage, manifest, None, inbox.put)
        cost_of = costs_of(self.plan.spec, self.plan.sampler, "nothing")
        self.board, ledger = ProgressBoard(len(rows), quiet=True, cost_of=cost_of), make_ledger(self.plan)
        self.board.say = self.lines.append  # type: ignore[method-assign]
        settings = worker_settings(self.plan, storage.root, SLOTS)

        def start() -> LocalActor:
            self.workers.append(LocalActor(settings, lambda worker: is_dead(worker, ledger)))
            return self.workers[-1]

        def kill(actor: LocalActor) -> None:
            actor.is_killed = True

        parts = run_parts(self.plan, record, storage, manifest, ledger, 1, SLOTS)
        text, metrics = Text(str(model)), FakeMetrics()
        coordinator = Coordinator(parts, inbox, Pool(start, kill), recorder, text, self.board, metrics)  # type: ignore[arg-type]
        try:
            coordinator.run(threading.Event())
        finally:
            recorder.close()
        self.rows: list[ManifestRow] = list(manifest.read_rows())

    def latents(self, row: int) -> torch.Tensor:
        """Those that were kept of a row."""
        made = self.rows[row]
        return load_checkpoints(
            [self.out / str(made.latents_uri)], config=self.plan.sampler, num_latents=made.num_latents or 0,
            seed=made.seed or 0, device=torch.device("cpu"), num_prompts=len(made.prompts or ()),
        ).latents_FCHW  # fmt: skip

    def alone(self, row: int) -> torch.Tensor:
        """What the library makes of a row by itself."""
        (asked,) = [each for each in self.plan.rows() if each.index == row]
        assert isinstance(asked, PromptRow)
        backbone, spec = load_backbone(self.plan.config.model), self.plan.spec
        *prompts, negative = backbone.encode_prompts([*asked.prompts, spec.negative_prompt])
        starts = [spec.latent_at(frame) for frame in first_frames(asked, spec.fps)]
        length = spec.num_latents(asked.num_frames)
        with VideoRun(backbone, self.plan.sampler, prompts, negative, length, asked.seed, prompt_starts=starts) as run:
            for _ in run.steps():
                pass
            return run.checkpoint().latents_FCHW

    def check(self, *rows: int) -> None:
        """These are made, as if alone."""
        for row in rows:
            assert self.rows[row].status == "ok", self.rows[row].error
            torch.testing.assert_close(self.latents(row), self.alone(row), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_rows_of_all_kinds_are_made_two_at_a_time(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"prompt": "a cat"},
        {"prompt": ["a dog", "a bird"], "num_frames": 45},
        {"prompt": " "},
        {"prompt": "a red circle", "num_frames": 33},
        {"prompt": ["a cat", "a dog", "a cat"], "prompt_frames": [0, 13, 40]},
    ]
    made = Made(tmp_path, tiny_model, rows)
    assert [row.status for row in made.rows] == ["ok", "ok", "failed", "ok", "ok"]
    made.check(0, 1, 3, 4)
    seconds = [row.gpu_s for row in made.rows if row.gpu_s is not None]
    (actor,) = made.workers
    clock = actor.worker._clock
    assert sum(seconds) < clock.busy_s, "two calls that measured its speed are no row's"
    assert sum(seconds) == pytest.approx(clock.busy_s, abs=clock.busy_s / 2)
    assert sum(row.network_calls or 0 for row in made.rows) == clock.num_calls - 2
    made.board._look()
    figures = made.board.figures()
    assert (figures["settled"], figures["failed"]) == (5, 1)
    assert figures["calls_done"] == figures["calls"] == sum(row.network_calls or 0 for row in made.rows)


def test_a_killed_actor_gives_both_rows_back_and_each_goes_on_from_its_checkpoint(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead: list[BackboneWorker] = []

    def is_dead(worker: BackboneWorker, ledger: Ledger) -> bool:
        saved = [entry.checkpoint for entry in ledger._entries.values()]
        if not dead and len(saved) == 2 and all(saved) and len(worker._hosted) == 2:
            dead.append(worker)
        return worker in dead

    resumed: list[int] = []
    begin = VideoRun.__init__

    def watched(self: VideoRun, *arguments: Any, **options: Any) -> None:
        resume = options.get("resume")
        resumed.append(0 if resume is None else resume.num_latents_done)
        begin(self, *arguments, **options)

    monkeypatch.setattr(VideoRun, "__init__", watched)
    made = Made(tmp_path, tiny_model, [{"prompt": "a cat"}, {"prompt": "a dog"}], is_dead, checkpoint_every_s=1e-9)
    assert len(made.workers) == 2
    assert [row.attempt for row in made.rows] == [2, 2]
    assert resumed[:2] == [0, 0]
    assert all(resumed[2:4]), "from where each of them stood"
    assert sum("goes back to the queue" in line for line in made.lines) == 2
    made.check(0, 1)


@pytest.mark.slow
def test_a_row_that_fails_in_the_middle_takes_no_other_with_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = VideoRun._advance

    def failing(self: VideoRun) -> None:
        if self.num_latents == 12 and self.sampler_state.num_finished >= 6:
            raise RowError("it cannot be gone on with")
        advance(self)

    monkeypatch.setattr(VideoRun, "_advance", failing)
    rows = [{"prompt": "a cat"}, {"prompt": "a dog", "num_frames": 45}, {"prompt": "a bird"}]
    made = Made(tmp_path, tiny_model, rows)
    assert [row.status for row in made.rows] == ["ok", "failed", "ok"]
    assert "it cannot be gone on with" in str(made.rows[1].error)
    assert [row.attempt for row in made.rows] == [1, 1, 1]
    made.check(0, 2)
