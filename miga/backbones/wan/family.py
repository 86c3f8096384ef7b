"""Wan2.1 and Wan2.2 as a family: published models by name, and every folder that no other family claims."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.family import ModelOptions
from miga.backbones.folder_family import FolderFamily
from miga.backbones.loading import local_path
from miga.backbones.wan import spec as wan
from miga.backbones.wan.schedule import schedule_of
from miga.config import SamplerConfig
from miga.schedule import NoiseSchedule

if TYPE_CHECKING:
    from miga.backbones.lora_files import Lora
    from miga.backbones.memory_plan import MemoryPlan
    from miga.backbones.random_model import Reduction
    from miga.backbones.wan.backbone import WanBackbone
    from miga.backbones.wan.random_model import RandomWan


class WanFamily(FolderFamily):
    """See `Family`. It recognises everything: what is no model of its own it refuses, and says why."""

    name: ClassVar[str] = "wan"
    keeps_cache: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"lora", "height", "width", "attention", "compile"})
    random_models: ClassVar[tuple[str, ...]] = ("wan-1.3b", "wan-14b")
    json_files: ClassVar[tuple[str, ...]] = wan.JSON_FILES
    network_folder: ClassVar[str] = "transformer"
    tied_weights: ClassVar[tuple[str, ...]] = wan.TIED_TEXT_WEIGHTS
    more_parts: ClassVar[tuple[str, ...]] = ("transformer_2", "image_encoder")
    name_prefixes: ClassVar[Mapping[str, str]] = {"image_encoder": "vision_model."}

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        """See `Family.published`."""
        return wan.PUBLISHED

    def recognises(self, place: Path, model: str) -> bool:
        """See `Family.recognises`. Of what is in another layout it is said what it is, and how it becomes a model."""
        from miga.backbones.wan.sources import why_no_hub_model, why_no_model

        if os.path.isfile(place):
            raise why_no_model(place, model)
        if place != local_path(model) and not os.path.lexists(place / "model_index.json"):
            raise why_no_hub_model(model)
        return True

    def read_spec(self, place: str, revision: str | None) -> BackboneSpec:
        """See `FolderFamily.read_spec`."""
        return wan.load_spec(place, revision=revision)

    def modules_of_folder(self, folder: Path) -> Mapping[str, tuple[torch.nn.Module, str]]:
        """See `FolderFamily.modules_of_folder`."""
        return wan.modules_of_folder(folder)

    def backbone_class(self) -> type[WanBackbone]:
        """See `FolderFamily.backbone_class`."""
        from miga.backbones.wan.backbone import WanBackbone

        return WanBackbone

    def schedule_of(self, config: SamplerConfig, model: str, revision: str | None) -> NoiseSchedule:
        """See `Family.schedule_of`."""
        return schedule_of(config)

    def footprint(self, model: str, revision: str | None) -> wan.WanArchitecture:
        """See `Family.footprint`."""
        return wan.load_architecture(self.place(model), revision=revision)

    def check_lora(self, lora: Lora, model: str, revision: str | None) -> None:
        """See `Family.check_lora`."""
        from miga.backbones.wan.lora import check_lora

        check_lora(lora, self.footprint(model, revision).weights())

    def configure(
        self,
        backbone: Backbone,
        options: ModelOptions,
        loras: Sequence[Lora],
        *,
        device: torch.device | None,
        memory: MemoryPlan | None,
    ) -> None:
        """See `Family.configure`. LoRAs are fused before weights are stored in 8 bits; blocks are compiled at last."""
        from miga.backbones.wan.backbone import WanBackbone

        assert isinstance(backbone, WanBackbone)
        backbone.fuse_loras(loras)
        super().configure(backbone, options, loras, device=device, memory=memory)
        if options.attention != "auto":
            backbone.set_attention_backend(options.attention)
        if options.compile:
            backbone.compile()

    def planned_spec(self, name: str, reduction: Reduction) -> BackboneSpec:
        """See `Family.planned_spec`."""
        from miga.backbones.wan.random_model import planned_spec

        return planned_spec(name, reduction)

    def planned_footprint(self, name: str, reduction: Reduction) -> wan.WanArchitecture:
        """See `Family.planned_footprint`."""
        from miga.backbones.wan.random_model import planned_architecture

        return planned_architecture(name, reduction)

    def random_model(
        self, name: str, *, device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool
    ) -> RandomWan:
        """See `Family.random_model`."""
        from miga.backbones.wan.random_model import random_wan

        return random_wan(name, device, dtype, reduction, with_vae)


FAMILY: Final = WanFamily()
