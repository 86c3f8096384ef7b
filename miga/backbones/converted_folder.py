"""What `miga convert` writes: a folder in diffusers' layout, there as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from miga.backbones.loading import is_finite
from miga.backbones.tensor_files import Stored
from miga.backbones.weight_files import first_line, named
from miga.errors import ModelError, OutputError

MAX_SHARD_BYTES: Final = 4 * 10**9
"""Of one file of weights, as far as single tensors allow; so much is held while it is written."""


def require_new(out: Path) -> None:
    """Refuses to write over anything.

    Raises:
        OutputError: if `out` exists.
    """
    try:
        is_there = os.path.lexists(out)
    except ValueError as error:  # a null character
        raise OutputError(f"{str(out)!r} is no name of a folder", "name a folder that does not exist") from error
    if is_there:
        raise OutputError(f"{out} exists already", "name a folder that does not exist; nothing is written over")


@contextmanager
def folder_made_whole(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to write into; it becomes `out` when all is written, and is removed if anything fails.

    Args:
        out: must not exist.
        num_bytes: of what will be written.

    Raises:
        OutputError: if `out` exists, there is no room for it, or it cannot be written.
    """
    require_new(out)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_room(out.parent, num_bytes)
        unfinished.mkdir()
        yield unfinished
        require_new(out)  # an empty folder would be renamed over
        os.rename(unfinished, out)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out} cannot be written: {first_line(error)}", "name a place with room to write") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _require_room(folder: Path, num_bytes: int) -> None:
    if (free := shutil.disk_usage(folder).free) < num_bytes:
        raise OutputError(
            f"{folder} has {free / 1e9:.1f} GB left, the converted model takes {num_bytes / 1e9:.1f}",
            "name a place with more room",
        )


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """An object, as people read it."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(place: Path, stem: str, tensors: Mapping[str, Stored]) -> None:
    """Tensors under new names, the same numbers bit for bit, in files of at most `MAX_SHARD_BYTES` and their index.

    One file is held at a time. Numbers are looked at when they are about to be written, so everything is read once.

    Args:
        place: a folder.
        stem: how the files are called, as `weight_files` wants it.
        tensors: by their new names.

    Raises:
        ModelError: if a file cannot be read, or a number is NaN or infinite.
        OSError, SafetensorError: if they cannot be written.
    """
    shards = list(_shards(tensors))
    names = [
        f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        save_file(_read({key: tensors[key] for key in shard}), place / name, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(stored.num_bytes for stored in tensors.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(place / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _shards(tensors: Mapping[str, Stored]) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, stored in tensors.items():
        if shard and size + stored.num_bytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += stored.num_bytes
    yield shard


def _read(tensors: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """The tensors, each in memory of its own, as safetensors asks."""
    read: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    broken: list[Stored] = []
    for name, stored in tensors.items():
        tensor = stored.read()
        if not is_finite(tensor):
            broken.append(stored)
        is_shared = tensor.untyped_storage().data_ptr() in seen
        if is_shared or tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        read[name] = tensor
    if broken:
        raise ModelError(
            f"{str(broken[0].file)!r} holds NaN or infinity in {named(sorted(stored.key for stored in broken))}",
            hint="it was damaged, or saved by a training that had diverged: download or train it again",
        )
    return read
