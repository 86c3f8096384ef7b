"""A video in the making on disk: one safetensors file, so that nothing in it is ever run.

Tensors are named by where they stand in the state ("method.queue.x_FCHW"), everything else is JSON in the file's
metadata. Both ways follow the type hints of `VideoState`: a new field is saved without a line here, and loading makes
no class but those that the hints name.
"""

from __future__ import annotations

import contextlib
import json
import os
import types
import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from miga.config import SamplerConfig
from miga.errors import CheckpointError
from miga.generate import VideoState

FORMAT: Final = "miga checkpoint"
VERSION: Final = 1
"""Of the format, and of what a state means to the sampler: a state of another version would be gone on with wrongly."""

START_AGAIN: Final = "delete it: the video is then made from the start"

_SCALARS: Final = (bool, int, float, str)
_ON_CPU: Final = "level_F"
"""Levels index tables on the CPU, whatever device the latents are on (`FrameQueue`)."""

Json: TypeAlias = Any
ReadTensor: TypeAlias = Callable[[str], torch.Tensor]


def save_state(state: VideoState, file: Path, *, config: SamplerConfig, num_latents: int | None, seed: int) -> None:
    """Writes a state to a file, whole or not at all: whoever is stopped half way leaves the one before.

    Args:
        state: as `Sampler.advance` returned it.
        file: its folder exists; an older checkpoint there is replaced.
        config: of the video.
        num_latents: length of the video; None if it has no end.
        seed: of its noise.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    content = _encode(state, VideoState, "", tensors)
    metadata = {
        "format": FORMAT,
        "version": json.dumps(VERSION),
        "config": json.dumps(config.to_dict()),
        "num_latents": json.dumps(num_latents),
        "seed": json.dumps(seed),
        "state": json.dumps(content),
    }
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(_apart(tensors), unfinished, metadata)
        _sync(unfinished)
        os.replace(unfinished, file)
        _sync(file.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {file} cannot be written: {error}", "make room in that folder, and the folder writable"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def load_state(
    file: Path,
    *,
    config: SamplerConfig,
    num_latents: int | None,
    seed: int,
    device: torch.device | str = "cpu",
) -> VideoState:
    """Reads the state that `save_state` wrote for the same video.

    Args:
        file: the checkpoint.
        config: of the video to go on with.
        num_latents: its length; None if it has no end.
        seed: of its noise.
        device: where its latents are wanted; dtypes are as they were saved.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is of another video, config or version (saying what differs), or is no whole
            checkpoint.
    """
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            _check_same(file, metadata, config, num_latents, seed)
            unread = set(opened.keys())

            def read(name: str) -> torch.Tensor:
                unread.remove(name)
                where = "cpu" if name.rpartition(".")[2] == _ON_CPU else device
                tensor: torch.Tensor = opened.get_tensor(name).to(where, copy=True)  # not a view of the mapped file
                return tensor

            state: VideoState = _decode(json.loads(metadata["state"]), VideoState, "", read)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is no whole checkpoint: {type(error).__name__}: {error}", START_AGAIN) from error
    if unread:
        raise CheckpointError(f"{file} holds tensors of no state: {', '.join(sorted(unread))}", START_AGAIN)
    return state


def _check_same(
    file: Path, metadata: Mapping[str, str], config: SamplerConfig, num_latents: int | None, seed: int
) -> None:
    """Raises CheckpointError unless the file was written for this video."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not a checkpoint of a video", "name another file, or delete it")
    saved = {name: json.loads(metadata[name]) for name in ("version", "config", "num_latents", "seed")}
    if saved["version"] != VERSION:
        raise CheckpointError(
            f"checkpoint {file} is of version {saved['version']!r}, this program reads version {VERSION}", START_AGAIN
        )
    before: dict[str, Json] = {"seed": saved["seed"], "num_latents": saved["num_latents"]}
    before |= {f"sampler.{name}": value for name, value in saved["config"].items()}
    now: dict[str, Json] = {"seed": seed, "num_latents": num_latents}
    now |= {f"sampler.{name}": value for name, value in json.loads(json.dumps(config.to_dict())).items()}
    if before == now:
        return
    differing = [
        f"{name} {_shown(before, name)} there, {_shown(now, name)} here"
        for name in dict.fromkeys([*now, *before])
        if name not in before or name not in now or before[name] != now[name]
    ]
    raise CheckpointError(
        f"checkpoint {file} is of another video: {'; '.join(differing)}",
        "go on with the settings it was made with, or " + START_AGAIN,
    )


