"""Finds a model's folder, on disk or on the hub, and turns everything that can be wrong with it into a `ModelError`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import nn

from miga.config import SamplerConfig
from miga.errors import MigaError, ModelError

_T = TypeVar("_T")

LARGE_FILE_BYTES: Final = 64 * 2**20
SAMPLE_BYTES: Final = 64 * 2**10
NUM_SAMPLES: Final = 64
HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
PICKLES: Final = (".ckpt", ".pt", ".pth", ".bin")
"""How files are named that can run code when they are read."""


def device_and_dtype(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """What was asked for; else the GPU, where there is one, and bfloat16 there, float32 on a CPU."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


def resolve_folder(name_or_dir: str | Path, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder itself, or that of the hub's snapshot, downloaded as far as `patterns` ask and it is not cached yet.

    Raises:
        ModelError: if there is no such folder, or the hub has no such model or cannot be reached.
    """
    folder = Path(name_or_dir).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_dir)
    if folder.is_file():
        raise ModelError(
            f"model {name!r} is a file, not a folder in diffusers' layout",
            hint="name the folder that holds model_index.json",
        )
    if not HUB_NAME.fullmatch(name):
        raise ModelError(
            f"model folder {name!r} does not exist",
            hint="give a folder that holds model_index.json, or a hub name such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's own errors, requests', httpx's, OSError: all mean that it is not to be had
        raise ModelError(
            f"model {name!r} is no folder here, and the hub did not deliver it: {first_line(error)}",
            hint="check the name and the revision; without network, download it elsewhere and give its folder",
        ) from error


def revision_of(folder: Path) -> str:
    """The commit, for a snapshot of the hub, else a digest of the files (hidden files and `.md` apart).

    Files above 64 MiB enter it by their size and 64 samples of 64 KiB spread evenly over them, so that 60 GB of weights
    take a moment: retrained weights differ in every sample.
    """
    if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        if path.suffix == ".md" or any(part.startswith(".") for part in relative.parts):
            continue
        digest.update(relative.as_posix().encode() + b"\0" + file_digest(path))
    return f"sha256:{digest.hexdigest()}"


def file_digest(path: Path) -> bytes:
    """Digest of a file, sampled as `revision_of` says where it is large."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\0".encode())
    with path.open("rb") as file:
        if size <= LARGE_FILE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(NUM_SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: if the file is missing or is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"model folder {str(path.parent)!r} has no {path.name}",
            hint="the folder is not in diffusers' layout, or was copied or downloaded incompletely",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {str(path)!r}: {first_line(error)}", hint="download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{str(path)!r} holds no JSON object", hint="download the model again")
    return value


@contextmanager
def loading(component: str, folder: Path) -> Iterator[None]:
    """Whatever a library raises while it reads a component's files becomes a `ModelError` that names them."""
    require_component(component, folder)
    try:
        yield
    except (MigaError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"cannot load {str(folder / component)!r}: {type(error).__name__}: {first_line(error)}",
            hint="a file is missing, broken or of another kind: download the model again",
        ) from error


def require_component(component: str, folder: Path) -> None:
    """Refuses a model's folder without a component.

    Raises:
        ModelError: naming it.
    """
    if not (folder / component).is_dir():
        raise ModelError(
            f"model folder {str(folder)!r} has no component {component!r}",
            hint="the folder was copied or downloaded incompletely",
        )


def load_component(kind: Any, component: str, folder: Path, dtype: torch.dtype, ignore: Sequence[str] = ()) -> Any:
    """A module of diffusers or transformers from its folder, for inference, on the CPU.

    Args:
        kind: its class.
        component: name of its folder.
        folder: of the model.
        dtype: of its weights, but for those that the class keeps in float32.
        ignore: weights that a checkpoint may lack, since they are tied to others.

    Raises:
        ModelError: if files or weights are missing, broken, not finite, or of another module.
    """
    with loading(component, folder):
        check_files(component, folder)
        require_weights(component, folder)
        model, info = kind.from_pretrained(
            folder / component, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]}
    require_all(component, folder, {*map(str, info["missing_keys"])} - {*ignore}, mismatched)
    require_finite(component, folder, model)
    return model.eval().requires_grad_(False)


