"""A worker that makes several videos in step: each is told of, saved, stopped, failed and paid for by itself."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.messages import (
    VideoCheckpointed,
    VideoEvent,
    VideoFailed,
    VideoFinished,
    VideoMade,
    VideoProgress,
    VideoSuspended,
    VideoTask,
)
from actors.text_encoder import TextEncoderWorker
from actors.worker.backbone import BackboneWorker
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.wan.denoiser import WanDenoiser
from miga.checkpoint import load_checkpoints
from miga.cost import count_calls
from miga.errors import RowError
from miga.methods.causal.together import Lockstep
from miga.profiles import resolve_config
from miga.video import VideoRun
from tests.actors.hosts import settings
from tests.pace import Limit, paced

PROMPTS = ("a cat", "a dog", "a red circle")
FRAMES = 69
"""Six blocks of three latents."""


class Host:
    """A worker of the tiny model, and what it tells."""

    def __init__(self, out: Path, model: Path, num_videos: int = 3, **values: Any) -> None:
        self.spec = load_spec(str(model))
        self.config = resolve_config("longlive-infinity", self.spec, {})
        common: dict[str, Any] = {"sampler": {}, "videos_per_actor": num_videos}
        made = settings(out, **(common | values))
        self.settings = type(made)(**{**made.__dict__, "model": str(model), "sampler": self.config})
        self.worker = BackboneWorker(self.settings)
        self.info = self.worker.load()
        self.encoder = TextEncoderWorker(str(model), None, 1)
        self.events: list[VideoEvent] = []

    def task(self, row: int, attempt: int = 1, frames: int = FRAMES, **values: Any) -> VideoTask:
        return VideoTask(
            row=row, attempt=attempt, num_latents=self.spec.num_latents(frames), num_frames=frames, seed=row,
            path=f"video/00000/{row:08d}-e1a{attempt}.mp4", checkpoints=f"checkpoint/00000/{row:08d}",
            latents_path=f"latents/00000/{row:08d}-e1a{attempt}.safetensors", **values,
        )  # fmt: skip

    def begin(self, *tasks: VideoTask) -> None:
        for task in tasks:
            embeddings = [self.encoder.encode(text) for text in (self.spec.negative_prompt, PROMPTS[task.row])]
            self.worker.begin(task, *embeddings)

    def until(self, is_over: Callable[[VideoEvent], bool], count: int = 1) -> list[VideoEvent]:
        limit = Limit(120)
        while not limit.is_over:
            self.events += self.worker.news(0.02).events
            found = [event for event in self.events if is_over(event)]
            if len(found) >= count:
                return found
        raise AssertionError(f"it did not come to that: {[type(event).__name__ for event in self.events]}")

    def ends(self, count: int) -> dict[int, VideoEvent]:
        """How each row's attempt ends."""
        over = self.until(lambda event: isinstance(event, VideoFinished | VideoFailed | VideoSuspended), count)
        return {event.row: event for event in over}  # type: ignore[union-attr]

    def latents(self, out: Path, row: int, attempt: int = 1, frames: int = FRAMES) -> torch.Tensor:
        """Those that were kept of a row."""
        file = out / f"latents/00000/{row:08d}-e1a{attempt}.safetensors"
        length, device = self.spec.num_latents(frames), torch.device("cpu")
        return load_checkpoints(
            [file], config=self.config, num_latents=length, seed=row, device=device, num_prompts=1
        ).latents_FCHW

    def alone(self, row: int, frames: int = FRAMES) -> torch.Tensor:
        """What the library makes of a row by itself."""
        backbone = load_backbone(self.settings.model)
        prompt, negative = backbone.encode_prompts([PROMPTS[row], self.spec.negative_prompt])
        with VideoRun(backbone, self.config, [prompt], negative, self.spec.num_latents(frames), row) as run:
            for _ in run.steps():
                pass
            return run.checkpoint().latents_FCHW


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the tiny model take milliseconds, and on a busy machine threads are late by more than that."""
    monkeypatch.setattr("actors.worker.backbone.Lockstep", functools.partial(Lockstep, patience_s=paced(1.0)))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Videos of every call of the network."""
    found: list[int] = []
    call = WanDenoiser.call_cached

    def watched(self: WanDenoiser, x_BFCHW: torch.Tensor, *others: Any) -> torch.Tensor:
        found.append(len(x_BFCHW))
        return call(self, x_BFCHW, *others)

    monkeypatch.setattr(WanDenoiser, "call_cached", watched)
    return found


