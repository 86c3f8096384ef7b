"""Clips as a training process reads them: latents, conditions and text, encoded once, a file for each.

A folder of `00000000.safetensors`, `00000001.safetensors`, ... and `encoded.json`, which is written last and says what
they are of. A training process needs no VAE and no text encoder.

Legend: C channels, F latents, H, W latent cells, L tokens, D channels of a token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from miga.errors import InputError

INDEX: Final = "encoded.json"


@dataclass(frozen=True)
class EncodedClip:
    """One clip.

    Attributes:
        clean_CFHW: its latents, normalised.
        conditions: y `[mask channels + C, F, H, W]` by name (`conditions.py`).
        text_LD: its caption's embedding, without padding.
        tokens: what the network's image encoder reads under each condition, `[L, D]`; empty where it reads nothing.
        notes: what else is known of it, text by name.
    """

    clean_CFHW: torch.Tensor
    conditions: Mapping[str, torch.Tensor]
    text_LD: torch.Tensor
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def clip_file(folder: Path, number: int) -> Path:
    """Where a clip lies."""
    return folder / f"{number:08d}.safetensors"


def write_clip(file: Path, clip: EncodedClip) -> None:
    """Writes a clip, whole or not at all. Latents are kept in half precision, texts as they are."""
    tensors = {"clean": clip.clean_CFHW.half(), "text": clip.text_LD}
    tensors |= {f"y.{name}": y.half() for name, y in clip.conditions.items()}
    tensors |= {f"tokens.{name}": tokens.half() for name, tokens in clip.tokens.items()}
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, unfinished, dict(clip.notes))
    os.replace(unfinished, file)


def read_clip(file: Path) -> EncodedClip:
    """What `write_clip` wrote.

    Raises:
        InputError: if it is broken.
    """
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            notes = opened.metadata() or {}
        return EncodedClip(
            clean_CFHW=tensors["clean"].float(),
            conditions={name[2:]: tensor.float() for name, tensor in tensors.items() if name.startswith("y.")},
            text_LD=tensors["text"],
            tokens={name[7:]: tensor.float() for name, tensor in tensors.items() if name.startswith("tokens.")},
            notes=notes,
        )
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"encoded clip {str(file)!r} cannot be read: {error}", "delete it, and encode again") from None


def write_index(folder: Path, facts: Mapping[str, Any]) -> None:
    """Says that all clips are there, and what they are of; `numbers` are those of the files."""
    unfinished = folder / f".{INDEX}"
    unfinished.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    os.replace(unfinished, folder / INDEX)


class EncodedClips:
    """The clips of a folder.

    Args:
        folder: where they lie.

    Attributes:
        facts: what `write_index` was told.

    Raises:
        InputError: if they are not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.facts: dict[str, Any] = json.loads((folder / INDEX).read_text())
            self._numbers = [int(number) for number in self.facts["numbers"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{str(folder)!r} is no folder of encoded clips: {INDEX} cannot be read: {error}",
                "encode the clips again: the same command does it",
            ) from None
        if not self._numbers:
            raise InputError(f"{str(folder)!r} holds no encoded clips", "encode some")
        if missing := [number for number in self._numbers if not clip_file(folder, number).exists()]:
            raise InputError(
                f"of {len(self._numbers)} encoded clips in {str(folder)!r} {len(missing)} are gone, the first is "
                f"{clip_file(folder, missing[0]).name}",
                f"delete {INDEX} there, and run the same command again",
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> EncodedClip:
        """One of them, in order."""
        return read_clip(clip_file(self.folder, self._numbers[index]))
