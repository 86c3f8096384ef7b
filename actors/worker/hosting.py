"""One attempt at one row, on the worker that hosts it.

Embeddings in → passes of the sampler (windows here and on helpers) → frames, decoded and encoded as they come → a local
MP4 → checked and put into storage → what the manifest needs to know of it. In between, checkpoints.

It comes in two halves, so that a GPU need not wait for a CPU or the network: `make` makes all passes, `finish` does
what is left, in another thread, while the next video is being made.
"""

from __future__ import annotations

import math
import platform
import resource
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from actors.messages import (
    Embedding,
    HelperFailed,
    Hosted,
    VideoCheckpointed,
    VideoEvent,
    VideoFailed,
    VideoNote,
    VideoProgress,
    VideoResult,
    VideoSuspended,
    VideoTask,
    WorkerSettings,
)
from actors.worker.gpu_clock import ClockedBackbone, GpuClock
from actors.worker.helpers import Helper, HelperPool
from actors.worker.scratch import new_folder
from actors.worker.shared_embeddings import SharedEmbeddings
from miga.backbones.base import Backbone
from miga.backbones.family import FrameMeter
from miga.backbones.registry import family_of
from miga.checkpoint import VideoCheckpoint, load_checkpoints, num_whole, save_checkpoint
from miga.errors import CheckpointError
from miga.image_condition import pictures_of
from miga.methods.causal.together import Lockstep
from miga.pictures import picture_of_bytes
from miga.video import Progress, VideoRun
from pipeline.records.run_folder import CheckpointName, newest_checkpoint, open_state_path
from pipeline.storage.base import Storage
from pipeline.video import Frames, VideoWriter


@dataclass(frozen=True)
class HostParts:
    """What a worker lends to the videos it hosts.

    Attributes:
        post: where news go.
        background: carries checkpoints to storage, one at a time.
        lockstep: where calls of videos that are made in step meet; None where one is made at a time.
        decoding: held while one of those is decoded.
    """

    backbone: Backbone
    clock: GpuClock
    settings: WorkerSettings
    storage: Storage
    post: Callable[[VideoEvent], None]
    background: Executor
    lockstep: Lockstep | None = None
    decoding: threading.Lock | None = None


