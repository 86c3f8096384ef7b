"""A family of models as small as one can be. `docs/add-a-family.md` quotes it whole.

Its models are folders with a file `colours.json`: the colours that prompts may name. One comes with the package. The
backbone is that of `docs/bring-your-own-model.md`, with the file's colours in place of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from miga.backbones.base import BackboneSpec, Component
from miga.backbones.family import Family
from miga.backbones.loading import device_and_dtype
from miga.backbones.spec import resized, why_no_multiple
from miga.config import SamplerConfig
from miga.errors import BadRowError, ModelError
from miga.schedule import NoiseSchedule, ddim_schedule
from tests.ten_line_backbone import COLOURS, TenLineBackbone

FILE = "colours.json"
CELL = 8
SMALL = replace(TenLineBackbone.spec, family="colours", name="colours-small", noise_schedule="ddim")


def read_colours(model: str) -> dict[str, Any]:
    """The colours of a folder; those of the package for its own name."""
    try:
        return dict(json.loads((Path(model) / FILE).read_text())) if Path(model).is_dir() else COLOURS
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{FILE} of {model!r} cannot be read: {error}", "see to the file") from error


class ColourBackbone(TenLineBackbone):
    """The backbone of one such folder."""

    def __init__(self, spec: BackboneSpec, device: torch.device, colours: Mapping[str, Sequence[float]]) -> None:
        super().__init__(device)
        self.spec, self.colours = spec, colours

    def check_prompt(self, prompt: str) -> None:
        if not prompt or prompt not in self.colours:
            raise BadRowError(f"{prompt!r} is no colour of this model", "name one that it knows")

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        return [torch.tensor(self.colours[prompt]) for prompt in prompts]


@dataclass(frozen=True)
class ColourFootprint:
    """The sizes of its parts: there are no weights, and a window is a few numbers for each cell."""

    can_store_fp8: bool = False
    vae_parameters: int = 0
    text_parameters: int = 0
    vae_cache_per_cell: int = 0
    vae_peak_per_cell: int = 2 * 3 * CELL**2

    def transformer_bytes(self, *, fp8: bool = False, itemsize: int = 2) -> int:
        return 0

    def window_bytes(self, spec: BackboneSpec, num_latents: int, dtype: torch.dtype) -> int:
        return num_latents * 8 * 3 * spec.latent_height * spec.latent_width * dtype.itemsize

    def resized(self, spec: BackboneSpec, height: int, width: int) -> BackboneSpec:
        sides = {"height": height, "width": width}
        problems = [why_no_multiple(side, pixels, CELL, "cells") for side, pixels in sides.items()]
        return resized(spec, height, width, next(filter(None, problems), None), spec.forward_flops)


class ColourFamily(Family):
    """See `miga.backbones.family.Family`."""

    name = "colours"
    takes = frozenset({"height", "width"})

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        return {SMALL.name: SMALL}

    def knows(self, model: str) -> bool:
        return model in self.published

    def recognises(self, place: Path, model: str) -> bool:
        return (place / FILE).exists()

    def load_spec(self, model: str, revision: str | None) -> BackboneSpec:
        colours = read_colours(model)
        return replace(SMALL, name=model, revision=f"{len(colours)} colours")

    def check_weights(self, model: str, revision: str | None) -> None:
        for name, colour in read_colours(model).items():
            if len(colour) != 3 or not all(-1 <= part <= 1 for part in colour):
                raise ModelError(f"{name!r} of {model!r} is {colour}, no colour", "give three numbers from -1 to 1")

    def schedule_of(self, config: SamplerConfig, model: str, revision: str | None) -> NoiseSchedule:
        return ddim_schedule(config.num_steps)

    def footprint(self, model: str, revision: str | None) -> ColourFootprint:
        return ColourFootprint()

    def load_backbone(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        components: Sequence[Component],
    ) -> ColourBackbone:
        where, _ = device_and_dtype(device, dtype)
        return ColourBackbone(self.load_spec(model, revision), where, read_colours(model))


FAMILY = ColourFamily()