@pytest.mark.slow
def test_rows_are_made_in_step_and_each_is_as_alone(tmp_path: Path, tiny_model: Path, batches: list[int]) -> None:
    host = Host(tmp_path, tiny_model)
    assert host.info.num_videos == 3
    host.begin(*(host.task(row) for row in range(3)))
    ends = host.ends(3)
    assert set(ends) == {0, 1, 2}
    calls = count_calls(host.config, host.spec.num_latents(FRAMES)).total
    for row, end in ends.items():
        assert isinstance(end, VideoFinished), end
        assert end.result.num_calls == calls
        assert end.result.num_frames == FRAMES
        told = [type(event) for event in host.events if event.row == row]  # type: ignore[union-attr]
        assert told.index(VideoMade) < told.index(VideoFinished)
    assert sum(batches) == 3 * calls
    assert max(batches) == 3
    results = [end.result for end in ends.values() if isinstance(end, VideoFinished)]
    news = host.worker.news(0.0)
    assert sum(result.gpu_s for result in results) == pytest.approx(news.busy_s), "shares add up to what it took"
    assert news.num_calls == 3 * calls
    assert news.hosted == ()
    batches.clear()
    for row in range(3):
        torch.testing.assert_close(host.latents(tmp_path, row), host.alone(row), atol=1e-5, rtol=0)
    assert set(batches) == {1}


@pytest.mark.slow
def test_a_row_that_fails_in_the_middle_takes_no_other_with_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, tiny_model)
    advance = VideoRun._advance

    def failing(self: VideoRun) -> None:
        if self.num_latents == host.spec.num_latents(81) and self.sampler_state.num_finished >= 9:
            raise RowError("it cannot be gone on with")
        advance(self)

    monkeypatch.setattr(VideoRun, "_advance", failing)
    host.begin(host.task(0), host.task(1, frames=81), host.task(2))
    ends = host.ends(3)
    failed = ends.pop(1)
    assert isinstance(failed, VideoFailed)
    assert (failed.error_type, failed.scope, failed.retryable) == ("RowError", "row", False)
    for row, end in ends.items():
        assert isinstance(end, VideoFinished), end
        torch.testing.assert_close(host.latents(tmp_path, row), host.alone(row), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_rows_are_suspended_and_gone_on_with_from_where_each_stood(
    tmp_path: Path, tiny_model: Path, batches: list[int]
) -> None:
    """One is stopped early, one later; another worker goes on with both, and makes a third from nothing."""
    host = Host(tmp_path / "a", tiny_model, checkpoint_every_s=1e-9)
    host.begin(host.task(0), host.task(1))
    host.until(lambda event: isinstance(event, VideoProgress) and event.row == 0)
    host.worker.suspend(0, 1)
    host.until(lambda event: isinstance(event, VideoSuspended) and event.row == 0)
    host.worker.suspend(1, 1)
    ends = host.ends(2)
    assert [type(ends[row]) for row in (0, 1)] == [VideoSuspended, VideoSuspended]
    saved = {
        row: [event.path for event in host.events if isinstance(event, VideoCheckpointed) and event.row == row]
        for row in (0, 1)
    }
    assert all(saved.values())
    again = Host(tmp_path / "a", tiny_model)
    batches.clear()
    again.begin(again.task(0, 2, resume_from=saved[0][-1]), again.task(1, 2, resume_from=saved[1][-1]), again.task(2))
    results = again.ends(3)
    assert {type(end) for end in results.values()} == {VideoFinished}, results
    assert 3 in batches, "they come into step"
    for row, attempt in ((0, 2), (1, 2), (2, 1)):
        found = again.latents(tmp_path / "a", row, attempt)
        torch.testing.assert_close(found, again.alone(row), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_word_of_a_video_that_is_not_begun_yet_is_kept_for_it(tmp_path: Path, tiny_model: Path) -> None:
    host = Host(tmp_path, tiny_model)
    host.worker.suspend(1, 1)
    host.begin(host.task(0), host.task(1))
    ends = host.ends(2)
    assert (type(ends[0]), type(ends[1])) == (VideoFinished, VideoSuspended)


def test_on_a_cpu_auto_is_one(tmp_path: Path, tiny_model: Path) -> None:
    host = Host(tmp_path, tiny_model, num_videos="auto")  # type: ignore[arg-type]
    assert host.info.num_videos == 1
    assert host.worker._lockstep is None


@pytest.mark.slow
def test_one_video_is_decoded_at_a_time(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miga.backbones.wan import vae

    lock, decoded = threading.Lock(), []
    decode = vae.WanFrameDecoder.decode

    def watched(self: Any, x_FCHW: torch.Tensor) -> torch.Tensor:
        assert lock.acquire(blocking=False), "two at once"
        try:
            frames = decode(self, x_FCHW)
            decoded.append(len(frames))
            return frames
        finally:
            lock.release()

    monkeypatch.setattr(vae.WanFrameDecoder, "decode", watched)
    host = Host(tmp_path, tiny_model)
    host.begin(*(host.task(row) for row in range(3)))
    assert {type(end) for end in host.ends(3).values()} == {VideoFinished}
    assert sum(decoded) == 3 * FRAMES