class HostedVideo:
    """A video in the making. Whatever becomes of it, `discard` has to be called in the end.

    Args:
        parts: of the worker.
        task: what to make.
        negative: what guidance steers away from.
        prompts: one per prompt.

    Attributes:
        shared_embeddings: the same for its helpers.
    """

    def __init__(self, parts: HostParts, task: VideoTask, negative: Embedding, prompts: Sequence[Embedding]) -> None:
        self.task = task
        self.shared_embeddings = SharedEmbeddings([embedding for embedding, _ in (negative, *prompts)])
        self._parts = parts
        self._negative, self._prompts = negative, prompts
        self._folder = new_folder()
        self._suspend = threading.Event()
        self._device = parts.backbone.device
        self._in_step = None if parts.lockstep is None else parts.lockstep.join(task.num_latents)
        self._backbone = ClockedBackbone(parts.backbone, parts.clock, self._in_step, parts.decoding)
        self._lock = threading.Lock()
        self._helpers: Mapping[str, Helper] = {}
        self._pool: HelperPool | None = None
        self._run: VideoRun | None = None
        self._writer: VideoWriter | None = None
        self._last: Progress | None = None
        self._started_s = self._saved_at_s = time.monotonic()
        self._busy_before_s = parts.clock.busy_s
        self._made_s = 0.0
        self._peak_memory_bytes = 0
        self._resumed: VideoCheckpoint | None = None
        self._num_saved = 0
        self._saving: Future[None] | None = None
        self._meter: FrameMeter | None = None
        self._unsaved: list[torch.Tensor] = []  # finished latents that no stored part holds
        self._kept: list[torch.Tensor] = []

    # ---- from other threads ----

    def suspend(self) -> None:
        """Writes a checkpoint behind the next pass, and stops."""
        self._suspend.set()

    def set_helpers(self, helpers: Mapping[str, Helper]) -> None:
        """The helpers from now on."""
        with self._lock:
            self._helpers = helpers
            if self._pool is not None:
                self._pool.set_helpers(helpers)

    def hosted(self) -> Hosted:
        """How far it is; any thread may ask."""
        row, attempt, run = self.task.row, self.task.attempt, self._run
        if run is None:
            return Hosted(row=row, attempt=attempt, num_calls=0)
        searched = run.sampler_state.trace.searched
        return Hosted(
            row=row,
            attempt=attempt,
            num_calls=run.num_calls,
            num_searches=sum(searched),
            num_chances=max(0, len(searched) - 1),
        )

    # ---- the first half ----

    def make(self) -> bool:
        """Makes all passes.

        Returns:
            Whether it did; False if it was suspended, which has been posted.

        Raises:
            RowError: if this row cannot be made.
            WorkerError: if the worker, its disk or its GPU failed.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._begin()
        assert self._run is not None
        task = self.task
        for progress in self._steps:
            self._last = progress
            self._parts.post(
                VideoProgress(
                    row=task.row,
                    attempt=task.attempt,
                    num_latents_done=progress.num_latents_done,
                    num_calls=progress.num_calls,
                )
            )
            if self._run.is_denoised:
                break
            if self._suspend.is_set():
                self._save(wait=True)
                self._parts.post(VideoSuspended(row=task.row, attempt=task.attempt))
                return False
            if time.monotonic() - self._saved_at_s >= self._parts.settings.checkpoint_every_s:
                self._save(wait=False)
        self._made_s = time.monotonic()
        self._peak_memory_bytes = _peak_memory_bytes(self._device)
        if self._in_step is not None:
            self._in_step.leave()
            self._gpu_s = self._in_step.busy_s
        else:
            self._gpu_s = self._parts.clock.busy_s - self._busy_before_s
        if self._pool is not None:
            self._pool.close()
            self._gpu_s += self._pool.helper_s
        return True

    def _begin(self) -> None:
        task, settings = self.task, self._parts.settings
        prompts = [torch.from_numpy(np.array(embedding)) for embedding, _ in self._prompts]
        negative = torch.from_numpy(np.array(self._negative[0]))
        self._resumed = self._read_checkpoint()
        self._writer = VideoWriter(
            self._folder / "video.mp4",
            fps=self._parts.backbone.spec.fps,
            settings=settings.video,
            num_frames=task.num_frames,
        )
        if task.prompts:
            family, spec = family_of(settings.model, settings.revision), self._parts.backbone.spec
            starts = {"prompt_frames": task.prompt_frames} if task.prompt_frames else {}  # a family may know none
            self._meter = family.meter(spec, task.prompts, task.num_frames, **starts)
        if settings.sampler.windows_per_batch == 1:  # windows of a batch go through the network together, here
            with self._lock:
                denoiser = self._backbone.denoiser(settings.sampler)
                self._pool = HelperPool(denoiser, self._backbone.conditions, self._lost, settings.share)
                self._pool.set_helpers(self._helpers)
        self._run = VideoRun(
            self._backbone,
            settings.sampler,
            prompts,
            negative,
            task.num_latents,
            task.seed,
            prompt_starts=task.prompt_starts,
            executor=self._pool,
            resume=self._resumed,
            consume=self._take,
            has_checkpoints=task.checkpoints is not None or task.latents_path is not None,
            keeps_open=task.latents_path is not None,
            pictures=pictures_of(self._backbone, *map(_frame, (task.image, task.last_image))),
        )
        self._steps = self._run.steps()

    def _take(self, frames_FHWC: Frames) -> None:
        """Takes frames as they are decoded."""
        assert self._writer is not None
        self._writer.write(frames_FHWC)
        if self._meter is not None:
            self._meter.add(frames_FHWC)

    def _lost(self, helper: Helper, error: BaseException) -> None:
        self._parts.post(HelperFailed(helper=helper.name, error=str(error), is_dead=helper.is_dead(error)))

    def _note(self, text: str) -> None:
        self._parts.post(VideoNote(row=self.task.row, attempt=self.task.attempt, text=text))

    # ---- checkpoints ----

    def _read_checkpoint(self) -> VideoCheckpoint | None:
        """What an earlier attempt has left; None if nothing, or nothing that can be gone on with.

        Of an attempt whose parts are damaged those before count; if there are none, the attempt before it.
        """
        if self.task.resume_from is None:
            return None
        folder, _, name = self.task.resume_from.rpartition("/")
        last = CheckpointName.parse(name)
        if last is None:  # kept latents are one file
            return self._read_parts(folder, [name])
        found = self._read_parts(folder, list(map(str, last.parts())))
        while found is None and (last := self._attempt_before(folder, last)) is not None:
            found = self._read_parts(folder, list(map(str, last.parts())))
        return found

    def _attempt_before(self, folder: str, last: CheckpointName) -> CheckpointName | None:
        """The newest checkpoint of the attempts before that of another."""
        names = filter(None, map(CheckpointName.parse, self._parts.storage.children(folder)))
        return newest_checkpoint(str(name) for name in names if (name.epoch, name.attempt) < (last.epoch, last.attempt))

    def _read_parts(self, folder: str, names: Sequence[str]) -> VideoCheckpoint | None:
        """The checkpoint that files of storage make together, as far as they are whole."""
        files = [self._folder / name for name in names]
        try:
            for name, file in zip(names, files, strict=True):
                self._parts.storage.get_file(f"{folder}/{name}", file)
            return self._load_whole(folder, files)
        except FileNotFoundError:  # gone meanwhile
            return None
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def _load_whole(self, folder: str, files: Sequence[Path]) -> VideoCheckpoint | None:
        try:
            return load_checkpoints(
                files,
                config=self._parts.settings.sampler,
                num_latents=self.task.num_latents,
                seed=self.task.seed,
                device=self._device,
                num_prompts=len(self._prompts),
            )
        except CheckpointError as error:  # damaged, or of an older version
            what = error.message.replace(str(self._folder), self._parts.storage.uri(folder))
            self._note(f"{what}; what is whole before it is gone on with, else it is made from the start")
            num_left = num_whole(files)
            return self._load_whole(folder, files[:num_left]) if 0 < num_left < len(files) else None

    def _save(self, wait: bool) -> None:
        """Has a checkpoint written and carried to storage, unless the one before is still on its way.

        A storage that fails costs the checkpoint, not the video; the next part then holds what that one held.
        """
        if self._saving is not None and (wait or self._saving.done()):
            self._unsaved = self._unsaved if self._saving.exception() else []
            self._num_saved += not self._unsaved
            self._saving = None
        if self._saving is not None or self.task.checkpoints is None:
            return
        assert self._run is not None
        checkpoint = self._run.checkpoint()
        self._note_finished(checkpoint)
        checkpoint = replace(checkpoint, latents_FCHW=torch.cat(self._unsaved))
        self._unsaved = [checkpoint.latents_FCHW]
        name = CheckpointName(self.task.epoch, self.task.attempt, self._num_saved + 1)
        self._saving = self._parts.background.submit(self._carry, checkpoint, name)
        self._saved_at_s = time.monotonic()
        if wait and (error := self._saving.exception()):
            self._note(f"checkpoint {name} is lost: {error}")

    def _note_finished(self, checkpoint: VideoCheckpoint) -> None:
        """Keeps the latents that are new; at first what was resumed from, so that an attempt's parts are enough."""
        new = [checkpoint.latents_FCHW]
        if self._resumed is not None:
            new.insert(0, self._resumed.latents_FCHW)
            self._resumed = None
        self._unsaved += new
        if self.task.latents_path is not None:
            self._kept += new

    def _carry(self, checkpoint: VideoCheckpoint, name: CheckpointName) -> None:
        task, file = self.task, self._folder / str(name)
        save_checkpoint(checkpoint, file, config=self._parts.settings.sampler, seed=task.seed)
        path = f"{task.checkpoints}/{name}"
        try:
            self._parts.storage.put_file(file, path)
        finally:
            file.unlink(missing_ok=True)
        self._parts.post(
            VideoCheckpointed(row=task.row, attempt=task.attempt, path=path, num_calls=checkpoint.num_calls)
        )

    # ---- the second half ----

    def finish(self) -> VideoResult:
        """Decodes and encodes what is left, checks the file and puts it in its place.

        Raises:
            RowError, WorkerError: as `make`.
            OutputError: if it cannot be put there.
        """
        for progress in self._steps:
            self._last = progress
        assert self._writer is not None
        assert self._last is not None
        made = self._writer.finish()
        done_s = time.monotonic()
        latents_uri = self._keep_latents()
        self._parts.storage.put_file(made.path, self.task.path)
        return VideoResult(
            uri=self._parts.storage.uri(self.task.path),
            bytes=made.bytes,
            sha256=made.sha256,
            num_frames=made.num_frames,
            fps=made.fps,
            height=made.height,
            width=made.width,
            duration_s=made.duration_s,
            num_calls=self._last.num_calls,
            encode_text_s=sum(seconds for _, seconds in (self._negative, *self._prompts)),
            denoise_s=self._made_s - self._started_s,
            decode_s=self._last.decode_s,
            encode_video_s=made.encode_s,
            upload_s=time.monotonic() - done_s,
            gpu_s=self._gpu_s,
            num_helper_calls=0 if self._pool is None else self._pool.num_helper_calls,
            peak_memory_bytes=self._peak_memory_bytes,
            device=device_name(self._device),
            node=platform.node(),
            latents_uri=latents_uri,
            trace=self._last.trace,
            final_consistency=tuple(self._last.final_consistency),
            scores={} if self._meter is None else _finite(self._meter.values()),
        )

    def _keep_latents(self) -> str | None:
        """Puts all finished latents into storage, and the state that a longer video goes on from."""
        path = self.task.latents_path
        if path is None:
            return None
        assert self._run is not None
        config, seed, file = self._parts.settings.sampler, self.task.seed, self._folder / "latents.safetensors"
        final = self._run.checkpoint()
        self._note_finished(final)
        final = replace(final, latents_FCHW=torch.cat(self._kept))
        open_state = self._run.open_checkpoint()
        if open_state is not None:
            save_checkpoint(open_state, file, config=config, seed=seed)
            self._parts.storage.put_file(file, open_state_path(path))
        save_checkpoint(final, file, config=config, seed=seed)
        self._parts.storage.put_file(file, path)
        return self._parts.storage.uri(path)

    def discard(self) -> None:
        """Ends all threads of the video and removes its local files."""
        if self._in_step is not None:
            self._in_step.leave()  # first: a thread of the video's may wait for other videos
        if self._pool is not None:
            self._pool.close()
        if self._run is not None:
            self._run.close()
        if self._saving is not None:
            self._saving.cancel()
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def failed(self, error: BaseException, needs_new_process: bool) -> None:
        """Posts that the attempt ended in an error."""
        self._parts.post(VideoFailed.of(self.task.row, self.task.attempt, error, needs_new_process))


def _finite(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: float(score) for name, score in scores.items() if math.isfinite(score)}


def device_name(device: torch.device) -> str:
    """What the manifest calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU since this video began; of the process so far on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _frame(png: bytes | None) -> torch.Tensor | None:
    """The pixels of a fitted picture."""
    if png is None:
        return None
    picture = picture_of_bytes(png, "image")
    return picture.fitted(picture.rgb.height, picture.rgb.width)
