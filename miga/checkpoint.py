"""A video in the making on disk: one safetensors file, so that nothing in it is ever run.

A state alone (`save_state`) is what the sampler goes on from. A `VideoCheckpoint` holds the finished latents since the
checkpoint before beside it, so that all files of a video together give its frames again from the first.

Tensors are named by where they stand in the state ("method.queue.x_FCHW"), everything else is JSON in the file's
metadata. Both ways follow the type hints of what is saved: a new field is saved without a line here, and loading makes
no class but those that the hints name.

The metadata's `sha256` is that of the whole file, with 64 zeros where it stands itself: whatever bit of a file changes
on a disk or on the way, it is refused. Files of version 1 have none, so nothing but their form can be checked; they
are read where version 1 would have made the same video (`_check_same`).

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from miga.config import SamplerConfig
from miga.errors import CheckpointError
from miga.generate import VideoState
from miga.methods import methods
from miga.outside_data import parse_json, shown
from miga.profiles import stored_values
from miga.queue import ADDED_LATER, FrameQueue

FORMAT: Final = "miga checkpoint"
VERSION: Final = 2
"""Of the format, and of what a state means to the sampler: a state of another version would be gone on with wrongly.

1: no checksum; `released` on Wan asked for fewer groups, and several prompts shared out a video less evenly.
"""

START_AGAIN: Final = "delete it: the video is then made from the start"

_SCALARS: Final = (bool, int, float, str)
_NO_DIGEST: Final = b"0" * 64
_NOTED: Final = re.compile(rb'"sha256":"([0-9a-f]{64})"')
"""In a file's header; inside of a string of JSON there are no plain quotes."""
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
    _save(checkpoint, VideoCheckpoint, file, _Video(config, checkpoint.num_latents, seed))


def load_checkpoints(
    files: Sequence[Path],
    *,
    config: SamplerConfig,
    num_latents: int | None,
    seed: int,
    device: torch.device | str = "cpu",
    num_prompts: int = 1,
) -> VideoCheckpoint:
    """Reads a video's checkpoints and joins them (`join_checkpoints`).

    Args:
        files: as `save_checkpoint` wrote them, from the video's first on.
        config: of the video to go on with.
        num_latents: its length; more than the checkpoint's where that is open.
        seed: of its noise.
        device: where the state's latents are wanted; finished ones stay on the CPU.
        num_prompts: prompts that stand in turn, each for an even share of the video.

    Raises:
        FileNotFoundError: if a file is not there.
        CheckpointError: if a file is damaged or no whole checkpoint, is of another video, config or version (saying
            what differs), or one is missing between them.
    """
    video = _Video(config, num_latents, seed, num_prompts)
    parts: list[VideoCheckpoint] = []
    for number, file in enumerate(files):
        where = device if number == len(files) - 1 else "cpu"
        parts.append(_load(VideoCheckpoint, file, video, where))
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
    _save(state, VideoState, file, _Video(config, num_latents, seed))


@dataclass(frozen=True)
class _Video:
    """Which video a file is of.

    Attributes:
        num_prompts: prompts that stand in turn, each for an even share; no file says it.
    """

    config: SamplerConfig
    num_latents: int | None
    seed: int
    num_prompts: int = 1

    @property
    def method_state(self) -> type:
        """What the state of its method is."""
        return methods()[self.config.method].state


def _save(value: VideoState | VideoCheckpoint, kind: type, file: Path, video: _Video) -> None:
    tensors: dict[str, torch.Tensor] = {}
    content = _encode(value, kind, "", tensors, video.method_state)
    metadata = {
        "format": FORMAT,
        "version": json.dumps(VERSION),
        "config": json.dumps(video.config.noted()),
        "num_latents": json.dumps(video.num_latents),
        "seed": json.dumps(video.seed),
        "state": json.dumps(content),
        "sha256": _NO_DIGEST.decode(),
    }
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(_apart(tensors), unfinished, metadata)
        _seal(unfinished)
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
    num_prompts: int = 1,
) -> VideoState:
    """Reads the state that `save_state` wrote for the same video.

    Args:
        file: the checkpoint.
        config: of the video to go on with.
        num_latents: its length; None if it has no end.
        seed: of its noise.
        device: where its latents are wanted; dtypes are as they were saved.
        num_prompts: see `load_checkpoints`.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged or no whole checkpoint, or is of another video, config or version
            (saying what differs).
    """
    return _load(VideoState, file, _Video(config, num_latents, seed, num_prompts), device)


def check_file(file: Path) -> None:
    """Finds out whether a checkpoint, or a file of kept latents, is what was written, of whatever video it is.

    It is read once from end to end. A file of version 1 has no checksum: of that it is only seen whether its length is
    what its header says.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, cut off, of another version or something else.
    """
    with _opened(file):
        pass


