"""Finds a model's folder, on disk or on the hub, and turns everything that can be wrong with it into a `ModelError`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import nn

from miga.backbones.weight_files import (
    entries_of,
    first_line,
    named,
    opened,
    read_json,
    require_file,
    require_fitting,
    visible_files,
    weight_files,
)
from miga.errors import ConfigError, MigaError, ModelError
from miga.outside_data import shown
from miga.profiles import check_overrides, field_names

_T = TypeVar("_T")

LARGE_FILE_BYTES: Final = 64 * 2**20
SAMPLE_BYTES: Final = 64 * 2**10
NUM_SAMPLES: Final = 64
HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
MOST_FRAMES: Final = 10_000_000
HIGHEST: Final = {
    "window": 10_000,
    "num_frames": 100_000,
    "height": 2**15,
    "width": 2**15,
    "fps": 1000,
    "fps_condition": 1000,
}
"""What settings of `miga.json` may at most be; others `MOST_FRAMES`."""
MOST_TOKENS: Final = 2**24
MOST_EXTRA_TOKENS: Final = 10_000
COMPONENTS: Final = ("transformer", "transformer_2", "unet", "vae", "text_encoder", "image_encoder")
"""Folders of weights."""
PARTS: Final = (*COMPONENTS, "tokenizer", "scheduler", "image_processor")


def device_and_dtype(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """What was asked for; else the GPU, where there is one, and bfloat16 there, float32 on a CPU."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or named_dtype("auto", device.type)


def named_dtype(name: str, device_type: str) -> torch.dtype:
    """The dtype of that name; "auto" is bfloat16 on a GPU ("cuda") and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device_type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def local_path(name: str) -> Path:
    """A model's name as a path, with "~" resolved; whether anything is there is another matter."""
    return Path(os.path.expanduser(name))


def resolve_folder(name_or_dir: str | Path, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder itself, or that of the hub's snapshot, downloaded as far as `patterns` ask and it is not cached yet.

    Raises:
        ModelError: if there is no such folder, or the hub has no such model or cannot be reached.
    """
    name = str(name_or_dir)
    folder = local_path(name)
    if os.path.isdir(folder):
        return folder
    if os.path.isfile(folder):
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
    try:
        for path in _files_below(folder):
            digest.update(
                path.relative_to(folder).as_posix().encode(errors="surrogateescape") + b"\0" + file_digest(path)
            )
    except OSError as error:
        raise ModelError(
            f"cannot read {error.filename or str(folder)!r}: {error.strerror}",
            hint="see to its permissions and its disk",
        ) from error
    return f"sha256:{digest.hexdigest()}"


def _files_below(folder: Path) -> list[Path]:
    """All files that count, in order; of folders that are links, those of the model's parts are followed."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        is_top = Path(place) == folder
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (not os.path.islink(Path(place, name)) or (is_top and name in PARTS))
        ]
        visible = [name for name in files if not name.startswith(".") and not name.endswith(".md")]
        found += [Path(place, name) for name in visible if os.path.isfile(os.path.join(place, name))]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


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


