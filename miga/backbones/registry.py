"""From a model's name to its backbone: the one place that knows which families there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.wan import Component, WanBackbone
from miga.backbones.wan import load_spec as load_wan_spec

EMBEDDED: Final = {"sprites": Path(__file__).parent / "sprites" / "checkpoint"}
"""Models that come with the package, by name."""


def load_spec(name_or_dir: str, revision: str | None = None) -> BackboneSpec:
    """What is known of a model without loading its weights.

    Raises:
        ModelError: if there is no such model, or none of a family that is known.
    """
    return replace(load_wan_spec(str(EMBEDDED.get(name_or_dir, name_or_dir)), revision=revision), name=name_or_dir)


def load_backbone(
    name_or_dir: str,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    components: Sequence[Component] = ("text", "denoiser", "vae"),
) -> WanBackbone:
    """Loads a model, or the parts of it that are asked for.

    Args:
        name_or_dir: a name of `EMBEDDED`, a folder in diffusers layout, or a hub name.
        revision: of a hub name.
        device: by default a GPU if there is one.
        dtype: of transformer and text encoder; by default bfloat16 on a GPU, float32 on the CPU.
        components: parts to load.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    backbone = WanBackbone.from_pretrained(
        str(EMBEDDED.get(name_or_dir, name_or_dir)),
        revision=revision,
        device=device,
        dtype=dtype,
        components=components,
    )
    backbone.spec = replace(backbone.spec, name=name_or_dir)
    return backbone
