"""The weights that measures need: which file, whose, under which licence, and whether what lies there is it.

Nothing is fetched here. A file that is missing, or of another network, is refused with the one command that fetches it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn

from miga.backbones.weight_files import first_line
from miga.errors import ModelError
from miga.evaluation.networks.amt import AmtS
from miga.evaluation.networks.musiq import Musiq
from miga.evaluation.networks.raft import Raft, own_names

FOLDER_VARIABLE: Final = "MIGA_WEIGHTS"
DEFAULT_FOLDER: Final = "~/.cache/miga/weights"
_MOST_NAMED: Final = 3


def _as_they_are(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(tensors)


@dataclass(frozen=True)
class Weights:
    """One network's weights.

    Attributes:
        name: here.
        files: names that the file may have, the usual one first.
        hub: its repository on the hub, where it has one whose cache is looked into.
        source: where it comes from, for people.
        licence: of the weights.
        fetch: the one command that fetches it, `{folder}` for where it belongs.
        build: makes the network without weights.
        translate: the file's names → the network's.
        is_non_commercial: whether its licence forbids commercial use.
        has_objects: whether the published file holds objects beside its tensors, such as its training's settings.
    """

    name: str
    files: tuple[str, ...]
    hub: str | None
    source: str
    licence: str
    fetch: str
    build: Callable[[], nn.Module]
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = _as_they_are
    is_non_commercial: bool = False
    has_objects: bool = False

    def command(self, folder: str | Path) -> str:
        """The command that fetches it into a folder."""
        return self.fetch.format(folder=folder, name=self.name)


def _vision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from miga.evaluation.networks import vision  # transformers takes seconds to import

        found: nn.Module = getattr(vision, name)()
        return found

    return build


def _vision_names(name: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    def translate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from miga.evaluation.networks import vision

        found: dict[str, Tensor] = getattr(vision, name)(tensors)
        return found

    return translate


_HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")


def _from_hub(hub: str) -> str:
    return f"hf download {hub} --include '*.safetensors' --include pytorch_model.bin --local-dir {{folder}}/{{name}}"


WEIGHTS: Final[Mapping[str, Weights]] = {
    weights.name: weights
    for weights in (
        Weights(
            "dino",
            ("dino_vitbase16_pretrain.pth", *_HUB_FILES),
            "facebook/dino-vitb16",
            "facebook/dino-vitb16 on the hub",
            "Apache-2.0",
            _from_hub("facebook/dino-vitb16"),
            _vision("Dino"),
            _vision_names("dino_names"),
        ),
        Weights(
            "dinov2",
            _HUB_FILES,
            "facebook/dinov2-base",
            "facebook/dinov2-base on the hub",
            "Apache-2.0",
            _from_hub("facebook/dinov2-base"),
            _vision("DinoV2"),
            _vision_names("dinov2_names"),
        ),
        Weights(
            "clip-b32",
            ("ViT-B-32.pt", *_HUB_FILES),
            "openai/clip-vit-base-patch32",
            "openai/clip-vit-base-patch32 on the hub",
            "MIT",
            _from_hub("openai/clip-vit-base-patch32"),
            _vision("clip_b32"),
            _vision_names("clip_names"),
        ),
        Weights(
            "clip-l14",
            ("ViT-L-14.pt", *_HUB_FILES),
            "openai/clip-vit-large-patch14",
            "openai/clip-vit-large-patch14 on the hub",
            "MIT",
            _from_hub("openai/clip-vit-large-patch14"),
            _vision("clip_l14"),
            _vision_names("clip_names"),
        ),
        Weights(
            "aesthetic-head",
            ("sa_0_4_vit_l_14_linear.pth",),
            None,
            "LAION-AI/aesthetic-predictor",
            "MIT",
            "curl -L --create-dirs -o {folder}/sa_0_4_vit_l_14_linear.pth "
            "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
            lambda: nn.Linear(768, 1),
        ),
        Weights(
            "musiq",
            ("musiq_spaq_ckpt-358bb6af.pth",),
            None,
            "the weights that VBench takes, release v0.1-weights of pyiqa; from Google's MUSIQ",
            "Apache-2.0 (Google's MUSIQ); the page it is fetched from asks for non-commercial use of its own code",
            "curl -L --create-dirs -o {folder}/musiq_spaq_ckpt-358bb6af.pth "
            "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
            Musiq,
        ),
        Weights(
            "amt",
            ("amt-s.pth",),
            "lalala125/AMT",
            "lalala125/AMT on the hub",
            "CC-BY-NC-4.0: not for commercial use",
            "hf download lalala125/AMT amt-s.pth --local-dir {folder}",
            AmtS,
            is_non_commercial=True,
            has_objects=True,
        ),
        Weights(
            "raft",
            ("raft-things.pth", "raft_large_C_T_V1-22a6c225.pth"),
            None,
            "RAFT (princeton-vl), or torchvision's port of it",
            "BSD-3-Clause",
            "curl -L --create-dirs -o {folder}/raft_large_C_T_V1-22a6c225.pth "
            "https://download.pytorch.org/models/raft_large_C_T_V1-22a6c225.pth",
            Raft,
            own_names,
        ),
    )
}

KNOWN_FILES: Final[Mapping[str, tuple[int | None, str]]] = {
    "sa_0_4_vit_l_14_linear.pth": (4071, "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"),
    "ViT-B-32.pt": (None, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-L-14.pt": (None, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "musiq_spaq_ckpt-358bb6af.pth": (None, "358bb6af"),
    "raft_large_C_T_V1-22a6c225.pth": (None, "22a6c225"),
}
"""Published files by name: bytes, where known, and the SHA-256 or how it begins."""


@dataclass(frozen=True)
class WeightFile:
    """A file that was found.

    Attributes:
        name: of the weights.
        path: where it lies.
        sha256: of it, in hex.
    """

    name: str
    path: str
    sha256: str


def weights_folder() -> Path:
    """Where weights are looked for: what `MIGA_WEIGHTS` says, or a folder of the user's cache."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()


