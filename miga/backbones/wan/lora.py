"""LoRAs of Wan's transformer: checked against the model, and fused into its weights.

What each tensor of a file changes is in `lora_layout.py`; the check before a run and the fusing share it. A LoRA is
fused, not hung beside the weights: a call costs what it costs without, and nothing of it is left but the weights.

Legend: A `[rank, in]` and B `[out, rank]` are the two factors of a weight's change.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from miga.backbones.loading import broken_tensors_of, is_finite
from miga.backbones.lora_files import Lora
from miga.backbones.wan.lora_layout import AdapterSettings, Change, plan_lora
from miga.backbones.weight_files import Entry, named
from miga.errors import ModelError
from miga.outside_data import OutsideDataError, parse_json_object, validated

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


def check_lora(lora: Lora, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Finds a LoRA that cannot be fused without the model's weights, and without holding its own.

    Args:
        lora: as `find_loras` gave it.
        weights: shape of every weight of the model, by name.

    Raises:
        ModelError: if the file is broken, holds a tensor that has no place in the model, or NaN.
    """
    _plan(lora, weights)
    _refuse_broken(lora)


def fuse_loras(transformer: WanTransformer3DModel, loras: Sequence[Lora]) -> None:
    """Adds the LoRAs to the weights: W + scale (alpha / rank) B A, summed in float32 and rounded once.

    Args:
        transformer: changed in place, once every file has been found sound.
        loras: as `find_loras` gave them.

    Raises:
        ModelError: if a file is broken, holds a tensor that has no place in the model, or NaN; or if a weight
            overflows.
    """
    weights = dict(transformer.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    changes: dict[str, list[tuple[Lora, Change]]] = defaultdict(list)
    for lora in loras:
        for change in _plan(lora, shapes):
            changes[change.target].append((lora, change))
    for lora in loras:
        _refuse_broken(lora)
    with ExitStack() as stack:
        files = {lora: stack.enter_context(lora.opened()) for lora in loras}
        for target, of_target in changes.items():
            _add(weights[target], target, [(lora, change, files[lora]) for lora, change in of_target])


@torch.no_grad()
def _add(weight: torch.Tensor, name: str, changes: Sequence[tuple[Lora, Change, Any]]) -> None:
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for lora, change, file in changes:
        tensors = [file.get_tensor(key).to(total) for key in change.keys]
        flat = [tensor.flatten(1) if len(tensors) == 2 else tensor for tensor in tensors]
        added = flat[0] @ flat[1] if len(flat) == 2 else flat[0]
        total += lora.scale * change.factor * added.reshape(total.shape)
    fused = total.to(weight.dtype)
    if not is_finite(fused):
        raise ModelError(
            f"LoRA {named([repr(lora.name) for lora, _, _ in changes])} makes {name} larger than "
            f"{str(weight.dtype).removeprefix('torch.')} can hold",
            "take a smaller scale",
        )
    weight.copy_(fused)


def _plan(lora: Lora, weights: Mapping[str, tuple[int, ...]]) -> list[Change]:
    """What the file changes, if each of its tensors has a place.

    Raises:
        ModelError: naming those that have none, and why.
    """
    with lora.opened() as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        entries = {key: Entry(str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
        alphas = {
            key: float(file.get_tensor(key))
            for key, entry in entries.items()
            if key.endswith(".alpha") and math.prod(entry.shape) == 1
        }
        metadata = file.metadata() or {}
    plan = plan_lora(entries, alphas, _settings(lora, metadata), weights)
    if plan.problems:
        raise ModelError(
            f"LoRA {lora.name!r} does not fit the model: {'; '.join(plan.problems)}",
            "every tensor of a LoRA is used or the file is refused: take one of this model and size, as a plain LoRA",
        )
    return plan.changes


def _settings(lora: Lora, metadata: Mapping[str, str]) -> AdapterSettings | None:
    """What a file of diffusers states of itself."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    try:
        stated = {key.removeprefix("transformer."): value for key, value in parse_json_object(text).items()}
        known = {field.name for field in fields(AdapterSettings)}
        return validated(AdapterSettings, {key: value for key, value in stated.items() if key in known})
    except OutsideDataError as error:
        raise ModelError(
            f"LoRA {lora.name!r} states settings of itself (lora_adapter_metadata) that cannot be read: {error}",
            "the file is broken: download it again",
        ) from error


def _refuse_broken(lora: Lora) -> None:
    if broken := broken_tensors_of(lora.file):
        raise ModelError(f"LoRA {lora.name!r} holds NaN or infinity: {named(broken)}", "download it again")
