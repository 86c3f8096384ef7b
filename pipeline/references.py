"""Which files of OUT the rows refer to, shard by shard: what `verify` counts and `gc` removes is the rest.

A row that was made refers to its video, and to the latents kept beside it. A row that is not settled refers to its
newest whole checkpoint. A row that was given up refers to nothing. Files whose names this program does not make are
foreign, and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from pipeline.manifest import Manifest
from pipeline.rows import ManifestRow
from pipeline.run_folder import newest_checkpoint
from pipeline.storage import FileInfo, Storage

_VIDEO: Final = re.compile(r"(\d{8,}-[0-9a-f]{16}-e\d+a\d+|\d{8,}-[0-9a-f]{16}-a\d+)\.mp4", re.ASCII)
_LATENTS: Final = re.compile(r"(\d{8,}-[0-9a-f]{16}-e\d+a\d+)(-open)?\.safetensors", re.ASCII)
_ROW_FOLDER: Final = re.compile(r"(\d{8,})-[0-9a-f]{16}", re.ASCII)
_CHECKPOINT: Final = re.compile(r"e\d+a\d+-\d{4,}\.safetensors", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """The files of one shard.

    Attributes:
        rows: its settled rows, sorted.
        videos: name → video that is there.
        latents: name → file of kept latents that is there.
        orphans: kind ("video", "checkpoint", "latents") → files that no row refers to.
        foreign: files that this program did not make.
    """

    rows: list[ManifestRow]
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
        found |= {int(name) for name in storage.children(folder) if name.isdecimal()}
    return sorted(found)


def shard_files(storage: Storage, rows: list[ManifestRow], shard: int) -> ShardFiles:
    """Sorts the shard's files into those that its settled rows refer to, those that none does, and foreign ones.

    Args:
        storage: of OUT.
        rows: all settled rows of the shard.
        shard: its number.
    """
    videos = {PurePosixPath(file.path).name: file for file in storage.files(f"video/{shard:05d}")}
    latents = {PurePosixPath(file.path).name: file for file in storage.files(f"latents/{shard:05d}")}
    files = ShardFiles(rows=rows, videos=videos, latents=latents)
    made = [row for row in rows if row.status == "ok"]
    wanted = {video_name(row).removesuffix(".mp4") for row in made}
    wanted |= {name.removesuffix(".safetensors") for row in made if (name := latents_name(row))}
    for name, file in videos.items():
        _sort(files, "video", file, _VIDEO.fullmatch(name), wanted)
    for name, file in latents.items():
        _sort(files, "latents", file, _LATENTS.fullmatch(name), wanted)
    settled = {row.row for row in rows}
    for folder, found in _checkpoints(storage, shard):
        row = _ROW_FOLDER.fullmatch(folder)
        newest = newest_checkpoint(found)
        kept = {str(part) for part in newest.parts()} if newest and row and int(row[1]) not in settled else set()
        for name, file in found.items():
            if row is None or _CHECKPOINT.fullmatch(name) is None:
                files.foreign.append(file)
            elif name not in kept:
                files.orphans["checkpoint"].append(file)
    return files


def _sort(files: ShardFiles, kind: str, file: FileInfo, match: re.Match[str] | None, wanted: set[str]) -> None:
    if match is None:
        files.foreign.append(file)
    elif match[1] not in wanted:
        files.orphans[kind].append(file)


def _checkpoints(storage: Storage, shard: int) -> Iterator[tuple[str, dict[str, FileInfo]]]:
    """Name of a row's checkpoint folder, and name → file of what it holds."""
    folders: dict[str, dict[str, FileInfo]] = {}
    start = f"checkpoint/{shard:05d}"
    for file in storage.files(start):
        folder, _, name = file.path.removeprefix(f"{start}/").rpartition("/")
        folders.setdefault(folder, {})[name] = file
    yield from sorted(folders.items())
