"""LoRAs of Wan's transformer: found, checked against the model, and fused into its weights.

What each tensor of a file changes is in `lora_layout.py`; the check before a run and the fusing share it. A LoRA is
fused, not hung beside the weights: a call costs what it costs without, and nothing of it is left but the weights.

Legend: A `[rank, in]` and B `[out, rank]` are the two factors of a weight's change.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from miga.backbones.loading import HUB_NAME, broken_tensors_of, file_digest, is_finite
from miga.backbones.lora_layout import AdapterSettings, Change, plan_lora
from miga.backbones.weight_files import Entry, first_line, named, opened
from miga.errors import ModelError
from miga.outside_data import OutsideDataError, parse_json_object, validated

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

HUB_FILE: Final = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.safetensors)")
USUAL_FILE: Final = "pytorch_lora_weights.safetensors"
MAX_SCALE: Final = 1e4
"""What is beyond it was not meant, and overflows half precision."""


@dataclass(frozen=True)
class Lora:
    """A LoRA whose file is at hand.

    Attributes:
        name: what the user called it, without its scale.
        scale: what its change of the weights is multiplied by.
        file: where it lies.
        digest: of the file, 16 hexadecimal digits.
    """

    name: str
    scale: float
    file: Path
    digest: str

    @property
    def label(self) -> str:
        """What stands in a model's revision: the content and the scale, not where the file lay."""
        return f"lora:{self.digest}*{self.scale!r}"


def parse_lora(text: str) -> tuple[str, float]:
    """Name and scale of `FILE_OR_NAME[:scale]`; a file whose own name ends so is taken whole.

    Raises:
        ModelError: if there is no name, or the scale is no number.
    """
    name, colon, tail = text.rpartition(":")
    if not colon or os.path.lexists(os.path.expanduser(text)):
        name, tail = text, "1"
    try:
        scale = float(tail)
    except ValueError:
        name, scale = text, 1.0  # a colon of the name's own: the file is then missed under its full name
    if not name or not abs(scale) <= MAX_SCALE:
        raise ModelError(
            f"LoRA {text!r} is not FILE_OR_NAME[:scale]",
            f"such as style.safetensors:0.8, or owner/name/file.safetensors; a scale is at most {MAX_SCALE:g}",
        )
    return name, scale


def find_loras(texts: Sequence[str]) -> list[Lora]:
    """The LoRAs that were asked for, in that order; those of the hub are downloaded where they are not cached.

    Raises:
        ModelError: if one is missing, or cannot be had.
    """
    loras = []
    for text in texts:
        name, scale = parse_lora(text)
        try:
            file = _find_file(name)
            digest = file_digest(file).hex()[:16]
        except OSError as error:
            raise ModelError(
                f"LoRA {name!r} cannot be read: {first_line(error)}", "see to its permissions and its disk"
            ) from error
        loras.append(Lora(name, scale, file, digest))
    return loras


def _find_file(name: str) -> Path:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        files = [file for file in os.listdir(path) if file.endswith(".safetensors") and not file.startswith(".")]
        return _find_file(os.path.join(path, _choose(files, name)))
    if os.path.isfile(path):
        if not path.endswith(".safetensors"):
            raise ModelError(
                f"LoRA {name!r} is no .safetensors file", "a pickle can run code: convert it to safetensors first"
            )
        return Path(path)
    if os.path.islink(path):
        raise ModelError(
            f"LoRA {name!r} is a link to {os.readlink(path)!r}, which is not there",
            "a cache of the hub copied without its blobs leaves such links: download the file again",
        )
    if os.path.lexists(path):
        raise ModelError(f"LoRA {name!r} is no regular file", "name a .safetensors file")
    match = HUB_FILE.fullmatch(name)
    if not match and not HUB_NAME.fullmatch(name):
        raise ModelError(
            f"LoRA {name!r} does not exist",
            "give a .safetensors file, a folder that holds one, or owner/name[/file.safetensors] on the hub",
        )
    import huggingface_hub

    repository = match[1] if match else name
    try:
        file = match[2] if match else None
        if file is None:
            files = huggingface_hub.list_repo_files(repository)
            file = _choose([entry for entry in files if entry.endswith(".safetensors")], name)
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except ModelError:
        raise
    except Exception as error:  # whatever the hub or the network raises: it is not to be had
        raise ModelError(
            f"LoRA {name!r} is no file here, and the hub did not deliver it: {first_line(error)}",
            "check the name; without network, download it elsewhere and give the file",
        ) from error


