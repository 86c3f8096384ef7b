"""Which files of OUT the rows refer to, shard by shard: what `verify` counts and `gc` removes is the rest.

A row that was made refers to its video, and to the latents kept beside it. A row that was given up refers to nothing.
A row that is not settled, or whose record cannot be read, refers to all its videos and latents, which it may be rebuilt
from, and to its newest whole checkpoint. Files whose names this program does not make in that shard, or for a row of
that key, are foreign, and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final, Literal

from pipeline.records.manifest import Manifest, is_shard
from pipeline.records.quality import TRY_NAME, tried_keys
from pipeline.records.run_folder import CheckpointName, newest_checkpoint
from pipeline.rows import ManifestRow
from pipeline.storage.base import FileInfo, Storage

VIDEO_NAME: Final = re.compile(
    r"(?P<row>\d{8,18})-(?P<key>[0-9a-f]{16})-(?:e(?P<epoch>\d{1,9}))?a(?P<attempt>\d{1,9})\.mp4", re.ASCII
)
_LATENTS: Final = re.compile(r"(?P<row>\d{8,18})-(?P<key>[0-9a-f]{16})-e\d+a\d+(-open)?\.safetensors", re.ASCII)
_ROW_FOLDER: Final = re.compile(r"(?P<row>\d{8,18})-(?P<key>[0-9a-f]{16})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """The files of one shard.

    Attributes:
        videos: name → video that is there.
        latents: name → file of kept latents that is there.
        orphans: kind ("video", "checkpoint", "latents") → files that no row refers to.
        foreign: files that this program did not make.
    """

    videos: dict[str, FileInfo]
    latents: dict[str, FileInfo]
    orphans: dict[str, list[FileInfo]] = field(default_factory=lambda: {"video": [], "checkpoint": [], "latents": []})
    foreign: list[FileInfo] = field(default_factory=list)


def video_name(row: ManifestRow) -> str:
    """The name of the row's video in its shard's folder: OUT may have been moved since its address was noted."""
    return PurePosixPath(row.uri or "").name


def latents_name(row: ManifestRow) -> str | None:
    """The name of the file of its kept latents; None if none were kept."""
    return PurePosixPath(row.latents_uri).name if row.latents_uri else None


def shards_of(storage: Storage, manifest: Manifest) -> list[int]:
    """Every shard that has a file of any kind."""
    found = set(manifest.shards())
    for folder in ("video", "checkpoint", "latents"):
        found |= {int(name) for name in storage.children(folder) if is_shard(name)}
    return sorted(found)


def shard_files(storage: Storage, rows: Sequence[ManifestRow], shard: int) -> ShardFiles:
    """Sorts the shard's files into those that its rows refer to, those that none does, and foreign ones.

    Args:
        storage: of OUT.
        rows: the settled rows of the shard whose records can be read.
        shard: its number.
    """
    videos = {PurePosixPath(file.path).name: file for file in storage.files(f"video/{shard:05d}")}
    latents = {PurePosixPath(file.path).name: file for file in storage.files(f"latents/{shard:05d}")}
    files = ShardFiles(videos=videos, latents=latents)
    settled = {row.row: row for row in rows}
    made = [row for row in rows if row.status == "ok"]
    wanted = {video_name(row).removesuffix(".mp4") for row in made}
    wanted |= {name.removesuffix(".safetensors") for name in map(latents_name, made) if name}
    for kind, pattern, there in (("video", VIDEO_NAME, videos), ("latents", _LATENTS, latents)):
        for name, file in there.items():
            owner = _owner(pattern.fullmatch(name), settled)
            if owner == "foreign":
                files.foreign.append(file)
            elif owner == "settled" and name.partition(".")[0].removesuffix("-open") not in wanted:
                files.orphans[kind].append(file)
    for folder, found in _checkpoints(storage, shard):
        owner = _owner(_ROW_FOLDER.fullmatch(folder), settled)
        newest = None if owner == "settled" else newest_checkpoint(found)
        kept = {str(part) for part in newest.parts()} if newest else set()
        for name, file in found.items():
            is_try = TRY_NAME.fullmatch(name) is not None
            if owner == "foreign" or (CheckpointName.parse(name) is None and not is_try):
                files.foreign.append(file)
            elif is_try and owner == "open":
                continue  # what the row's next try has to know
            elif name not in kept:
                files.orphans["checkpoint"].append(file)
    return files


def _owner(name: re.Match[str] | None, settled: Mapping[int, ManifestRow]) -> Literal["foreign", "settled", "open"]:
    """Whose a file is by its name: nobody's here, a row's that is settled, or another row's."""
    if name is None:
        return "foreign"
    row = settled.get(int(name["row"]))
    if row is None:
        return "open"
    return "settled" if any(key.startswith(name["key"]) for key in _keys(row)) else "foreign"


def _keys(row: ManifestRow) -> list[str]:
    """Of all that was made of a settled row: its own, and those of tries that were not kept."""
    return tried_keys(row)


def _checkpoints(storage: Storage, shard: int) -> Iterator[tuple[str, dict[str, FileInfo]]]:
    """Name of a row's checkpoint folder, and name → file of what it holds."""
    folders: dict[str, dict[str, FileInfo]] = {}
    start = f"checkpoint/{shard:05d}"
    for file in storage.files(start):
        folder, _, name = file.path.removeprefix(f"{start}/").rpartition("/")
        folders.setdefault(folder, {})[name] = file
    yield from sorted(folders.items())
