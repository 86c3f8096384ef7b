"""Memory of the process that makes a video, while it grows longer. Source: MIGA section B.3, Table A3.

A fresh process a profile, holding what a worker of a run holds: the worker itself, without Ray, writing an MP4.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from actors.messages import VideoFailed, VideoFinished, VideoTask, WorkerSettings
from actors.worker.backbone import BackboneWorker
from jobs.benches.device_clock import process_memory_bytes
from jobs.profiles.choice import parse_profile
from miga.allocator import keep_heap_steady
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_backbone, load_spec
from miga.errors import MigaError, UsageError
from miga.video_config import VideoConfig

PROMPT = "a red circle moving side to side on a grey ground"


@dataclass(frozen=True)
class MemoryMark:
    """Memory of this process once so many frames have been handed out.

    Attributes:
        num_frames: frames handed out.
        resident_bytes: resident now.
        peak_bytes: the most that was ever resident.
    """

    num_frames: int
    resident_bytes: int
    peak_bytes: int


def bench_memory(profiles: Sequence[str], frames: Sequence[int], num_threads: int) -> dict[str, list[dict[str, Any]]]:
    """One row per profile and measure, in the layout of the paper's Table A3: MiB, and growth over the first mark.

    Raises:
        UsageError: if there are not two marks, or they do not rise.
        MigaError: if making a video fails.
    """
    if len(frames) < 2 or sorted(set(frames)) != list(frames):
        raise UsageError(f"--frames {' '.join(map(str, frames))} does not rise", "name two lengths or more, in order")
    spec = load_spec("sprites")
    for profile in profiles:
        parse_profile(profile, spec)
    rows: list[dict[str, Any]] = []
    for profile in profiles:
        command = [sys.executable, "-m", "jobs.benches.memory", profile, str(num_threads), *map(str, frames)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            raise MigaError(
                f"the process that makes a video of {profile!r} ended with status {run.returncode}",
                f"run it by hand: {' '.join(command)}",
            )
        marks = [MemoryMark(**json.loads(line)) for line in run.stdout.splitlines()]
        rows.append(_row(profile, "resident", {mark.num_frames: mark.resident_bytes for mark in marks}))
        rows.append(_row(profile, "peak", {mark.num_frames: mark.peak_bytes for mark in marks}))
    return {f"Memory in MiB of one process over one video of {frames[-1]} frames, growth over {frames[0]}": rows}


def _row(profile: str, what: str, sizes: dict[int, int]) -> dict[str, Any]:
    first = next(iter(sizes.values()))
    cells = {str(num_frames): f"{size / 2**20:.2f} ({size / first - 1:+.3%})" for num_frames, size in sizes.items()}
    return {"profile": profile, "memory": what, **cells}


def memory_marks(profile: str, frames: Sequence[int], num_threads: int) -> list[MemoryMark]:
    """Makes a video of the last of these lengths in this process, and looks at its memory at each of them."""
    spec = load_spec("sprites")
    text = load_backbone("sprites", device="cpu", components=("text",))
    prompt, negative = (embedding.numpy() for embedding in text.encode_prompts([PROMPT, spec.negative_prompt]))
    del text
    num_latents = _latents_of(spec, frames[-1])
    marks: list[MemoryMark] = []
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        worker: Any = BackboneWorker(
            WorkerSettings(
                model="sprites",
                revision=None,
                sampler=parse_profile(profile, spec),
                video=VideoConfig(),
                out=folder,
                num_threads=num_threads,
                device="cpu",
            )
        )
        worker.load()
        num_frames = spec.num_frames(num_latents)
        task = VideoTask(row=0, attempt=1, num_latents=num_latents, num_frames=num_frames, seed=0, path="video.mp4")
        making = threading.Thread(target=worker.make_video, args=(task, (negative, 0.0), (prompt, 0.0)))
        making.start()
        while True:
            for event in worker.news(0.01).events:
                done = num_latents if isinstance(event, VideoFinished) else getattr(event, "num_latents_done", 0)
                while len(marks) < len(frames) and done >= _latents_of(spec, frames[len(marks)]):
                    marks.append(MemoryMark(frames[len(marks)], *process_memory_bytes()))
                if isinstance(event, VideoFailed):
                    raise MigaError(event.error)
            if len(marks) == len(frames) and not making.is_alive():
                break
    return marks


def _latents_of(spec: BackboneSpec, num_frames: int) -> int:
    """The fewest latents that decode to so many frames."""
    return 1 + -(-max(0, num_frames - spec.frames_first_latent) // spec.frames_per_latent)


if __name__ == "__main__":
    keep_heap_steady()
    torch.set_num_threads(int(sys.argv[2]))
    for mark in memory_marks(sys.argv[1], [int(text) for text in sys.argv[3:]], int(sys.argv[2])):
        print(json.dumps(mark.__dict__))
