"""Where a LoRA is: its name and scale as the user writes them, and its file, here or on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from miga.backbones.loading import HUB_NAME, file_digest
from miga.backbones.weight_files import first_line, named, opened
from miga.errors import ModelError

HUB_FILE: Final = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.safetensors)")
USUAL_FILE: Final = "pytorch_lora_weights.safetensors"
EXPERTS: Final = ("high", "low", "both")
"""Networks of a model with two, by the noise that they answer for."""
_NOISE_HALF: Final = re.compile(r"(high|low)[-_ ]?noise", re.IGNORECASE)
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
        expert: which of a model's two networks it is for: "high", "low" or "both"; empty where that is not said.
    """

    name: str
    scale: float
    file: Path
    digest: str
    expert: str = ""

    @property
    def label(self) -> str:
        """What stands in a model's revision: the content and the scale, not where the file lay."""
        return f"lora:{self.digest}*{self.scale!r}" + (f"@{self.expert}" if self.expert else "")

    def opened(self) -> AbstractContextManager[Any]:
        """The file, for its tensors and what it states of itself.

        Raises:
            ModelError: if it cannot be read.
        """
        return opened(self.file, f"LoRA {self.name!r}")


def parse_expert(text: str) -> tuple[str, str]:
    """The rest of `EXPERT=FILE_OR_NAME[:scale]`, and the expert; empty where none is named."""
    head, sign, rest = text.partition("=")
    if sign and head in EXPERTS and not os.path.lexists(os.path.expanduser(text)):
        return rest, head
    return text, ""


def for_experts(loras: Sequence[Lora], model: str, *, has_two: bool) -> list[Lora]:
    """The LoRAs, each with the expert it is for; where none is named, the file's own name tells ("high_noise", ...).

    Args:
        loras: those of a model.
        model: its name.
        has_two: whether it has two networks.

    Raises:
        ModelError: if an expert is named of a model with one network, or none of a model with two.
    """
    if not has_two:
        if named_ones := [lora for lora in loras if lora.expert]:
            raise ModelError(
                f"LoRA {named_ones[0].name!r} is said to be for the {named_ones[0].expert!r} expert, and {model!r} "
                "has one network",
                "leave that out",
            )
        return list(loras)
    placed = []
    for lora in loras:
        found = {half.lower() for half in _NOISE_HALF.findall(lora.name.rpartition("/")[2])}
        expert = lora.expert or (found.pop() if len(found) == 1 else "")
        if not expert:
            raise ModelError(
                f"{model!r} has two networks, and LoRA {lora.name!r} does not say which it is for",
                f"write high={lora.name}, low={lora.name} or both={lora.name}",
            )
        placed.append(replace(lora, expert=expert))
    return placed


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
        text, expert = parse_expert(text)
        name, scale = parse_lora(text)
        try:
            file = _find_file(name)
            digest = file_digest(file).hex()[:16]
        except OSError as error:
            raise ModelError(
                f"LoRA {name!r} cannot be read: {first_line(error)}", "see to its permissions and its disk"
            ) from error
        loras.append(Lora(name, scale, file, digest, expert))
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
