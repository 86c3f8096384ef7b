"""A worker: what it tells of a video, what it leaves in storage, and what becomes of it elsewhere."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.messages import (
    HelperFailed,
    VideoCheckpointed,
    VideoFailed,
    VideoFinished,
    VideoMade,
    VideoNote,
    VideoProgress,
    VideoSuspended,
)
from actors.worker import hosting, scratch
from miga.backbones.registry import load_backbone
from miga.checkpoint import VideoCheckpoint, load_checkpoints, save_checkpoint
from miga.cost import count_calls
from miga.errors import CheckpointError, OutputError, WorkerError
from miga.video import VideoRun, make_video
from pipeline.records.run_folder import open_state_path
from pipeline.video import count_frames, write_video
from tests.actors.hosts import MODEL, SLOWER, SPEC, Making, make, settings, task, worker
from tests.miga.test_checkpoint import as_version_1
from tests.pace import paced

NO_SEARCH = {"self_reflection": False}


def digest_of_plain_video(tmp_path: Path, num_frames: int = 61, profile: str = "paper", **sampler: Any) -> str:
    """The file that the library alone makes, without worker, threads, executor or checkpoints."""
    backbone = load_backbone(MODEL)
    prompt, negative = backbone.encode_prompts(["a cat", SPEC.negative_prompt])
    config = settings(tmp_path, profile, sampler=sampler).sampler
    steps = make_video(backbone, config, [prompt], negative, SPEC.num_latents(num_frames), 3)
    frames = [step.frames for step in steps if step.frames is not None]
    file = write_video(frames, tmp_path / "plain.mp4", fps=SPEC.fps)
    return hashlib.sha256(file.path.read_bytes()).hexdigest()


def test_a_video_is_made_told_of_and_stored(tmp_path: Path) -> None:
    host = worker(tmp_path, sampler=NO_SEARCH)
    making = Making(host, task())
    finished = making.end()
    assert isinstance(finished, VideoFinished)
    kinds = [type(event) for event in making.events]
    assert set(kinds) == {VideoProgress, VideoMade, VideoFinished}
    assert kinds.index(VideoMade) < kinds.index(VideoFinished)
    result = finished.result
    assert result.sha256 == digest_of_plain_video(tmp_path, **NO_SEARCH)
    assert Path(result.uri) == tmp_path / "video/00000/00000000-e1a1.mp4"
    assert hashlib.sha256(Path(result.uri).read_bytes()).hexdigest() == result.sha256
    assert count_frames(result.uri) == result.num_frames == 61
    assert result.num_calls == count_calls(settings(tmp_path, sampler=NO_SEARCH).sampler, SPEC.num_latents(61)).total
    assert result.num_helper_calls == 0
    assert result.latents_uri is None
    assert host.news(0.0).num_calls == result.num_calls
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_what_is_gone_on_with_elsewhere_is_the_video_of_an_undisturbed_run(tmp_path: Path) -> None:
    """Checkpoints behind every pass; a second and a third worker each go on from the last of the one before."""
    undisturbed = make(worker(tmp_path / "a"), task()).result
    out, last, saved = tmp_path / "b", None, 0
    for attempt in (1, 2):
        first = Making(worker(out, model=SLOWER, checkpoint_every_s=1e-9), task(attempt=attempt, resume_from=last))
        first.until(lambda event: isinstance(event, VideoCheckpointed) and event.num_calls > 150 * attempt)  # noqa: B023
        first.host.suspend(0, attempt)
        assert isinstance(first.end(), VideoSuspended)
        paths = [event.path for event in first.events if isinstance(event, VideoCheckpointed)]
        last, saved = paths[-1], saved + len(paths)
        assert paths == [f"checkpoint/00000/00000000/e1a{attempt}-{n + 1:04d}.safetensors" for n in range(len(paths))]
    assert len(list(out.rglob("*.safetensors"))) == saved
    resumed = make(worker(out), task(attempt=3, resume_from=last)).result
    assert resumed.sha256 == undisturbed.sha256
    assert (resumed.num_calls, resumed.trace) == (undisturbed.num_calls, undisturbed.trace)
    assert resumed.final_consistency == undisturbed.final_consistency
    assert undisturbed.trace.searched.count(True) > 1


def test_a_checkpoint_that_is_gone_costs_the_time_only(tmp_path: Path) -> None:
    host = worker(tmp_path, sampler=NO_SEARCH)
    resumed = make(host, task(resume_from="checkpoint/00000/00000000/e1a1-0002.safetensors")).result
    assert resumed.sha256 == digest_of_plain_video(tmp_path, **NO_SEARCH)


def left_by_an_attempt(out: Path, attempt: int, at_passes: Sequence[int], *prompts: str) -> dict[str, int]:
    """Puts the checkpoints of an attempt into OUT that saved behind those passes; path of each → calls by then."""
    backbone, config = load_backbone(MODEL), settings(out, sampler=NO_SEARCH).sampler
    *embeddings, negative = backbone.encode_prompts([*(prompts or ("a cat",)), SPEC.negative_prompt])
    paths = {}
    with VideoRun(backbone, config, embeddings, negative, SPEC.num_latents(61), 3) as run:
        for number, _ in enumerate(run.steps(), start=1):
            if number in at_passes:
                path = f"{task().checkpoints}/e1a{attempt}-{len(paths) + 1:04d}.safetensors"
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                checkpoint = run.checkpoint()
                save_checkpoint(checkpoint, out / path, config=config, seed=3)
                paths[path] = checkpoint.num_calls
    return paths


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls behind which videos were gone on with; 0: from the start."""
    found = []

    def watched(*arguments: Any, resume: VideoCheckpoint | None, **options: Any) -> VideoRun:
        found.append(0 if resume is None else resume.num_calls)
        return VideoRun(*arguments, resume=resume, **options)

    monkeypatch.setattr(hosting, "VideoRun", watched)
    return found


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damaged", ["a later part", "an attempt", "all", "none"])
@pytest.mark.slow
def test_a_damaged_checkpoint_costs_what_came_since_the_one_before(
    tmp_path: Path, damaged: str, begun: list[int]
) -> None:
    """The video is that of an undisturbed run, whatever is left to go on from, and the user is told."""
    calls = left_by_an_attempt(tmp_path, 1, (12, 36, 42)) | left_by_an_attempt(tmp_path, 2, (30, 48, 54))
    first, second = list(calls)[:3], list(calls)[3:]
    flipped, whole = {
        "a later part": (second[1:2], second[0]),
        "an attempt": (second[:1], first[2]),
        "all": ([first[0], second[0]], None),
        "none": ([], second[2]),
    }[damaged]
    for path in flipped:
        flip_a_bit(tmp_path / path)
    making = Making(worker(tmp_path, sampler=NO_SEARCH), task(attempt=3, resume_from=second[-1]))
    finished = making.end()
    assert isinstance(finished, VideoFinished)
    assert finished.result.sha256 == digest_of_plain_video(tmp_path, **NO_SEARCH)
    assert begun == [0 if whole is None else calls[whole]]
    notes = [event.text for event in making.events if isinstance(event, VideoNote)]
    assert len(notes) == len(flipped)
    for note, path in zip(notes, flipped[::-1], strict=True):
        assert f"{tmp_path / path} is no whole checkpoint: it is damaged" in note


