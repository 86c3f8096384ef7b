"""Published causal weights, in the layouts of their programs, as the tensors of diffusers' `WanTransformer3DModel`.

A file is a pickle of tensors alone or a safetensors file. Its weights may be in an entry ("generator_ema",
"generator", "model") or bare, and carry the prefixes that FSDP, activation checkpointing and compiling leave.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from miga.backbones.converted_folder import require_new
from miga.backbones.lora_files import Lora
from miga.backbones.tensor_files import NUMBERS, SAFETENSORS, Stored, read_pickle, tensors_of
from miga.backbones.wan.causal.licence import NOTE
from miga.backbones.wan.config import WanTransformerConfig
from miga.backbones.wan.convert import convert_wan
from miga.backbones.wan.lora import fuse_loras
from miga.backbones.wan.original import config_of, parts_of
from miga.backbones.wan.sources import existing, gather
from miga.backbones.wan.spec import module_of
from miga.backbones.weight_files import Entry, read_json
from miga.errors import ModelError, UsageError

_WRAPPERS: Final = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_LEAVES: Final = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_ATTENTIONS: Final = (("self_attn", "attn1"), ("cross_attn", "attn2"))
_PARTS: Final = {
    "norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    **{f"{old}.o": f"{new}.to_out.0" for old, new in _ATTENTIONS},
    **{f"{old}.{name}": f"{new}.to_{name}" for old, new in _ATTENTIONS for name in "qkv"},
    **{f"{old}.norm_{name}": f"{new}.norm_{name}" for old, new in _ATTENTIONS for name in "qk"},
}  # fmt: skip


def plain_name(name: str) -> str:
    """A tensor's name without what wrapping left."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("model.")


def diffusers_name(name: str) -> str:
    """A tensor's name as diffusers has it."""
    name = plain_name(name)
    if name == "head.modulation":
        return "scale_shift_table"
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        number, part = found.groups()
        if part == "modulation":
            return f"blocks.{number}.scale_shift_table"
        stem, _, leaf = part.rpartition(".")
        return f"blocks.{number}.{_PARTS.get(stem, stem)}.{leaf}"
    stem, _, leaf = name.rpartition(".")
    return f"{_LEAVES.get(stem, stem)}.{leaf}"


def diffusers_weights(weights: Mapping[str, torch.Tensor], transformer: Any) -> dict[str, torch.Tensor]:
    """The weights of a transformer, by its own names.

    Args:
        weights: as a file has them.
        transformer: whose names and shapes they must have; may be on the meta device.

    Raises:
        ModelError: naming those that are missing, left over or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    found = {diffusers_name(name): tensor for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is left over" for name in found if name not in wanted]
    problems += [
        f"{name} is of shape {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelError(
            f"these are no weights of this model: {'; '.join(problems[:5])}{more}",
            "take the file that was trained from this model, of the same size",
        )
    return found


# ---- files ----

ENTRIES: Final = ("generator_ema", "generator", "model")
"""Where a file's weights may be, the one to take first; without any of them they are the file itself."""
LORA_ENTRIES: Final = ("generator_lora",)


@dataclass(frozen=True)
class System:
    """A system whose weights are published.

    Attributes:
        licence: of the weights.
        is_commercial: whether it allows commercial use.
        repository: where they are.
    """

    licence: str
    is_commercial: bool
    repository: str


SYSTEMS: Final[Mapping[str, System]] = {
    "self-forcing": System("unknown to this program; code Apache-2.0", True, "gdhe17/Self-Forcing"),
    "longlive": System(
        "unknown to this program; code Apache-2.0 since November 2025", True, "Efficient-Large-Model/LongLive-1.3B"
    ),
    "infinity-rope": System("unknown to this program; code Apache-2.0", True, "SOTAMak1r/Infinite-Forcing"),
    "reward-forcing": System("unknown to this program; code Apache-2.0", True, "JaydenLu666/Reward-Forcing-T2V-1.3B"),
    "rolling-forcing": System("Tencent's, academic use only", False, "TencentARC/RollingForcing"),
    "causal-forcing": System("unknown to this program; code Apache-2.0", True, "zhuhz22/Causal-Forcing"),
    "causvid": System("CC-BY-NC-SA-4.0", False, "tianweiy/CausVid"),
}
"""By the name of the preset that the weights are for. Whoever downloads them reads their card."""


