"""A transformer as its difference from the embedded one, in a quarter of its size, for weights trained on from it.

Every row of a difference is whole numbers from -127 to 127 times a scale of its own. What is lost is at most a 254th of
the largest change of its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from miga.errors import ModelError

_LARGEST: Final = 127
_BASE: Final = "base"
_SCALE: Final = ".scale"
HOW: Final = "python -m jobs.train_sprites_causal makes it"


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights by their names, in float16, as checkpoints hold them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().to(torch.float16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_difference(
    file: Path, base: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], notes: Mapping[str, Any]
) -> None:
    """Writes what `weights` are more than `base`.

    Args:
        file: to write; its folder is made.
        base: the embedded transformer's, by name.
        weights: of the same names and shapes.
        notes: what is to be known of them, as JSON has it.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        rows = (weight.detach().cpu().float() - base[name].detach().cpu().float()).flatten(1 if weight.ndim > 1 else 0)
        rows = rows if weight.ndim > 1 else rows[None]
        scale = (rows.abs().amax(1, keepdim=True) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        tensors[name] = (rows / scale).round().to(torch.int8).reshape(weight.shape)
        tensors[name + _SCALE] = scale[:, 0].contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {_BASE: digest_of(base), "notes": json.dumps(dict(notes))})


def with_difference(file: Path, base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that `save_difference` wrote, float32.

    Raises:
        ModelError: if there is no such file, it is broken, or is of another base.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            made_from, names = (stored.metadata() or {}).get(_BASE), set(stored.keys())
            if made_from != digest_of(base):
                raise ModelError(f"{file} is the difference from other weights than these", f"train it anew: {HOW}")
            lacking = sorted({name for each in base for name in (each, each + _SCALE)} ^ names)
            if lacking:
                raise ModelError(f"{file} has no, or has besides: {', '.join(lacking[:5])}", f"train it anew: {HOW}")
            return {
                name: _sum(each, stored.get_tensor(name), stored.get_tensor(name + _SCALE))
                for name, each in base.items()
            }
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{file} cannot be read: {error}", f"train it anew: {HOW}") from error


def _sum(base: torch.Tensor, difference: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    wide = scale.reshape(-1, *(1,) * (difference.ndim - 1)) if difference.ndim > 1 else scale
    return base.detach().cpu().float() + difference.float() * wide