def load_component(
    kind: Any, component: str, folder: Path, dtype: torch.dtype, ignore: Sequence[str] = (), config: Any = None
) -> Any:
    """A module of diffusers or transformers from its folder, for inference, on the CPU.

    Args:
        kind: its class.
        component: name of its folder.
        folder: of the model.
        dtype: of its weights, but for those that the class keeps in float32.
        ignore: weights that a checkpoint may lack, since they are tied to others.
        config: transformers' configuration; None for diffusers, which reads config.json.

    Raises:
        ModelError: if files or weights are missing, broken, not finite, or of another module.
    """
    with loading(component, folder), _bars_on_terminals():
        entries_of(component, folder)
        options = {} if config is None else {"config": config}
        model, info = kind.from_pretrained(
            folder / component,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    require_fitting(
        component,
        folder,
        missing=sorted({*map(str, info["missing_keys"])} - {*ignore}),
        mismatched=[str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]],
        left_over=[*map(str, info["unexpected_keys"])],
    )
    require_finite(component, folder, model)
    return model.eval().requires_grad_(False)


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """No bar of transformers' where standard error is no terminal."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    if sys.stderr is not None and sys.stderr.isatty():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def load_tokenizer(kind: Any, folder: Path, vocabulary: int) -> Any:
    """A tokenizer of transformers from a model's folder, tried on a word.

    Args:
        kind: its class.
        folder: of the model.
        vocabulary: how many tokens the text encoder knows.

    Raises:
        ModelError: if a file is missing, broken or of another tokenizer.
    """
    place = folder / "tokenizer"
    require_component("tokenizer", folder)
    for name in visible_files(place):
        if not os.path.isdir(place / name):
            require_file(place / name)
    if os.path.exists(place / "tokenizer_config.json"):
        _check_tokenizer_config(place / "tokenizer_config.json")
    with loading("tokenizer", folder):
        tokenizer = kind.from_pretrained(place, local_files_only=True)
        tokens = tokenizer("a", truncation=False, verbose=False).input_ids
        size = len(tokenizer)
        padded = tokenizer("a", padding="max_length", max_length=16, return_tensors="pt").input_ids.shape[1]
        if (
            not isinstance(tokens, list)
            or not tokens
            or not all(type(token) is int for token in tokens)
            or padded != 16
        ):
            raise ValueError("it makes no tokens of 'a'")
    if size > vocabulary:
        raise ModelError(
            f"the tokenizer in {str(place)!r} has {size:,} tokens, the text encoder knows {vocabulary:,}",
            hint="they are of two models: download it again",
        )
    return tokenizer


def _check_tokenizer_config(file: Path) -> None:
    """Numbers that transformers would count up to."""
    for key, value in read_json(file, any_integer=True).items():
        most = MOST_EXTRA_TOKENS if key == "extra_ids" else MOST_TOKENS
        if key != "model_max_length" and isinstance(value, int) and not 0 <= value <= most:
            raise ModelError(
                f"{str(file)!r}: {key} is {shown(value)}, and at most {most:,} are taken",
                hint="download the model again",
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


def check_component(
    component: str, folder: Path, module: nn.Module, ignore: Sequence[str] = (), note: str = "", prefix: str = ""
) -> None:
    """Finds all that can be wrong with a component's weights before anything is started that needs them.

    Names, shapes and types are read from the files' headers. That all numbers are finite takes one reading of the
    files, at the speed of the disk and without holding them: loading them later is so much faster.

    Args:
        component: name of its folder.
        folder: of the model.
        module: the module that they are for, on the meta device.
        ignore: weights that a checkpoint may lack, since they are tied to others.
        note: for the hint, where weights and module do not fit.
        prefix: that names of a file may have before the module's.

    Raises:
        ModelError: if files or weights are missing, broken, not finite, or of another module.
    """
    require_component(component, folder)
    shapes = {name.removeprefix(prefix): entry.shape for name, entry in entries_of(component, folder).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    require_fitting(
        component,
        folder,
        missing=sorted(wanted.keys() - shapes.keys() - {*ignore}),
        mismatched=[name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]],
        left_over=sorted(shapes.keys() - wanted.keys()),
        note=note,
    )
    files = weight_files(component, folder)
    for file in files:
        _refuse_broken(file, broken_tensors_of(file))
    _refuse_lost_scales(component, folder, files)


@dataclass(frozen=True)
class NumbersOfFile:
    """What a look at all numbers of a safetensors file has found.

    Attributes:
        broken: names of tensors that are not finite.
        narrow: names of matrices in 8 bits.
        full: those of them whose numbers reach the largest that 8 bits can say.
    """

    broken: tuple[str, ...]
    narrow: tuple[str, ...]
    full: tuple[str, ...]


def numbers_of(file: Path) -> NumbersOfFile:
    """What is to be said of the numbers of a safetensors file; one that is as it was is read once.

    Raises:
        ModelError: if it cannot be read.
    """
    status = file.stat()
    return _numbers_of(file, status.st_size, status.st_mtime_ns)


def broken_tensors_of(file: Path) -> Sequence[str]:
    """Names of the tensors of a safetensors file that are not finite.

    Raises:
        ModelError: if it cannot be read.
    """
    return numbers_of(file).broken


@lru_cache(maxsize=64)
def _numbers_of(file: Path, size: int, mtime_ns: int) -> NumbersOfFile:
    """The same, of a file that had this size when it was last changed, then."""
    broken, narrow, full = list[str](), list[str](), list[str]()
    with opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(name)
            if not is_finite(tensor):
                broken.append(name)
            if tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point and tensor.ndim > 1:
                narrow.append(name)
                if float(tensor.float().abs().max()) >= torch.finfo(tensor.dtype).max:
                    full.append(name)
    return NumbersOfFile(tuple(broken), tuple(narrow), tuple(full))


def _refuse_lost_scales(component: str, folder: Path, files: Sequence[Path]) -> None:
    """Refuses weights in 8 bits that were divided by scales which are not there.

    Whoever scales a matrix has its largest number become the largest that 8 bits can say: 448, or 57,344. Weights as
    they are come nowhere near. One matrix may reach it by chance, most do not.
    """
    narrow = [name for file in files for name in numbers_of(file).narrow]
    full = [name for file in files for name in numbers_of(file).full]
    if narrow and len(full) > len(narrow) / 2:
        raise ModelError(
            f"the checkpoint in {str(folder / component)!r} is in 8 bits, and {len(full)} of {len(narrow)} matrices "
            f"reach the largest number of that type: they were divided by scales, which are not there ({named(full)})",
            hint="take the model in bfloat16, float16 or float32, or in 8 bits that were not scaled",
        )


def weight_note(component: str, folder: Path) -> str:
    """What a user is to know of a component's weights that are taken as they are; empty if nothing. Headers are read.

    Raises:
        ModelError: as `entries_of`.
    """
    kinds = Counter(entry.dtype for entry in entries_of(component, folder).values())
    narrow = {kind: count for kind, count in kinds.items() if kind.startswith("F8_")}
    if not narrow:
        return ""
    said = ", ".join(f"{count} of {kinds.total()} tensors are in {kind}" for kind, count in sorted(narrow.items()))
    return f"{component}: {said}, without scales; they are widened to the type that is computed in, not restored"


def check_all_files(folder: Path) -> None:
    """Finds weights that were only half copied or downloaded, from indices and file headers, in a moment.

    Components without any weights are passed over: a spec needs none.

    Raises:
        ModelError: naming the file.
    """
    for component in COMPONENTS:
        place = folder / component
        if place.is_dir() and any(name.endswith((".safetensors", ".index.json")) for name in visible_files(place)):
            entries_of(component, folder)


def read_settings(folder: Path, kind: type[_T]) -> _T:
    """The checked contents of `miga.json`, what diffusers' layout has no place for; defaults where it says nothing.

    Args:
        folder: of the model.
        kind: a dataclass; its fields are the known keys, its literal types the known values.

    Raises:
        ModelError: for an unknown key, a wrong type or a value out of range.
    """
    file = folder / "miga.json"
    given = read_json(file) if os.path.lexists(file) else {}
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
    lowest, highest = 2 if key == "window" else 1, HIGHEST.get(key, MOST_FRAMES)
    if wanted is int and value < lowest:
        return [f"{key} must be {lowest} or above, not {value}"]
    if wanted is int and value > highest:
        return [f"{key} must be {highest:,} or below, not {value:,}"]
    return _sampler_problems(value) if key == "sampler" else []


def _sampler_problems(values: Mapping[str, Any]) -> list[str]:
    known = set(field_names()) - {"profile"}
    if unknown := sorted(values.keys() - known):
        return [f"unknown key {name!r} in sampler" for name in unknown]
    try:
        check_overrides(values)
    except ConfigError as error:
        return [f"{error.message}: {error.hint}"]
    return []
