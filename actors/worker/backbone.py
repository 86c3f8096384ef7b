"""A worker: one loaded backbone, which hosts a video, or helps other hosts with single windows.

`pool.py` makes it a Ray actor.

It keeps nothing but its weights: whatever a video needs to be gone on with elsewhere is in storage.
"""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from actors.messages import (
    DEATHS,
    Embedding,
    News,
    Question,
    VideoFailed,
    VideoFinished,
    VideoMade,
    VideoTask,
    WorkerInfo,
    WorkerSettings,
)
from actors.worker.gpu_clock import ClockedBackbone, GpuClock
from actors.worker.hosting import HostedVideo, HostParts, device_name
from actors.worker.outbox import Outbox
from actors.worker.scratch import remove_abandoned
from actors.worker.shared_embeddings import SharedEmbeddings
from miga.allocator import keep_heap_steady
from miga.backbones.base import BackboneSpec, Condition
from miga.backbones.loading import named_dtype
from miga.backbones.memory_plan import Footprint, MemoryPlan, plan_memory
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import footprint_of, load_backbone, load_spec, simulates_gpus
from miga.denoise_pass import WindowCall, run_call
from miga.errors import CheckpointError, WorkerError
from miga.methods.causal.together import Lockstep
from pipeline.storage.open import open_storage
from pipeline.video import space_fault

CONCURRENCY_GROUPS: Final = {"news": 1, "control": 1, "windows": 2}
"""Calls that are answered while a video is being made."""

NUM_EARLY: Final = 256
"""Videos not begun yet that word was sent for, and that it is kept of."""
NUM_HELPED: Final = 4
"""Videos of other hosts whose prompts a helper remembers."""


