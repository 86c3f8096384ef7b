"""`miga repair`: puts a run's records right from what else is there, and makes no video.

A row's record stands in its shard's file, in a pack, and in a sidecar (see `records/manifest.py`). Of these the first
counts that is sound, is of the run in run.json, is of the row of the prompt file, and whose video is there and whole.
Where there is none, the record is written anew from the row of the prompt file and a video that was made of it: the
video's name holds the beginning of the row's key, which is a hash of all that it was made from, its length included.
What only the lost record knew (times, devices, scores) is then null.

- A record whose video is lost or broken is taken back: the same `miga generate` command makes that row anew.
- Latents that are lost are no longer noted; the video stays.
- A shard's file that is broken, lacks rows, has some twice, or names the place where OUT was before, is written anew.

Nothing is overwritten or removed but that a copy of it is in `aside/` first. It holds the run's lease, so no run is
alive meanwhile. Running it again goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

from miga.errors import InputError, UsageError, WorkerError
from miga.outside_data import OutsideDataError
from pipeline.prompts.images import RowImages
from pipeline.prompts.read import read_prompts
from pipeline.prompts.source import look_at
from pipeline.records.lease import TTL_S, Lease
from pipeline.records.manifest import BrokenFile, Manifest
from pipeline.records.references import VIDEO_NAME, shards_of, video_name
from pipeline.records.run_folder import (
    RunRecord,
    latents_path,
    manifest_path,
    pack_path,
    read_run,
    shard_of,
)
from pipeline.rows import BadRow, ManifestRow, PromptRow
from pipeline.storage.base import FileInfo, Storage
from pipeline.upkeep.trust import prompts_of
from pipeline.upkeep.verify import Fault, difference, fault_in_latents, fault_in_video, faults_of, local_copy
from pipeline.video import count_frames, read_form

_READING_THREADS: Final = 4
_NAME_PROMPTS: Final = "name the prompt file, to have it written anew: --prompts PATH"

Asked = Mapping[int, PromptRow | BadRow]
Say = Callable[[str], None]


@dataclass
class Repairs:
    """What was done, or would be.

    Attributes:
        steps: what, in words, in order.
        left: what cannot be put right.
        to_make: rows that the same `miga generate` command has to make.
        is_done: whether it was done.
    """

    steps: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    to_make: list[int] = field(default_factory=list)
    is_done: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"done": self.is_done, "steps": self.steps, "left": self.left, "to_make": self.to_make}


def repair(
    storage: Storage,
    *,
    prompts: str | None = None,
    quick: bool = False,
    dry_run: bool = False,
    agreed: Callable[[Repairs], bool] = lambda repairs: True,
    ttl_s: float = TTL_S,
    wait: Callable[[float], None] = time.sleep,
    say: Say = lambda text: None,
) -> Repairs:
    """Finds what is wrong with the records of the run in `storage`, and puts it right.

    Args:
        storage: of OUT.
        prompts: where the prompt file lies now, if not where it lay when the run was started.
        quick: whether to believe videos whose size is right, as `verify --quick` does.
        dry_run: do nothing, and take no lease.
        agreed: asked once all is known that is to be done, and before anything is.
        ttl_s: as of the run.
        wait: as of `Lease.held`.
        say: told how far it is.

    Raises:
        LeaseHeldError: if a run is alive there.
        LeaseLostError: if one has taken over meanwhile.
        OutputError: if there is no run, or the storage cannot be used.
    """
    record = read_run(storage)
    repairs = Repairs()
    with nullcontext() if dry_run else Lease.held(storage, ttl_s=ttl_s, wait=wait, say=say) as lease:
        plans = list(_Planner(storage, record, repairs, quick, say).plans(prompts))
        for plan in plans:
            repairs.steps += plan.steps
        if lease is None or not plans or not agreed(repairs):
            return repairs
        for plan in plans:
            lease.check_now()
            _Repairer(storage, record, lease.epoch).carry_out(plan)
    repairs.is_done = True
    return repairs


@dataclass
class _Plan:
    """What is to be done in a shard.

    Attributes:
        rows: row → its record from now on.
        aside: paths that go, once a copy of each is put aside.
        copied: paths that are put aside, and overwritten.
        recorded: records that need a sidecar.
        packed: whether the shard's packs are replaced by one of `rows`.
        sealed: whether the shard's file is written.
    """

    shard: int
    rows: dict[int, ManifestRow]
    steps: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    recorded: list[ManifestRow] = field(default_factory=list)
    packed: bool = False
    sealed: bool = False


@dataclass
class _Found:
    """What there is of a shard.

    Attributes:
        records: (path, row) of everything that is sound in itself, in the order in which it counts.
        broken: what is not.
        sidecars: row → paths.
        videos: row → its videos, the newest attempt first.
        files: name → video.
        latents: path → file.
    """

    records: list[tuple[str, ManifestRow]]
    broken: list[BrokenFile]
    sidecars: dict[int, list[str]]
    videos: dict[int, list[FileInfo]]
    latents: dict[str, FileInfo]

    def of(self, row: int) -> list[tuple[str, ManifestRow]]:
        return [(path, made) for path, made in self.records if made.row == row]

    def broken_of(self, row: int) -> list[BrokenFile]:
        return [file for file in self.broken if file.row == row]


class _Planner:
    """Looks through a run, and changes nothing."""

    def __init__(self, storage: Storage, record: RunRecord, repairs: Repairs, quick: bool, say: Say) -> None:
        self._storage, self._record, self._repairs, self._quick, self._say = storage, record, repairs, quick, say
        self._per_shard = record.settings.run.prompts_per_shard
        self._manifest = Manifest(storage, self._per_shard)
        self._lengths: dict[int, int] = {}

    def plans(self, prompts: str | None) -> Iterator[_Plan]:
        there = shards_of(self._storage, self._manifest)
        prompt_rows = self._prompt_rows(prompts)
        asked_of: dict[int, Asked] = {}
        for shard in range(max(there, default=-1) + 1):
            asked = {row.index: row for row in itertools.islice(prompt_rows or (), self._per_shard)}
            if not asked:
                break
            if shard in there:
                yield from self._planned(shard, asked)
            asked_of[shard] = {}
        for shard in there:
            if shard not in asked_of:
                yield from self._planned(shard, None if prompt_rows is None else {})

    def _prompt_rows(self, prompts: str | None) -> Iterator[PromptRow | BadRow] | None:
        """The rows of the prompt file; None if it is not to be had, or another."""
        try:
            file = look_at(prompts_of(self._record.prompts.path, self._storage.root, named=prompts))
            if file.sha256 == self._record.prompts.sha256:
                settings = self._record.settings
                images = RowImages(file.path, {})
                return read_prompts(file, seed=settings.seed, num_frames=settings.num_frames or 1, images=images)
            what = f"{file.path} is not the prompt file of this run"
        except (InputError, UsageError) as error:
            what = error.message
        self._say(f"no record can be written anew, since the prompt file is not to be had ({what}): --prompts PATH")
        return None

    def _planned(self, shard: int, asked: Asked | None) -> Iterator[_Plan]:
        plan = self._plan(shard, asked)
        self._say(f"shard {shard}: {len(plan.rows)} rows, {len(plan.steps)} things to do")
        if plan.steps:
            yield plan

    def _plan(self, shard: int, asked: Asked | None) -> _Plan:
        found, plan = self._look(shard), _Plan(shard, {})
        for _, made in found.records:
            if made.num_frames and made.num_latents:
                self._lengths[made.num_frames] = made.num_latents
        whole = self._whole(found)
        for row in sorted({made.row for _, made in found.records} | found.sidecars.keys() | found.videos.keys()):
            if shard_of(row, self._per_shard) != shard:
                if row in found.sidecars:
                    plan.aside += found.sidecars[row]
                    plan.steps.append(
                        f"row {row}: {', '.join(found.sidecars[row])} is put aside: it is of another shard"
                    )
                continue
            self._row(row, plan, found, whole, asked)
        self._packs(plan, found)
        self._shard_file(plan, found, asked)
        return plan

    # ---- what is there ----

    def _look(self, shard: int) -> _Found:
        records: list[tuple[str, ManifestRow]] = []
        broken: list[BrokenFile] = []
        path = manifest_path(shard)
        try:
            self._manifest.read_sealed(shard)
        except OutsideDataError as error:
            broken.append(BrokenFile(path, str(error)))
        with suppress(OutsideDataError, FileNotFoundError):
            records += [(path, row) for row in self._manifest.salvage(shard)]
        for path in self._manifest.packs(shard):
            self._add(records, broken, path, None, partial(self._manifest.read_pack, path))
        sidecars = self._manifest.sidecars(shard)
        for row, path in ((row, path) for row, paths in sidecars.items() for path in paths):
            self._add(records, broken, path, row, partial(self._sidecar, path))
        return _Found(records, broken, sidecars, row_videos(self._storage, shard), self._latents(shard))

    def _sidecar(self, path: str) -> list[ManifestRow]:
        return [self._manifest.read_sidecar(path)]

    def _add(
        self,
        records: list[tuple[str, ManifestRow]],
        broken: list[BrokenFile],
        path: str,
        row: int | None,
        read: Callable[[], list[ManifestRow]],
    ) -> None:
        try:
            records += [(path, made) for made in read()]
        except OutsideDataError as error:
            broken.append(BrokenFile(path, str(error), row))
        except FileNotFoundError:  # another has taken over, which shows at the next look at the lease
            pass

    def _latents(self, shard: int) -> dict[str, FileInfo]:
        return {file.path: file for file in self._storage.files(f"latents/{shard:05d}")}

    def _whole(self, found: _Found) -> set[tuple[str, str | None]]:
        """(name, SHA-256) of videos that are what a record says of them."""
        files = {PurePosixPath(file.path).name: file for videos in found.videos.values() for file in videos}
        said = {(video_name(row), row.sha256): row for _, row in found.records if row.status == "ok"}
        of_size = {
            about: row for about, row in said.items() if about[0] in files and files[about[0]].bytes == row.bytes
        }
        if self._quick:
            return set(of_size)

        def fault_in(row: ManifestRow) -> Fault | None:
            return fault_in_video(self._storage, row, files[video_name(row)])

        with ThreadPoolExecutor(_READING_THREADS) as threads:
            faults = threads.map(fault_in, of_size.values())
            return {about for about, fault in zip(of_size, faults, strict=True) if fault is None}

    # ---- what is to be ----

    def _row(
        self, row: int, plan: _Plan, found: _Found, whole: set[tuple[str, str | None]], asked: Asked | None
    ) -> None:
        wanted = None if asked is None else asked.get(row)
        if asked is not None and wanted is None:
            self._repairs.left.append(f"row {row}: the prompt file has no such row; make a new run of that file")
        records = [(path, made) for path, made in found.of(row) if self._is_of(made, wanted)]
        made = next((its for _, its in records if its.status == "ok" and (video_name(its), its.sha256) in whole), None)
        why = ""
        if made is None and isinstance(wanted, PromptRow):
            bad = {video_name(its) for _, its in records if its.status == "ok"}  # they are not what they were
            videos = [file for file in found.videos.get(row, ()) if PurePosixPath(file.path).name not in bad]
            made = rebuilt_row(self._storage, self._record, wanted, videos, self._lengths.get)
            why = "its record is written anew from its video"
        was_made = any(its.status == "ok" for _, its in records) or any(
            file.path.startswith("done/") for file in found.broken_of(row)
        )
        if made is None and not was_made:
            made = next((its for _, its in records if its.status == "failed"), None)
        if made is None and isinstance(wanted, BadRow) and (found.of(row) or found.broken_of(row)):
            made = failed_row(self._record, wanted)
            why = "its record is written anew: it cannot be made"
        if made is not None:
            self._keep(self._with_latents(made, plan, found), why, plan, found)
        elif found.of(row) or row in found.sidecars:
            self._take_back(row, plan, found, asked)

    def _is_of(self, row: ManifestRow, wanted: PromptRow | BadRow | None) -> bool:
        is_sound = next(faults_of(row, self._record), None) is None
        return is_sound and (wanted is None or not difference(wanted, row, self._record))

    def _with_latents(self, row: ManifestRow, plan: _Plan, found: _Found) -> ManifestRow:
        if row.latents_uri is None:
            return row
        file = found.latents.get(f"latents/{row.shard:05d}/{PurePosixPath(row.latents_uri).name}")
        fault = fault_in_latents(self._storage, row, file, self._quick)
        if fault is None:
            return row
        plan.steps.append(f"row {row.row}: it is noted that no latents are kept of it ({fault.what})")
        return replace(row, latents_uri=None)

    def _keep(self, row: ManifestRow, why: str, plan: _Plan, found: _Found) -> None:
        """The row's record from now on; sidecars that say otherwise go."""
        plan.rows[row.row] = row
        text = row.to_json()
        others = [
            path
            for path, its in found.of(row.row)
            if path in found.sidecars.get(row.row, ()) and its.to_json() != text and its.status in (row.status, "ok")
        ]
        others += [file.path for file in found.broken_of(row.row) if f"-{row.key[:16]}" not in file.path]
        if others:
            plan.aside += others
            plan.steps.append(f"row {row.row}: {', '.join(others)} is put aside: it says otherwise")
        if not any(its.to_json() == text for _, its in found.of(row.row)):
            plan.recorded.append(row)
            broken = "; ".join(f"{file.path}: {file.why}" for file in found.broken_of(row.row))
            if why:
                plan.steps.append(f"row {row.row}: {why}" + (f" ({broken})" if broken else ""))

    def _take_back(self, row: int, plan: _Plan, found: _Found, asked: Asked | None) -> None:
        if asked is None and not any(its.status == "ok" for _, its in found.of(row)):
            broken = "; ".join(f"{file.path}: {file.why}" for file in found.broken_of(row)) or "it is not of this run"
            self._repairs.left.append(f"row {row}: its record is broken ({broken}); {_NAME_PROMPTS}")
            plan.rows.update({its.row: its for _, its in found.of(row)[:1]})
            return
        plan.aside += found.sidecars.get(row, ())
        plan.steps.append(f"row {row}: its record is taken back, since no whole video is there; it is to be made anew")
        self._repairs.to_make.append(row)

    def _packs(self, plan: _Plan, found: _Found) -> None:
        broken = [file for file in found.broken if file.row is None and file.path != manifest_path(plan.shard)]
        wrong = [
            path
            for path, its in found.records
            if path.startswith("records/")
            and (its.row not in plan.rows or plan.rows[its.row].to_json() != its.to_json())
        ]
        if not broken and not wrong:
            return
        plan.packed = True
        plan.aside += self._manifest.packs(plan.shard)
        plan.steps.append(
            f"{self._manifest.packs(plan.shard)[0]}: the second copy of the shard's rows is written anew"
            + (f" ({broken[0].why})" if broken else "")
        )

    def _shard_file(self, plan: _Plan, found: _Found, asked: Asked | None) -> None:
        path = manifest_path(plan.shard)
        is_there = self._storage.exists(path)
        broken = next((file.why for file in found.broken if file.path == path), None)
        limit = self._record.settings.limit
        wanted = {row for row in asked or () if limit is None or row < limit or row <= max(plan.rows, default=-1)}
        is_complete = len(plan.rows) == self._per_shard or (asked is not None and plan.rows.keys() >= wanted)
        if is_there and broken is None:
            its_rows = [(at, row.to_json()) for at, row in found.records if at == path]
            desired = [(path, row.to_json()) for _, row in sorted(plan.rows.items())]
            if its_rows == desired and self._manifest.is_as_written_here(plan.shard):
                return
        elif not is_there and not (is_complete and plan.rows):
            return
        if broken is not None and asked is None and not is_complete:
            self._repairs.left.append(f"{path}: {broken}; {_NAME_PROMPTS}")
            return
        if not plan.rows:
            plan.aside.append(path)
            plan.steps.append(f"{path}: it goes, since none of its rows is left")
            return
        plan.sealed = True
        if is_there:
            plan.copied.append(path)
        why = f" ({broken})" if broken else ""
        plan.steps.append(f"{path}: it is written {'anew ' if is_there else ''}with {len(plan.rows)} rows{why}")


