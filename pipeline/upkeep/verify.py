"""`miga verify`: whether OUT holds what its run promises; every fault with what to do about it.

The rows are those of the prompt file, each exactly once, and made of it; every row that was made has its video, of the
size noted, and the latents kept of it; full shards are sealed. Unless `quick`, all of them are read: the SHA-256 of a
video, its frames by decoding them, and whether latents are whole.
What nothing refers to is counted, and is no fault: `miga gc` removes it. An unfinished run is told what it lacks.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from miga.checkpoint import check_file
from miga.errors import CheckpointError, InputError, OutputError, UsageError, WorkerError
from miga.outside_data import OutsideDataError
from pipeline.prompts.read import read_prompts
from pipeline.prompts.source import look_at
from pipeline.records.manifest import (
    REPAIR,
    SCHEMA,
    SIDECAR_NAME,
    BrokenFile,
    Manifest,
    columns_of,
    read_manifest,
)
from pipeline.records.quality import seeds_of
from pipeline.records.references import VIDEO_NAME, latents_name, shard_files, shards_of, video_name
from pipeline.records.run_folder import RunRecord, manifest_path, open_state_path, read_run, shard_of
from pipeline.rows import BadRow, ManifestRow, PromptRow
from pipeline.storage.base import FileInfo, Storage
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.trust import prompts_of
from pipeline.video import count_frames

_AGAIN: Final = "run the same `miga generate` command again"
_REMAKE: Final = (
    "restore the file from a copy; or let `miga repair OUT` take that row's record back, and run the same "
    "`miga generate` command again, which makes that row alone"
)
_NO_LATENTS: Final = (
    "restore the file from a copy; or let `miga repair OUT` note that none are kept: the video stays, and cannot be "
    "extended"
)
_RESEAL: Final = f"{_AGAIN}, or `miga repair OUT`"
_READING_THREADS: Final = 4

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        kind: a word for machines: prompts, missing, row, manifest, unsealed, video, size, sha256, frames, latents.
        where: a path in OUT, a row or a range of rows.
        what: what is wrong.
        remedy: what to do about it.
    """

    kind: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  to do: {self.remedy}"


@dataclass
class Verification:
    """What was found.

    Attributes:
        counts: rows, ok, failed, videos, bytes, sealed shards, those whose addresses are of where OUT was before it was
            moved, orphans by kind, foreign files, leftovers.
        is_quick: whether the videos were not read.
    """

    root: str
    is_quick: bool
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "out": self.root,
            "sound": self.is_sound,
            "quick": self.is_quick,
            **{name: self.counts[name] for name in _COUNTS},
            "faults": [asdict(fault) for fault in self.faults],
        }


_COUNTS: Final = (
    "rows",
    "ok",
    "failed",
    "sealed_shards",
    "videos",
    "bytes",
    "latents",
    "shards_of_another_place",
    "orphan_videos",
    "orphan_checkpoints",
    "orphan_latents",
    "orphan_bytes",
    "foreign_files",
    "leftovers",
)


def verify(
    storage: Storage, *, prompts: str | None = None, quick: bool = False, say: Say | None = None
) -> Verification:
    """Looks through a run, a shard in memory at a time, and changes nothing.

    Args:
        storage: of OUT.
        prompts: where the prompt file lies now, if not where it lay when the run was started.
        quick: whether to read no video.
        say: told after each shard how far it is.

    Raises:
        OutputError: if there is no run, or the storage cannot be read.
    """
    record = read_run(storage)
    return _Verifier(storage, record, Verification(storage.root, quick), say).run(prompts)


