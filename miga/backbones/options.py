"""How a model is to be run beside what it is: LoRAs, frame size, attention backend, compilation, memory.

`load_backbone` loads a model as it is published; `configure` then makes of it what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.own import is_import_path
from miga.backbones.registry import EMBEDDED
from miga.backbones.simulated.spec import is_simulated
from miga.backbones.videocrafter2 import footprint as videocrafter2
from miga.backbones.videocrafter2.spec import FAMILY as VIDEOCRAFTER2
from miga.backbones.wan.spec import WanArchitecture, load_architecture
from miga.errors import ModelError

if TYPE_CHECKING:
    from miga.backbones.lora_files import Lora
    from miga.backbones.memory_plan import Footprint, MemoryPlan
    from miga.backbones.wan.backbone import WanBackbone


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


def has_known_parts(spec: BackboneSpec) -> bool:
    """Whether a model is Wan's or VideoCrafter2's own, not simulated and not one of the user's."""
    return spec.family in ("wan", VIDEOCRAFTER2) and not is_simulated(spec.name) and not is_import_path(spec.name)


def architecture_of(spec: BackboneSpec, revision: str | None = None) -> Footprint:
    """The sizes of a model's parts, without its weights.

    Raises:
        ModelError: if nothing is known of them, or the model cannot be had.
    """
    if is_simulated(spec.name):
        raise ModelError(
            f"{spec.name!r} has no parts that could be changed, or laid out on a card",
            "leave LoRAs, sizes, attention backends, compiling and memory plans out for simulated GPUs",
        )
    if not has_known_parts(spec):
        raise ModelError(
            f"nothing is known of the parts of {spec.name!r}",
            "LoRAs, other sizes, attention backends, compiling and memory plans are for Wan's models and VideoCrafter2",
        )
    name = str(EMBEDDED.get(spec.name, spec.name))
    if spec.family == VIDEOCRAFTER2:
        return videocrafter2.load_architecture(name, revision=revision)
    return load_architecture(name, revision=revision)


def configured_spec(
    spec: BackboneSpec, options: ModelOptions, revision: str | None = None, loras: list[Lora] | None = None
) -> BackboneSpec:
    """The spec of a model under options: its size, and what its revision says of LoRAs.

    Args:
        spec: of the model as published.
        options: what was asked for.
        revision: of a hub name, as it was asked for.
        loras: those of the options where they are known already; else they are looked for, and checked.

    Raises:
        ModelError: if a LoRA is not to be had or is for another model, or the model cannot make that size.
    """
    if options == ModelOptions():
        return spec
    architecture = architecture_of(spec, revision)
    if not isinstance(architecture, WanArchitecture) and replace(options, height=None, width=None) != ModelOptions():
        raise ModelError(
            f"{spec.name!r} is of the family {spec.family!r}, not of Wan's",
            "LoRAs, attention backends and compiling are for Wan's models",
        )
    if options.height or options.width:
        spec = architecture.resized(spec, options.height or spec.height, options.width or spec.width)
    if options.lora and isinstance(architecture, WanArchitecture):
        from miga.backbones.lora_files import find_loras
        from miga.backbones.wan.lora import check_lora

        if loras is None:
            loras = find_loras(options.lora)
            for lora in loras:
                check_lora(lora, architecture.weights())
        spec = replace(spec, revision="+".join([spec.revision, *(lora.label for lora in loras)]))
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
        device: where a model whose parts are known is moved; by default it stays.
        memory: how it is fitted into a card.

    Raises:
        ModelError: if the model, this machine or a LoRA's file does not allow one of them.
    """
    if not has_known_parts(backbone.spec):
        backbone.spec = configured_spec(backbone.spec, options, revision)  # refuses all of them
        return
    from miga.backbones.lora_files import find_loras
    from miga.backbones.pretrained import PretrainedBackbone
    from miga.backbones.wan.backbone import WanBackbone

    assert isinstance(backbone, PretrainedBackbone)
    loras = find_loras(options.lora)
    backbone.spec = configured_spec(backbone.spec, options, revision, loras)
    if isinstance(backbone, WanBackbone):
        backbone.fuse_loras(loras)
    if memory is not None:
        backbone.save_memory(fp8=memory.fp8, vae_dtype=memory.vae_dtype, decodes_beside=memory.decodes_beside)
    if device is not None:
        backbone.to(torch.device(device))
    if isinstance(backbone, WanBackbone):
        _speed_up(backbone, options)


def _speed_up(backbone: WanBackbone, options: ModelOptions) -> None:
    if options.attention != "auto":
        backbone.set_attention_backend(options.attention)
    if options.compile:
        backbone.compile()
