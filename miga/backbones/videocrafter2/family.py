"""VideoCrafter2 as a family: the published name, and folders that `miga convert` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, ClassVar, Final

import torch

from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.backbones.folder_family import FolderFamily
from miga.backbones.model_config import class_name_of
from miga.backbones.videocrafter2 import spec as videocrafter2
from miga.backbones.videocrafter2.footprint import VideoCrafter2Architecture, load_architecture, modules_of_folder
from miga.backbones.videocrafter2.schedule import schedule_of
from miga.backbones.weight_files import read_json, visible_files
from miga.config import SamplerConfig
from miga.errors import ModelError
from miga.schedule import NoiseSchedule

if TYPE_CHECKING:
    from miga.backbones.random_model import Reduction
    from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
    from miga.backbones.videocrafter2.random_model import RandomVideoCrafter2


def _convert_hint(file: Path) -> str:
    command = f"miga convert {quote(str(file))} FOLDER"
    return f"if it is VideoCrafter2's model.ckpt, run `{command}` once, and name FOLDER as the model"


class VideoCrafter2Family(FolderFamily):
    """See `Family`. The published file is a pickle: nothing is loaded under its name until it has been converted."""

    name: ClassVar[str] = videocrafter2.FAMILY
    random_models: ClassVar[tuple[str, ...]] = ("videocrafter2",)
    json_files: ClassVar[tuple[str, ...]] = videocrafter2.JSON_FILES
    network_folder: ClassVar[str] = "unet"

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        """See `Family.published`."""
        return videocrafter2.PUBLISHED

    def recognises(self, place: Path, model: str) -> bool:
        """See `Family.recognises`. A pickle of its name is taken for the published file, and refused."""
        if os.path.isfile(place):
            if place.suffix != ".ckpt":
                return False
            raise ModelError(f"model {model!r} is a pickle, which is never loaded as it is", hint=_convert_hint(place))
        index = place / "model_index.json"
        if os.path.lexists(index):
            return class_name_of(read_json(index)) == videocrafter2.PIPELINE_CLASS
        if os.path.isdir(place) and (found := visible_files(place, ".ckpt")):
            raise ModelError(
                f"model folder {model!r} holds {found[0]}, a pickle, which is never loaded as it is",
                hint=_convert_hint(place / found[0]),
            )
        return False

    def read_spec(self, place: str, revision: str | None) -> BackboneSpec:
        """See `FolderFamily.read_spec`."""
        return videocrafter2.load_spec(place, revision=revision)

    def modules_of_folder(self, folder: Path) -> Mapping[str, tuple[torch.nn.Module, str]]:
        """See `FolderFamily.modules_of_folder`."""
        return modules_of_folder(folder)

    def backbone_class(self) -> type[VideoCrafter2Backbone]:
        """See `FolderFamily.backbone_class`."""
        from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone

        return VideoCrafter2Backbone

    def load_backbone(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        components: Sequence[Component],
    ) -> Backbone:
        """See `Family.load_backbone`."""
        self._refuse_unconverted(model)
        return super().load_backbone(model, revision=revision, device=device, dtype=dtype, components=components)

    def check_weights(self, model: str, revision: str | None) -> None:
        """See `Family.check_weights`."""
        self._refuse_unconverted(model)
        super().check_weights(model, revision)

    def _refuse_unconverted(self, model: str) -> None:
        if self.knows(model):
            raise videocrafter2.unconverted(model)

    def schedule_of(self, config: SamplerConfig, model: str, revision: str | None) -> NoiseSchedule:
        """See `Family.schedule_of`."""
        return schedule_of(config, videocrafter2.load_settings(model, revision=revision))

    def footprint(self, model: str, revision: str | None) -> VideoCrafter2Architecture:
        """See `Family.footprint`."""
        return load_architecture(model, revision=revision)

    def planned_spec(self, name: str, reduction: Reduction) -> BackboneSpec:
        """See `Family.planned_spec`."""
        from miga.backbones.videocrafter2.random_model import planned_spec

        return planned_spec(reduction)

    def planned_footprint(self, name: str, reduction: Reduction) -> VideoCrafter2Architecture:
        """See `Family.planned_footprint`."""
        from miga.backbones.videocrafter2.random_model import planned_architecture

        return planned_architecture(reduction)

    def random_model(
        self, name: str, *, device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool
    ) -> RandomVideoCrafter2:
        """See `Family.random_model`."""
        from miga.backbones.videocrafter2.random_model import random_videocrafter2

        return random_videocrafter2(device, dtype, reduction, with_vae)


FAMILY: Final = VideoCrafter2Family()