class BackboneWorker:
    """Holds a backbone, once `load` has been called."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._clock = GpuClock()
        self._outbox = Outbox()
        self._lock = threading.Lock()
        self._hosted: dict[tuple[int, int], HostedVideo] = {}
        self._early: OrderedDict[tuple[int, int], list[Callable[[HostedVideo], None]]] = OrderedDict()
        self._lockstep: Lockstep | None = None
        self._making = ThreadPoolExecutor(1, thread_name_prefix="miga-make")
        self._carrying = ThreadPoolExecutor(1, thread_name_prefix="miga-carry")
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix="miga-finish")
        self._decoding = threading.Lock()
        self._helped: OrderedDict[str, list[Condition]] = OrderedDict()

    def load(self) -> WorkerInfo:
        """Loads the backbone.

        On a GPU it is first seen how it fits (`memory_plan.py`), and it is made so before it takes the GPU's memory.

        Raises:
            ModelError: if it cannot be loaded, or the GPU has too little memory for it.
        """
        keep_heap_steady()
        remove_abandoned()
        settings = self._settings
        torch.set_num_threads(settings.num_threads)
        device = torch.device("cpu" if simulates_gpus(settings.model) else settings.device)
        spec = configured_spec(load_spec(settings.model, settings.revision), settings.options, settings.revision)
        footprint = footprint_of(settings.model, settings.revision) if device.type == "cuda" else None
        longest = settings.longest_latents
        memory = None if footprint is None else plan_for(footprint, spec, settings, device, longest)
        num_videos = settings.videos_per_actor
        if num_videos == "auto":
            num_videos = 1 if memory is None else memory.num_videos
        self._backbone = load_backbone(
            settings.model,
            revision=settings.revision,
            device="cpu" if memory else device,
            dtype=named_dtype(settings.dtype, device.type),
            components=("denoiser", "vae"),
        )
        configure(self._backbone, settings.options, revision=settings.revision, device=device, memory=memory)
        self._denoiser = ClockedBackbone(self._backbone, self._clock).denoiser(settings.sampler)
        if num_videos > 1:
            self._lockstep = Lockstep(self._denoiser, self._denoiser.timed_call, settings.longest_wait_s)
            self._making = ThreadPoolExecutor(num_videos, thread_name_prefix="miga-make")
            self._finishing = ThreadPoolExecutor(num_videos, thread_name_prefix="miga-finish")
        self._storage = open_storage(settings.out, settings.storage_patience_s)
        return WorkerInfo(
            device=device_name(self._backbone.device),
            node=platform.node(),
            node_id=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
            revision=self._backbone.spec.revision,
            pid=os.getpid(),
            num_videos=num_videos,
        )

    def measure(self, negative: Embedding) -> float:
        """Seconds of one whole window. The first call of a process is slower, and does not count."""
        spec, config = self._backbone.spec, self._settings.sampler
        embedding = torch.from_numpy(np.array(negative[0]))
        channels, height, width = spec.latent_shape
        condition, num_channels = self._backbone.condition(embedding, embedding), spec.num_condition_channels
        if num_channels:
            backbone: Any = self._backbone
            blank = torch.zeros(1, 3, spec.height, spec.width, device=self._backbone.device)
            condition = backbone.with_image(condition, backbone.image_tokens(blank))
        call = WindowCall(
            torch.zeros(config.window, channels + num_channels, height, width, device=self._backbone.device),
            torch.full((config.window,), config.num_steps),
            condition,
        )
        for _ in range(2):
            started_s = time.monotonic()
            with torch.inference_mode():
                run_call(self._denoiser, call)
        return time.monotonic() - started_s

    # ---- hosting ----

    @ray.method(concurrency_group="control")
    def begin(self, task: VideoTask, negative: Embedding, *prompts: Embedding) -> None:
        """Has a video made, behind those that were begun before where it makes no more; what comes of it is news."""
        self._making.submit(self.make_video, task, negative, *prompts)

    def make_video(self, task: VideoTask, negative: Embedding, *prompts: Embedding) -> None:
        """Makes one video; what comes of it is in the news. It returns when the next may be begun."""
        parts = HostParts(
            self._backbone, self._clock, self._settings, self._storage, self._outbox.post, self._carrying,
            self._lockstep, None if self._lockstep is None else self._decoding,
        )  # fmt: skip
        try:
            video = HostedVideo(parts, task, negative, prompts)
        except Exception as error:
            self._fail(task, error)
            return
        with self._lock:
            self._hosted[task.row, task.attempt] = video
            for told in self._early.pop((task.row, task.attempt), []):
                told(video)
        is_made = False
        try:
            if is_made := video.make():
                self._outbox.post(VideoMade(row=task.row, attempt=task.attempt))
        except Exception as error:
            self._fail(task, error)
        finally:
            with self._lock:
                del self._hosted[task.row, task.attempt]
            if is_made:
                self._finishing.submit(self._finish, video)
            else:
                video.discard()

    def _finish(self, video: HostedVideo) -> None:
        task = video.task
        try:
            result = video.finish()
            self._outbox.post(VideoFinished(row=task.row, attempt=task.attempt, result=result))
        except Exception as error:
            self._fail(task, error)
        finally:
            video.discard()

    def _fail(self, task: VideoTask, error: Exception) -> None:
        is_memory = isinstance(error, torch.OutOfMemoryError)
        if is_memory:
            error = WorkerError(
                f"the GPU ran out of memory: {str(error).splitlines()[0]}",
                "use a card with more memory, or a smaller size",
            )
        elif isinstance(error, OSError | CheckpointError):  # of this machine's disk or network, not of the row
            fault = WorkerError(f"{type(error).__name__}: {error}")
            error = space_fault(Path(tempfile.gettempdir()), fault)
        self._outbox.post(VideoFailed.of(task.row, task.attempt, error, needs_new_process=is_memory))

    @ray.method(num_returns=0, concurrency_group="control")
    def set_helpers(self, row: int, attempt: int, helpers: Sequence[tuple[str, Any]]) -> None:
        """Gives the attempt these helpers (key and actor), and no others, from now on."""

        def give(video: HostedVideo) -> None:
            shared = video.shared_embeddings
            video.set_helpers({key: _RayHelper(key, actor, shared) for key, actor in helpers})

        self._tell(row, attempt, give)

    @ray.method(num_returns=0, concurrency_group="control")
    def suspend(self, row: int, attempt: int) -> None:
        """Writes a checkpoint of the attempt as soon as it can, and stops it."""
        self._tell(row, attempt, HostedVideo.suspend)

    def _tell(self, row: int, attempt: int, told: Callable[[HostedVideo], None]) -> None:
        """Tells the attempt, or notes it down: the call may have come before the one that begins the attempt."""
        with self._lock:
            video = self._hosted.get((row, attempt))
            if video is not None:
                told(video)
                return
            self._early.setdefault((row, attempt), []).append(told)
            while len(self._early) > NUM_EARLY:  # what was meant for videos that are over
                self._early.popitem(last=False)

    # ---- helping ----

    @ray.method(concurrency_group="windows")
    def open_video(self, token: str, negative_embedding: np.ndarray, *prompt_embeddings: np.ndarray) -> None:
        """Remembers the prompts of a video that windows are to be computed for, under a name."""
        negative = torch.from_numpy(np.array(negative_embedding))
        conditions = [
            self._backbone.condition(torch.from_numpy(np.array(embedding)), negative) for embedding in prompt_embeddings
        ]
        with self._lock:
            self._helped[token] = conditions
            self._helped.move_to_end(token)
            while len(self._helped) > NUM_HELPED:
                self._helped.popitem(last=False)

    @ray.method(concurrency_group="windows")
    def run_window(
        self,
        token: str,
        prompt: int,
        x_FCHW: np.ndarray,
        level_F: np.ndarray,
        branch: int | None,
        position_F: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """Computes a window of another host's video (see `run_call`); returns the seconds it took, too.

        Raises:
            WorkerError: if it was never told of that video, or the GPU is out of memory.
        """
        with self._lock:
            conditions = self._helped.get(token)
        if conditions is None:
            raise WorkerError(f"no video {token} was opened here")
        device, started_s = self._backbone.device, time.monotonic()
        x, level = torch.from_numpy(np.array(x_FCHW)).to(device), torch.from_numpy(np.array(level_F))
        position = None if position_F is None else torch.from_numpy(np.array(position_F))
        try:
            with torch.inference_mode():
                output = run_call(self._denoiser, WindowCall(x, level, conditions[prompt], branch, position))
        except torch.OutOfMemoryError as error:
            raise WorkerError(f"the GPU ran out of memory: {str(error).splitlines()[0]}") from error
        return output.cpu().numpy(), time.monotonic() - started_s

    # ---- telling ----

    @ray.method(concurrency_group="news", enable_task_events=False)
    def answer(self, question: bytes, *embeddings: Embedding) -> bytes:
        """Begins what it is told to, then answers with its `news`, packed.

        Args:
            question: a packed `Question`.
            embeddings: of its task: of the negative prompt, then of the others.
        """
        asked = Question.unpacked(question)
        if asked.task is not None:
            self._making.submit(self.make_video, asked.task, *embeddings)
        return self.news(asked.timeout_s).packed()

    def news(self, timeout_s: float) -> News:
        """What has happened since the last time; waits for something worth telling, but no longer than that."""
        events = self._outbox.take(timeout_s)
        clock = self._clock
        with self._lock:
            videos = list(self._hosted.values())
        return News(
            events=events,
            num_calls=clock.num_calls,
            busy_s=clock.busy_s,
            call_running_s=clock.call_running_s,
            call_s=clock.call_s,
            hosted=tuple(video.hosted() for video in videos),
        )


class _RayHelper:
    """See `actors.worker.helpers.Helper`."""

    def __init__(self, name: str, actor: Any, video: SharedEmbeddings) -> None:
        self.name = name
        self._actor, self._video = actor, video

    def open_video(self) -> None:
        ray.get(self._actor.open_video.remote(self._video.token, *self._video.references()))

    def run_window(
        self,
        prompt: int,
        x_FCHW: np.ndarray,
        level_F: np.ndarray,
        branch: int | None,
        position_F: np.ndarray | None,
    ) -> tuple[np.ndarray, float]:
        try:
            answer: tuple[np.ndarray, float] = ray.get(
                self._actor.run_window.remote(self._video.token, prompt, x_FCHW, level_F, branch, position_F)
            )
        except RayTaskError as error:
            raise error.cause from None
        return answer

    def is_dead(self, error: BaseException) -> bool:
        return isinstance(error, DEATHS)


def plan_for(
    footprint: Footprint,
    spec: BackboneSpec,
    settings: WorkerSettings,
    device: torch.device,
    num_latents: int | None = None,
) -> MemoryPlan:
    """Where the model goes on this GPU, for videos of so many latents where memory grows with that.

    Raises:
        ModelError: if it does not fit, saying what would.
    """
    return plan_memory(
        footprint,
        spec,
        settings.sampler,
        torch.cuda.get_device_properties(device).total_memory,
        named_dtype(settings.dtype, device.type),
        getattr(torch, settings.text_dtype),
        text_on_card=settings.text_gpus > 0,
        num_latents=num_latents,
        num_videos=settings.videos_per_actor,
    )