def find_weights(names: Iterable[str], places: Mapping[str, str] | None = None) -> dict[str, WeightFile]:
    """The files of weights, each checked by size and hash where those are known; none is loaded.

    Args:
        names: of `WEIGHTS`.
        places: name → file, folder or hub name, where it is not where it is looked for.

    Raises:
        ModelError: naming every one that is missing or wrong, with its licence and the command that fetches it.
    """
    found: dict[str, WeightFile] = {}
    faults: list[str] = []
    for name in dict.fromkeys(names):
        try:
            found[name] = _checked(WEIGHTS[name], _path_of(WEIGHTS[name], (places or {}).get(name)))
        except ModelError as error:
            faults.append(f"{error.message}\n    {error.hint}")
    if faults:
        is_one = len(faults) == 1
        raise ModelError(
            f"{'weights are' if is_one else f'{len(faults)} files of weights are'} not to be had:\n  "
            + "\n  ".join(faults),
            f"fetch {'it' if is_one else 'them'} yourself, or choose other --metrics; nothing is fetched on its own. "
            f"--weights NAME=PATH says where a file lies, {FOLDER_VARIABLE} which folder is looked into",
        )
    return found


def _path_of(weights: Weights, place: str | None) -> Path:
    folder = weights_folder()
    if place is None:
        candidates = [
            folder / weights.files[0],
            *(folder / file for file in weights.files[1:] if file not in _HUB_FILES),
        ]
        candidates += [folder / weights.name / file for file in weights.files]
        for path in candidates:
            if path.is_file():
                return path
        if cached := _cached(weights.hub, weights.files):
            return cached
        raise _missing(weights, f"{weights.files[0]} is neither in {folder} nor in the hub's cache")
    path = Path(place).expanduser()
    if path.is_file():
        return path
    for file in weights.files:
        if (path / file).is_file():
            return path / file
    if cached := _cached(place, weights.files):
        return cached
    raise _missing(
        weights, f"{place!r} is no file, no folder with {' or '.join(weights.files)}, and not in the hub's cache"
    )


def _missing(weights: Weights, why: str) -> ModelError:
    return ModelError(
        f"{weights.name}: {why}; it is of {weights.source}, licence {weights.licence}",
        f"fetch it with: {weights.command(weights_folder())}",
    )