def test_a_checkpoint_of_the_version_before_that_shared_prompts_out_otherwise(tmp_path: Path, begun: list[int]) -> None:
    """61 frames are 16 latents: 6 + 6 + 4 of three prompts then, 6 + 5 + 5 now."""
    prompts = ["a cat", "a dog", "a hen"]
    calls = left_by_an_attempt(tmp_path, 1, (36, 48), *prompts)
    last = list(calls)[-1]
    make(worker(tmp_path, sampler=NO_SEARCH), task(attempt=2, resume_from=last), *prompts)
    for path in calls:
        as_version_1(tmp_path / path)
    making = Making(worker(tmp_path, sampler=NO_SEARCH), task(attempt=3, resume_from=last), *prompts)
    assert isinstance(making.end(), VideoFinished)
    assert begun == [calls[last], 0]
    (note,) = (event.text for event in making.events if isinstance(event, VideoNote))
    assert "is of version 1, which made this video otherwise" in note


class FlakyStorage:
    """Fails to take every second checkpoint."""

    def __init__(self, storage: Any) -> None:
        self._storage, self.num_puts = storage, 0

    def put_file(self, local: Path, path: str) -> None:
        if path.startswith("checkpoint"):
            self.num_puts += 1
            if self.num_puts % 2:
                raise OutputError("the server is gone")
        self._storage.put_file(local, path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


@pytest.mark.slow
def test_a_storage_that_fails_costs_checkpoints_not_the_video(tmp_path: Path) -> None:
    host = worker(tmp_path, checkpoint_every_s=1e-9)
    host._storage = FlakyStorage(host._storage)
    making = Making(host, task(num_frames=161))
    finished = making.end()
    assert isinstance(finished, VideoFinished)
    paths = [event.path for event in making.events if isinstance(event, VideoCheckpointed)]
    assert host._storage.num_puts > len(paths) > 2
    numbers = [int(path[-16:-12]) for path in paths]
    assert numbers == list(range(1, len(numbers) + 1)), "no part is missing between those that are there"
    resumed = make(worker(tmp_path), task(num_frames=161, attempt=2, resume_from=paths[-1])).result
    assert resumed.sha256 == finished.result.sha256


@pytest.mark.slow
def test_a_suspended_video_that_had_not_begun_stops_at_once(tmp_path: Path) -> None:
    host = worker(tmp_path)
    host.suspend(0, 1)
    assert isinstance(Making(host, task()).end(), VideoSuspended)
    host.suspend(0, 2)  # another attempt's, or one that is over
    assert isinstance(Making(host, task(attempt=3)).end(), VideoFinished)


@pytest.mark.parametrize(
    ("prompt", "error_type", "scope", "retryable", "needs_new_process"),
    [
        ("fault: nan", "NonFiniteError", "row", False, False),
        ("fault: error", "RuntimeError", "row", False, False),
        ("fault: oom at call 7", "WorkerError", "worker", True, True),
    ],
)
@pytest.mark.slow
def test_errors_say_what_is_to_be_done(
    tmp_path: Path, prompt: str, error_type: str, scope: str, retryable: bool, needs_new_process: bool
) -> None:
    host = worker(tmp_path)
    failed = Making(host, task(), prompt).end()
    assert isinstance(failed, VideoFailed)
    assert (failed.error_type, failed.scope, failed.retryable) == (error_type, scope, retryable)
    assert failed.needs_new_process is needs_new_process
    assert not list(tmp_path.rglob("*.mp4"))
    assert make(host, task(attempt=2)).result.num_frames == 61, "it can make another video"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("what", ["a folder", "latents"])
@pytest.mark.parametrize(
    ("free", "scope", "error_type"), [(100, "run", "OutputError"), (1 << 40, "worker", "WorkerError")]
)
def test_a_machine_s_disk_is_no_fault_of_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, free: int, scope: str, error_type: str
) -> None:
    """A full one ends the run, which says so; whatever else fails there is tried again elsewhere."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "the disk does not answer") if what == "a folder" else CheckpointError("not written")

    host = worker(tmp_path)
    monkeypatch.setattr(hosting, "new_folder" if what == "a folder" else "save_checkpoint", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    failed = Making(host, task(latents_path="latents/00000/00000000.safetensors")).end()
    assert isinstance(failed, VideoFailed)
    assert (failed.scope, failed.error_type) == (scope, error_type)
    assert failed.retryable == (scope == "worker")
    assert ("no space left" in failed.error and "it resumes" in failed.error) == (scope == "run")


def test_the_next_video_begins_while_the_last_is_uploading(tmp_path: Path) -> None:
    host = worker(tmp_path, sampler=NO_SEARCH)
    arrived, let_go = threading.Event(), threading.Event()
    put_file = host._storage.put_file

    def slow(local: Path, path: str) -> None:
        arrived.set()
        assert let_go.wait(paced(60.0))
        put_file(local, path)

    host._storage.put_file = slow  # type: ignore[method-assign]
    first = Making(host, task(row=0))
    assert arrived.wait(paced(60.0))
    first.thread.join(paced(60.0))
    second = Making(host, task(row=1))
    second.until(lambda event: isinstance(event, VideoMade) and event.row == 1)
    assert not any(isinstance(event, VideoFinished) for event in first.events + second.events)
    let_go.set()
    second.until(lambda event: isinstance(event, VideoFinished) and event.row == 1)
    assert {event.row for event in first.events + second.events if isinstance(event, VideoFinished)} == {0, 1}


@pytest.mark.slow
def test_kept_latents_decode_to_the_video_and_go_on_to_a_longer_one(tmp_path: Path) -> None:
    path, config = "latents/00000/00000000-e1a1.safetensors", settings(tmp_path).sampler
    result = make(worker(tmp_path, checkpoint_every_s=1e-9), task(latents_path=path)).result
    assert result.latents_uri == str(tmp_path / path)
    final = load_checkpoints([tmp_path / path], config=config, num_latents=SPEC.num_latents(61), seed=3)
    frames = load_backbone(MODEL).frame_decoder().decode(final.latents_FCHW)
    again = write_video([frames.numpy()], tmp_path / "again.mp4", fps=SPEC.fps)
    assert again.sha256 == result.sha256
    longer = make(worker(tmp_path), task(101, row=1, resume_from=open_state_path(path))).result
    assert longer.sha256 == make(worker(tmp_path), task(101, row=2)).result.sha256
    made_anew = (
        longer.num_calls
        - load_checkpoints(
            [tmp_path / open_state_path(path)], config=config, num_latents=SPEC.num_latents(101), seed=3
        ).num_calls
    )
    assert 0 < made_anew < longer.num_calls / 2


# ---- helpers ----


class FakeActor:
    """Another worker of this process, behind the calls that Ray would carry."""

    def __init__(self, host: Any, error: Exception | None = None, after: int = 0) -> None:
        self.host, self.error, self.after, self.num_calls = host, error, after, 0

    def __getattr__(self, name: str) -> Any:
        class Call:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                return lambda: getattr(self.host, name)(*arguments)

        self.num_calls += name == "run_window"
        if self.error is not None and self.num_calls > self.after:
            error = self.error
            Call.remote = staticmethod(lambda *arguments: _raiser(error))  # type: ignore[method-assign]
        return Call


def _raiser(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.worker.backbone.ray.get", lambda call: call())
    monkeypatch.setattr("actors.worker.shared_embeddings.ray.put", lambda value: value)


@pytest.mark.slow
def test_windows_of_a_video_run_on_helpers_to_the_same_bits(tmp_path: Path, no_ray: None) -> None:
    alone = make(worker(tmp_path), task()).result
    host = worker(tmp_path)
    host.set_helpers(0, 2, [(f"w{n}#1", FakeActor(worker(tmp_path))) for n in range(3)])
    together = make(host, task(attempt=2)).result
    assert together.sha256 == alone.sha256
    assert (together.num_calls, together.trace) == (alone.num_calls, alone.trace)
    assert together.num_helper_calls > 0
    assert host.news(0.0).num_calls < alone.num_calls


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_helpers", [0, 3])
def test_calls_that_have_ended_are_told_while_a_video_is_made(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch, num_helpers: int
) -> None:
    """Asked at every progress: those that the GPUs counted, not those that are planned; helpers' are among them."""
    host, helpers = worker(tmp_path), [worker(tmp_path) for _ in range(num_helpers)]
    host.set_helpers(0, 1, [(f"w{n}#1", FakeActor(helper)) for n, helper in enumerate(helpers)])
    told: list[tuple[int, int]] = []
    post = host._outbox.post

    def look(event: Any) -> None:
        if isinstance(event, VideoProgress):
            before = sum(gpu._clock.num_calls for gpu in (host, *helpers))
            hosted = host._hosted[0, 1].hosted()
            assert (hosted.row, hosted.attempt) == (0, 1)
            assert hosted.num_calls <= event.num_calls
            assert hosted.num_calls >= before - 2 * (1 + num_helpers) * 9, "those on their way aside"
            told.append((hosted.num_calls, hosted.num_searches))
        post(event)

    monkeypatch.setattr(host._outbox, "post", look)
    result = make(host, task()).result
    calls = [number for number, _ in told]
    assert calls == sorted(calls)
    assert calls[-1] == result.num_calls
    assert len(set(calls)) > 10, "they go on before any latent is finished"
    assert told[-1][1] == sum(result.trace.searched)
    assert host.news(0.0).hosted == (), "it hosts none any more"