class _Verifier:
    def __init__(self, storage: Storage, record: RunRecord, found: Verification, say: Say | None) -> None:
        self._storage = storage
        self._record = record
        self._found = found
        self._say = say or (lambda text: None)
        self._per_shard = record.settings.run.prompts_per_shard
        self._manifest = Manifest(storage, self._per_shard)

    def run(self, prompts: str | None) -> Verification:
        expected = self._expected(prompts)
        limit = self._record.settings.limit
        there, settled = shards_of(self._storage, self._manifest), self._manifest.shards()
        num_asked = 0
        for shard in itertools.count() if expected is not None else ():
            asked = list(itertools.islice(expected or (), self._per_shard))
            is_beyond = limit is not None and shard * self._per_shard >= limit
            if not asked or (is_beyond and shard > max(there, default=-1)):
                break
            num_asked = shard + 1
            if shard in there or not is_beyond:
                self._shard(shard, asked, None if shard < max(settled, default=-1) else limit)
        for shard in there:
            if shard >= num_asked:
                self._shard(shard, None if expected is None else [], None)
        for _ in self._storage.leftovers():
            self._found.counts["leftovers"] += 1
        return self._found

    def _fault(self, kind: str, where: str, what: str, remedy: str) -> None:
        self._found.faults.append(Fault(kind=kind, where=where, what=what, remedy=remedy))

    # ---- rows ----

    def _expected(self, prompts: str | None) -> Iterator[PromptRow | BadRow] | None:
        """The rows of the prompt file; None if it is not to be had, or another."""
        remedy = "name the file that the run was started with: --prompts PATH"
        path = prompts or self._record.prompts.path
        try:
            there = look_at(prompts_of(self._record.prompts.path, self._storage.root, named=prompts))
            if there.sha256 != self._record.prompts.sha256:
                what = f"it is not the prompt file of this run ({there.bytes} bytes; {self._record.prompts.bytes} then)"
                self._fault("prompts", path, what, remedy)
                return None
            settings = self._record.settings
            return read_prompts(there, seed=settings.seed, num_frames=settings.num_frames or 1)
        except (InputError, UsageError) as error:
            what = f"the rows could not be compared with the prompts: {error.message}"
            self._fault("prompts", path, what, remedy)
            return None

    def _shard(self, shard: int, asked: Sequence[PromptRow | BadRow] | None, limit: int | None) -> None:
        found = self._manifest.look(shard)
        self._found.counts["sealed_shards"] += self._storage.exists(manifest_path(shard))
        for file in found.broken:
            self._broken(file)
        if not all(file.row is not None for file in found.broken):
            return
        rows = list(found.rows.values())
        self._sealed_file(shard)
        self._packs(shard)
        self._sidecars(shard)
        self._files(shard, rows)
        self._found.counts.update(rows=len(rows), ok=sum(row.status == "ok" for row in rows))
        self._found.counts["failed"] += sum(row.status == "failed" for row in rows)
        for row in rows:
            for what in faults_of(row, self._record):
                self._fault("row", f"row {row.row}", what, REPAIR)
        self._compare(shard, found.rows, set(found.broken_rows), asked, limit)
        self._say(f"shard {shard}: {self._found.counts['rows']} rows, {len(self._found.faults)} faults so far")

    def _broken(self, file: BrokenFile) -> None:
        self._fault("manifest" if file.row is None else "row", file.path, f"it is broken: {file.why}", REPAIR)

    def _compare(
        self,
        shard: int,
        rows: dict[int, ManifestRow],
        broken: set[int],
        asked: Sequence[PromptRow | BadRow] | None,
        limit: int | None,
    ) -> None:
        first = shard * self._per_shard
        num_asked = (max(rows) + 1 - first if rows else 0) if asked is None else len(asked)
        if limit is not None:  # a larger limit may have been given since, which shows in the rows
            num_asked = min(num_asked, max(limit, max(rows, default=-1) + 1) - first)
        wanted = range(first, first + max(0, num_asked))
        missing = [row for row in wanted if row not in rows and row not in broken]
        for start, end in _ranges(missing):
            where = f"row {start}" if start == end else f"rows {start} to {end}"
            self._fault("missing", where, "not made yet, or its record is lost", self._of_missing(shard, start, end))
        if rows and not missing and not broken and not self._manifest.is_sealed(shard, len(rows)):
            what = "all its rows are settled, but it is not sealed, or was sealed before a row was retried"
            self._fault("unsealed", manifest_path(shard), what, _RESEAL)
        if asked is None:
            return
        for index in sorted(set(rows) - set(range(first, first + len(asked)))):
            self._fault("row", f"row {index}", "the prompt file has no such row", "make a new run of that file")
        for prompt in asked:
            if prompt.index in rows and (what := difference(prompt, rows[prompt.index], self._record)):
                self._fault("row", f"row {prompt.index}", f"it is not of {prompt.source}: {what}", REPAIR)

    def _of_missing(self, shard: int, start: int, end: int) -> str:
        """What to do about rows that are not settled: some may have a video all the same."""
        names = filter(None, map(VIDEO_NAME.fullmatch, self._storage.children(f"video/{shard:05d}")))
        if not self._record.settings.quality.is_asked and any(start <= int(name["row"]) <= end for name in names):
            return f"`miga repair OUT`, which takes the videos that are there; then {_AGAIN}: it makes the rest"
        return _AGAIN + ": it resumes"

    # ---- files ----

    def _sealed_file(self, shard: int) -> None:
        path = manifest_path(shard)
        if not self._storage.exists(path):
            return
        table = read_manifest(self._storage.read_bytes(path))
        if not table.schema.equals(columns_of(table.schema.names), check_metadata=False):
            odd = sorted(set(table.schema.names) ^ set(SCHEMA.names)) or ["types of columns"]
            what = f"its columns are not those of this version ({', '.join(odd)})"
            self._fault("manifest", path, what, REPAIR)
        indices = table["row"].to_pylist()
        if indices != sorted(indices):
            self._fault("manifest", path, "its rows are not sorted", REPAIR)
        self._found.counts["shards_of_another_place"] += not self._manifest.is_of_this_place(shard)

    def _packs(self, shard: int) -> None:
        for path in self._manifest.packs(shard):
            try:
                self._manifest.read_pack(path)
            except OutsideDataError as error:
                self._broken(BrokenFile(path, str(error)))

    def _sidecars(self, shard: int) -> None:
        for folder in ("done", "dead"):
            names = filter(None, map(SIDECAR_NAME.fullmatch, self._storage.children(f"{folder}/{shard:05d}")))
            keys: dict[int, set[str]] = {}
            for name in names:
                keys.setdefault(int(name[1]), set()).add(name[2])
            for row, of_row in keys.items():
                if len(of_row) > 1 or shard_of(row, self._per_shard) != shard:
                    what = f"sidecars of {len(of_row)} keys in {folder}/{shard:05d}, where one or none belongs"
                    self._fault("row", f"row {row}", what, REPAIR)

    def _files(self, shard: int, rows: list[ManifestRow]) -> None:
        files = shard_files(self._storage, rows, shard)
        for kind, orphans in files.orphans.items():
            self._found.counts[f"orphan_{kind.removesuffix('s')}s"] += len(orphans)
            self._found.counts["orphan_bytes"] += sum(file.bytes for file in orphans)
        self._found.counts["foreign_files"] += len(files.foreign)
        whole: list[tuple[ManifestRow, FileInfo]] = []
        made = [row for row in rows if row.status == "ok"]
        for row in made:
            name = f"video/{shard:05d}/{video_name(row)}"
            file = files.videos.get(video_name(row))
            if file is None:
                self._fault("video", name, f"the video of row {row.row} is not there", _REMAKE)
                continue
            self._found.counts["videos"] += 1
            self._found.counts["bytes"] += file.bytes
            if file.bytes != row.bytes:
                self._fault("size", name, f"it has {file.bytes} bytes; row {row.row} says {row.bytes}", _REMAKE)
            else:
                whole.append((row, file))
        if not self._found.is_quick:
            with ThreadPoolExecutor(_READING_THREADS) as threads:
                for fault in threads.map(lambda pair: fault_in_video(self._storage, *pair), whole):
                    self._found.faults += [fault] if fault else []
        for row in made:
            if kept := latents_name(row):
                file = files.latents.get(kept)
                self._found.counts["latents"] += file is not None
                fault = fault_in_latents(self._storage, row, file, self._found.is_quick)
                self._found.faults += [fault] if fault else []


