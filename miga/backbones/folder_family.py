"""What families have in common whose models are folders in diffusers' layout, here or on the hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.backbones.family import Family, ModelOptions
from miga.backbones.loading import check_component, require_component, resolve_folder, weight_note
from miga.backbones.spec import is_published

if TYPE_CHECKING:
    from miga.backbones.lora_files import Lora
    from miga.backbones.memory_plan import MemoryPlan
    from miga.backbones.pretrained import PretrainedBackbone


class FolderFamily(Family):
    """A family of such models.

    Attributes:
        json_files: what a spec is read from, and what lies beside it.
        network_folder: where the network's files are.
        tied_weights: tensors that a checkpoint may lack, since it holds them under another name.
        more_parts: folders of weights that only some of its models have.
        name_prefixes: of parts, what the names in their files may have before the module's.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"height", "width"})
    json_files: ClassVar[tuple[str, ...]]
    network_folder: ClassVar[str]
    tied_weights: ClassVar[tuple[str, ...]] = ()
    more_parts: ClassVar[tuple[str, ...]] = ()
    name_prefixes: ClassVar[Mapping[str, str]] = {}

    def place(self, model: str) -> str:
        """Where a model lies: what the user wrote, but for models that come with the package."""
        return model

    @abstractmethod
    def read_spec(self, place: str, revision: str | None) -> BackboneSpec:
        """The spec, from the model's JSON files.

        Raises:
            ModelError: if the model is missing, or is not one of the family.
        """

    @abstractmethod
    def modules_of_folder(self, folder: Path) -> Mapping[str, tuple[torch.nn.Module, str]]:
        """The modules of a model on the meta device, and what the configuration of each leaves out.

        Raises:
            ModelError: if a configuration is missing, or none of such a module.
        """

    @abstractmethod
    def backbone_class(self) -> type[PretrainedBackbone]:
        """What loads its models; imported when it is asked for."""

    def knows(self, model: str) -> bool:
        """See `Family.knows`: a published name, where no folder is called so."""
        return is_published(model, self.published)

    def is_on_hub(self, model: str) -> bool:
        """See `Family.is_on_hub`."""
        return True

    def load_spec(self, model: str, revision: str | None) -> BackboneSpec:
        """See `Family.load_spec`."""
        return self.read_spec(self.place(model), revision)

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
        return self.backbone_class().from_pretrained(
            self.place(model), revision=revision, device=device, dtype=dtype, components=components
        )

    def check_weights(self, model: str, revision: str | None) -> None:
        """See `Family.check_weights`. The files are read once, from end to end."""
        parts = ("tokenizer", "text_encoder", self.network_folder, "vae")
        patterns = (*self.json_files, *(f"{part}/*" for part in (*parts, *self.more_parts)))
        folder = resolve_folder(self.place(model), revision, patterns)
        for part in parts:
            require_component(part, folder)
        for component, (module, note) in self.modules_of_folder(folder).items():
            prefix = self.name_prefixes.get(component, "")
            check_component(component, folder, module, self.tied_weights, note, prefix)

    def weight_notes(self, model: str, revision: str | None) -> tuple[str, ...]:
        """See `Family.weight_notes`."""
        parts = ("text_encoder", self.network_folder, "vae")
        folder = resolve_folder(self.place(model), revision, (*self.json_files, *(f"{part}/*" for part in parts)))
        return tuple(filter(None, (weight_note(part, folder) for part in parts)))

    def configure(
        self,
        backbone: Backbone,
        options: ModelOptions,
        loras: Sequence[Lora],
        *,
        device: torch.device | None,
        memory: MemoryPlan | None,
    ) -> None:
        """See `Family.configure`."""
        assert isinstance(backbone, self.backbone_class())
        if memory is not None:
            more = {"one_expert": True} if memory.one_expert else {}
            backbone.save_memory(
                fp8=memory.fp8, vae_dtype=memory.vae_dtype, decodes_beside=memory.decodes_beside, **more
            )
        if device is not None:
            backbone.to(device)