def require_all(
    component: str,
    folder: Path,
    missing: Iterable[str],
    mismatched: Iterable[str] = (),
    left_over: Iterable[str] = (),
) -> None:
    """Refuses weights that libraries would only warn about and fill with random numbers.

    Args:
        component: name of its folder.
        folder: of the model.
        missing: weights that the module has and the checkpoint has not.
        mismatched: weights that have another shape there.
        left_over: weights that the checkpoint alone has.

    Raises:
        ModelError: if there are any, naming them.
    """
    kinds = {"lacks": missing, "has another shape for": mismatched, "has no place for": left_over}
    for what, keys in kinds.items():
        if listed := sorted(keys):
            raise ModelError(
                f"the checkpoint in {str(folder / component)!r} {what} {named(listed)}",
                hint="weights and config.json do not belong together: download or convert the model again",
            )


def require_finite(component: str, folder: Path, model: nn.Module) -> None:
    """Refuses weights that hold NaN or infinity: every video would come out broken.

    Raises:
        ModelError: naming the tensors.
    """
    _refuse_broken(folder / component, [name for name, tensor in model.state_dict().items() if not is_finite(tensor)])


def _refuse_broken(path: Path, broken: Sequence[str]) -> None:
    if broken:
        raise ModelError(
            f"the checkpoint in {str(path)!r} holds NaN or infinity in {named(broken)}",
            hint="it was damaged, or saved by a training that had diverged: download or train it again",
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite.

    One pass without a copy: a sum is finite only if every term is, short of an overflow, which is looked into.
    """
    if not tensor.is_floating_point():
        return True
    if tensor.dtype.itemsize == 1:  # fp8, which is not summed
        return all(bool(torch.isfinite(part.float()).all()) for part in tensor.flatten().split(2**24))
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def require_weights(component: str, folder: Path) -> None:
    """Refuses a component without safetensors: any other format can run code when it is read.

    Raises:
        ModelError: naming the pickles that are there in their place.
    """
    require_component(component, folder)
    if any((folder / component).glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in (folder / component).iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"cannot load {str(folder / component)!r}: its weights are a pickle, {named(pickles)}, which can run code",
            hint="only safetensors are read: take a version of the model that has them",
        )
    raise ModelError(
        f"cannot load {str(folder / component)!r}: it holds no weights, no *.safetensors",
        hint="the folder was copied or downloaded incompletely",
    )


def check_component(
    component: str, folder: Path, module: nn.Module, ignore: Sequence[str] = (), *, exact: bool = False
) -> None:
    """Finds all that can be wrong with a component's weights before anything is started that needs them.

    Names and shapes are read from the files' headers. That all numbers are finite takes one reading of the files, at
    the speed of the disk and without holding them: loading them later is so much faster.

    Args:
        component: name of its folder.
        folder: of the model.
        module: the module that they are for, on the meta device.
        ignore: weights that a checkpoint may lack, since they are tied to others.
        exact: whether weights that the module has no place for are refused too; libraries pass over them.

    Raises:
        ModelError: if files or weights are missing, broken, not finite, or of another module.
    """
    require_weights(component, folder)
    check_files(component, folder)
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted((folder / component).glob("*.safetensors"))
    for file in files:
        shapes |= {name: tuple(entry["shape"]) for name, entry in _safetensors_header(file).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    mismatched = [name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]]
    left_over = shapes.keys() - wanted.keys() if exact else ()
    require_all(component, folder, wanted.keys() - shapes.keys() - {*ignore}, mismatched, left_over)
    for file in files:
        status = file.stat()
        _refuse_broken(file, broken_tensors(file, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=64)
def broken_tensors(file: Path, size: int, mtime_ns: int) -> list[str]:
    """Names of the tensors of a safetensors file that are not finite.

    Args:
        file: read tensor by tensor.
        size: of the file.
        mtime_ns: when it was last changed: a file that is as it was is read once.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return [name for name in tensors.keys() if not is_finite(tensors.get_tensor(name))]  # noqa: SIM118


def check_all_files(folder: Path) -> None:
    """`check_files` of every component that is there."""
    for component in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        check_files(component, folder)


def check_files(component: str, folder: Path) -> None:
    """Finds weights that were only half copied or downloaded, from indices and file headers, in a moment.

    Raises:
        ModelError: if an index names a file that is not there, or a safetensors file is shorter or longer than its
            header says.
    """
    for index in sorted((folder / component).glob("*.index.json")):
        shards = {str(shard) for shard in read_json(index).get("weight_map", {}).values()}
        missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
        if missing:
            raise ModelError(
                f"cannot load {str(folder / component)!r}: {index.name} names {len(shards)} files, and "
                f"{named(missing)} of them {'is' if len(missing) == 1 else 'are'} not there",
                hint="the download is not complete: start it again, it goes on where it was left",
            )
    for file in sorted((folder / component).glob("*.safetensors")):
        size, wanted = file.stat().st_size, _safetensors_bytes(file)
        if size != wanted:
            raise ModelError(
                f"cannot load {str(file)!r}: it has {size:,} bytes, and its header "
                + (f"speaks of {wanted:,}" if wanted else "is broken"),
                hint="the file is cut off or damaged: download it again",
            )


def _safetensors_bytes(file: Path) -> int:
    """How long a safetensors file should be, by its header; 0 if that is none."""
    try:
        ends = [entry["data_offsets"][1] for entry in _safetensors_header(file).values()]
        return 8 + _header_bytes(file) + int(max(ends, default=0))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 0


def _safetensors_header(file: Path) -> dict[str, Any]:
    """The entry of every tensor of a safetensors file: dtype, shape, place.

    Raises:
        ValueError: if the file has no such header.
    """
    length = _header_bytes(file)
    if length > file.stat().st_size:
        raise ValueError(f"a header of {length} bytes in a file of {file.stat().st_size}")
    with file.open("rb") as stream:
        stream.seek(8)
        header = json.loads(stream.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _header_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        head = stream.read(8)
    if len(head) < 8:
        raise ValueError("a file of less than 8 bytes")
    return int.from_bytes(head, "little")


def read_settings(folder: Path, kind: type[_T]) -> _T:
    """The checked contents of `miga.json`, what diffusers' layout has no place for; defaults where it says nothing.

    Args:
        folder: of the model.
        kind: a dataclass; its fields are the known keys, its literal types the known values.

    Raises:
        ModelError: for an unknown key, a wrong type or a value out of range.
    """
    file = folder / "miga.json"
    given = read_json(file) if file.exists() else {}
    types = get_type_hints(kind)
    if problems := [problem for key, value in given.items() for problem in _problems(key, value, types)]:
        raise ModelError(f"{str(file)!r}: {'; '.join(problems)}", hint=f"known keys: {', '.join(types)}")
    return kind(**given)


def _problems(key: str, value: Any, types: Mapping[str, Any]) -> list[str]:
    """What is wrong with an entry of `miga.json`."""
    if key not in types:
        return [f"unknown key {key!r}"]
    wanted = types[key]
    if get_origin(wanted) is Literal:
        known = get_args(wanted)
        listed = f"one of {', '.join(known)}" if len(known) > 1 else repr(known[0])
        return [] if value in known else [f"{key} must be {listed}, not {value!r}"]
    if isinstance(wanted, UnionType):  # with None, for a default that follows from others
        wanted = next(kind for kind in get_args(wanted) if kind is not NoneType)
    wanted = get_origin(wanted) or wanted
    if type(value) is not wanted:  # a bool is an int too
        return [f"{key} must be of type {wanted.__name__}, not {value!r}"]
    lowest = 2 if key == "window" else 1
    if wanted is int and value < lowest:
        return [f"{key} must be {lowest} or above, not {value}"]
    if key == "sampler":
        settings = {field.name for field in fields(SamplerConfig)}
        return [f"unknown key {name!r} in sampler" for name in sorted(value.keys() - settings)]
    return []


def named(names: Sequence[str], count: int = 3) -> str:
    """The first few of a list of names, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