class _Repairer:
    """Does what was planned."""

    def __init__(self, storage: Storage, record: RunRecord, epoch: int) -> None:
        self._storage, self._epoch = storage, epoch
        self._manifest = Manifest(storage, record.settings.run.prompts_per_shard)

    def carry_out(self, plan: _Plan) -> None:
        for path in dict.fromkeys(plan.aside + plan.copied):
            with suppress(FileNotFoundError):
                self._storage.write_bytes(f"aside/e{self._epoch:06d}/{path}", self._storage.read_bytes(path))
        if plan.packed:
            self._manifest.pack(plan.shard, self._epoch, [row for _, row in sorted(plan.rows.items())])
        kept = pack_path(plan.shard, self._epoch)
        self._storage.delete_many(path for path in plan.aside if path != kept)
        for row in plan.recorded:
            self._manifest.record(row)
        if plan.sealed:
            self._manifest.write_shard(plan.shard, [row for _, row in sorted(plan.rows.items())])


def row_videos(storage: Storage, shard: int) -> dict[int, list[FileInfo]]:
    """Row → the videos of it that are there, the newest attempt first."""
    found: dict[int, list[tuple[int, int, FileInfo]]] = defaultdict(list)
    for file in storage.files(f"video/{shard:05d}"):
        if name := VIDEO_NAME.fullmatch(PurePosixPath(file.path).name):
            found[int(name["row"])].append((int(name["epoch"] or 0), int(name["attempt"]), file))
    by_age = {row: sorted(videos, key=lambda video: video[:2], reverse=True) for row, videos in found.items()}
    return {row: [file for *_, file in videos] for row, videos in by_age.items()}


