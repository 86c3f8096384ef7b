"""From a model's name to its backbone: the one place that knows which families there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.loading import read_json, resolve_folder
from miga.backbones.videocrafter2 import spec as videocrafter2_spec
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.wan import Component, WanBackbone
from miga.backbones.wan import load_spec as load_wan_spec
from miga.backbones.wan_spec import PUBLISHED as PUBLISHED_WAN
from miga.errors import ModelError

EMBEDDED: Final = {"sprites": Path(__file__).parent / "sprites" / "checkpoint"}
"""Models that come with the package, by name."""

PICKLES: Final = (".ckpt", ".pt", ".pth", ".bin")
"""How files are named that only `miga convert` reads."""


def family_of(name_or_dir: str, revision: str | None = None) -> str:
    """Which family a model is of: by its name if that is known, else by the class that `model_index.json` names.

    What is of no known family is taken for "wan", whose loader says what is wrong with it.

    Raises:
        ModelError: if there is no such model, or it is a checkpoint that has not been converted.
    """
    path = Path(name_or_dir).expanduser()
    if path.is_file() and path.suffix in PICKLES:
        raise ModelError(
            f"model {name_or_dir!r} is a pickle, which is never loaded as it is",
            hint=f"if it is VideoCrafter2's model.ckpt, {videocrafter2_spec.CONVERT_HINT}",
        )
    if name_or_dir in videocrafter2_spec.PUBLISHED and not path.is_dir():
        return videocrafter2_spec.FAMILY
    if name_or_dir in EMBEDDED or (name_or_dir in PUBLISHED_WAN and not path.is_dir()):
        return "wan"
    folder = resolve_folder(name_or_dir, revision, ["model_index.json"])
    if (folder / "model_index.json").exists():
        is_converted = read_json(folder / "model_index.json").get("_class_name") == videocrafter2_spec.PIPELINE_CLASS
        return videocrafter2_spec.FAMILY if is_converted else "wan"
    if found := sorted(file.name for file in folder.iterdir() if file.suffix == ".ckpt"):
        raise ModelError(
            f"model folder {name_or_dir!r} holds {found[0]}, a pickle, which is never loaded as it is",
            hint=f"if it is VideoCrafter2's model.ckpt, {videocrafter2_spec.CONVERT_HINT}",
        )
    return "wan"


def load_spec(name_or_dir: str, revision: str | None = None) -> BackboneSpec:
    """What is known of a model without loading its weights.

    Raises:
        ModelError: if there is no such model, or none of a family that is known.
    """
    is_wan = family_of(name_or_dir, revision) == "wan"
    load = load_wan_spec if is_wan else videocrafter2_spec.load_spec
    return replace(load(str(EMBEDDED.get(name_or_dir, name_or_dir)), revision=revision), name=name_or_dir)


def load_backbone(
    name_or_dir: str,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    components: Sequence[Component] = ("text", "denoiser", "vae"),
) -> Backbone:
    """Loads a model, or the parts of it that are asked for.

    Args:
        name_or_dir: a name of `EMBEDDED`, a folder in diffusers layout, or a hub name.
        revision: of a hub name.
        device: by default a GPU if there is one.
        dtype: of network and text encoder; by default bfloat16 on a GPU, float32 on the CPU.
        components: parts to load.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    is_wan = family_of(name_or_dir, revision) == "wan"
    kind: type[WanBackbone] | type[VideoCrafter2Backbone] = WanBackbone if is_wan else VideoCrafter2Backbone
    backbone = kind.from_pretrained(
        str(EMBEDDED.get(name_or_dir, name_or_dir)),
        revision=revision,
        device=device,
        dtype=dtype,
        components=components,
    )
    backbone.spec = replace(backbone.spec, name=name_or_dir)
    return backbone
