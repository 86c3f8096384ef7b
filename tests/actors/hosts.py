"""A worker in this process, on simulated GPUs that take no time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.messages import VideoEvent, VideoFailed, VideoFinished, VideoSuspended, VideoTask, WorkerSettings
from actors.text_encoder import TextEncoderWorker
from actors.worker.backbone import BackboneWorker
from miga.backbones.registry import load_spec
from miga.profiles import resolve_config
from pipeline.config import VideoConfig
from tests.pace import Limit, paced

MODEL = "simulated:wan?call_s=0&decode_s=0&faults=1"
SLOWER = "simulated:wan?call_s=0.002&decode_s=0&faults=1"
"""Slow enough for checkpoints to be written meanwhile, on a busy disk too."""
SPEC = load_spec(MODEL)
FEWER_STEPS = {"num_steps": 30}
"""Than the paper's 54: a video is made in half the calls, of the same kinds."""


def settings(out: Path | str, profile: str = "paper", **values: Any) -> WorkerSettings:
    overrides = ({} if profile in ("fifo", "scalingnoise") else FEWER_STEPS) | values.pop("sampler", {})
    return WorkerSettings(
        **{
            "model": MODEL,
            "revision": None,
            "sampler": resolve_config(profile, SPEC, overrides),
            "video": VideoConfig(),
            "out": str(out),
            "num_threads": 1,
            "device": "cpu",
            "checkpoint_every_s": 1e9,
        }
        | values
    )


def worker(out: Path | str, profile: str = "paper", **values: Any) -> BackboneWorker:
    made = BackboneWorker(settings(out, profile, **values))
    made.load()
    return made


def embeddings(*prompts: str) -> list[Any]:
    encoder = TextEncoderWorker(MODEL, None, 1)
    return [encoder.encode(prompt) for prompt in (SPEC.negative_prompt, *prompts)]


def task(num_frames: int = 61, row: int = 0, attempt: int = 1, **values: Any) -> VideoTask:
    return VideoTask(
        **{
            "row": row,
            "attempt": attempt,
            "num_latents": SPEC.num_latents(num_frames),
            "num_frames": num_frames,
            "seed": 3,
            "path": f"video/00000/{row:08d}-e1a{attempt}.mp4",
            "checkpoints": f"checkpoint/00000/{row:08d}",
        }
        | values
    )


class Making:
    """A video being made in a thread, and what the worker tells of it."""

    def __init__(self, host: Any, what: VideoTask, *prompts: str) -> None:
        self.host, self.events = host, []  # type: tuple[Any, list[VideoEvent]]
        self.thread = threading.Thread(target=host.make_video, args=(what, *embeddings(*(prompts or ("a cat",)))))
        self.thread.start()

    def until(self, is_over: Callable[[VideoEvent], bool], seconds: float = 60.0) -> VideoEvent:
        limit = Limit(seconds)
        while not limit.is_over:
            for event in self.host.news(0.01).events:
                self.events.append(event)
            if found := next((event for event in self.events if is_over(event)), None):
                return found
        raise AssertionError(f"it did not come to that: {self.events}")

    def end(self) -> VideoEvent:
        """How it ends."""
        ended = self.until(lambda event: isinstance(event, VideoFinished | VideoFailed | VideoSuspended))
        self.thread.join(paced(60.0))
        return ended


def make(host: Any, what: VideoTask, *prompts: str) -> VideoFinished:
    ended = Making(host, what, *prompts).end()
    assert isinstance(ended, VideoFinished), ended
    return ended
