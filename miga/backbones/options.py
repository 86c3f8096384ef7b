"""How a model is to be run beside what it is: LoRAs, frame size, attention backend, compilation, memory.

`load_backbone` loads a model as it is published; `configure` then makes of it what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.registry import EMBEDDED
from miga.backbones.wan import WanBackbone
from miga.backbones.wan_lora import Lora, find_loras
from miga.backbones.wan_spec import WanArchitecture, load_architecture, resized
from miga.errors import ModelError

if TYPE_CHECKING:
    from miga.backbones.memory_plan import MemoryPlan


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What can be said about a model beside its name.

    Attributes:
        lora: `FILE_OR_NAME[:scale]`, fused into the transformer in this order.
        height, width: pixels of a frame; None means the model's own.
        attention: a backend of diffusers for self-attention, or "auto" for PyTorch's own.
        compile: whether the transformer's blocks are compiled; the first call of every process is then slow.
    """

    lora: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    attention: str = "auto"
    compile: bool = False


def architecture_of(spec: BackboneSpec, revision: str | None = None) -> WanArchitecture:
    """The sizes of a Wan model's parts, without its weights.

    Raises:
        ModelError: if the model is of another family, or cannot be had.
    """
    if spec.family != "wan":
        raise ModelError(
            f"{spec.name!r} is of the family {spec.family!r}, not of Wan's",
            "LoRAs, other sizes, attention backends, compiling and memory plans are for Wan's models",
        )
    return load_architecture(str(EMBEDDED.get(spec.name, spec.name)), revision=revision)


def configured_spec(
    spec: BackboneSpec, options: ModelOptions, revision: str | None = None, loras: list[Lora] | None = None
) -> BackboneSpec:
    """The spec of a model under options: its size, and what its revision says of LoRAs.

    Args:
        spec: of the model as published.
        options: what was asked for.
        revision: of a hub name, as it was asked for.
        loras: those of the options where they are known already; else they are looked for.

    Raises:
        ModelError: if a LoRA is not to be had, or the model cannot make that size.
    """
    if options == ModelOptions():
        return spec
    architecture = architecture_of(spec, revision)  # refuses other families
    if options.height or options.width:
        spec = resized(spec, architecture, options.height, options.width)
    if options.lora:
        labels = [lora.label for lora in (find_loras(options.lora) if loras is None else loras)]
        spec = replace(spec, revision="+".join([spec.revision, *labels]))
    return spec


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
        device: where a model of Wan's is moved; by default it stays.
        memory: how it is fitted into a card.

    Raises:
        ModelError: if the model, this machine or a LoRA's file does not allow one of them.
    """
    loras = find_loras(options.lora)
    backbone.spec = configured_spec(backbone.spec, options, revision, loras)  # refuses options for other families
    if not isinstance(backbone, WanBackbone):
        return
    if loras:
        backbone.fuse_loras(loras)
    if memory is not None:
        backbone.save_memory(fp8=memory.fp8, vae_dtype=memory.vae_dtype)
    if device is not None:
        backbone.to(torch.device(device))
    if options.attention != "auto":
        backbone.set_attention_backend(options.attention)
    if options.compile:
        backbone.compile()
