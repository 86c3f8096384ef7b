"""From a model's name to its backbone, whatever family it is of (`families.py`).

What loads weights is imported when weights are loaded: diffusers takes three seconds and 170 MB, and a process that
asks for a spec, or simulates a GPU, needs none of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.backbones.families import families
from miga.backbones.family import Family
from miga.backbones.loading import local_path, resolve_folder
from miga.backbones.memory_plan import Footprint
from miga.backbones.random_model import FULL_SIZE, RandomModel, Reduction
from miga.config import SamplerConfig
from miga.errors import ConfigError, UsageError
from miga.methods import methods
from miga.solvers.check import check_steps


def family_named(model: str) -> Family | None:
    """The family that knows a model by its name; None for folders and for names that only the hub can know.

    Nothing is read or imported for it, but for the packages that registered a family.
    """
    return next((family for family in families().values() if family.knows(model)), None)


def family_of(model: str, revision: str | None = None) -> Family:
    """Which family a model is of: by its name if that is known, else by its folder.

    Raises:
        ModelError: if there is no such model, or it is one that cannot be used as it is.
    """
    if (named := family_named(model)) is not None:
        return named.behind(model)
    place = local_path(model)
    if not os.path.isfile(place):
        place = resolve_folder(model, revision, ["model_index.json"])
    recognised = next((family for family in families().values() if family.recognises(place, model)), None)
    assert recognised is not None, "the last family takes everything"
    return recognised


def load_spec(name_or_dir: str, revision: str | None = None) -> BackboneSpec:
    """What is known of a model without loading its weights.

    Raises:
        ModelError: if there is no such model, or none of a family that is known.
    """
    return replace(family_of(name_or_dir, revision).load_spec(name_or_dir, revision), name=name_or_dir)


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
        name_or_dir: "sprites" (it comes with the package), a folder in diffusers layout, a hub name,
            "package.module:factory" (`own.py`), or "simulated:…" (`simulated/`).
        revision: of a hub name.
        device: by default a GPU if there is one.
        dtype: of network and text encoder; by default bfloat16 on a GPU, float32 on the CPU.
        components: parts to load.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    backbone = family_of(name_or_dir, revision).load_backbone(
        name_or_dir, revision=revision, device=device, dtype=dtype, components=components
    )
    backbone.spec = replace(backbone.spec, name=name_or_dir)
    return backbone


def is_on_hub(name_or_dir: str) -> bool:
    """Whether a name is neither of a model that is here without the hub, nor of a folder here."""
    named = family_named(name_or_dir)
    return not os.path.exists(local_path(name_or_dir)) and (named is None or named.is_on_hub(name_or_dir))


def simulates_gpus(name_or_dir: str) -> bool:
    """Whether a model needs no card: a process of its own stands for one."""
    named = family_named(name_or_dir)
    return named is not None and named.simulates_gpus


def check_schedule(name_or_dir: str, config: SamplerConfig, revision: str | None = None) -> None:
    """Finds settings of the sampler that the model's noise schedule does not allow.

    Of models that are known only once they are loaded the sampler looks at it then.

    Raises:
        ConfigError: naming them, and the nearest that it does.
    """
    family = family_of(name_or_dir, revision)
    if methods()[config.method].needs_cache and not family.keeps_cache:
        raise ConfigError(
            f"profile {config.profile!r} needs a network that keeps keys and values, and {name_or_dir!r} does not",
            "take a model of Wan's architecture, or another profile",
        )
    schedule = family.schedule_of(config, name_or_dir, revision)
    if schedule is not None:
        check_steps(config, schedule)


def experts_of_levels(spec: BackboneSpec, config: SamplerConfig) -> tuple[int, ...]:
    """Of a model with two networks, which one answers for every level of a profile; empty of a model with one."""
    if spec.expert_boundary is None:
        return ()
    schedule = families()[spec.family].schedule_of(config, spec.name, spec.revision)
    return () if schedule is None else tuple(schedule.expert_of_level(spec.expert_boundary).tolist())


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
    if download or not is_on_hub(name_or_dir):
        family_of(name_or_dir, revision).check_weights(name_or_dir, revision)


def weight_notes(name_or_dir: str, revision: str | None = None) -> tuple[str, ...]:
    """What a user is to know of a model's weights that are taken as they are; nothing of those that are not here.

    Raises:
        ModelError: if a file cannot be read.
    """
    return () if is_on_hub(name_or_dir) else family_of(name_or_dir, revision).weight_notes(name_or_dir, revision)


# ---- published models with random weights, for benches ----


def random_names() -> dict[str, Family]:
    """Short names of the published models that can be made with random weights, and whose they are."""
    return {name: family for family in families().values() for name in family.random_models}


def random_model(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    reduction: Reduction = FULL_SIZE,
    with_vae: bool = True,
) -> RandomModel:
    """A published model with random weights, the same for the same device and dtype.

    Args:
        name: one of `random_names`.
        device: where it is made; no second copy is ever in memory.
        dtype: of the network, but for the modules that loading keeps in float32. The VAE is in float32.
        reduction: by how much smaller.
        with_vae: whether the VAE is made too.

    Raises:
        UsageError: for an unknown name, or layers the model does not have.
    """
    return _of_random(name).random_model(name, device=device, dtype=dtype, reduction=reduction, with_vae=with_vae)


def planned_spec(name: str, reduction: Reduction = FULL_SIZE) -> BackboneSpec:
    """The spec of a random model, before it is made.

    Raises:
        UsageError: as `random_model`.
    """
    return _of_random(name).planned_spec(name, reduction)


def planned_footprint(name: str, reduction: Reduction = FULL_SIZE) -> Footprint:
    """The sizes of a random model's parts.

    Raises:
        UsageError: as `random_model`.
    """
    return _of_random(name).planned_footprint(name, reduction)


def _of_random(name: str) -> Family:
    known = random_names()
    if name not in known:
        raise UsageError(f"there is no random model {name!r}", f"models: {', '.join(known)}")
    return known[name]


def footprint_of(name_or_dir: str, revision: str | None = None) -> Footprint | None:
    """The sizes of a model's parts, without its weights; None where nothing is known of them.

    Raises:
        ModelError: if the model cannot be had.
    """
    return family_of(name_or_dir, revision).footprint(name_or_dir, revision)


def require_footprint(name_or_dir: str, revision: str | None = None) -> Footprint:
    """The sizes of a model's parts, without its weights.

    Raises:
        ModelError: if nothing is known of them, or the model cannot be had.
    """
    return family_of(name_or_dir, revision).require_footprint(name_or_dir, revision)