def rebuilt_row(
    storage: Storage,
    record: RunRecord,
    row: PromptRow,
    videos: Sequence[FileInfo],
    num_latents: Callable[[int], int | None],
) -> ManifestRow | None:
    """The record of a row from a video that was made of it; None if none was, or none is whole, or videos are judged.

    Args:
        storage: of OUT.
        record: the run.
        row: of the prompt file.
        videos: of that row, the first that is whole is taken.
        num_latents: of a video of so many frames, if that is known.

    Raises:
        OutputError: if the storage cannot be read.
    """
    if record.settings.quality.is_asked:  # which of its videos was good enough is known to none of them
        return None
    for file in videos:
        name = VIDEO_NAME.fullmatch(PurePosixPath(file.path).name)
        if name is None:
            continue
        try:
            with local_copy(storage, file.path) as local:
                made = replace(row, num_frames=count_frames(local))
                key = record.key(made)
                if not key.startswith(name["key"]):
                    continue
                fps, height, width = read_form(local)
                with open(local, "rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except (FileNotFoundError, WorkerError):  # gone, or not whole
            continue
        shard, attempt = shard_of(row.index, record.settings.run.prompts_per_shard), int(name["attempt"])
        latents = latents_path(shard, row.index, key, int(name["epoch"] or 0), attempt)
        rebuilt = ManifestRow(
            **record.columns(made, key),
            status="ok",
            num_latents=num_latents(made.num_frames),
            fps=fps,
            height=height,
            width=width,
            uri=storage.uri(file.path),
            bytes=file.bytes,
            sha256=digest,
            duration_s=made.num_frames / fps,
            attempt=attempt,
            latents_uri=storage.uri(latents) if storage.exists(latents) else None,
            created_at=datetime.fromtimestamp(file.modified_s, UTC),
        )
        if not difference(row, rebuilt, record):
            return rebuilt
    return None


def failed_row(record: RunRecord, row: BadRow) -> ManifestRow:
    """The record of a row that the prompt file has wrong."""
    return ManifestRow(
        **record.columns(row, record.key(row)),
        status="failed",
        error_type=row.error_type,
        error=row.error,
        created_at=datetime.now(UTC),
    )
