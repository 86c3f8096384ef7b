"""`miga extend OUT KEY --num-frames N`: a longer video of a row that was made, from the latents kept of it.

Nothing is made twice: it goes on from the last state that did not depend on the video's length yet, so it is the very
video that the longer length would have given from the start. What it began with is decoded again, and stays as it was.

The run in OUT stays as it is, one row for every row of its prompt file. The longer video and all that belongs to it lie
in a folder of their own, named by the row, its key and the new length:

    extended/00000017-<key16>-321.mp4                  the video
    extended/00000017-<key16>-321.json                 its row, as the manifest has them; written last
    extended/00000017-<key16>-321.safetensors          its latents; with "-open" what a still longer one goes on from
    extended/00000017-<key16>-321-checkpoint/          while it is being made; running the command again goes on
    extended/00000017-<key16>-321-lease/               whose work that is: a second command for the same is refused

The key in that row is the longer video's own, and may be extended in turn.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from tqdm import tqdm

from jobs.generate import model_options, why_not
from miga.backbones.base import BackboneSpec
from miga.backbones.options import configured_spec
from miga.backbones.registry import load_spec
from miga.config import SamplerConfig
from miga.errors import ModelError, OutputError, RowError, UsageError, WorkerError
from miga.outside_data import OutsideDataError, parse_json_object
from miga.profiles import read_config
from pipeline.config import RunConfig, override
from pipeline.lease import Lease
from pipeline.manifest import Manifest
from pipeline.rows import ManifestRow, PromptRow, video_key
from pipeline.run_folder import (
    RUN_FILE,
    CheckpointName,
    RunRecord,
    newest_checkpoint,
    open_state_path,
    path_in_out,
    read_run,
)
from pipeline.storage import Storage, open_storage
from pipeline.terminal import say
from pipeline.trust import check_model

if TYPE_CHECKING:
    from actors.messages import VideoResult, VideoTask, WorkerSettings

FOLDER: Final = "extended"
_NOTE: Final = re.compile(r"(\d{8,18})-[0-9a-f]{16}-(\d{1,9})\.json", re.ASCII)
MIN_KEY: Final = 4
"""Characters of a key that are enough to name a row, if no other key begins with them."""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A longer video to make, checked; nothing of it done.

    Attributes:
        row: the one that was made.
        kept: path of the state to go on from.
        num_frames: of the longer video.
        key: of the longer video.
        stem: path of its files, without what ends their names.
    """

    record: RunRecord
    config: RunConfig
    spec: BackboneSpec
    sampler: SamplerConfig
    row: ManifestRow
    kept: str
    num_frames: int
    key: str

    @property
    def stem(self) -> str:
        """See above."""
        return f"{FOLDER}/{self.row.row:08d}-{self.row.key[:16]}-{self.num_frames}"


