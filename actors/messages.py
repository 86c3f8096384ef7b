"""What coordinator and workers say to each other: plain values, which Ray carries.

The coordinator tells a worker what to do by calls that return nothing, and asks it for its news by one call that is
answered when there are some (`BackboneWorker.answer`). So a worker always has one call open, whose failure tells of its
death, whatever it was doing; and a thousand workers cost the coordinator a few answers a second.

Question and answer go as bytes (`packed`), which Ray carries as they are. What it pickles itself it pickles in Python,
class by class: for a row whose video takes no time that was the most costly step of all, on both sides.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Final, Literal, Self, TypeAlias

import numpy as np
from ray.exceptions import OutOfMemoryError, RayActorError

from miga.backbones.family import ModelOptions
from miga.config import SamplerConfig
from miga.errors import MigaError, Scope
from miga.reflection import ReflectionTrace
from miga.sharing import Share
from miga.video_config import VideoConfig

DEATHS: Final = (RayActorError, OutOfMemoryError)
"""What a call ends with whose actor is gone; the second where Ray's memory monitor killed it."""

Embedding: TypeAlias = tuple[np.ndarray, float]
"""Of a prompt, `[tokens, channels]`, and the seconds that encoding it took."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What every worker of a run is told once.

    Attributes:
        share: which windows of a video helpers take.
        checkpoint_every_s: how often a video in the making is saved.
        keep_latents: whether finished latents are put beside the videos.
        storage_patience_s: seconds that the server of OUT may be gone; None: what the worker's environment says.
        longest_latents: latents of the run's longest video, where memory grows with that; None where it does not.
        videos_per_actor: videos that it makes at once, in step; "auto": as many as its GPU has memory for.
        longest_wait_s: how long a video in step may wait for one that is behind, a call long.
    """

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
    share: Share = "windows"
    checkpoint_every_s: float = 120.0
    keep_latents: bool = False
    storage_patience_s: float | None = None
    longest_latents: int | None = None
    videos_per_actor: int | Literal["auto"] = 1
    longest_wait_s: float = 20.0


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What a worker says of itself once its backbone is loaded.

    Attributes:
        num_videos: that it makes at once.
    """

    device: str
    node: str
    node_id: str
    revision: str
    pid: int
    num_videos: int = 1


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """One attempt at one row.

    Attributes:
        row, attempt: which.
        num_latents, num_frames: length of the video.
        seed: of its noise.
        path: where in storage the file goes.
        checkpoints: folder in storage that its checkpoints go into; None: it makes none.
        epoch: of the run's lease, which names them.
        resume_from: path of the last part of a checkpoint to start from; None: from nothing.
        latents_path: where its finished latents go; None: they are not kept.
        prompts: of the video, in words, if its scores are to be read off its frames; else none.
        prompt_frames, prompt_starts: frame and latent at which each prompt begins; empty: they have even shares.
        image, last_image: pictures that it begins and ends with, fitted to its frames, as PNGs; None for none.
    """

    row: int
    attempt: int
    num_latents: int
    num_frames: int
    seed: int
    path: str
    checkpoints: str | None = None
    epoch: int = 1
    resume_from: str | None = None
    latents_path: str | None = None
    prompts: tuple[str, ...] = ()
    prompt_frames: tuple[int, ...] = ()
    prompt_starts: tuple[int, ...] = ()
    image: bytes | None = None
    last_image: bytes | None = None


class _Packed:
    """A message that goes as bytes."""

    def packed(self) -> bytes:
        """The message as bytes."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """The message that was packed."""
        message = pickle.loads(data)
        assert isinstance(message, cls)
        return message


@dataclass(frozen=True, kw_only=True)
class Question(_Packed):
    """What a worker is asked for its news with.

    Attributes:
        timeout_s: how long it may wait for something worth telling.
        task: what it is to begin first, if anything.
    """

    timeout_s: float
    task: VideoTask | None = None


# ---- news of an attempt ----


@dataclass(frozen=True, kw_only=True)
class VideoProgress:
    """How far an attempt is."""

    row: int = 0
    attempt: int = 0
    num_latents_done: int
    num_calls: int


@dataclass(frozen=True, kw_only=True)
class VideoCheckpointed:
    """A checkpoint of the attempt is in storage: `path` is its last part."""

    row: int
    attempt: int
    path: str
    num_calls: int


@dataclass(frozen=True, kw_only=True)
class VideoNote:
    """Something of an attempt that the user should know of, and that does not end it."""

    row: int
    attempt: int
    text: str


@dataclass(frozen=True, kw_only=True)
class VideoSuspended:
    """The attempt has stopped as it was asked to, behind a checkpoint."""

    row: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class VideoMade:
    """All passes of the attempt are done: the worker may begin another, while this one is finished and uploaded."""

    row: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """A finished video, in its place.

    Attributes:
        gpu_s: seconds of network calls that it took, on all GPUs together; of a call for several videos its share.
        num_helper_calls: network calls that helpers made.
        scores: read off its frames, by name, if that was asked for.
    """

    uri: str
    bytes: int
    sha256: str
    num_frames: int
    fps: float
    height: int
    width: int
    duration_s: float
    num_calls: int
    encode_text_s: float
    denoise_s: float
    decode_s: float
    encode_video_s: float
    upload_s: float
    gpu_s: float
    num_helper_calls: float
    peak_memory_bytes: int
    device: str
    node: str
    latents_uri: str | None
    trace: ReflectionTrace
    final_consistency: tuple[float, ...]
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VideoFinished:
    """The attempt's video is in its place."""

    row: int
    attempt: int
    result: VideoResult


