"""From a model's name to its backbone: the one place that knows which families there are.

What loads weights is imported when weights are loaded: diffusers takes three seconds and 170 MB, and a process that
asks for a spec, or simulates a GPU, needs none of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from miga.backbones import own
from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.backbones.loading import check_component, local_path, require_component, resolve_folder
from miga.backbones.model_config import class_name_of
from miga.backbones.simulated import backbone as simulated_backbone
from miga.backbones.simulated import spec as simulated
from miga.backbones.spec import is_published
from miga.backbones.videocrafter2 import footprint
from miga.backbones.videocrafter2 import spec as videocrafter2_spec
from miga.backbones.videocrafter2.schedule import schedule_of as videocrafter2_schedule
from miga.backbones.wan import spec as wan_spec
from miga.backbones.wan.schedule import schedule_of as wan_schedule
from miga.backbones.wan.spec import PUBLISHED as PUBLISHED_WAN
from miga.backbones.wan.spec import load_spec as load_wan_spec
from miga.backbones.weight_files import PICKLES, read_json, visible_files
from miga.config import SamplerConfig
from miga.errors import ModelError
from miga.solvers.check import check_steps

if TYPE_CHECKING:
    from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
    from miga.backbones.wan.backbone import WanBackbone

EMBEDDED: Final = {"sprites": Path(__file__).parent / "sprites" / "checkpoint"}
"""Models that come with the package, by name."""


def family_of(name_or_dir: str, revision: str | None = None) -> str:
    """Which family a model is of: by its name if that is known, else by the class that `model_index.json` names.

    What is of no known family is taken for "wan", whose loader says what is wrong with it.

    Raises:
        ModelError: if there is no such model, or it is a checkpoint that has not been converted.
    """
    path = local_path(name_or_dir)
    if path.suffix in PICKLES and os.path.isfile(path):
        raise ModelError(
            f"model {name_or_dir!r} is a pickle, which is never loaded as it is",
            hint=f"if it is VideoCrafter2's model.ckpt, {videocrafter2_spec.CONVERT_HINT}",
        )
    if is_published(name_or_dir, videocrafter2_spec.PUBLISHED):
        return videocrafter2_spec.FAMILY
    if name_or_dir in EMBEDDED or is_published(name_or_dir, PUBLISHED_WAN):
        return "wan"
    folder = resolve_folder(name_or_dir, revision, ["model_index.json"])
    if os.path.lexists(folder / "model_index.json"):
        is_converted = class_name_of(read_json(folder / "model_index.json")) == videocrafter2_spec.PIPELINE_CLASS
        return videocrafter2_spec.FAMILY if is_converted else "wan"
    if found := visible_files(folder, ".ckpt"):
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
    if simulated.is_simulated(name_or_dir):
        return simulated.load_spec(name_or_dir, revision)
    if own.is_import_path(name_or_dir):
        return own.load_own(name_or_dir, (), "cpu", torch.float32, revision).spec
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
        name_or_dir: a name of `EMBEDDED`, a folder in diffusers layout, a hub name, "package.module:factory"
            (`own.py`), or "simulated:…" (`simulated.py`).
        revision: of a hub name.
        device: by default a GPU if there is one.
        dtype: of network and text encoder; by default bfloat16 on a GPU, float32 on the CPU.
        components: parts to load.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    if simulated.is_simulated(name_or_dir):
        return simulated_backbone.SimulatedBackbone(name_or_dir, components)
    if own.is_import_path(name_or_dir):
        return own.load_own(name_or_dir, components, device, dtype, revision)
    _refuse_unconverted(name_or_dir)
    from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
    from miga.backbones.wan.backbone import WanBackbone

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


def _refuse_unconverted(name_or_dir: str) -> None:
    """A name that a model is known by, which is published as a pickle alone."""
    if is_published(name_or_dir, videocrafter2_spec.PUBLISHED):
        raise videocrafter2_spec.unconverted(name_or_dir)


def is_on_hub(name_or_dir: str) -> bool:
    """Whether a name is neither of a model that comes with the package or is imported, nor of a folder here."""
    is_here = name_or_dir in EMBEDDED or os.path.exists(local_path(name_or_dir))
    return not is_here and not simulated.is_simulated(name_or_dir) and not own.is_import_path(name_or_dir)


def check_schedule(name_or_dir: str, config: SamplerConfig, revision: str | None = None) -> None:
    """Finds settings of the sampler that the model's noise schedule does not allow.

    Raises:
        ConfigError: naming them, and the nearest that it does.
    """
    if simulated.is_simulated(name_or_dir):
        schedule = simulated_backbone.schedule_of(config, simulated.load_spec(name_or_dir, revision).family)
    elif own.is_import_path(name_or_dir):
        return  # known once the model is loaded: the sampler looks at it then
    elif family_of(name_or_dir, revision) == videocrafter2_spec.FAMILY:
        schedule = videocrafter2_schedule(config, videocrafter2_spec.load_settings(name_or_dir, revision=revision))
    else:
        schedule = wan_schedule(config)
    check_steps(config, schedule)


def check_weights(name_or_dir: str, revision: str | None = None, *, download: bool = False) -> None:
    """Finds all that can be wrong with a model's weights, from their files, without loading them.

    The files are read once, from end to end, since one NaN in them spoils every video: 1.3B's 29 GB take some 15 s
    from a fast disk, and the workers find them in the page cache.

    Args:
        name_or_dir: as for `load_backbone`. Of one's own models (`own.py`) nothing is known to look at.
        revision: of a hub name.
        download: whether a hub name's weights are fetched for it; else those are left to the workers.

    Raises:
        ModelError: if files are missing, cut off, pickles or of another module, or weights are not finite.
    """
    if simulated.is_simulated(name_or_dir) or own.is_import_path(name_or_dir):
        return
    if is_on_hub(name_or_dir) and not download:
        return
    _refuse_unconverted(name_or_dir)
    is_wan = family_of(name_or_dir, revision) == "wan"
    modules_of_folder = wan_spec.modules_of_folder if is_wan else footprint.modules_of_folder
    parts = ("tokenizer", "text_encoder", "transformer" if is_wan else "unet", "vae")
    patterns = (*wan_spec.JSON_FILES, *(f"{part}/*" for part in parts))
    folder = resolve_folder(EMBEDDED.get(name_or_dir, name_or_dir), revision, patterns)
    for part in parts:
        require_component(part, folder)
    for component, (module, note) in modules_of_folder(folder).items():
        check_component(component, folder, module, wan_spec.TIED_TEXT_WEIGHTS, note)
