"""How a model is to be run beside what it is: LoRAs, frame size, attention backend, compilation, memory.

`load_backbone` loads a model as it is published; `configure` then makes of it what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.families import families
from miga.backbones.family import Family, ModelOptions
from miga.backbones.registry import family_of
from miga.errors import ModelError

if TYPE_CHECKING:
    from miga.backbones.lora_files import Lora
    from miga.backbones.memory_plan import MemoryPlan


def configured_spec(spec: BackboneSpec, options: ModelOptions, revision: str | None = None) -> BackboneSpec:
    """The spec of a model under options: its size, and what its revision says of LoRAs.

    Args:
        spec: of the model as published.
        options: what was asked for.
        revision: of a hub name, as it was asked for.

    Raises:
        ModelError: if a LoRA is not to be had or is for another model, or the model cannot make that size.
    """
    if options == ModelOptions():
        return spec
    family, spec = _checked(spec, options, revision)
    loras = _find_loras(options, spec)
    for lora in loras:
        family.check_lora(lora, spec.name, revision)
    return _with_loras(spec, loras)


def configure(
    backbone: Backbone,
    options: ModelOptions,
    *,
    revision: str | None = None,
    device: torch.device | str | None = None,
    memory: MemoryPlan | None = None,
) -> None:
    """Makes of a loaded model what was asked for.

    Args:
        backbone: changed in place. With `memory` it is to be loaded on the CPU and changed before it takes the GPU's.
        options: what was asked for.
        revision: of a hub name, as it was asked for.
        device: where a model whose parts are known is moved; by default it stays.
        memory: how it is fitted into a card.

    Raises:
        ModelError: if the model, this machine or a LoRA's file does not allow one of them.
    """
    name = backbone.spec.name
    if options == ModelOptions():
        family: Family = family_of(name, revision)
        loras: list[Lora] = []
    else:
        family, backbone.spec = _checked(backbone.spec, options, revision)
        loras = _find_loras(options, backbone.spec)
        backbone.spec = _with_loras(backbone.spec, loras)
    where = None if device is None else torch.device(device)
    family.configure(backbone, options, loras, device=where, memory=memory)


def _checked(spec: BackboneSpec, options: ModelOptions, revision: str | None) -> tuple[Family, BackboneSpec]:
    """The family, if it takes those options, and the spec for frames of the size that was asked for."""
    family = family_of(spec.name, revision)
    footprint = family.require_footprint(spec.name, revision)
    asked = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    if refused := [name for name in asked if name not in family.takes]:
        others = [other.name for other in families().values() if other.takes.issuperset(refused)]
        raise ModelError(
            f"{spec.name!r} is of the family {family.name!r}, which takes no {' and no '.join(refused)}",
            f"leave that out; models of these families take it: {', '.join(others) or 'none'}",
        )
    if options.height or options.width:
        spec = footprint.resized(spec, options.height or spec.height, options.width or spec.width)
    return family, spec


def _find_loras(options: ModelOptions, spec: BackboneSpec) -> list[Lora]:
    if not options.lora:
        return []
    from miga.backbones.lora_files import find_loras, for_experts

    return for_experts(find_loras(options.lora), spec.name, has_two=spec.expert_boundary is not None)


def _with_loras(spec: BackboneSpec, loras: Sequence[Lora]) -> BackboneSpec:
    return replace(spec, revision="+".join([spec.revision, *(lora.label for lora in loras)])) if loras else spec