def _shown(values: Mapping[str, Json], name: str) -> str:
    return repr(values[name]) if name in values else "missing"


def _encode(value: Any, hint: Any, path: str, tensors: dict[str, torch.Tensor]) -> Json:
    """JSON of a value of that type; its tensors go to `tensors`, named by their paths."""
    hint = _member(hint, lambda kind: _holds(kind, value), path, type(value).__name__)
    if hint is torch.Tensor:
        tensors[path] = value
        return {"class": "Tensor"}
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return {"class": type(value).__name__} | {
            field.name: _encode(getattr(value, field.name), hints[field.name], _below(path, field.name), tensors)
            for field in fields(hint)
        }
    if get_origin(hint) is tuple:
        kinds = _kinds(hint, len(value), path)
        return [
            _encode(item, kind, _below(path, number), tensors)
            for number, (item, kind) in enumerate(zip(value, kinds, strict=True))
        ]
    if get_origin(hint) is dict:
        kind = get_args(hint)[1]
        return {name: _encode(item, kind, _below(path, name), tensors) for name, item in value.items()}
    return value


def _decode(content: Json, hint: Any, path: str, read: ReadTensor) -> Any:
    """The value that `_encode` made this of.

    Raises:
        ValueError, KeyError: if it is not of that type, or a tensor is missing.
    """
    hint = _member(hint, lambda kind: _describes(kind, content), path, _kind_of(content))
    if hint is torch.Tensor:
        return read(path)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        names = [field.name for field in fields(hint)]
        if set(content) != {"class", *names}:
            raise ValueError(f"{path or 'the state'} has fields {sorted(set(content) - {'class'})}, not {names}")
        values = {name: _decode(content[name], hints[name], _below(path, name), read) for name in names}
        return hint(**values)  # type: ignore[operator]
    if get_origin(hint) is tuple:
        kinds = _kinds(hint, len(content), path)
        return tuple(
            _decode(item, kind, _below(path, number), read)
            for number, (item, kind) in enumerate(zip(content, kinds, strict=True))
        )
    if get_origin(hint) is dict:
        kind = get_args(hint)[1]
        return {name: _decode(item, kind, _below(path, name), read) for name, item in content.items()}
    return content


def _member(hint: Any, fits: Callable[[Any], bool], path: str, found: str) -> Any:
    """The one type among those of a union, or the type itself, that fits."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for member in members:
        if fits(member):
            return member
    names = " or ".join(getattr(member, "__name__", str(member)) for member in members)
    raise ValueError(f"{path or 'the state'} is a {found}, not a {names}")


def _holds(kind: Any, value: Any) -> bool:
    """Whether a value is of a type; classes are taken as they are named, not those derived from them."""
    if kind is torch.Tensor:
        return isinstance(value, torch.Tensor)
    if get_origin(kind) in (tuple, dict):
        return type(value) is get_origin(kind)
    return type(value) is kind and (is_dataclass(kind) or kind in (*_SCALARS, types.NoneType))


def _describes(kind: Any, content: Json) -> bool:
    """Whether JSON may be that of a value of a type."""
    if kind is torch.Tensor or is_dataclass(kind):
        return type(content) is dict and content.get("class") == kind.__name__  # type: ignore[union-attr]
    if get_origin(kind) is tuple:
        return type(content) is list
    if get_origin(kind) is dict:
        return type(content) is dict
    return type(content) is kind and kind in (*_SCALARS, types.NoneType)


def _kind_of(content: Json) -> str:
    return str(content.get("class", "dict")) if isinstance(content, dict) else type(content).__name__


def _kinds(hint: Any, length: int, path: str) -> tuple[Any, ...]:
    """The type of every entry of a tuple."""
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return (kinds[0],) * length
    if len(kinds) != length:
        raise ValueError(f"{path} has {length} entries, not {len(kinds)}")
    return kinds


def _below(path: str, name: str | int) -> str:
    return f"{path}.{name}" if path else str(name)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each in storage of its own: the format has no views."""
    apart: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor
    return apart


def _sync(path: Path) -> None:
    """Asks the disk to hold what was written, so that the new name never outlives its content in a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
