"""Makes a longer video on this machine, by a worker in this process, and puts it into OUT."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from jobs.extension.files import read_note
from jobs.extension.plan import Extension, plan_extension
from jobs.run.make import costs_of
from jobs.run.plan import model_options
from miga.errors import ModelError, OutputError, RowError, WorkerError
from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.records.lease import Lease
from pipeline.records.manifest import portable
from pipeline.records.run_folder import CheckpointName, newest_checkpoint
from pipeline.rows import ManifestRow, PromptRow, first_frames
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from actors.driver.progress import ProgressBoard
    from actors.messages import VideoResult, VideoTask, WorkerSettings

_HERE: Final = "here"
"""What the worker of this process is called."""


def extend_shown(
    out: str, key: str, num_frames: int, *, model: str | None = None, trust: bool = False, quiet: bool = False
) -> ManifestRow:
    """Makes the longer video of a row, and shows how far it is as a run does; returns its row.

    Args:
        out: of the run.
        key: as `find_row`.
        num_frames: of the longer video.
        model: as `plan_extension`.
        trust: as `plan_extension`.
        quiet: whether to show no progress.

    Raises:
        MigaError: if it cannot be made.
    """
    from actors.driver.progress import ProgressBoard

    storage = open_storage(out)
    extension = plan_extension(storage, key, num_frames, model=model, trust=trust)
    board = ProgressBoard(1, quiet=quiet, cost_of=costs_of(extension.spec, extension.sampler, "nothing"))
    with contextlib.closing(board):
        return extend(storage, extension, board)


def extend(storage: Storage, extension: Extension, board: ProgressBoard) -> ManifestRow:
    """Makes the longer video on this machine, and puts it into OUT; what is there already is not made again.

    Args:
        storage: of OUT.
        extension: what to make.
        board: shows how far it is, in calls of the network, those that the kept latents took included.

    Raises:
        LeaseHeldError: if another process is making the same one.
        MigaError: if it cannot be made.
    """
    if (made := _made(storage, extension)) is not None:
        return made
    run = extension.config.run
    place = open_storage(storage.uri(f"{extension.stem}-lease"))
    place.probe(single_coordinator=run.single_coordinator)
    with Lease.held(place, ttl_s=run.lease_ttl_s, say=board.say) as lease:
        made = _made(storage, extension) or _make_and_note(storage, extension, lease, board)
    place.delete_many(place.list())  # of whoever waited for this one, too: it finds the video
    return made


def _made(storage: Storage, extension: Extension) -> ManifestRow | None:
    """The row of the longer video, if it is there.

    Raises:
        OutputError: if what is there is another, or has lost its video.
    """
    note, video = f"{extension.stem}.json", f"{extension.stem}.mp4"
    if not storage.exists(note):
        return None
    row = read_note(storage, extension.record, note.rpartition("/")[2])
    hint = f"delete {storage.uri(note)}, and extend that row again"
    if row.key != extension.key:
        raise OutputError(f"{storage.uri(note)} is of another video: its key is {row.key}", hint)
    if not storage.exists(video) or storage.stat(video).bytes != row.bytes:
        raise OutputError(f"{storage.uri(video)} is not there, or not of the size that its row says", hint)
    return row


def _make_and_note(storage: Storage, extension: Extension, lease: Lease, board: ProgressBoard) -> ManifestRow:
    from actors.messages import VideoTask

    checkpoints = f"{extension.stem}-checkpoint"
    names = storage.children(checkpoints)
    newest = newest_checkpoint(names)
    row = extension.row
    assert row.seed is not None
    epoch = 1 + max((name.epoch for name in _names(names)), default=0)
    frames = first_frames(row, extension.spec.fps)
    task = VideoTask(
        row=row.row,
        attempt=1,
        num_latents=extension.spec.num_latents(extension.num_frames),
        num_frames=extension.num_frames,
        seed=row.seed,
        path=f"{extension.stem}.mp4",
        checkpoints=checkpoints,
        epoch=epoch,
        prompt_frames=frames,
        prompt_starts=tuple(map(extension.spec.latent_at, frames)),
        resume_from=extension.kept if newest is None else f"{checkpoints}/{newest}",
        latents_path=f"{extension.stem}.safetensors",
        image=extension.pictures[0],
        last_image=extension.pictures[1],
    )
    longer = _make(storage, extension, task, board)
    lease.check_now()
    storage.write_bytes(f"{extension.stem}.json", portable(longer).to_record())
    storage.delete_many([f"{checkpoints}/{name}" for name in storage.children(checkpoints)])
    return longer


def _names(names: Sequence[str]) -> Iterator[CheckpointName]:
    return filter(None, map(CheckpointName.parse, names))


def _make(storage: Storage, extension: Extension, task: VideoTask, board: ProgressBoard) -> ManifestRow:
    """Makes the video with a worker in this process."""
    from actors.driver.rows import RowMaker
    from actors.text_encoder import TextEncoderWorker
    from actors.worker.backbone import BackboneWorker

    row, config = extension.row, extension.config
    asked = PromptRow(
        index=row.row,
        id=row.id,
        prompts=row.prompts,
        negative_prompt=row.negative_prompt,
        image=row.image,
        image_sha256=row.image_sha256,
        last_image=row.last_image,
        last_image_sha256=row.last_image_sha256,
        seed=task.seed,
        num_frames=task.num_frames,
        metadata=_metadata(row),
        prompt_frames=row.prompt_frames,
        prompt_times=row.prompt_times,
    )
    settings = _worker_settings(storage, extension)
    with board.step("encoding prompts"):
        encoder = TextEncoderWorker(config.model, config.revision, settings.num_threads, config.text_dtype)
        negative = extension.spec.negative_prompt if row.negative_prompt is None else row.negative_prompt
        embeddings = [encoder.encode(prompt) for prompt in (negative, *row.prompts)]
        del encoder  # its gigabytes, before the backbone's come
    with board.step("loading the model"):
        worker = BackboneWorker(settings)
        info = worker.load()
    if info.revision != row.model_revision:
        raise ModelError(
            f"{config.model!r} is now of revision {info.revision}; row {row.row} was made with {row.model_revision}",
            "give the model that the run was made with its old place back",
        )
    board.count({asked.num_frames: 1})
    board.row_read(asked)
    board.gpus(1, 1)
    board.video_started(_HERE, asked)
    threading.Thread(target=worker.make_video, args=(task, *embeddings), daemon=True).start()
    result = _result(worker, board)
    board.video_closed(_HERE)
    board.row_done(asked, result)
    return RowMaker(extension.record, extension.spec).finished(asked, extension.key, task.attempt, 0.0, result)


def _metadata(row: ManifestRow) -> dict[str, Any]:
    """The columns that the user carries along, which may hold any number."""
    try:
        return parse_json_object(row.metadata, integers=None, finite=False)
    except OutsideDataError as error:
        raise OutputError(f"the metadata of row {row.row} is broken: {error}", "see what `miga verify` says") from error


def _result(worker: Any, board: ProgressBoard) -> VideoResult:
    """What comes of the video that a worker is making.

    Raises:
        MigaError: if nothing does.
    """
    from actors.messages import VideoFailed, VideoFinished, VideoMade, VideoNote

    while True:
        news = worker.news(0.5)
        board.gpu(_HERE, news.num_calls)
        for hosted in news.hosted:
            board.video_calls(_HERE, hosted)
        for event in news.events:
            match event:
                case VideoMade():
                    board.video_made(_HERE)
                case VideoNote():
                    board.say(f"row {event.row}: {event.text}")
                case VideoFinished():
                    return event.result
                case VideoFailed():
                    kind = {"row": RowError, "worker": WorkerError, "run": OutputError}[event.scope]
                    raise kind(f"{event.error_type}: {event.error}")
        board.refresh()


def _worker_settings(storage: Storage, extension: Extension) -> WorkerSettings:
    from actors.messages import WorkerSettings

    config = extension.config
    return WorkerSettings(
        model=config.model,
        revision=config.revision,
        sampler=extension.sampler,
        video=config.video,
        out=storage.root,
        num_threads=torch.get_num_threads(),
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=config.dtype,
        options=model_options(config),
        text_dtype=config.text_dtype,
        checkpoint_every_s=config.run.checkpoint_every_s,
        keep_latents=True,
    )