def read_weights(file: Path, entry: str | None = None, entries: Sequence[str] = ENTRIES) -> dict[str, torch.Tensor]:
    """The tensors of a published file, under its own names without what wrapping left; nothing in it is ever run.

    Args:
        file: a pickle of torch or a safetensors file.
        entry: which of the file's entries; None: the first there is of `entries`, else the file itself.
        entries: names of entries.

    Raises:
        ModelError: if the file is missing or broken, holds anything beside tensors, has no such entry, or names a
            tensor twice.
    """
    if file.suffix in SAFETENSORS:
        found = {name: stored.read() for name, stored in tensors_of(file).items()}
    else:
        if entry is not None and file.is_file() and not has_entry(file, entry):
            raise ModelError(f"{str(file)!r} has no entry {entry!r}", f"its weights are {', '.join(entries)} or bare")
        found = read_pickle(file, "the published checkpoint", entries=entries if entry is None else (entry,))
    plain = {plain_name(name): tensor for name, tensor in found.items()}
    if len(plain) != len(found):
        raise ModelError(f"{str(file)!r} holds tensors twice, with and without a wrapper's prefix", "take another file")
    return plain


def has_entry(file: Path, entry: str) -> bool:
    """Whether a pickle has an entry of that name."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError):
        return True  # what is wrong with the file is said by whoever reads it
    return isinstance(content, dict) and isinstance(content.get(entry), dict)


def convert_causal(
    checkpoint: Path,
    base: Sequence[str | Path],
    out: str | Path,
    preset: str,
    *,
    entry: str | None = None,
    lora: Path | None = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes a folder in diffusers' layout: a published causal transformer, and all else of the model it came from.

    The folder's model_index.json says which system's weights they are, from which file, and under which licence.

    Args:
        checkpoint: the published file.
        base: files and folders of the model that it was trained from, as `convert_wan` takes them.
        out: the folder to make; it must not exist.
        preset: a name of `SYSTEMS`.
        entry: see `read_weights`.
        lora: a published LoRA over the checkpoint (LongLive's), which is merged in float32.
        tokenizer: see `convert_wan`.
        progress: is told what is being done.

    Raises:
        UsageError: for an unknown preset.
        ModelError: if weights are missing, left over, of another shape or of another model.
        OutputError: if `out` exists, or cannot be written.
    """
    if preset not in SYSTEMS:
        raise UsageError(f"unknown causal weights {preset!r}", f"they are one of {', '.join(SYSTEMS)}")
    system = SYSTEMS[preset]
    require_new(Path(os.path.expanduser(out)))
    weights = read_weights(checkpoint, entry)
    with tempfile.TemporaryDirectory(prefix="miga-causal-") as temporary:
        folder = Path(temporary)
        places = [Path(os.path.expanduser(source)) for source in base]
        _copy_stated(places, folder)
        file = folder / "diffusion_pytorch_model.safetensors"
        transformer = _module_of(places, weights, checkpoint)
        named = diffusers_weights(weights, transformer)
        if lora is not None:
            progress(f"merging {lora.name}")
            named = merged(named, transformer, lora, folder)
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, file, metadata={"format": "pt"})
        note: dict[str, Any] = {
            "preset": preset,
            "checkpoint": checkpoint.name,
            "entry": entry,
            "lora": lora and lora.name,
        }
        note |= {"repository": system.repository, "licence": system.licence, "is_commercial": system.is_commercial}
        return convert_wan(
            base, out, parts={"transformer": file}, tokenizer=tokenizer, progress=progress, notes={NOTE: note}
        )


def merged(weights: Mapping[str, torch.Tensor], transformer: Any, lora: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The weights with a published LoRA in them: `W + B A`, summed in float32.

    Raises:
        ModelError: if the LoRA is none of this model's.
    """
    factors = folder / "lora.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in read_weights(lora, None, LORA_ENTRIES).items()}, factors)
    transformer.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    fuse_loras(transformer, [Lora(lora.name, 1.0, factors, "")])
    return dict(transformer.state_dict())


def _copy_stated(base: Sequence[Path], folder: Path) -> None:
    """A configuration of the base's transformer beside the file to come: it says what shapes do not."""
    for place in base:
        for file in (place / "transformer" / "config.json", place / "config.json"):
            if file.is_file():
                shutil.copyfile(file, folder / "config.json")
                return


def _module_of(base: Sequence[Path], weights: Mapping[str, torch.Tensor], checkpoint: Path) -> Any:
    """The base's transformer without memory; where the base has none, one of the weights' own sizes."""
    for place in base:
        if (place / "transformer" / "config.json").is_file():
            values = read_json(place / "transformer" / "config.json")
            with torch.device("meta"):
                return WanTransformer3DModel.from_config(values)
    found = gather([existing(place) for place in base], {})
    if (part := found.parts.get("transformer")) is not None:
        config = config_of(part, found.stated)
        assert isinstance(config, WanTransformerConfig)
        return module_of(config)
    stored = {
        name: Stored(name, checkpoint, Entry(NUMBERS[tensor.dtype], tuple(tensor.shape)), tensor.clone)
        for name, tensor in weights.items()
    }
    own = next(each for each in parts_of(stored) if each.part == "transformer")
    return module_of(config_of(own))