def num_whole(files: Sequence[Path]) -> int:
    """How many of a video's checkpoints, from the first on, are what was written (`check_file`).

    Raises:
        FileNotFoundError: if a file is not there.
    """
    for number, file in enumerate(files):
        try:
            check_file(file)
        except CheckpointError:
            return number
    return len(files)


def _load(kind: type[_T], file: Path, video: _Video, device: torch.device | str) -> _T:
    with _opened(file) as (opened, metadata):
        content = _check_same(file, metadata, video)
        unread = set(opened.keys())

        def read(name: str) -> torch.Tensor:
            unread.remove(name)
            where = "cpu" if name.rpartition(".")[2] in _ON_CPU else device
            tensor: torch.Tensor = opened.get_tensor(name).to(where, copy=True)  # not a view of the mapped file
            return tensor

        value: _T = _decode(content, kind, "", read, video.method_state)
        if unread:
            raise ValueError(f"it holds tensors of no state: {', '.join(sorted(unread))}")
    return value


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A checkpoint of a version that is read, with its metadata; what is wrong inside with it, too, is its fault.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, or no whole checkpoint of such a version.
    """
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{file} is not a checkpoint of a video", "name another file, or delete it")
            version = parse_json(metadata["version"])
            if type(version) is not int or not 1 <= version <= VERSION:
                raise CheckpointError(
                    f"checkpoint {file} is of version {version!r}, this program reads version {VERSION}", START_AGAIN
                )
            noted, found = _digest(file)
            if noted != found and (version > 1 or "sha256" in metadata):
                raise CheckpointError(
                    f"{file} is no whole checkpoint: it is damaged, its SHA-256 is {found} and not {noted or 'noted'}",
                    START_AGAIN,
                )
            yield opened, metadata
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is no whole checkpoint: {type(error).__name__}: {error}", START_AGAIN) from error


def _seal(file: Path) -> None:
    """Notes a file's digest in it, in place of the zeros there."""
    digest = _digest(file)[1].encode()
    with file.open("r+b") as opened:
        noted = _NOTED.search(opened.read(8 + int.from_bytes(opened.read(8), "little")))
        assert noted is not None, "a place is kept for it"
        opened.seek(8 + noted.start(1))
        opened.write(digest)


def _digest(file: Path) -> tuple[str, str]:
    """The SHA-256 that a file notes (empty if none), and the one that it has."""
    with file.open("rb") as opened:
        length = opened.read(8)
        header = opened.read(int.from_bytes(length, "little"))
        noted = _NOTED.search(header)
        start, stop = noted.span(1) if noted else (len(header), len(header))
        digest = hashlib.sha256(length + header[:start] + _NO_DIGEST[: stop - start] + header[stop:])
        hashlib.file_digest(opened, lambda: digest)
    return header[start:stop].decode(), digest.hexdigest()


def _check_same(file: Path, metadata: Mapping[str, str], video: _Video) -> Json:
    """The JSON of what a file holds.

    Raises:
        CheckpointError: unless the file was written for this video.
    """
    version, config, num_latents, seed, content = (
        parse_json(metadata[name], finite=False) for name in ("version", "config", "num_latents", "seed", "state")
    )
    if not isinstance(config, dict) or type(num_latents) not in (int, types.NoneType):
        raise ValueError("it does not say of which video it is")
    wanted = video.num_latents
    if _is_longer(wanted, num_latents) and isinstance(content, dict) and content.get("is_open") is True:
        wanted = num_latents
    before: dict[str, Json] = {"seed": seed, "num_latents": num_latents}
    before |= {f"sampler.{name}": value for name, value in stored_values(config).items()}
    now: dict[str, Json] = {"seed": video.seed, "num_latents": wanted}
    now |= {f"sampler.{name}": value for name, value in json.loads(json.dumps(video.config.noted())).items()}
    if before != now:
        differing = [
            f"{shown(name)[1:-1]} {_shown(before, name)} there, {_shown(now, name)} here"
            for name in dict.fromkeys([*now, *before])
            if name not in before or name not in now or before[name] != now[name]
        ]
        raise CheckpointError(
            f"checkpoint {file} is of another video: {'; '.join(differing[:10])}",
            "go on with the settings it was made with, or " + START_AGAIN,
        )
    if version == 1 and not (_was_queued_alike(video.config, wanted) and _was_shared_alike(video, content)):
        raise CheckpointError(
            f"checkpoint {file} is of version 1, which made this video otherwise: it shared out several prompts less "
            "evenly, and began the shorter videos of profile 'released' on Wan with fewer groups",
            START_AGAIN,
        )
    return content