def extend_shown(
    out: str, key: str, num_frames: int, *, model: str | None = None, trust: bool = False, quiet: bool = False
) -> ManifestRow:
    """Makes the longer video of a row, with a bar; returns its row.

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
    storage = open_storage(out)
    extension = plan_extension(storage, key, num_frames, model=model, trust=trust)
    with tqdm(total=extension.spec.num_latents(num_frames), unit="latent", disable=quiet) as bar:
        return extend(storage, extension, lambda done: bar.update(done - bar.n), None if quiet else say)


def plan_extension(
    storage: Storage, key: str, num_frames: int, *, model: str | None = None, trust: bool = False
) -> Extension:
    """Finds the row, and what is needed to make it longer.

    Args:
        storage: of OUT.
        key: as `find_row`.
        num_frames: of the longer video.
        model: where the run's model lies now, or its name in the user's own words (`pipeline/trust.py`).
        trust: whether all that OUT itself names is taken without such a word.

    Raises:
        MigaError: naming what is wrong, and what to do.
    """
    record = read_run(storage)
    row = find_row(storage, record, key)
    config = record.settings
    check_model(config, storage.root, named=model, is_trusted=trust)
    config = override(config, model=model)
    spec = configured_spec(load_spec(config.model, config.revision), model_options(config), config.revision)
    if row.status != "ok" or row.num_frames is None or row.seed is None:
        raise UsageError(f"row {row.row} was not made: {row.error}", "name a row whose status is ok")
    _check_length(spec, row, num_frames)
    if row.latents_uri is None:
        raise UsageError(
            f"no latents were kept of row {row.row}",
            "make the run with keep_latents = true in [run]; of this row, make the longer video from the start",
        )
    latents = path_in_out(row.latents_uri)
    kept = open_state_path(latents)
    if not storage.exists(kept):
        raise UsageError(
            f"there is no {storage.uri(kept)}: no state of that video was independent of its length"
            if storage.exists(latents)
            else f"the latents of row {row.row} are gone from {row.latents_uri}",
            f"make a new run with num_frames = {num_frames}",
        )
    return Extension(
        record=record,
        config=config,
        spec=spec,
        sampler=read_config(record.sampler, storage.uri(RUN_FILE)),
        row=row,
        kept=kept,
        num_frames=num_frames,
        key=video_key(row.prompts, row.negative_prompt, row.seed, num_frames, record.sampler, record.model_revision),
    )


def find_row(storage: Storage, record: RunRecord, key: str) -> ManifestRow:
    """The row that a key, or its beginning, names; of several rows of the same key the first.

    Raises:
        UsageError: if none does, or the beginnings of several keys are alike.
    """
    if len(key) < MIN_KEY:
        raise UsageError(f"{key!r} is too short for a key", f"give at least its first {MIN_KEY} characters")
    found: dict[str, ManifestRow] = {}
    for row in _rows(storage, record):
        if row.key.startswith(key):
            found.setdefault(row.key, row)
    if not found:
        raise UsageError(f"no row of {storage.root} has a key that begins with {key!r}", "look it up in the manifest")
    if len(found) > 1:
        named = ", ".join(sorted(found)[:3])
        raise UsageError(f"{len(found)} keys begin with {key!r}: {named}", "give more of it")
    return next(iter(found.values()))


def _rows(storage: Storage, record: RunRecord) -> Iterator[ManifestRow]:
    yield from Manifest(storage, record.settings.run.prompts_per_shard).read_rows()
    for name in storage.children(FOLDER):
        if _NOTE.fullmatch(name):
            yield _read_note(storage, record, name)


def _read_note(storage: Storage, record: RunRecord, name: str) -> ManifestRow:
    """The row of a longer video, which must be of the video that its file's name says.

    Raises:
        OutputError: if it is not.
    """
    path = f"{FOLDER}/{name}"
    try:
        row = ManifestRow.from_json(storage.read_bytes(path))
        if what := _not_of_its_name(row, record, name):
            raise OutsideDataError(what)
    except ValueError as error:
        raise OutputError(f"{storage.uri(path)} is broken: {error}", "delete it, and extend that row again") from error
    places = {name: storage.uri(path_in_out(uri)) for name in _ADDRESSES if (uri := getattr(row, name))}
    return replace(row, **places)  # OUT may have been moved


def _not_of_its_name(row: ManifestRow, record: RunRecord, name: str) -> str:
    """What a note says that its name denies, or its own key; empty if nothing."""
    match = _NOTE.fullmatch(name)
    assert match is not None
    if (row.row, row.num_frames) != (int(match[1]), int(match[2])):
        return f"it is of row {row.row} with {row.num_frames} frames"
    if row.status != "ok" or row.seed is None or row.num_frames is None:
        return f"it is of a row that is {row.status}"
    key = video_key(row.prompts, row.negative_prompt, row.seed, row.num_frames, record.sampler, record.model_revision)
    return "" if row.key == key else "its key is not of what it says"


def _check_length(spec: BackboneSpec, row: ManifestRow, num_frames: int) -> None:
    if reason := why_not(spec, num_frames):
        raise UsageError(reason, "choose one of those for --num-frames")
    assert row.num_frames is not None
    if num_frames <= row.num_frames:
        raise UsageError(
            f"--num-frames {num_frames} is no more than the {row.num_frames} that row {row.row} has",
            "give more; for a shorter video, cut it",
        )


_ADDRESSES: Final = ("uri", "latents_uri")


def extend(
    storage: Storage,
    extension: Extension,
    show: Callable[[int], None] = lambda num_latents: None,
    say: Callable[[str], None] | None = None,
) -> ManifestRow:
    """Makes the longer video on this machine, and puts it into OUT; what is there already is not made again.

    Args:
        storage: of OUT.
        extension: what to make.
        show: told how many latents are done.
        say: told when it has to be seen whether another one is at it.

    Raises:
        LeaseHeldError: if another process is making the same one.
        MigaError: if it cannot be made.
    """
    if (made := _made(storage, extension)) is not None:
        return made
    run = extension.config.run
    place = open_storage(storage.uri(f"{extension.stem}-lease"))
    place.probe(single_coordinator=run.single_coordinator)
    with Lease.held(place, ttl_s=run.lease_ttl_s, say=say) as lease:
        made = _made(storage, extension) or _make_and_note(storage, extension, lease, show)
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
    row = _read_note(storage, extension.record, note.rpartition("/")[2])
    hint = f"delete {storage.uri(note)}, and extend that row again"
    if row.key != extension.key:
        raise OutputError(f"{storage.uri(note)} is of another video: its key is {row.key}", hint)
    if not storage.exists(video) or storage.stat(video).bytes != row.bytes:
        raise OutputError(f"{storage.uri(video)} is not there, or not of the size that its row says", hint)
    return row


def _make_and_note(storage: Storage, extension: Extension, lease: Lease, show: Callable[[int], None]) -> ManifestRow:
    from actors.messages import VideoTask

    checkpoints = f"{extension.stem}-checkpoint"
    names = storage.children(checkpoints)
    newest = newest_checkpoint(names)
    row = extension.row
    assert row.seed is not None
    epoch = 1 + max((name.epoch for name in _names(names)), default=0)
    task = VideoTask(
        row=row.row,
        attempt=1,
        num_latents=extension.spec.num_latents(extension.num_frames),
        num_frames=extension.num_frames,
        seed=row.seed,
        path=f"{extension.stem}.mp4",
        checkpoints=checkpoints,
        epoch=epoch,
        resume_from=extension.kept if newest is None else f"{checkpoints}/{newest}",
        latents_path=f"{extension.stem}.safetensors",
    )
    longer = _make(storage, extension, task, show)
    lease.check_now()
    storage.write_bytes(f"{extension.stem}.json", longer.to_record())
    storage.delete_many([f"{checkpoints}/{name}" for name in storage.children(checkpoints)])
    return longer


def _names(names: Sequence[str]) -> Iterator[CheckpointName]:
    return filter(None, map(CheckpointName.parse, names))


def _make(storage: Storage, extension: Extension, task: VideoTask, show: Callable[[int], None]) -> ManifestRow:
    """Makes the video with a worker in this process."""
    from actors.backbone import BackboneWorker
    from actors.rows import RowMaker
    from actors.text_encoder import TextEncoderWorker

    row, config = extension.row, extension.config
    settings = _worker_settings(storage, extension)
    encoder = TextEncoderWorker(config.model, config.revision, settings.num_threads, config.text_dtype)
    negative = extension.spec.negative_prompt if row.negative_prompt is None else row.negative_prompt
    embeddings = [encoder.encode(prompt) for prompt in (negative, *row.prompts)]
    del encoder  # its gigabytes, before the backbone's come
    worker = BackboneWorker(settings)
    info = worker.load()
    if info.revision != row.model_revision:
        raise ModelError(
            f"{config.model!r} is now of revision {info.revision}; row {row.row} was made with {row.model_revision}",
            "give the model that the run was made with its old place back",
        )
    making = threading.Thread(target=worker.make_video, args=(task, *embeddings), daemon=True)
    making.start()
    result = _result(worker, show)
    asked = PromptRow(
        index=row.row,
        id=row.id,
        prompts=row.prompts,
        negative_prompt=row.negative_prompt,
        seed=task.seed,
        num_frames=task.num_frames,
        metadata=_metadata(row),
    )
    return RowMaker(extension.record, extension.spec).finished(asked, extension.key, task.attempt, 0.0, result)


def _metadata(row: ManifestRow) -> dict[str, Any]:
    """The columns that the user carries along, which may hold any number."""
    try:
        return parse_json_object(row.metadata, integers=None, finite=False)
    except OutsideDataError as error:
        raise OutputError(f"the metadata of row {row.row} is broken: {error}", "see what `miga verify` says") from error


def _result(worker: Any, show: Callable[[int], None]) -> VideoResult:
    """What comes of the video that a worker is making.

    Raises:
        MigaError: if nothing does.
    """
    from actors.messages import VideoFailed, VideoFinished, VideoNote, VideoProgress

    while True:
        for event in worker.news(0.5).events:
            match event:
                case VideoProgress():
                    show(event.num_latents_done)
                case VideoNote():
                    say(f"row {event.row}: {event.text}")
                case VideoFinished():
                    return event.result
                case VideoFailed():
                    kind = {"row": RowError, "worker": WorkerError, "run": OutputError}[event.scope]
                    raise kind(f"{event.error_type}: {event.error}")


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