@pytest.mark.slow
def test_a_video_that_goes_on_from_a_checkpoint_counts_its_calls(tmp_path: Path) -> None:
    host = worker(tmp_path, checkpoint_every_s=0.0)
    making = Making(host, task())
    saved = making.until(lambda event: isinstance(event, VideoCheckpointed))
    host.suspend(0, 1)
    making.end()
    last = [event for event in making.events if isinstance(event, VideoCheckpointed)][-1]
    assert isinstance(saved, VideoCheckpointed)
    host = worker(tmp_path)
    counted: list[int] = []
    post = host._outbox.post
    host._outbox.post = lambda event: (  # type: ignore[method-assign]
        counted.append(host._hosted[0, 2].hosted().num_calls) if isinstance(event, VideoProgress) else None,
        post(event),
    )
    result = make(host, task(attempt=2, resume_from=last.path)).result
    assert counted[0] >= last.num_calls > 0
    assert counted[-1] == result.num_calls


@pytest.mark.parametrize("reflects", [True, False])
@pytest.mark.parametrize("share", ["candidates", "nothing"])
@pytest.mark.slow
def test_helpers_take_what_the_run_lets_them_to_the_same_bits(
    tmp_path: Path, no_ray: None, share: str, reflects: bool
) -> None:
    sampler = {"self_reflection": reflects}
    host = worker(tmp_path, share=share, sampler=sampler)
    actors = [FakeActor(worker(tmp_path, sampler=sampler)) for _ in range(3)]
    host.set_helpers(0, 2, [(f"w{n}#1", actor) for n, actor in enumerate(actors)])
    together = make(host, task(attempt=2)).result
    assert together.sha256 == digest_of_plain_video(tmp_path, **sampler)
    per_search = count_calls(settings(tmp_path, sampler=sampler).sampler, SPEC.num_latents(61)).per_search
    of_candidates = per_search * sum(together.trace.searched)
    assert together.num_helper_calls <= (of_candidates if share == "candidates" else 0)
    if share == "candidates" and reflects:
        assert together.num_helper_calls > of_candidates / 4
    else:
        assert sum(actor.num_calls for actor in actors) == 0


