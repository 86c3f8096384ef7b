"""LoRAs of Wan's transformer: found, checked against the model, and fused into its weights.

A file is read by diffusers' own loader, which knows the layouts of diffusers, ComfyUI and musubi-tuner. It is fused,
not hung beside the weights: a call costs what it costs without, and nothing of it is left but the weights.

Legend: A `[rank, in]` and B `[out, rank]` are the two factors of a weight's change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import nn

from miga.backbones.loading import HUB_NAME, broken_tensors, file_digest, first_line, is_finite, named
from miga.errors import ModelError

HUB_FILE: Final = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.safetensors)")
USUAL_FILE: Final = "pytorch_lora_weights.safetensors"
TEXT_PREFIXES: Final = ("text_encoder", "lora_te", "conditioner", "text_model")
FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.(?P<kind>weight|bias)")


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
        return f"lora:{self.digest}*{self.scale:g}"


def parse_lora(text: str) -> tuple[str, float]:
    """Name and scale of `FILE_OR_NAME[:scale]`; a file whose own name ends so is taken whole.

    Raises:
        ModelError: if there is no name, or the scale is no number.
    """
    name, colon, tail = text.rpartition(":")
    if not colon or Path(text).expanduser().exists():
        name, tail = text, "1"
    try:
        scale = float(tail)
    except ValueError:
        name, scale = text, 1.0  # a colon of the name's own: the file is then missed under its full name
    if not name or not math.isfinite(scale):
        raise ModelError(
            f"LoRA {text!r} is not FILE_OR_NAME[:scale]",
            "such as style.safetensors:0.8, or owner/name/file.safetensors",
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
        file = _find_file(name)
        loras.append(Lora(name, scale, file, file_digest(file).hex()[:16]))
    return loras


def _find_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path / _choose([file.name for file in path.glob("*.safetensors")], name)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"LoRA {name!r} is no .safetensors file", "a pickle can run code: convert it to safetensors first"
            )
        return path
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


def check_lora(lora: Lora, layers: Mapping[str, tuple[int, int]]) -> None:
    """Finds a LoRA that cannot be fused without the model's weights, and without holding its own.

    Args:
        lora: as `find_loras` gave it.
        layers: numbers in and out of the model's linear layers, by name.

    Raises:
        ModelError: if the file is broken, is for another model or for the text encoder, or holds NaN.
    """
    weights, _ = _read(lora, shapes_only=True)
    _check_fits(lora, weights, layers)
    status = lora.file.stat()
    _refuse_broken(lora, broken_tensors(lora.file, status.st_size, status.st_mtime_ns))


def fuse_loras(transformer: WanTransformer3DModel, loras: Sequence[Lora]) -> None:
    """Adds the LoRAs to the weights, one after the other.

    Args:
        transformer: changed in place.
        loras: as `find_loras` gave them.

    Raises:
        ModelError: if a file is broken, is for another model or for the text encoder, or holds NaN.
    """
    for lora in loras:
        weights, metadata = _read(lora)
        _check_fits(lora, weights, _linear_layers(transformer))
        _refuse_broken(lora, sorted(key for key, value in weights.items() if not is_finite(value)))
        try:
            transformer.load_lora_adapter(
                {f"transformer.{key}": value for key, value in weights.items()}, metadata=metadata, adapter_name="lora"
            )
            transformer.fuse_lora(lora_scale=lora.scale, adapter_names=["lora"])
        except Exception as error:  # peft raises many kinds; all mean that this file cannot be used
            raise ModelError(
                f"LoRA {lora.name!r} cannot be fused: {type(error).__name__}: {first_line(error)}",
                "it may be of a kind that diffusers does not load",
            ) from error
        finally:
            transformer.unload_lora()


def _read(lora: Lora, *, shapes_only: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The factors by the names of diffusers' modules, and the settings that the file states of itself.

    Args:
        lora: whose file is read.
        shapes_only: whether only single numbers (`alpha`) are read; the rest is on the meta device, without settings.
    """
    from safetensors import safe_open

    try:
        with safe_open(lora.file, "pt") as file:
            keys = list(file.keys())
            of_text = sorted(key for key in keys if key.startswith(TEXT_PREFIXES))
            dropped = [key for key in keys if "norm" in key and key.endswith((".diff", ".diff_b"))]
            changed = [key for key in dropped if bool(file.get_tensor(key).any())]
            shapes = {key: _shape_of(file, key) for key in keys} if shapes_only else {}
        if of_text:
            raise ModelError(
                f"LoRA {lora.name!r} changes the text encoder too: {named(of_text)}",
                "only LoRAs of the transformer are supported: remove those tensors from the file",
            )
        if changed:
            raise ModelError(
                f"LoRA {lora.name!r} changes normalisations, which diffusers does not load: {named(changed)}",
                "use the diffusers version of it, or remove those tensors from the file",
            )
        source = shapes or str(lora.file)
        weights, metadata = WanPipeline.lora_state_dict(source, return_lora_metadata=True)
    except ModelError:
        raise
    except Exception as error:  # safetensors' errors, and what diffusers' conversion raises for other layouts
        raise ModelError(
            f"LoRA {lora.name!r} cannot be read as one of Wan: {type(error).__name__}: {first_line(error)}",
            "the file is broken, or belongs to another model",
        ) from error
    prefix = re.compile(r"^(transformer\.|base_model\.model\.)+")
    settings = {f"transformer.{prefix.sub('', key)}": value for key, value in metadata.items()} if metadata else None
    return {prefix.sub("", key): value for key, value in weights.items()}, settings


def _shape_of(file: Any, key: str) -> torch.Tensor:
    """A tensor of a file without its numbers, unless it is a single one."""
    shape = file.get_slice(key).get_shape()
    return torch.empty(shape, device="meta") if math.prod(shape) > 1 else file.get_tensor(key)


def _linear_layers(transformer: WanTransformer3DModel) -> dict[str, tuple[int, int]]:
    modules = transformer.named_modules()
    return {name: (layer.in_features, layer.out_features) for name, layer in modules if isinstance(layer, nn.Linear)}


def _check_fits(lora: Lora, weights: Mapping[str, torch.Tensor], layers: Mapping[str, tuple[int, int]]) -> None:
    strange = sorted(key for key, value in weights.items() if not _fits(key, value, layers))
    pairs = {match["module"]: set[str]() for key in weights if (match := FACTOR.fullmatch(key))}
    for key in weights:
        if match := FACTOR.fullmatch(key):
            pairs[match["module"]].add(match["factor"])
    strange = strange or sorted(module for module, factors in pairs.items() if factors != {"A", "B"})
    if strange or not pairs:
        raise ModelError(
            f"LoRA {lora.name!r} does not fit the model: {named(strange) or 'it holds no factors at all'}",
            "it is a LoRA of another model, or of another size of this one",
        )


def _refuse_broken(lora: Lora, broken: Sequence[str]) -> None:
    if broken:
        raise ModelError(f"LoRA {lora.name!r} holds NaN or infinity: {named(broken)}", "download it again")


def _fits(key: str, value: torch.Tensor, layers: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a tensor is a factor for one of the layers, of its size."""
    match = FACTOR.fullmatch(key)
    layer = layers.get(match["module"]) if match else None
    if match is None or layer is None:
        return False
    if match["kind"] == "bias":
        return match["factor"] == "B" and tuple(value.shape) == (layer[1],)
    sizes = value.shape[1:] if match["factor"] == "A" else value.shape[:1]
    return value.ndim == 2 and tuple(sizes) == (layer[0] if match["factor"] == "A" else layer[1],)