@dataclass(frozen=True, kw_only=True)
class VideoFailed:
    """The attempt, or finishing its video, ended in an error.

    Attributes:
        needs_new_process: whether the worker's process is not to be used again, as after an out-of-memory error.
    """

    row: int
    attempt: int
    error_type: str
    error: str
    scope: Scope
    retryable: bool
    needs_new_process: bool = False

    @classmethod
    def of(cls, row: int, attempt: int, error: BaseException, needs_new_process: bool = False) -> VideoFailed:
        """What the coordinator is to know of an error; one that is not of this project's tree is the row's."""
        is_known = isinstance(error, MigaError)
        return cls(
            row=row,
            attempt=attempt,
            error_type=type(error).__name__,
            error=str(error),
            scope=error.scope if is_known else "row",
            retryable=is_known and error.retryable,
            needs_new_process=needs_new_process,
        )


@dataclass(frozen=True, kw_only=True)
class HelperFailed:
    """A helper could not compute a window, and has been dropped; its window went to another.

    Attributes:
        helper: its name.
        is_dead: whether its process is gone, or not to be reached.
    """

    helper: str
    error: str
    is_dead: bool


VideoEvent: TypeAlias = (
    VideoProgress
    | VideoCheckpointed
    | VideoNote
    | VideoSuspended
    | VideoMade
    | VideoFinished
    | VideoFailed
    | HelperFailed
)


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """How far a video is that a worker hosts just now.

    Attributes:
        row, attempt: which.
        num_calls: network calls that have ended, its helpers' and those before its checkpoint included. (A
            `VideoProgress` counts those that are planned, too, which may be some windows more.)
        num_searches: of self-reflection so far.
        num_chances: evaluations so far that might have started one: all but the first.
    """

    row: int
    attempt: int
    num_calls: int
    num_searches: int = 0
    num_chances: int = 0


@dataclass(frozen=True, kw_only=True)
class News(_Packed):
    """What has happened on a worker since it was asked before.

    Attributes:
        events: in their order; of several `VideoProgress` of an attempt the last.
        num_calls: network calls of its GPU so far.
        busy_s: seconds that these took.
        call_running_s: how long the call that runs just now has been running; 0 if none does.
        call_s: seconds of one call, the middle one of the last few; None before the first.
        hosted: how far the videos are that it hosts.
    """

    events: tuple[VideoEvent, ...] = ()
    num_calls: float = 0.0
    busy_s: float = 0.0
    call_running_s: float = 0.0
    call_s: float | None = None
    hosted: tuple[Hosted, ...] = ()
