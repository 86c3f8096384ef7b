"""A video in the making on disk: one safetensors file, so that nothing in it is ever run.

A state alone (`save_state`) is what the sampler goes on from. A `VideoCheckpoint` holds the finished latents since the
checkpoint before beside it, so that all files of a video together give its frames again from the first.

Tensors are named by where they stand in the state ("method.queue.x_FCHW"), everything else is JSON in the file's
metadata. Both ways follow the type hints of what is saved: a new field is saved without a line here, and loading makes
no class but those that the hints name.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import contextlib
import json
import os
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

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
_ON_CPU: Final = ("level_F", "latents_FCHW")
"""Levels index tables on the CPU, whatever device the latents are on (`FrameQueue`); finished latents wait there."""

_T = TypeVar("_T")
Json: TypeAlias = Any
ReadTensor: TypeAlias = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class VideoCheckpoint:
    """What a video in the making is gone on with from, in another process or on another machine.

    Attributes:
        state: the sampler's, after some pass.
        latents_FCHW: finished latents since the checkpoint before, on the CPU.
        num_latents: length of the video; None if it has no end.
        num_calls: network calls that the passes took so far.
        is_open: whether nothing of the state depends on the length yet: a longer video may go on from it.
    """

    state: VideoState
    latents_FCHW: torch.Tensor
    num_latents: int | None
    num_calls: int
    is_open: bool = False

    @property
    def num_latents_done(self) -> int:
        """Latents finished so far, those of earlier checkpoints included."""
        return self.state.num_finished

    @property
    def first_latent(self) -> int:
        """Index in the video of the first of `latents_FCHW`."""
        return self.num_latents_done - len(self.latents_FCHW)


def join_checkpoints(parts: Sequence[VideoCheckpoint]) -> VideoCheckpoint:
    """The last of a video's checkpoints, with all finished latents from the first on.

    Args:
        parts: checkpoints one behind the other, from the video's first.

    Raises:
        CheckpointError: if one is missing between them.
    """
    if not parts:
        raise CheckpointError("there is no checkpoint to go on from", START_AGAIN)
    num_joined = 0
    for part in parts:
        if part.first_latent != num_joined:
            found = f"latents {num_joined} ... {part.first_latent - 1} are in none of them"
            if part.first_latent < num_joined:
                found = f"latents {part.first_latent} ... {num_joined - 1} are in two of them"
            raise CheckpointError(
                f"the checkpoints of a video do not follow one another: {found}", "give all of them in order, or none"
            )
        num_joined = part.num_latents_done
    return replace(parts[-1], latents_FCHW=torch.cat([part.latents_FCHW for part in parts]))


def save_checkpoint(checkpoint: VideoCheckpoint, file: Path, *, config: SamplerConfig, seed: int) -> None:
    """Writes a checkpoint to a file, whole or not at all.

    Args:
        checkpoint: as `VideoRun.checkpoint` made it.
        file: its folder exists; an older checkpoint there is replaced.
        config: of the video.
        seed: of its noise.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    _save(checkpoint, VideoCheckpoint, file, config, checkpoint.num_latents, seed)


def load_checkpoints(
    files: Sequence[Path],
    *,
    config: SamplerConfig,
    num_latents: int | None,
    seed: int,
    device: torch.device | str = "cpu",
) -> VideoCheckpoint:
    """Reads a video's checkpoints and joins them (`join_checkpoints`).

    Args:
        files: as `save_checkpoint` wrote them, from the video's first on.
        config: of the video to go on with.
        num_latents: its length; more than the checkpoint's where that is open.
        seed: of its noise.
        device: where the state's latents are wanted; finished ones stay on the CPU.

    Raises:
        FileNotFoundError: if a file is not there.
        CheckpointError: if a file is of another video, config or version (saying what differs) or is no whole
            checkpoint, or one is missing between them.
    """
    parts: list[VideoCheckpoint] = []
    for number, file in enumerate(files):
        where = device if number == len(files) - 1 else "cpu"
        parts.append(_load(VideoCheckpoint, file, config, num_latents, seed, where))
        if number < len(files) - 1:  # of the earlier ones only the latents are wanted
            parts[-1] = replace(parts[-1], state=VideoState(num_finished=parts[-1].num_latents_done))
    return join_checkpoints(parts)


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
    _save(state, VideoState, file, config, num_latents, seed)


def _save(
    value: VideoState | VideoCheckpoint,
    kind: type,
    file: Path,
    config: SamplerConfig,
    num_latents: int | None,
    seed: int,
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    content = _encode(value, kind, "", tensors)
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
    return _load(VideoState, file, config, num_latents, seed, device)


def _load(
    kind: type[_T], file: Path, config: SamplerConfig, num_latents: int | None, seed: int, device: torch.device | str
) -> _T:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            _check_same(file, metadata, config, num_latents, seed)
            unread = set(opened.keys())

            def read(name: str) -> torch.Tensor:
                unread.remove(name)
                where = "cpu" if name.rpartition(".")[2] in _ON_CPU else device
                tensor: torch.Tensor = opened.get_tensor(name).to(where, copy=True)  # not a view of the mapped file
                return tensor

            value: _T = _decode(json.loads(metadata["state"]), kind, "", read)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is no whole checkpoint: {type(error).__name__}: {error}", START_AGAIN) from error
    if unread:
        raise CheckpointError(f"{file} holds tensors of no state: {', '.join(sorted(unread))}", START_AGAIN)
    return value


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
    content = json.loads(metadata["state"])
    if _is_longer(num_latents, saved["num_latents"]) and isinstance(content, dict) and content.get("is_open") is True:
        num_latents = saved["num_latents"]
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


def _is_longer(num_latents: int | None, than: int | None) -> bool:
    return num_latents is not None and than is not None and num_latents > than


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
