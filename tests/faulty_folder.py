"""Ways in which a model's folder can be wrong; each is a function that changes a folder in place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file

Change: TypeAlias = Callable[[Path], None]

WEIGHTS = "diffusion_pytorch_model.safetensors"
WAS_RUN = "was-run"
"""The file that code in place of weights makes, if it is ever run."""


def edit(file: Path, **changes: Any) -> None:
    """Keys of a JSON file, which is made if it is not there."""
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **changes}))


def change_json(name: str, **changes: Any) -> Change:
    return lambda folder: edit(folder / name, **changes)


def write(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content) and None


def remove(*names: str) -> Change:
    """Files, or folders with all that is in them."""

    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def truncate(name: str) -> Change:
    """The second half."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def append(name: str) -> Change:
    """One byte."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"x") and None


def spoil(name: str, value: float) -> Change:
    """The last number of the first weight."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensors[min(tensors)].view(-1)[-1] = value
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def pickled(component: str, name: str) -> Change:
    """Code in place of weights."""

    def change(folder: Path) -> None:
        for file in (folder / component).glob("*.safetensors"):
            file.unlink()
        (folder / component / name).write_bytes(pickle.dumps(_Evil(str(folder / WAS_RUN))))

    return change


def rename(name: str, new: str) -> Change:
    return lambda folder: (folder / name).rename(folder / new) and None


def link(name: str, target: str) -> Change:
    """In place of what is there."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Change:
    """One that nobody writes to: whoever opens it waits for ever."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def leave_out(name: str, *keys: str) -> Change:
    """Keys of a JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if key not in keys}))

    return change


def mark(name: str) -> Change:
    """A byte order mark, as some editors put it."""
    return lambda folder: (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes()) and None


def add_tensors(name: str, **tensors: torch.Tensor) -> Change:
    """Or in place of those of the same name; "first" stands for the first weight of more than one dimension."""

    def change(folder: Path) -> None:
        there = load_file(folder / name)
        first = min(key for key, value in there.items() if value.ndim > 1)
        named = {key.replace("first", first): value for key, value in tensors.items()}
        save_file({**there, **named}, folder / name, metadata={"format": "pt"})

    return change


def cast(name: str, dtype: torch.dtype) -> Change:
    """The first weight of more than one dimension, as another type of numbers."""

    def change(folder: Path) -> None:
        there = load_file(folder / name)
        first = min(key for key, value in there.items() if value.ndim > 1)
        save_file({**there, first: there[first].to(dtype)}, folder / name, metadata={"format": "pt"})

    return change


def in_turn(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


class _Evil:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (self.file, "w")
