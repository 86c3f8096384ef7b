"""Readers of the sampler's own files: checkpoints, and the record of its settings; see `tests/fuzz/reader.py`."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from miga.checkpoint import VideoCheckpoint, check_file, load_checkpoints, save_checkpoint
from miga.errors import ConfigError
from miga.generate import VideoState
from miga.methods.miga.two_stage import TwoStageState
from miga.outside_data import OutsideDataError, parse_json_object
from miga.profiles import read_config
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.unified import UnifiedState
from tests.fuzz.reader import Reader
from tests.miga.closed_form import make_config

CONFIG = make_config()
ZEROS = b"0" * 64


def _queue(first: int, count: int) -> FrameQueue:
    x = torch.arange(24.0 * count).view(count, 2, 3, 4)
    return FrameQueue(x, torch.arange(1, count + 1), {"previous": 2 * x, "num_taken": torch.arange(count) % 3}, first)


@cache
def _checkpoint() -> VideoCheckpoint:
    trace = ReflectionTrace((4, 6), (0.3, -1e-17), (False, True), (False, False))
    method = TwoStageState(_queue(7, 4), UnifiedState((_queue(2, 3), None), (5, 0)), 9, trace)
    return VideoCheckpoint(VideoState(method=method, num_finished=2), torch.ones(2, 2, 3, 4), 9, 33)


def _prepare(folder: Path) -> list[bytes]:
    save_checkpoint(_checkpoint(), folder / "sound", config=CONFIG, seed=1)
    return [(folder / "sound").read_bytes()]


def _load(folder: Path, data: bytes) -> None:
    file = folder / "checkpoint"
    file.write_bytes(data)
    load_checkpoints([file], config=CONFIG, num_latents=9, seed=1)


def _check(folder: Path, data: bytes) -> None:
    file = folder / "checkpoint"
    file.write_bytes(data)
    check_file(file)


def _sealed_anew(folder: Path, data: bytes) -> None:
    """As somebody would write it who means it: the checksum is that of the changed file."""
    zeroed = re.sub(rb'("sha256":")[0-9a-f]{64}"', rb"\g<1>" + ZEROS + b'"', data)
    _load(folder, zeroed.replace(ZEROS, hashlib.sha256(zeroed).hexdigest().encode(), 1))


def _metadata(folder: Path) -> list[bytes]:
    """What a file says beside its latents, as JSON of JSON."""
    (content,) = _prepare(folder)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = {name: value for name, value in header["__metadata__"].items() if name != "sha256"}
    return [json.dumps({name: json.loads(value) if name != "format" else value for name, value in metadata.items()})
            .encode()]  # fmt: skip


def _with_metadata(folder: Path, data: bytes) -> None:
    """Files whose metadata alone was changed: of the present version with the right checksum, and of version 1."""
    try:
        changed = parse_json_object(data)
    except OutsideDataError:
        changed = {"format": data.decode("latin-1")}
    sound = (folder / "sound").read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    header: dict[str, Any] = json.loads(sound[8:start])
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    header["__metadata__"] = {"sha256": ZEROS.decode()} | texts
    if texts.get("version") == "1":
        del header["__metadata__"]["sha256"]
    head = json.dumps(header, separators=(",", ":")).encode()
    content = struct.pack("<Q", len(head)) + head + sound[start:]
    _load(folder, content.replace(ZEROS, hashlib.sha256(content).hexdigest().encode(), 1))


def _records(_: Path) -> list[bytes]:
    configs = [CONFIG, make_config(method="released", released_branch="wan"), make_config(self_reflection=True)]
    return [json.dumps(config.to_dict()).encode() for config in configs]


def _record(_: Path, data: bytes) -> None:
    try:
        values = parse_json_object(data)
    except OutsideDataError as error:
        raise ConfigError(str(error)) from error
    read_config(values, "run.json")


READERS = [
    Reader("checkpoint", _prepare, _load),
    Reader("checkpoint, checked", _prepare, _check),
    Reader("checkpoint, sealed anew", _prepare, _sealed_anew),
    Reader("checkpoint, other metadata", _metadata, _with_metadata),
    Reader("sampler record", _records, _record),
]
