"""What a training goes on from, on disk: weights, optimiser and step once, and the bank of every process.

`state/step-00000100/` holds `shared.pt` and `bank-0000.safetensors`, `bank-0001.safetensors`, ...; `state/latest.json`
names the folder that is whole. Whoever dies while a state is written leaves the one before.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from miga.errors import OutputError

LATEST: Final = "latest.json"


@dataclass(frozen=True)
class SavedStep:
    """A state that is whole.

    Attributes:
        step: the next one.
        num_processes: that it is of.
    """

    step: int
    num_processes: int


def _folder(place: Path, step: int) -> Path:
    return place / f"step-{step:08d}"


def saved_step(place: Path) -> SavedStep | None:
    """The latest state; None if there is none.

    Raises:
        OutputError: if what names it is broken.
    """
    file = place / LATEST
    if not file.exists():
        return None
    try:
        noted = json.loads(file.read_text())
        return SavedStep(int(noted["step"]), int(noted["processes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{str(file)!r} is broken: {error}", "delete the training's folder, and begin again"
        ) from None


def write_part(place: Path, step: int, rank: int, bank: Mapping[str, torch.Tensor], shared: Any = None) -> None:
    """Writes what one process keeps; with `shared` what is the same in all of them too."""
    folder = _folder(place, step)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in bank.items()}, folder / f"bank-{rank:04d}.safetensors")
    if shared is not None:
        torch.save(shared, folder / "shared.pt")


def name_latest(place: Path, saved: SavedStep) -> None:
    """Says that all processes have written a state, and deletes those before it."""
    unfinished = place / f".{LATEST}"
    unfinished.write_text(json.dumps({"step": saved.step, "processes": saved.num_processes}) + "\n")
    os.replace(unfinished, place / LATEST)
    for folder in place.glob("step-*"):
        if folder != _folder(place, saved.step):
            shutil.rmtree(folder, ignore_errors=True)


def read_part(place: Path, step: int, rank: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What is the same in all processes, and the bank of one.

    Raises:
        OutputError: if it is gone or broken.
    """
    folder = _folder(place, step)
    try:
        shared: dict[str, Any] = torch.load(folder / "shared.pt", weights_only=True, map_location="cpu")
        return shared, load_file(folder / f"bank-{rank:04d}.safetensors")
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise OutputError(
            f"the state of training in {str(folder)!r} cannot be read: {str(error).splitlines()[0]}",
            "delete the training's folder, and begin again",
        ) from None
