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

from safetensors import SafetensorError, safe_open

from miga.errors import InputError, OutputError, WorkerError
from pipeline.manifest import SCHEMA, SIDECAR_NAME, Manifest, read_parquet
from pipeline.prompt_source import look_at
from pipeline.prompts import read_prompts
from pipeline.references import latents_name, shard_files, shards_of, video_name
from pipeline.rows import BadRow, ManifestRow, PromptRow, video_key
from pipeline.run_folder import RunRecord, manifest_path, read_run, shard_of
from pipeline.storage import FileInfo, LocalStorage, Storage
from pipeline.video import count_frames

_AGAIN: Final = "run the same `miga generate` command again"
_REMAKE: Final = (
    "restore the file from a copy; or delete the row's sidecar in done/ and its shard's file in manifest/, and run the "
    "same `miga generate` command again"
)
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
        counts: rows, ok, failed, videos, bytes, sealed shards, orphans by kind, foreign files, leftovers.
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
        self._per_shard = int(record.config["run"]["prompts_per_shard"])
        self._manifest = Manifest(storage, self._per_shard)

    def run(self, prompts: str | None) -> Verification:
        expected = self._expected(prompts)
        limit = self._record.config.get("limit")
        there, settled = shards_of(self._storage, self._manifest), self._manifest.shards()
        for shard in itertools.count():
            asked = None if expected is None else list(itertools.islice(expected, self._per_shard))
            is_beyond = limit is not None and shard * self._per_shard >= limit
            if shard > max(there, default=-1) and (not asked or is_beyond):
                break
            if shard not in there and is_beyond:
                continue
            self._shard(shard, asked, None if shard < max(settled, default=-1) else limit)
            self._say(f"shard {shard}: {self._found.counts['rows']} rows, {len(self._found.faults)} faults so far")
        for _ in self._storage.leftovers():
            self._found.counts["leftovers"] += 1
        return self._found

    def _fault(self, kind: str, where: str, what: str, remedy: str) -> None:
        self._found.faults.append(Fault(kind=kind, where=where, what=what, remedy=remedy))

    # ---- rows ----

    def _expected(self, prompts: str | None) -> Iterator[PromptRow | BadRow] | None:
        """The rows of the prompt file; None if it is not to be had, or another."""
        path = prompts or self._record.prompts.path
        try:
            there = look_at(path)
            if there.sha256 != self._record.prompts.sha256:
                what = f"it is not the prompt file of this run ({there.bytes} bytes; {self._record.prompts.bytes} then)"
                self._fault("prompts", path, what, "name the file that the run was started with: --prompts PATH")
                return None
            config = self._record.config
            return read_prompts(there, seed=int(config["seed"]), num_frames=config["num_frames"] or 1)
        except InputError as error:
            what = f"the rows could not be compared with the prompts: {error.message}"
            self._fault("prompts", path, what, "name the file that the run was started with: --prompts PATH")
            return None

    def _shard(self, shard: int, asked: Sequence[PromptRow | BadRow] | None, limit: int | None) -> None:
        try:
            rows = self._manifest.read_shard(shard)
        except OutputError as error:
            self._fault("manifest", manifest_path(shard), error.message, error.hint or _REMAKE)
            return
        self._sealed_file(shard, rows)
        self._sidecars(shard)
        self._files(shard, rows)
        self._found.counts.update(rows=len(rows), ok=sum(row.status == "ok" for row in rows))
        self._found.counts["failed"] += sum(row.status == "failed" for row in rows)
        for row in rows:
            for what in _faults_of(row, shard, self._per_shard, self._record):
                self._fault("row", f"row {row.row}", what, _REMAKE)
        self._compare(shard, {row.row: row for row in rows}, asked, limit)

    def _compare(
        self,
        shard: int,
        rows: dict[int, ManifestRow],
        asked: Sequence[PromptRow | BadRow] | None,
        limit: int | None,
    ) -> None:
        first = shard * self._per_shard
        num_asked = (max(rows) + 1 - first if rows else 0) if asked is None else len(asked)
        if limit is not None:  # a larger limit may have been given since, which shows in the rows
            num_asked = min(num_asked, max(limit, max(rows, default=-1) + 1) - first)
        wanted = range(first, first + max(0, num_asked))
        missing = [row for row in wanted if row not in rows]
        for start, end in _ranges(missing):
            where = f"row {start}" if start == end else f"rows {start} to {end}"
            self._fault("missing", where, "not made yet", _AGAIN + ": it resumes")
        if rows and not missing and not self._manifest.is_sealed(shard, len(rows)):
            what = "all its rows are settled, but it is not sealed, or was sealed before a row was retried"
            self._fault("unsealed", manifest_path(shard), what, _AGAIN)
        if asked is None:
            return
        for index in sorted(set(rows) - set(range(first, first + len(asked)))):
            self._fault("row", f"row {index}", "the prompt file has no such row", "make a new run of that file")
        for prompt in asked:
            if prompt.index in rows and (what := _difference(prompt, rows[prompt.index], self._record)):
                self._fault("row", f"row {prompt.index}", f"it is not of {prompt.source}: {what}", _REMAKE)

    # ---- files ----

    def _sealed_file(self, shard: int, rows: Sequence[ManifestRow]) -> None:
        path = manifest_path(shard)
        if not self._storage.exists(path):
            return
        self._found.counts["sealed_shards"] += 1
        table = read_parquet(self._storage.read_bytes(path))
        remedy = "delete it and " + _AGAIN + ": it is written anew from the sidecars"
        if not table.schema.equals(SCHEMA, check_metadata=False):
            odd = sorted(set(table.schema.names) ^ set(SCHEMA.names)) or ["types of columns"]
            self._fault("manifest", path, f"its columns are not those of this version ({', '.join(odd)})", remedy)
        indices = table["row"].to_pylist()
        if indices != sorted(set(indices)):
            twice = [str(row) for row, count in Counter(indices).items() if count > 1]
            what = f"rows stand in it twice: {', '.join(twice[:5])}" if twice else "its rows are not sorted"
            self._fault("manifest", path, what, remedy)

    def _sidecars(self, shard: int) -> None:
        for folder in ("done", "dead"):
            names = filter(None, map(SIDECAR_NAME.fullmatch, self._storage.children(f"{folder}/{shard:05d}")))
            rows: Counter[int] = Counter(int(name[1]) for name in names)
            for row, count in rows.items():
                if count > 1 or shard_of(row, self._per_shard) != shard:
                    what = f"{count} sidecars in {folder}/{shard:05d}, where one or none belongs"
                    self._fault("row", f"row {row}", what, "keep the one whose video is there, and delete the others")

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
                for faults in threads.map(lambda pair: self._read(*pair), whole):
                    self._found.faults.extend(faults)
        for row in made:
            if kept := latents_name(row):
                self._latents(row, files.latents.get(kept), f"latents/{shard:05d}/{kept}")

    def _latents(self, row: ManifestRow, file: FileInfo | None, name: str) -> None:
        """The latents kept of a row: nothing is noted of them but their address."""
        if file is None:
            self._fault("latents", name, f"the latents kept of row {row.row} are not there", _REMAKE)
            return
        self._found.counts["latents"] += 1
        if self._found.is_quick:
            return
        try:
            with _local(self._storage, file.path) as local, safe_open(local, framework="pt"):
                pass  # it reads the header, and compares the file's length with it
        except SafetensorError as error:
            self._fault("latents", name, f"the file is not whole ({error})", _REMAKE)
        except FileNotFoundError:
            self._fault("latents", name, "it was removed just now", _REMAKE)
        except OutputError as error:
            self._fault("latents", name, error.message, error.hint)

    def _read(self, row: ManifestRow, file: FileInfo) -> list[Fault]:
        """What is wrong inside a video."""
        try:
            with _local(self._storage, file.path) as local:
                with open(local, "rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                if digest != row.sha256:
                    what = f"its SHA-256 is {digest}; row {row.row} says {row.sha256}"
                    return [Fault(kind="sha256", where=file.path, what=what, remedy=_REMAKE)]
                if (count := count_frames(local)) != row.num_frames:
                    what = f"it decodes to {count} frames; row {row.row} says {row.num_frames}"
                    return [Fault(kind="frames", where=file.path, what=what, remedy=_REMAKE)]
        except FileNotFoundError:
            return [Fault(kind="video", where=file.path, what="it was removed just now", remedy=_REMAKE)]
        except WorkerError as error:
            return [Fault(kind="frames", where=file.path, what=error.message, remedy=_REMAKE)]
        except OutputError as error:
            return [Fault(kind="video", where=file.path, what=error.message, remedy=error.hint)]
        return []


@contextmanager
def _local(storage: Storage, path: str) -> Iterator[Path]:
    if isinstance(storage, LocalStorage):
        yield Path(storage.uri(path))
        return
    with tempfile.TemporaryDirectory(prefix="miga-") as folder:
        local = Path(folder) / "file"
        storage.get_file(path, local)
        yield local


def _faults_of(row: ManifestRow, shard: int, per_shard: int, record: RunRecord) -> Iterator[str]:
    """What is wrong with a row in itself."""
    if row.shard != shard or shard_of(row.row, per_shard) != shard:
        yield f"it stands in shard {shard}, but belongs to {shard_of(row.row, per_shard)}"
    if row.config_hash != record.config_hash or row.model_revision != record.model_revision:
        yield "it was made with another model or config than run.json says"
    if row.status == "failed":
        if not row.error or not row.error_type:
            yield "it failed without a reason"
        return
    if row.seed is None or row.num_frames is None:
        yield "it has no seed or no length"
        return
    key = video_key(row.prompts, row.negative_prompt, row.seed, row.num_frames, record.sampler, record.model_revision)
    if row.key != key:
        yield f"its key is {row.key[:16]}…, but what it was made of gives {key[:16]}…"


def _difference(asked: PromptRow | BadRow, row: ManifestRow, record: RunRecord) -> str:
    """How a row of the manifest differs from what the prompt file asks for; empty if it does not."""
    if isinstance(asked, BadRow):
        return "" if row.status == "failed" else f"it cannot be made ({asked.error.splitlines()[0]})"
    pairs: dict[str, tuple[object, object]] = {"id": (asked.id, row.id), "prompts": (asked.prompts, row.prompts)}
    if row.seed is not None:  # the model refused the row otherwise: it was never asked for as a video
        pairs["negative_prompt"] = (asked.negative_prompt, row.negative_prompt)
        pairs["seed"] = (asked.seed, row.seed)
        if record.config["num_frames"] is not None:
            pairs["num_frames"] = (asked.num_frames, row.num_frames)
    differing = ((name, wanted, there) for name, (wanted, there) in pairs.items() if wanted != there)
    return "; ".join(f"{name} is {there!r}, asked for was {wanted!r}" for name, wanted, there in differing)


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted numbers as first and last of each unbroken range."""
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        range_of = [number for _, number in group]
        yield range_of[0], range_of[-1]
