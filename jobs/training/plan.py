"""A training before anything of it is done: the model, clips, settings, and what OUT says of an earlier part."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from actors.training.encoder import check_names
from miga.backbones.base import BackboneSpec
from miga.backbones.options import ModelOptions, configured_spec
from miga.backbones.registry import family_of, load_spec
from miga.backbones.wan.family import WanFamily
from miga.backbones.wan.spec import WanArchitecture, load_architecture
from miga.backbones.wan.training import TrainingMemory, model_folder, parts_to_train, training_memory
from miga.errors import ConfigError, InputError, ModelError, OutputError, UsageError
from miga.training.conditions import NONE
from miga.training.encoded import INDEX, EncodedClips
from miga.training.erft import RecyclingSettings
from miga.training.trainer import BANK_DTYPES, TrainingSettings
from pipeline.storage.open import is_in_bucket
from pipeline.training_clips import ClipSource, find_clips

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "film": {"mixture": {"film-5": 0.9, "film-1": 0.1}, "p_clean": 0.5},
    "shot": {"mixture": {"shot-1": 1.0}, "p_clean": 0.2},
    "pro": {"mixture": {"pro-1": 0.9, "pro-0": 0.1}, "p_clean": 0.2},
}
"""What is published for each of SVI's models; of 2.0 Pro nothing is but its condition, the rest is taken from shot."""
NOTES: Final = "training.json"
_FREE: Final = ("num_steps", "model")
"""What may change when a training is gone on with: how far it goes, and where the model lies (its revision may not)."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training, checked.

    Attributes:
        model, revision, expert, part: what is trained.
        spec, architecture: of it.
        sources: of the clips; none where they are encoded already.
        clips: folder of the encoded clips.
        out: folder of everything.
        settings: of the training.
        rank, alpha: of a LoRA; rank None: all weights learn.
        num_steps: until which it is trained.
        num_processes: that train.
    """

    model: str
    revision: str | None
    expert: str | None
    part: str
    spec: BackboneSpec
    architecture: WanArchitecture
    sources: Sequence[ClipSource]
    clips: Path
    out: Path
    settings: TrainingSettings
    rank: int | None
    alpha: float
    num_steps: int
    num_processes: int

    @property
    def place(self) -> str:
        """The model as processes elsewhere find it: a folder by its whole path."""
        path = os.path.expanduser(self.model)
        return os.path.abspath(path) if os.path.isdir(path) else self.model

    @property
    def sample_bytes(self) -> int:
        """Of an error in the bank."""
        spec = self.spec
        numbers = spec.latent_channels * spec.window * spec.latent_height * spec.latent_width
        return numbers * BANK_DTYPES[self.settings.bank_dtype].itemsize

    @property
    def bank_bytes(self) -> int:
        """The most that a process's bank takes."""
        settings = self.settings
        full = settings.num_grids * settings.capacity * self.sample_bytes * (2 if settings.two_banks else 1)
        return full if settings.bank_bytes is None else min(full, settings.bank_bytes)

    @property
    def result(self) -> str:
        """What the result is called, without what ends its name; of two experts each file says which it is for."""
        kind = "model" if self.rank is None else "lora"
        return kind if self.expert is None else f"{kind}-{self.expert}_noise"

    def notes(self) -> dict[str, Any]:
        """What OUT says of it, and what must stay the same when it is gone on with."""
        return {
            "model": self.model,
            "revision": self.spec.revision,
            "expert": self.expert,
            "lora_rank": self.rank,
            "lora_alpha": self.alpha if self.rank is not None else None,
            "processes": self.num_processes,
            "clips": self.encoding() if self.sources else {"encoded": _digest(EncodedClips(self.clips).facts)},
            "settings": asdict(self.settings),
            "num_steps": self.num_steps,
        }

    def encoding(self) -> dict[str, Any]:
        """What encoded clips are of."""
        names = [(source.name, source.path, source.captions) for source in self.sources]
        return {
            "model": self.spec.revision,
            "size": [self.spec.height, self.spec.width, self.spec.window],
            "conditions": sorted(name for name in self.settings.mixture if name != NONE),
            "videos": _digest(names),
            "seed": self.settings.seed,
        }

    def memory(self, *, itemsize: int, offloads_inputs: bool = False) -> TrainingMemory:
        """What it takes of a card, from shapes."""
        return training_memory(
            self.architecture,
            self.spec,
            rank=self.rank,
            itemsize=itemsize,
            batch=self.settings.batch,
            offloads_inputs=offloads_inputs,
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plan_training(
    model: str,
    data: str,
    out: str,
    *,
    revision: str | None = None,
    expert: str | None = None,
    height: int | None = None,
    width: int | None = None,
    caption: str = "",
    settings: TrainingSettings,
    rank: int | None,
    alpha: float | None,
    num_steps: int,
    num_processes: int,
) -> TrainingPlan:
    """Checks all of it.

    Raises:
        MigaError: naming what is wrong, and what to do.
    """
    if num_steps < 1 or num_processes < 1:
        raise ConfigError(f"{num_steps} steps by {num_processes} processes cannot be", "both must be 1 or more")
    if is_in_bucket(out):
        raise UsageError(
            f"{out!r} is in a bucket, and a training's state is written by several processes at once",
            "name a folder that all machines share, and copy the result",
        )
    spec = configured_spec(load_spec(model, revision), ModelOptions(height=height, width=width), revision)
    if not isinstance(family_of(model, revision), WanFamily):
        raise UsageError(f"{spec.name!r} is of the family {spec.family!r}", "error recycling is for Wan's models")
    part, low, high = parts_to_train(spec, expert)
    settings = dataclasses.replace(settings, low_timestep=low, high_timestep=high)
    architecture = load_architecture(model_folder(model, revision), revision=revision)
    check_names(list(settings.mixture), reads_tokens=architecture.image_width is not None)
    folder = Path(os.path.expanduser(out))
    if architecture.image_positions is not None:
        raise ModelError(
            f"{spec.name!r} was trained between two pictures, and clips are shown one",
            "take a model of a first picture, such as Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        )
    clips, sources = folder / "encoded", []
    if os.path.lexists(Path(data) / INDEX):
        clips = Path(data)
        _check_encoded(EncodedClips(clips), settings, spec)
    else:
        sources = find_clips(data, caption)
    plan = TrainingPlan(
        model=model,
        revision=revision,
        expert=expert,
        part=part,
        spec=spec,
        architecture=architecture,
        sources=sources,
        clips=clips,
        out=folder,
        settings=settings,
        rank=rank,
        alpha=float(alpha if alpha is not None else rank or 1),
        num_steps=num_steps,
        num_processes=num_processes,
    )
    _check_bank(plan)
    _check_earlier(plan)
    return plan


def _check_bank(plan: TrainingPlan) -> None:
    """Whether the bank has room for an error of each grid.

    Raises:
        ConfigError: if not, naming what it takes.
    """
    settings = plan.settings
    least = settings.num_grids * plan.sample_bytes * (2 if settings.two_banks else 1)
    if settings.bank_bytes is not None and settings.bank_bytes < least:
        raise ConfigError(
            f"a bank of {settings.bank_bytes:,} bytes has no room for one error of {plan.sample_bytes:,} bytes in "
            f"each of {settings.num_grids} grids",
            f"give it {least:,} bytes or more, or fewer --grids",
        )


def _check_encoded(clips: EncodedClips, settings: TrainingSettings, spec: BackboneSpec) -> None:
    """Whether clips that were encoded elsewhere are of this model's shapes and these conditions.

    Raises:
        InputError: if not.
    """
    first = clips[0]
    wanted = (spec.latent_channels, spec.window, spec.latent_height, spec.latent_width)
    if tuple(first.clean_CFHW.shape) != wanted:
        raise InputError(
            f"clips in {str(clips.folder)!r} have latents {list(first.clean_CFHW.shape)}, and {spec.name!r} makes "
            f"{list(wanted)}",
            "encode them by this model: name the videos themselves",
        )
    held = {name for index in range(min(64, len(clips))) for name in clips[index].conditions}
    if not held & set(settings.mixture) and NONE not in settings.mixture:
        raise InputError(
            f"clips in {str(clips.folder)!r} have the conditions {', '.join(sorted(held))}, and "
            f"{', '.join(settings.mixture)} are to be trained",
            "name some of those by --condition",
        )


def _check_earlier(plan: TrainingPlan) -> None:
    """Whether what lies in OUT is an earlier part of this training.

    Raises:
        OutputError: if it is of another one, naming what differs.
    """
    file = plan.out / NOTES
    if not os.path.lexists(file):
        return
    try:
        earlier = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(file)!r} cannot be read: {error}", "choose another folder") from None
    now = json.loads(json.dumps(plan.notes()))
    different = [
        f"{name} was {was!r} and is {is_!r}"
        for name, (was, is_) in _pairs(earlier, now).items()
        if was != is_ and name not in _FREE
    ]
    if different:
        raise OutputError(
            f"{str(plan.out)!r} holds another training: {'; '.join(different)}",
            "say the same again to go on with it, or choose another folder",
        )


def _pairs(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*earlier, *now]):
        was, is_ = earlier.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_, dict) and name in ("settings", "recycling", "clips"):
            found |= _pairs(was, is_, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = (was, is_)
    return found


def variant_settings(variant: str, conditions: Sequence[str], **values: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Conditions and recycling of a variant, with what the user says instead.

    Args:
        variant: one of `VARIANTS`.
        conditions: `NAME=SHARE` or `NAME` of each; none: the variant's.
        values: fields of `RecyclingSettings`; None: as published.

    Raises:
        ConfigError: if one is no condition.
    """
    published = VARIANTS[variant]
    mixture = dict(published["mixture"])
    if conditions:
        mixture = {}
        for text in conditions:
            name, _, share = text.partition("=")
            try:
                mixture[name] = float(share) if share else 1.0
            except ValueError:
                raise ConfigError(f"--condition {text!r} is not NAME or NAME=SHARE", "such as film-5=0.9") from None
    said = {name: value for name, value in values.items() if value is not None}
    recycling = {"p_clean": published["p_clean"], **said}
    RecyclingSettings(**recycling)
    return mixture, recycling
