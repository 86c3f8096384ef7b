"""A prompt in, frames out as they are finished: what the Python API and the cluster's actors both run.

Legend: F latents or frames, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from miga.backbones.base import Backbone, FrameDecoder
from miga.checkpoint import START_AGAIN, VideoCheckpoint
from miga.config import SamplerConfig
from miga.decoding import ClipDecoder, Consume, Decoded, Decoding, FinishedLatents
from miga.denoise_pass import RunWindows
from miga.errors import BadRowError, CheckpointError
from miga.generate import Sampler, VideoState
from miga.image_condition import PictureRules, Pictures, require_pictures
from miga.methods import methods
from miga.methods.base import Features
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.queue import FrameQueue, map_queues
from miga.reflection import ReflectionTrace
from miga.wavefront import WindowExecutor, is_there, materialised


@dataclass(frozen=True)
class Progress:
    """One pass further, or one latent of those that are finished.

    Attributes:
        frames: finished frames that follow those of the step before, uint8 `[F, H, W, 3]`, of one latent; None where
            none are handed out.
        num_latents_done: latents whose frames have been handed out (or consumed).
        num_calls: network calls so far.
        decode_s: seconds spent on decoding so far.
        trace: what self-reflection has done so far.
        final_consistency: scores of the finished latents so far, chunk by chunk.
    """

    frames: np.ndarray | None
    num_latents_done: int
    num_calls: int
    decode_s: float
    trace: ReflectionTrace
    final_consistency: Sequence[float]


@dataclass(frozen=True)
class _Snapshot:
    """Where a video stood after a pass.

    Attributes:
        state: the sampler's.
        num_calls: network calls by then.
    """

    state: VideoState
    num_calls: int


class _Trail:
    """Of the snapshots added, a late one of which no latent is still to come (see `wavefront.py`).

    It holds three at most: the last one settled, the one that is waited for, and the last one added.
    """

    def __init__(self, start: _Snapshot | None) -> None:
        self.last = start
        self._settled: _Snapshot | None = None
        self._next = start

    def add(self, snapshot: _Snapshot) -> None:
        self.last = snapshot
        if self._next is None or is_there(self._next.state):
            self._settled, self._next = self._next, snapshot

    def settle(self, *, drops_missing: bool = False) -> None:
        """Waits for the last one; or drops the queues in it of which latents are still to come."""
        if self.last is not None:
            self._settled = replace(self.last, state=materialised(self.last.state, drops_missing=drops_missing))
            self.last = self._next = self._settled

    def settled(self) -> _Snapshot | None:
        """The last one that is there; if none is, one to wait for; None if none was added. It never goes back."""
        if self.last is not None and is_there(self.last.state):
            self._settled = self._next = self.last
        elif self._next is not None and is_there(self._next.state):
            self._settled, self._next = self._next, self.last
        return self._next if self._settled is None else self._settled  # asked often, it still waits for the same one


class VideoRun:
    """One video in the making.

    Frames are decoded in a thread of their own where that saves time: on a GPU, or where `consume` takes them. Of a
    backbone that has no room for both (`memory_plan.py`), latents are decoded between the network's calls.

    Args:
        backbone: the loaded model.
        config: the sampler's settings.
        prompt_embeddings: one per prompt, in turn (`Backbone.encode_prompts`).
        negative_embedding: what guidance steers away from.
        num_latents: length of the video; None for one without end.
        seed: of all its noise.
        latents_per_prompt: latents that stand under each prompt; by default an even share (of a video without end:
            one window).
        prompt_starts: first latent of each prompt, rising from 0, where shares are not even; empty: they are.
        features: what ScalingNoise's search compares latents by; None: the latents themselves.
        run_windows: who runs the windows of a pass; by default the backbone, `config.windows_per_batch` at a time.
        executor: runs the windows of many passes at once, here and elsewhere (`wavefront.py`), in place of
            `run_windows`; the frames are the same.
        resume: goes on from there (`load_checkpoints`): finished latents are decoded again from the first, so that the
            frames are those of an undisturbed run. One of a shorter video will do if it is open.
        consume: takes the frames, in order, in the thread that decodes; None: `steps` hands them out.
        has_checkpoints: whether `checkpoint` may be called; finished latents are kept for it until then.
        keeps_open: whether `open_checkpoint` may be called; all latents finished before it are kept.
        pictures: those that the video begins (and ends) with; None if there are none.

    Raises:
        BadRowError: if the video cannot be made with the pictures, or without, or under so many prompts.
        CheckpointError: if `resume` is of a video of another length.
        ValueError: if `num_latents` is below 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: SamplerConfig,
        prompt_embeddings: Sequence[torch.Tensor],
        negative_embedding: torch.Tensor,
        num_latents: int | None,
        seed: int,
        *,
        latents_per_prompt: int | None = None,
        prompt_starts: Sequence[int] = (),
        features: Features | None = None,
        run_windows: RunWindows | None = None,
        executor: WindowExecutor | None = None,
        resume: VideoCheckpoint | None = None,
        consume: Consume | None = None,
        has_checkpoints: bool = True,
        keeps_open: bool = False,
        pictures: Pictures | None = None,
    ) -> None:
        if pictures is None:
            is_needed = methods()[config.method].needs_picture or bool(config.later_windows)
            require_pictures(PictureRules(is_needed=is_needed), None)
        if reason := config.why_no_prompts(len(prompt_embeddings), backbone.spec):
            raise BadRowError(reason, "give one prompt, or take one of these profiles")
        conditions = [backbone.condition(embedding, negative_embedding) for embedding in prompt_embeddings]
        track = _prompt_track(conditions, config, num_latents, latents_per_prompt, tuple(prompt_starts))
        self._has_fixed_prompts = len(conditions) == 1 or latents_per_prompt is not None or bool(prompt_starts)
        self._shape = backbone.spec.latent_shape
        noise = NamedNoise(seed, self._shape, backbone.device)
        self.num_latents = num_latents
        denoiser = backbone.denoiser(config)
        self.sampler = Sampler(
            denoiser, config, track, noise, num_latents, run_windows, features=features, executor=executor,
            pictures=pictures,
        )  # fmt: skip
        if resume is None:
            with torch.inference_mode():  # a chain encodes its first picture
                state = self.sampler.start()
        else:
            _check_length(resume, num_latents)
            device = backbone.device
            state = map_queues(resume.state, lambda queue: queue.to(device), lambda tensor: tensor.to(device))
            self.sampler.restore(resume.latents_FCHW)
            self.sampler.num_calls = resume.num_calls
        self._device = backbone.device
        self._num_calls_before = self.sampler.num_calls
        self._now = _Snapshot(state, self.sampler.num_calls)
        self._past = _Trail(self._now)
        self._has_checkpoints = has_checkpoints
        self._since_checkpoint: list[FinishedLatents] = []
        self._keeps_open = keeps_open
        self._open = _Trail(None)
        self._since_start: list[FinishedLatents] = []
        self._decoded = Decoded(None, 0, 0.0, ())
        in_background = consume is not None or executor is not None or backbone.device.type == "cuda"
        self._decoding = Decoding(
            _decoder(backbone, config, num_latents),
            backbone.device,
            consume,
            in_background,
            num_latents is not None,
            getattr(backbone, "decodes_beside", True),  # of a plan: models of the user's own have none
        )
        self._finished_before = None if resume is None else _finished_before(resume)
        if keeps_open and self._finished_before is not None:
            self._since_start.append(self._finished_before)
        self._remember()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sampler_state(self) -> VideoState:
        """The state after the last pass; with an executor its latents may still be to come."""
        return self._now.state

    def steps(self) -> Iterator[Progress]:
        """Makes the video, a pass at a time, in memory that does not grow with its length.

        Frames leave latent by latent: the last pass of a video finishes all that Stage 2 still held, on Wan2.1 up to
        180 latents, whose frames together would be 0.8 GiB.

        Raises:
            RowError: if the video cannot be made.
            Whatever the network, the decoder or `consume` raised.
        """
        try:
            if self._finished_before is not None:
                self._decoding.put(self._finished_before, is_urgent=False)
            while not self.sampler.is_done(self._now.state):
                self._advance()
                num_yielded = 0
                while (decoded := self._decoding.take(wait=self._decoding.is_behind)) is not None:
                    num_yielded += 1
                    yield self._progress(decoded)
                if not num_yielded:
                    yield self._progress(self._decoded)
            while (decoded := self._decoding.take(wait=True)) is not None:
                yield self._progress(decoded)
            self._open.settle()
            self._past.settle(drops_missing=True)  # nothing is gone on with from a finished video
        finally:
            self.close()

    @property
    def num_calls(self) -> int:
        """Network calls that have ended; any thread may ask."""
        wavefront = self.sampler.wavefront
        return self.sampler.num_calls if wavefront is None else self._num_calls_before + wavefront.num_done

    @property
    def is_denoised(self) -> bool:
        """Whether no window is left: what `steps` has not handed out yet is only to be decoded."""
        wavefront = self.sampler.wavefront
        return self.sampler.is_done(self._now.state) and (wavefront is None or wavefront.is_idle)

    def checkpoint(self) -> VideoCheckpoint:
        """What the video can be gone on with from, between two steps.

        It holds the latents finished since the one before (of a resumed run, since that which it went on from), so all
        of them belong together. With an executor it stands for the last pass of which nothing is to come any more,
        which may be some passes back; it waits only where there is none. That of a finished video holds its last
        latents and the trace.
        """
        assert self._has_checkpoints, "this run keeps nothing for checkpoints"
        snapshot = self._past.settled()
        assert snapshot is not None, "a run starts in a state"
        num_done = snapshot.state.num_finished
        finished = [latents for latents in self._since_checkpoint if latents.first < num_done]
        self._since_checkpoint = self._since_checkpoint[len(finished) :]
        return self._checkpoint_of(snapshot, finished)

    def open_checkpoint(self) -> VideoCheckpoint | None:
        """The last checkpoint that a longer video may go on from, with all latents finished before it; None if none.

        It stands for the video from its first latent on, whatever other checkpoints there are.
        """
        assert self._keeps_open, "this run keeps no open state"
        snapshot = self._open.settled()
        if snapshot is None:
            return None
        num_done = snapshot.state.num_finished
        finished = [latents for latents in self._since_start if latents.first < num_done]
        return replace(self._checkpoint_of(snapshot, finished), is_open=True)

    def close(self) -> None:
        """Ends the threads of this run; what it has not handed out is lost."""
        self.sampler.close()  # first: the decoder may be waiting for latents that now will not come
        self._decoding.close()

    def _advance(self) -> None:
        """One pass further; what it finishes goes to the decoder."""
        with torch.inference_mode():  # not around a yield: the caller's code must not run in it
            state, finished = self.sampler.advance_queue(self._now.state)
        self._now = _Snapshot(state, self.sampler.num_calls)
        if finished is not None:
            latents = FinishedLatents(finished, self._device)
            if self._has_checkpoints:
                self._since_checkpoint.append(latents)
            if self._keeps_open:
                self._since_start.append(latents)
            self._decoding.put(latents)
        self._remember()

    def _remember(self) -> None:
        """Keeps the state, also as the last open one if it is; once it is not, later latents are not needed for it."""
        if self._has_checkpoints:
            self._past.add(self._now)
        if not self._keeps_open:
            return
        state = self._now.state
        if self.sampler.is_open(state) and (self._has_fixed_prompts or state.base is not None):
            self._open.add(self._now)
        else:
            num_done = 0 if self._open.last is None else self._open.last.state.num_finished
            self._since_start = [latents for latents in self._since_start if latents.first < num_done]

    def _checkpoint_of(self, snapshot: _Snapshot, finished: Sequence[FinishedLatents]) -> VideoCheckpoint:
        parts = [torch.zeros(0, *self._shape), *(latents.on_cpu() for latents in finished)]
        state = materialised(snapshot.state)
        return VideoCheckpoint(state, torch.cat(parts), self.num_latents, snapshot.num_calls)

    def _progress(self, decoded: Decoded) -> Progress:
        self._decoded = replace(decoded, frames=None)
        return Progress(
            decoded.frames,
            decoded.num_latents,
            self._now.num_calls,
            decoded.decode_s,
            self._now.state.trace,
            decoded.scores,
        )