def fault_in_video(storage: Storage, row: ManifestRow, file: FileInfo) -> Fault | None:
    """What is wrong inside the video of a row."""
    try:
        with local_copy(storage, file.path) as local:
            with open(local, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if digest != row.sha256:
                what = f"its SHA-256 is {digest}; row {row.row} says {row.sha256}"
                return Fault(kind="sha256", where=file.path, what=what, remedy=_REMAKE)
            if (count := count_frames(local)) != row.num_frames:
                what = f"it decodes to {count} frames; row {row.row} says {row.num_frames}"
                return Fault(kind="frames", where=file.path, what=what, remedy=_REMAKE)
    except FileNotFoundError:
        return Fault(kind="video", where=file.path, what="it was removed just now", remedy=_REMAKE)
    except WorkerError as error:
        return Fault(kind="frames", where=file.path, what=error.message, remedy=_REMAKE)
    except OutputError as error:
        return Fault(kind="video", where=file.path, what=error.message, remedy=error.hint)
    return None


def fault_in_latents(storage: Storage, row: ManifestRow, file: FileInfo | None, is_quick: bool) -> Fault | None:
    """What is wrong with the latents that are said to be kept of a row, or the state beside them."""
    where = f"latents/{row.shard:05d}/{latents_name(row)}" if file is None else file.path
    if file is None:
        what = f"the latents kept of row {row.row} are not there"
        return Fault(kind="latents", where=where, what=what, remedy=_NO_LATENTS)
    if is_quick:
        return None
    kept = [path for path in (file.path, open_state_path(file.path)) if path == file.path or storage.exists(path)]
    try:
        for path in kept:
            with local_copy(storage, path) as local:
                check_file(local)
    except CheckpointError as error:
        what = f"{path} is not whole: {error.message}"
        return Fault(kind="latents", where=where, what=what, remedy=_NO_LATENTS)
    except FileNotFoundError:
        return Fault(kind="latents", where=where, what="it was removed just now", remedy=_NO_LATENTS)
    except OutputError as error:
        return Fault(kind="latents", where=where, what=error.message, remedy=error.hint)
    return None


@contextmanager
def local_copy(storage: Storage, path: str) -> Iterator[Path]:
    """A file of OUT as one of this machine, for as long as the block lasts."""
    if isinstance(storage, LocalStorage):
        yield Path(storage.uri(path))
        return
    with tempfile.TemporaryDirectory(prefix="miga-") as folder:
        local = Path(folder) / "file"
        storage.get_file(path, local)
        yield local


def faults_of(row: ManifestRow, record: RunRecord) -> Iterator[str]:
    """What is wrong with a row in itself, as one of that run."""
    if row.config_hash != record.config_hash or row.model_revision != record.model_revision:
        yield "it was made with another model or config than run.json says"
    if row.status == "failed":
        if not row.error or not row.error_type:
            yield "it failed without a reason"
        return
    if row.seed is None or row.num_frames is None:
        yield "it has no seed or no length"
        return
    key = record.key_of(row, row.seed, row.num_frames)
    if row.key != key:
        yield f"its key is {row.key[:16]}…, but what it was made of gives {key[:16]}…"


def difference(asked: PromptRow | BadRow, row: ManifestRow, record: RunRecord) -> str:
    """How a row of the manifest differs from what the prompt file asks for; empty if it does not."""
    if isinstance(asked, BadRow):
        return "" if row.status == "failed" else f"it cannot be made ({asked.error.splitlines()[0]})"
    pairs: dict[str, tuple[object, object]] = {"id": (asked.id, row.id), "prompts": (asked.prompts, row.prompts)}
    if row.seed is not None:  # the model refused the row otherwise: it was never asked for as a video
        pairs["negative_prompt"] = (asked.negative_prompt, row.negative_prompt)
        pairs["image"] = (asked.image, row.image)
        pairs["prompt_frames"] = (asked.prompt_frames, row.prompt_frames)
        pairs["prompt_times"] = (asked.prompt_times, row.prompt_times)
        pairs["last_image"] = (asked.last_image, row.last_image)
        if row.seed not in seeds_of(asked.seed, record.settings.quality):
            pairs["seed"] = (asked.seed, row.seed)
        if record.settings.num_frames is not None:
            pairs["num_frames"] = (asked.num_frames, row.num_frames)
    differing = ((name, wanted, there) for name, (wanted, there) in pairs.items() if wanted != there)
    return "; ".join(f"{name} is {there!r}, asked for was {wanted!r}" for name, wanted, there in differing)


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted numbers as first and last of each unbroken range."""
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        range_of = [number for _, number in group]
        yield range_of[0], range_of[-1]