@pytest.mark.parametrize(
    "error", [WorkerError("the GPU ran out of memory"), ConnectionError("gone"), KeyError("strange")]
)
@pytest.mark.slow
def test_a_helper_that_errs_is_dropped_and_its_window_computed_elsewhere(
    tmp_path: Path, no_ray: None, error: Exception
) -> None:
    alone = make(worker(tmp_path), task()).result
    host = worker(tmp_path)
    good, bad = FakeActor(worker(tmp_path)), FakeActor(worker(tmp_path), error, after=3)
    host.set_helpers(0, 2, [("good#1", good), ("bad#1", bad)])
    making = Making(host, task(attempt=2))
    ended = making.end()
    assert isinstance(ended, VideoFinished)
    assert ended.result.sha256 == alone.sha256
    dropped = [event for event in making.events if isinstance(event, HelperFailed)]
    assert [event.helper for event in dropped] == ["bad#1"]
    assert good.num_calls > 3 >= bad.num_calls - 2


def test_nan_on_a_helper_is_the_rows_fault_only_if_the_host_finds_it_too(tmp_path: Path, no_ray: None) -> None:
    host = worker(tmp_path)
    host.set_helpers(0, 1, [("w#1", FakeActor(worker(tmp_path)))])
    failed = Making(host, task(), "fault: nan at call 20").end()
    assert isinstance(failed, VideoFailed)
    assert failed.error_type == "NonFiniteError"