def make_video(
    backbone: Backbone,
    config: SamplerConfig,
    prompt_embeddings: Sequence[torch.Tensor],
    negative_embedding: torch.Tensor,
    num_latents: int | None,
    seed: int,
    *,
    latents_per_prompt: int | None = None,
    prompt_starts: Sequence[int] = (),
    run_windows: RunWindows | None = None,
    features: Features | None = None,
    pictures: Pictures | None = None,
) -> Iterator[Progress]:
    """Makes one video without checkpoints, a pass at a time; see `VideoRun` for the arguments and `VideoRun.steps`."""
    run = VideoRun(
        backbone,
        config,
        prompt_embeddings,
        negative_embedding,
        num_latents,
        seed,
        latents_per_prompt=latents_per_prompt,
        prompt_starts=prompt_starts,
        run_windows=run_windows,
        features=features,
        has_checkpoints=False,
        pictures=pictures,
    )
    yield from run.steps()


def _decoder(backbone: Backbone, config: SamplerConfig, num_latents: int | None) -> FrameDecoder:
    """What turns a video's latents into its frames, in the way that its clips are joined."""
    if config.clips is None:
        return backbone.frame_decoder()
    return ClipDecoder(backbone.frame_decoder, config.clips, backbone.spec, num_latents)


def _prompt_track(
    conditions: Sequence[Any],
    config: SamplerConfig,
    num_latents: int | None,
    latents_per_prompt: int | None,
    starts: tuple[int, ...],
) -> PromptTrack:
    if starts:
        return PromptTrack(conditions, starts=starts)
    if latents_per_prompt is not None:
        return PromptTrack(conditions, latents_per_prompt)
    if num_latents is not None:
        return PromptTrack.spread(conditions, num_latents)
    return PromptTrack(conditions, config.window)


def _check_length(checkpoint: VideoCheckpoint, num_latents: int | None) -> None:
    """Raises CheckpointError unless a video of that length may go on from there."""
    there = checkpoint.num_latents
    if there == num_latents:
        return
    if checkpoint.is_open and there is not None and num_latents is not None and there < num_latents:
        return
    raise CheckpointError(
        f"the checkpoint is of a video of {there} latents, not {num_latents}"
        + ("" if checkpoint.is_open else ", and depends on that length already"),
        START_AGAIN,
    )


def _finished_before(checkpoint: VideoCheckpoint) -> FinishedLatents | None:
    """A checkpoint's latents, all of them from the first; None if there are none."""
    if checkpoint.first_latent:
        raise CheckpointError(
            f"latents 0 ... {checkpoint.first_latent - 1} are missing from the checkpoint",
            "join it with the ones before it (load_checkpoints, join_checkpoints)",
        )
    if not checkpoint.num_latents_done:
        return None
    level_F = torch.zeros(checkpoint.num_latents_done, dtype=torch.int64)
    return FinishedLatents(FrameQueue(checkpoint.latents_FCHW, level_F, {}), torch.device("cpu"))