def _cached(hub: str | None, files: tuple[str, ...]) -> Path | None:
    """A file in the hub's cache on this machine; nobody is asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in files if hub else ():
        try:
            path = try_to_load_from_cache(str(hub), file)
        except (HFValidationError, ValueError):
            return None
        if isinstance(path, str):
            return Path(path)
    return None


def _checked(weights: Weights, path: Path) -> WeightFile:
    known_bytes, known_hash = KNOWN_FILES.get(path.name, (None, ""))
    size = path.stat().st_size
    again = f"fetch it again with: {weights.command(weights_folder())}"
    if known_bytes is not None and size != known_bytes:
        raise ModelError(f"{weights.name}: {path} has {size:,} bytes, and the published file {known_bytes:,}", again)
    digest = _sha256(str(path), size, path.stat().st_mtime_ns)
    if not digest.startswith(known_hash):
        raise ModelError(
            f"{weights.name}: {path} is not the published file: its SHA-256 begins with {digest[:12]}, not with "
            f"{known_hash[:12]}",
            again,
        )
    return WeightFile(weights.name, str(path), digest)


@cache
def _sha256(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_network(file: WeightFile) -> None:
    """Whether a file holds exactly the network's tensors, by name and shape.

    Raises:
        ModelError: as `load_network`.
    """
    _fitting_tensors(file)


def load_network(file: WeightFile, device: torch.device | str = "cpu") -> nn.Module:
    """The network with these weights, in float32.

    Raises:
        ModelError: if the file cannot be read, or its tensors are not exactly the network's, by name and shape.
    """
    tensors = _fitting_tensors(file)
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    network = WEIGHTS[file.name].build()
    network.load_state_dict(floats)
    return network.to(device).eval().requires_grad_(False)


def _fitting_tensors(file: WeightFile) -> dict[str, Tensor]:
    weights, path = WEIGHTS[file.name], Path(file.path)
    again = f"fetch it with: {weights.command(weights_folder())}"
    tensors = weights.translate(_tensors_of(path, weights.has_objects, again))
    with torch.device("meta"):
        network = weights.build()
    _require_same(weights, path, network.state_dict(), tensors, again)
    return tensors


def _require_same(
    weights: Weights, path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], again: str
) -> None:
    faults = {
        "lacks": sorted(own.keys() - tensors.keys()),
        "has no place for": sorted(tensors.keys() - own.keys()),
        "has another shape for": sorted(
            name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
        ),
    }
    said = [
        f"{what} {', '.join(names[:_MOST_NAMED])}"
        + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
        for what, names in faults.items()
        if names
    ]
    if said:
        raise ModelError(f"{weights.name}: {path} holds the weights of another network: it {'; '.join(said)}", again)


def _tensors_of(path: Path, has_objects: bool, again: str) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is run.

    `miga.backbones.tensor_files` maps files into memory, which those that torch wrote before 1.6 (RAFT's) do not allow.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_program(path):
            return _tensors_of_program(path)
        how: dict[str, Any] = (
            {"weights_only": False, "pickle_module": _HARMLESS} if has_objects else {"weights_only": True}
        )
        values = torch.load(path, map_location="cpu", **how)
    except ModelError:
        raise
    except Exception as error:  # torch and safetensors raise of everything
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)[:200]}", again) from error
    for key in ("state_dict", "params", "model"):
        if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
            values = values[key]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ModelError(f"{path} holds no weights by name", again)
    return {str(name): tensor for name, tensor in values.items()}


def _is_program(path: Path) -> bool:
    """Whether it is a TorchScript archive, which is code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _tensors_of_program(path: Path) -> dict[str, Tensor]:
    """The weights of a published TorchScript archive. Another than that is refused: loading it could run code."""
    _, known_hash = KNOWN_FILES.get(path.name, (None, ""))
    if len(known_hash) < 64:  # `_checked` has compared the whole hash
        raise ModelError(f"{path} is a TorchScript program, and none that is known", "take the hub's safetensors")
    found: dict[str, Tensor] = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return found


class _Inert:
    """Stands for whatever a file holds beside tensors; it does nothing."""

    def __init__(self, *arguments: Any, **names: Any) -> None:
        pass

    def _nothing(self, *values: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _nothing


_ALLOWED: Final = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        *(
            ("torch", f"{kind}Storage")
            for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")
        ),
    }
)


class _HarmlessUnpickler(pickle.Unpickler):
    """Reads tensors by name and nothing else: whatever a file names beside them becomes an object without behaviour.

    Files such as `amt-s.pth` hold their training's settings too, as objects of classes that are not here.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        return type(name, (_Inert,), {})


_HARMLESS: Any = SimpleNamespace(
    __name__="pickle", Unpickler=_HarmlessUnpickler, load=lambda file, **names: _HarmlessUnpickler(file, **names).load()
)