def test_a_helper_computes_windows_of_videos_it_was_told_of(tmp_path: Path) -> None:
    helper = worker(tmp_path)
    backbone = load_backbone(MODEL)
    (negative, prompt) = backbone.encode_prompts(["", "a cat"])
    config = settings(tmp_path).sampler
    x = torch.randn(config.window, *SPEC.latent_shape, generator=torch.Generator().manual_seed(0))
    level = torch.full((config.window,), config.num_steps)
    with pytest.raises(WorkerError, match="no video"):
        helper.run_window("token", 0, x.numpy(), level.numpy(), None)
    helper.open_video("token", negative.numpy(), prompt.numpy())
    output, seconds = helper.run_window("token", 0, x.numpy(), level.numpy(), None)
    expected = backbone.denoiser(config)(x[None], level[None], [backbone.condition(prompt, negative)])[0]
    assert np.array_equal(output, expected.numpy())
    assert seconds >= 0
    for number in range(10):
        helper.open_video(f"other {number}", negative.numpy(), prompt.numpy())
    with pytest.raises(WorkerError, match="no video"):
        helper.run_window("token", 0, x.numpy(), level.numpy(), None)


def test_what_a_killed_process_left_on_this_machine_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = scratch.new_folder()
    ended = subprocess.run(
        [sys.executable, "-c", "from actors.worker.scratch import new_folder; print(new_folder())"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    (Path(ended.stdout.strip()) / "video.mp4").write_bytes(b"half of it")
    (tmp_path / "miga-notes").mkdir()  # not ours
    worker(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "miga-notes"}
