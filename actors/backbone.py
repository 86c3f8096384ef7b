"""A worker: one loaded backbone, one video at a time, no state but the weights. `pool.py` makes it a Ray actor.

One prompt row, as it happens here: embeddings in → passes of the sampler → frames as they are finished → a local MP4 →
checked and put into storage → what the manifest needs to know of it.
"""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from miga.allocator import keep_heap_steady
from miga.backbones.base import BackboneSpec
from miga.backbones.memory_plan import MemoryPlan, plan_memory
from miga.backbones.options import ModelOptions, architecture_of, configure, configured_spec
from miga.backbones.registry import load_backbone, load_spec
from miga.config import SamplerConfig
from miga.errors import WorkerError
from miga.reflection import ReflectionTrace
from miga.video import make_video
from pipeline.config import VideoConfig
from pipeline.storage import open_storage
from pipeline.video import VideoWriter


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What every worker of a run is told once."""

    model: str
    revision: str | None
    sampler: SamplerConfig
    video: VideoConfig
    out: str
    num_threads: int
    device: str
    dtype: str = "auto"
    options: ModelOptions = field(default_factory=ModelOptions)
    text_dtype: str = "float32"
    text_gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What a worker says of itself once its backbone is loaded."""

    device: str
    node: str
    revision: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """One attempt at one row.

    Attributes:
        num_latents, num_frames: length of the video.
        seed: of its noise.
        path: where in storage the file goes.
    """

    num_latents: int
    num_frames: int
    seed: int
    path: str


@dataclass(frozen=True, kw_only=True)
class VideoProgress:
    """How far an attempt is."""

    num_latents_done: int
    num_calls: int


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """A finished video, in its place."""

    uri: str
    bytes: int
    sha256: str
    num_frames: int
    fps: float
    height: int
    width: int
    duration_s: float
    num_calls: int
    denoise_s: float
    decode_s: float
    encode_video_s: float
    upload_s: float
    peak_memory_bytes: int
    device: str
    node: str
    trace: ReflectionTrace
    final_consistency: tuple[float, ...]


class BackboneWorker:
    """Holds a backbone, once `load` has been called, and makes videos with it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    def load(self) -> WorkerInfo:
        """Loads the backbone.

        On a GPU it is first seen how it fits (`memory_plan.py`), and it is made so before it takes the GPU's memory.

        Raises:
            ModelError: if it cannot be loaded, or the GPU has too little memory for it.
        """
        keep_heap_steady()
        settings = self._settings
        torch.set_num_threads(settings.num_threads)
        device = torch.device(settings.device)
        spec = configured_spec(load_spec(settings.model, settings.revision), settings.options, settings.revision)
        memory = plan_for(spec, settings, device) if device.type == "cuda" and spec.family == "wan" else None
        self._backbone = load_backbone(
            settings.model,
            revision=settings.revision,
            device="cpu" if memory else device,
            dtype=_dtype(settings.dtype, device),
            components=("denoiser", "vae"),
        )
        configure(self._backbone, settings.options, revision=settings.revision, device=device, memory=memory)
        self._storage = open_storage(settings.out)
        return WorkerInfo(
            device=_device_name(self._backbone.device),
            node=platform.node(),
            revision=self._backbone.spec.revision,
            pid=os.getpid(),
        )

    def make_video(
        self, task: VideoTask, negative_embedding: np.ndarray, *prompt_embeddings: np.ndarray
    ) -> Iterator[VideoProgress | VideoResult]:
        """Makes one video and puts it in its place.

        Yields:
            A `VideoProgress` per pass, the `VideoResult` last. The caller need not keep up.

        Raises:
            RowError: if this row cannot be made.
            WorkerError: if the worker, its disk or its GPU failed.
        """
        spec = self._backbone.spec
        if self._backbone.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._backbone.device)
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="miga-") as folder, _out_of_memory_is_retryable():
            file = Path(folder) / "video.mp4"
            with VideoWriter(file, fps=spec.fps, settings=self._settings.video, num_frames=task.num_frames) as writer:
                steps = make_video(
                    self._backbone,
                    self._settings.sampler,
                    [torch.from_numpy(np.array(embedding)) for embedding in prompt_embeddings],
                    torch.from_numpy(np.array(negative_embedding)),
                    task.num_latents,
                    task.seed,
                )
                for step in steps:
                    if step.frames is not None:
                        writer.write(step.frames)
                    yield VideoProgress(num_latents_done=step.num_latents_done, num_calls=step.num_calls)
                made = writer.finish()
            made_s = time.monotonic()
            self._storage.put_file(made.path, task.path)
        yield VideoResult(
            uri=self._storage.uri(task.path),
            bytes=made.bytes,
            sha256=made.sha256,
            num_frames=made.num_frames,
            fps=made.fps,
            height=made.height,
            width=made.width,
            duration_s=made.duration_s,
            num_calls=step.num_calls,
            denoise_s=made_s - started_s - made.encode_s - step.decode_s,
            decode_s=step.decode_s,
            encode_video_s=made.encode_s,
            upload_s=time.monotonic() - made_s,
            peak_memory_bytes=_peak_memory_bytes(self._backbone.device),
            device=_device_name(self._backbone.device),
            node=platform.node(),
            trace=step.trace,
            final_consistency=tuple(step.final_consistency),
        )


def plan_for(spec: BackboneSpec, settings: WorkerSettings, device: torch.device) -> MemoryPlan:
    """Where the model goes on this GPU.

    Raises:
        ModelError: if it does not fit, saying what would.
    """
    return plan_memory(
        architecture_of(spec, settings.revision),
        spec,
        settings.sampler,
        torch.cuda.get_device_properties(device).total_memory,
        _dtype(settings.dtype, device),
        getattr(torch, settings.text_dtype),
    )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class _out_of_memory_is_retryable:  # noqa: N801 (a context manager, named for how it reads)
    """Turns the GPU's out-of-memory error into one the coordinator retries on another worker."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            raise WorkerError(
                f"the GPU ran out of memory: {str(error).splitlines()[0]}",
                "use a card with more memory, or a smaller size",
            ) from error


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU for this video; of the process so far on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