def _choose(files: list[str], name: str) -> str:
    if len(files) == 1 or USUAL_FILE in files:
        return USUAL_FILE if USUAL_FILE in files else files[0]
    if not files:
        raise ModelError(f"LoRA {name!r} holds no .safetensors file", "name the file itself")
    raise ModelError(f"LoRA {name!r} holds several files: {named(files)}", f"name one: {name}/{sorted(files)[0]}")


def check_lora(lora: Lora, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Finds a LoRA that cannot be fused without the model's weights, and without holding its own.

    Args:
        lora: as `find_loras` gave it.
        weights: shape of every weight of the model, by name.

    Raises:
        ModelError: if the file is broken, holds a tensor that has no place in the model, or NaN.
    """
    _plan(lora, weights)
    _refuse_broken(lora)


def fuse_loras(transformer: WanTransformer3DModel, loras: Sequence[Lora]) -> None:
    """Adds the LoRAs to the weights: W + scale (alpha / rank) B A, summed in float32 and rounded once.

    Args:
        transformer: changed in place, once every file has been found sound.
        loras: as `find_loras` gave them.

    Raises:
        ModelError: if a file is broken, holds a tensor that has no place in the model, or NaN; or if a weight
            overflows.
    """
    weights = dict(transformer.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    changes: dict[str, list[tuple[Lora, Change]]] = defaultdict(list)
    for lora in loras:
        for change in _plan(lora, shapes):
            changes[change.target].append((lora, change))
    for lora in loras:
        _refuse_broken(lora)
    with ExitStack() as stack:
        files = {lora: stack.enter_context(_opened(lora)) for lora in loras}
        for target, of_target in changes.items():
            _add(weights[target], target, [(lora, change, files[lora]) for lora, change in of_target])


@torch.no_grad()
def _add(weight: torch.Tensor, name: str, changes: Sequence[tuple[Lora, Change, Any]]) -> None:
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for lora, change, file in changes:
        tensors = [file.get_tensor(key).to(total) for key in change.keys]
        flat = [tensor.flatten(1) if len(tensors) == 2 else tensor for tensor in tensors]
        added = flat[0] @ flat[1] if len(flat) == 2 else flat[0]
        total += lora.scale * change.factor * added.reshape(total.shape)
    fused = total.to(weight.dtype)
    if not is_finite(fused):
        raise ModelError(
            f"LoRA {named([repr(lora.name) for lora, _, _ in changes])} makes {name} larger than "
            f"{str(weight.dtype).removeprefix('torch.')} can hold",
            "take a smaller scale",
        )
    weight.copy_(fused)


def _plan(lora: Lora, weights: Mapping[str, tuple[int, ...]]) -> list[Change]:
    """What the file changes, if each of its tensors has a place.

    Raises:
        ModelError: naming those that have none, and why.
    """
    with _opened(lora) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        entries = {key: Entry(str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
        alphas = {
            key: float(file.get_tensor(key))
            for key, entry in entries.items()
            if key.endswith(".alpha") and math.prod(entry.shape) == 1
        }
        metadata = file.metadata() or {}
    plan = plan_lora(entries, alphas, _settings(lora, metadata), weights)
    if plan.problems:
        raise ModelError(
            f"LoRA {lora.name!r} does not fit the model: {'; '.join(plan.problems)}",
            "every tensor of a LoRA is used or the file is refused: take one of this model and size, as a plain LoRA",
        )
    return plan.changes


def _opened(lora: Lora) -> AbstractContextManager[Any]:
    return opened(lora.file, f"LoRA {lora.name!r}")


def _settings(lora: Lora, metadata: Mapping[str, str]) -> AdapterSettings | None:
    """What a file of diffusers states of itself."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    try:
        stated = {key.removeprefix("transformer."): value for key, value in parse_json_object(text).items()}
        known = {field.name for field in fields(AdapterSettings)}
        return validated(AdapterSettings, {key: value for key, value in stated.items() if key in known})
    except OutsideDataError as error:
        raise ModelError(
            f"LoRA {lora.name!r} states settings of itself (lora_adapter_metadata) that cannot be read: {error}",
            "the file is broken: download it again",
        ) from error


def _refuse_broken(lora: Lora) -> None:
    if broken := broken_tensors_of(lora.file):
        raise ModelError(f"LoRA {lora.name!r} holds NaN or infinity: {named(broken)}", "download it again")
