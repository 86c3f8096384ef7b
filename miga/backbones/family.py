"""What a family of backbones offers: one object, by which everything else reaches its models.

Ours are in the folders beside this file; `docs/add-a-family.md` is about writing one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.config import SamplerConfig
from miga.errors import ModelError
from miga.schedule import NoiseSchedule

if TYPE_CHECKING:
    from miga.backbones.lora_files import Lora
    from miga.backbones.memory_plan import Footprint, MemoryPlan
    from miga.backbones.random_model import RandomModel, Reduction


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What can be said about a model beside its name.

    Attributes:
        lora: `FILE_OR_NAME[:scale]`, fused into the network in this order.
        height, width: pixels of a frame; None means the model's own.
        attention: a backend of diffusers for self-attention, or "auto" for PyTorch's own.
        compile: whether the network's blocks are compiled; the first call of every process is then slow.
    """

    lora: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    attention: str = "auto"
    compile: bool = False


class FrameMeter(Protocol):
    """Reads a video as it comes."""

    def add(self, frames_FHWC: npt.NDArray[np.uint8]) -> None:
        """Takes the next frames, `[F, H, W, 3]`."""
        ...

    def values(self) -> dict[str, float]:
        """The scores by name, once all frames have come; NaN where there is none.

        Raises:
            ValueError: if more or fewer frames came than the video has.
        """
        ...


class Family(ABC):
    """A kind of video model. It holds nothing of a model: every call says which is meant.

    `model` is always the name or folder as the user wrote it; `revision` is that of a name on the hub.

    Attributes:
        name: of the family.
        takes: the fields of `ModelOptions` that mean something to it.
        simulates_gpus: whether its models need no card, and a process of its own stands for one.
        keeps_cache: whether its networks can keep keys and values for causal methods (`CachedDenoiser`).
        random_models: short names under which its published models are made with random weights, for benches.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset()
    simulates_gpus: ClassVar[bool] = False
    keeps_cache: ClassVar[bool] = False
    random_models: ClassVar[tuple[str, ...]] = ()

    # ---- whose a model is ----

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        """Models that are known without their files, by name. The first one is what simulated GPUs take after."""
        return {}

    @abstractmethod
    def knows(self, model: str) -> bool:
        """Whether a name is one of its own, without a look at any model's files."""

    def behind(self, model: str) -> Family:
        """The family that a name stands for which it knows: itself, but for names of other families."""
        return self

    def recognises(self, place: Path, model: str) -> bool:
        """Whether a folder, or a file, that no family knows by name is a model of its own.

        Raises:
            ModelError: if it is one of its own that cannot be used as it is, saying what to do.
        """
        return False

    def is_on_hub(self, model: str) -> bool:
        """Whether a name that it knows is that of a model on the hub."""
        return False

    def concern(self, model: str) -> str:
        """What loading a name that it knows would do that needs the user's word; empty if nothing."""
        return ""

    # ---- before weights are loaded ----

    @abstractmethod
    def load_spec(self, model: str, revision: str | None) -> BackboneSpec:
        """What is known of a model without its weights; the registry puts the user's name of it into it.

        Raises:
            ModelError: if there is no such model, or it is none that can be sampled from.
        """

    def check_weights(self, model: str, revision: str | None) -> None:
        """Finds all that can be wrong with a model's weights, from their files, without loading them.

        Raises:
            ModelError: naming file and tensor.
        """
        return

    def weight_notes(self, model: str, revision: str | None) -> tuple[str, ...]:
        """What a user is to know of a model's weights that are taken as they are, such as that they are in 8 bits.

        Raises:
            ModelError: if a file cannot be read.
        """
        return ()

    def schedule_of(self, config: SamplerConfig, model: str, revision: str | None) -> NoiseSchedule | None:
        """A model's noise schedule under those settings; None where it is only known once the model is loaded.

        Raises:
            ConfigError: if the settings cannot be, naming the nearest that can.
        """
        return None

    def footprint(self, model: str, revision: str | None) -> Footprint | None:
        """The sizes of a model's parts, for memory plans and other sizes; None where nothing is known of them.

        Raises:
            ModelError: if the model cannot be had.
        """
        return None

    def require_footprint(self, model: str, revision: str | None) -> Footprint:
        """The sizes of a model's parts.

        Raises:
            ModelError: if nothing is known of them, or the model cannot be had.
        """
        footprint = self.footprint(model, revision)
        if footprint is None:
            raise ModelError(
                f"nothing is known of the parts of {model!r}",
                "leave LoRAs, other sizes, attention backends, compiling and memory plans out for this model",
            )
        return footprint

    def check_lora(self, lora: Lora, model: str, revision: str | None) -> None:
        """Finds a LoRA that the model cannot take. Asked only where `takes` has "lora".

        Raises:
            ModelError: naming what does not fit.
        """
        raise NotImplementedError(f"the family {self.name!r} takes LoRAs and does not check them")

    # ---- the model ----

    @abstractmethod
    def load_backbone(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        components: Sequence[Component],
    ) -> Backbone:
        """Loads a model, or the parts of it that are asked for; the registry names it. See `registry.load_backbone`.

        Raises:
            ModelError: if it cannot be loaded.
        """

    def configure(
        self,
        backbone: Backbone,
        options: ModelOptions,
        loras: Sequence[Lora],
        *,
        device: torch.device | None,
        memory: MemoryPlan | None,
    ) -> None:
        """Makes of a model what was asked for.

        Args:
            backbone: one that `load_backbone` has loaded; changed in place.
            options: of which those in `takes` alone may be set.
            loras: those of the options, found and checked.
            device: where it is moved; None: it stays.
            memory: how it is fitted into a card, where its footprint is known.

        Raises:
            ModelError: if the model, this machine or a LoRA's file does not allow one of them.
        """
        return

    # ---- how good its videos are ----

    @property
    def exact_scores(self) -> tuple[str, ...]:
        """Names of the scores that `meter` reads off frames: those of a world that is known exactly; else none."""
        return ()

    def meter(
        self, spec: BackboneSpec, prompts: Sequence[str], num_frames: int, prompt_frames: Sequence[int] = ()
    ) -> FrameMeter | None:
        """What reads a video's scores off its frames as they come; None where it cannot, as of unknown prompts.

        Args:
            spec: of the model.
            prompts: of the video, in turn.
            num_frames: of the video.
            prompt_frames: frame at which each prompt begins; empty: they have even shares. Given only if not.
        """
        return None

    # ---- benches ----

    def planned_spec(self, name: str, reduction: Reduction) -> BackboneSpec:
        """The spec of one of `random_models`, before it is made."""
        raise NotImplementedError(f"the family {self.name!r} has no random models")

    def planned_footprint(self, name: str, reduction: Reduction) -> Footprint:
        """The sizes of the parts of one of `random_models`."""
        raise NotImplementedError(f"the family {self.name!r} has no random models")

    def random_model(
        self, name: str, *, device: torch.device, dtype: torch.dtype, reduction: Reduction, with_vae: bool
    ) -> RandomModel:
        """One of `random_models`. See `random_model.random_model`."""
        raise NotImplementedError(f"the family {self.name!r} has no random models")
