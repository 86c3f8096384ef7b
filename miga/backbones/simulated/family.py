"""Simulated GPUs as a family: every other family that has a published model, in name and shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch

from miga.backbones.base import BackboneSpec, Component
from miga.backbones.family import Family
from miga.backbones.simulated.backbone import SimulatedBackbone
from miga.backbones.simulated.spec import PREFIX, SimulatedOptions, parse_name, simulated_spec
from miga.config import SamplerConfig
from miga.errors import ModelError
from miga.schedule import NoiseSchedule


class SimulatedFamily(Family):
    """See `Family`.

    Args:
        others: the families that models may be named after, by name.
    """

    name: ClassVar[str] = "simulated"
    simulates_gpus: ClassVar[bool] = True
    keeps_cache: ClassVar[bool] = True

    def __init__(self, others: Callable[[], Mapping[str, Family]]) -> None:
        self._others = others

    def knows(self, model: str) -> bool:
        """See `Family.knows`."""
        return model.startswith(PREFIX)

    def concern(self, model: str) -> str:
        """See `Family.concern`."""
        return "it writes into a folder that its name says" if self._parsed(model)[1].marks else ""

    def load_spec(self, model: str, revision: str | None) -> BackboneSpec:
        """See `Family.load_spec`. It has no revisions."""
        family, options = self._parsed(model)
        if revision is not None:
            raise ModelError(f"{model!r} has no revisions", "leave the revision out")
        return simulated_spec(model, next(iter(family.published.values())), options)

    def schedule_of(self, config: SamplerConfig, model: str, revision: str | None) -> NoiseSchedule:
        """See `Family.schedule_of`: that of the model it is named after."""
        family = self._parsed(model)[0]
        schedule = family.schedule_of(config, next(iter(family.published)), None)
        assert schedule is not None, "a family with a published model knows its schedule"
        return schedule

    def load_backbone(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        components: Sequence[Component],
    ) -> SimulatedBackbone:
        """See `Family.load_backbone`."""
        return SimulatedBackbone(
            self.load_spec(model, revision),
            self._parsed(model)[1],
            lambda config: self.schedule_of(config, model, revision),
            components,
        )

    def _parsed(self, model: str) -> tuple[Family, SimulatedOptions]:
        others = self._others()
        family, options = parse_name(model, tuple(others))
        return others[family], options