def _was_queued_alike(config: Any, num_latents: int | None) -> bool:
    """Whether a video's queue was as long in version 1, which did not ask for the groups that are dropped."""
    if config.method != "released" or num_latents is None:
        return True
    num_kept = -(-num_latents // config.zigzag_width)
    return bool(num_kept == config.num_groups_asked(num_latents) or num_kept > config.num_initial_passes)


def _was_shared_alike(video: _Video, content: Json) -> bool:
    """Whether the prompts shared out a video evenly in version 1 too; its base clip stood under the first alone."""
    num_latents, num_prompts = video.num_latents, video.num_prompts
    if num_latents is None or num_prompts <= 2 or num_prompts >= num_latents or num_latents % num_prompts == 0:
        return True
    return isinstance(content, dict) and content.get("is_open") is True


def _is_longer(num_latents: int | None, than: int | None) -> bool:
    return num_latents is not None and than is not None and num_latents > than


def _shown(values: Mapping[str, Json], name: str) -> str:
    return repr(values[name]) if name in values else "missing"


def _encode(value: Any, hint: Any, path: str, tensors: dict[str, torch.Tensor], method: type) -> Json:
    """JSON of a value of that type; its tensors go to `tensors`, named by their paths; `method` is a method's state."""
    hint = _member(hint, lambda kind: _holds(kind, value), path, type(value).__name__)
    if hint is torch.Tensor:
        tensors[path] = value
        return {"class": "Tensor"}
    if is_dataclass(hint):
        added = _added_later(hint)
        return {"class": type(value).__name__} | {
            name: _encode(getattr(value, name), kind, _below(path, name), tensors, method)
            for name, kind in _hints(hint, method).items()
            if name not in added or getattr(value, name) != added[name]
        }
    if get_origin(hint) is tuple:
        kinds = _kinds(hint, len(value), path)
        return [
            _encode(item, kind, _below(path, number), tensors, method)
            for number, (item, kind) in enumerate(zip(value, kinds, strict=True))
        ]
    if get_origin(hint) is dict:
        kind = get_args(hint)[1]
        return {name: _encode(item, kind, _below(path, name), tensors, method) for name, item in value.items()}
    return value


def _decode(content: Json, hint: Any, path: str, read: ReadTensor, method: type) -> Any:
    """The value that `_encode` made this of.

    Raises:
        ValueError, KeyError: if it is not of that type, or a tensor is missing.
    """
    hint = _member(hint, lambda kind: _describes(kind, content), path, _kind_of(content))
    if hint is torch.Tensor:
        return read(path)
    if is_dataclass(hint):
        hints = _hints(hint, method)
        names = list(hints)
        if set(content) | _added_later(hint).keys() != {"class", *names}:
            raise ValueError(f"{path or 'the state'} has fields {sorted(set(content) - {'class'})}, not {names}")
        values = {
            name: _decode(content[name], hints[name], _below(path, name), read, method)
            for name in names
            if name in content
        }
        if hint is FrameQueue:
            _check_lengths(path, **values)
        return hint(**values)  # type: ignore[operator]
    if get_origin(hint) is tuple:
        kinds = _kinds(hint, len(content), path)
        return tuple(
            _decode(item, kind, _below(path, number), read, method)
            for number, (item, kind) in enumerate(zip(content, kinds, strict=True))
        )
    if get_origin(hint) is dict:
        kind = get_args(hint)[1]
        return {name: _decode(item, kind, _below(path, name), read, method) for name, item in content.items()}
    return content


def _hints(kind: Any, method: type) -> dict[str, Any]:
    """The types of a dataclass's fields; of a video, its method's state is of that type."""
    hints = get_type_hints(kind)
    found = {field.name: hints[field.name] for field in fields(kind)}
    return found | {"method": method | None} if kind is VideoState else found


def _added_later(kind: Any) -> dict[str, Any]:
    """Fields that a file may lack, and what it means by that (`miga.queue.ADDED_LATER`)."""
    return {field.name: field.default for field in fields(kind) if field.metadata == ADDED_LATER}


def _check_lengths(
    path: str, x_FCHW: torch.Tensor, level_F: torch.Tensor, history: Mapping[str, torch.Tensor], first: int
) -> None:
    """Raises ValueError unless a queue holds a level, and a history, of every latent."""
    if level_F.dtype != torch.int64 or level_F.dim() != 1 or x_FCHW.dim() != 4:
        raise ValueError(f"{path} holds no latents with a level each")
    for name, tensor in {"x_FCHW": x_FCHW, **history}.items():
        if tensor.shape[:1] != level_F.shape:
            raise ValueError(f"{_below(path, name)} is of shape {list(tensor.shape)}, beside {len(level_F)} levels")


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
