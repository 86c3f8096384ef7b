"""A longer video before anything of it is made: its row, what it goes on from, its key."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.extension.files import FOLDER, find_row
from jobs.run.plan import model_options, why_not
from miga.backbones.base import BackboneSpec
from miga.backbones.options import configured_spec
from miga.backbones.registry import load_spec
from miga.config import SamplerConfig
from miga.errors import UsageError
from miga.profiles import read_config
from pipeline.config import RunConfig, override
from pipeline.prompts.images import COLUMNS, folder_of, frame_of, picture_at, place_of
from pipeline.records.run_folder import RUN_FILE, RunRecord, open_state_path, path_in_out, read_run
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage
from pipeline.upkeep.trust import check_model


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A longer video to make, checked; nothing of it done.

    Attributes:
        row: the one that was made.
        kept: path of the state to go on from.
        num_frames: of the longer video.
        key: of the longer video.
        pictures: the first and the last one, as PNGs fitted to its frames; None for none.
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
    pictures: tuple[bytes | None, bytes | None] = (None, None)

    @property
    def stem(self) -> str:
        """See above."""
        return f"{FOLDER}/{self.row.row:08d}-{self.row.key[:16]}-{self.num_frames}"


def plan_extension(
    storage: Storage, key: str, num_frames: int, *, model: str | None = None, trust: bool = False
) -> Extension:
    """Finds the row, and what is needed to make it longer.

    Args:
        storage: of OUT.
        key: as `find_row`.
        num_frames: of the longer video.
        model: where the run's model lies now, or its name in the user's own words (`pipeline/upkeep/trust.py`).
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
    sampler = read_config(record.sampler, storage.uri(RUN_FILE))
    spec = spec.of_clips(sampler.clips)
    _check_length(spec, row, num_frames, sampler)
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
        sampler=sampler,
        row=row,
        kept=kept,
        num_frames=num_frames,
        key=record.key_of(row, row.seed, num_frames),
        pictures=_pictures(record, row, spec, is_trusted=trust),
    )


def _pictures(
    record: RunRecord, row: ManifestRow, spec: BackboneSpec, *, is_trusted: bool
) -> tuple[bytes | None, bytes | None]:
    """The pictures that a row was made from, fitted to its frames: the very files, by their digests.

    Raises:
        UsageError: if one lies at an address that OUT alone names.
        BadRowError: if one is gone, or another file by now.
    """
    folder = folder_of(record.prompts.path)
    found: list[bytes | None] = []
    for column in COLUMNS:
        name, sha256 = getattr(row, column), getattr(row, f"{column}_sha256")
        if name is None or sha256 is None:
            found.append(None)
            continue
        where = place_of(name, folder)
        if "://" in where and not is_trusted:
            raise UsageError(
                f"row {row.row} was made from a picture at {where}, which is read where OUT says so",
                "if OUT is your own, or known to you, say --trust",
            )
        found.append(frame_of(picture_at(name, folder), sha256, spec.height, spec.width))
    first, last = found
    return first, last


def _check_length(spec: BackboneSpec, row: ManifestRow, num_frames: int, sampler: SamplerConfig) -> None:
    if reason := why_not(spec, num_frames, sampler):
        raise UsageError(reason, "choose one of those for --num-frames")
    assert row.num_frames is not None
    if num_frames <= row.num_frames:
        raise UsageError(
            f"--num-frames {num_frames} is no more than the {row.num_frames} that row {row.row} has",
            "give more; for a shorter video, cut it",
        )
