"""Finds a model's folder, on disk or on the hub, and turns everything that can be wrong with it into a `ModelError`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from miga.errors import MigaError, ModelError

LARGE_FILE_BYTES: Final = 64 * 2**20
SAMPLE_BYTES: Final = 64 * 2**10
NUM_SAMPLES: Final = 64
HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")


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
    if not (folder / component).is_dir():
        raise ModelError(
            f"model folder {str(folder)!r} has no component {component!r}",
            hint="the folder was copied or downloaded incompletely",
        )
    try:
        yield
    except (MigaError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"cannot load {str(folder / component)!r}: {type(error).__name__}: {first_line(error)}",
            hint="a file is missing, broken or of another kind: download the model again",
        ) from error


def require_complete(component: str, folder: Path, info: dict[str, Any], ignore: Sequence[str] = ()) -> None:
    """Refuses weights that libraries would only warn about and fill with random numbers.

    Args:
        component: name of its folder.
        folder: of the model.
        info: what `from_pretrained(..., output_loading_info=True)` returned beside the model.
        ignore: missing keys that are tied to others.

    Raises:
        ModelError: if a weight is missing or has another shape.
    """
    missing = sorted({*map(str, info["missing_keys"])} - {*ignore})
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    for what, keys in (("lacks", missing), ("has another shape for", mismatched)):
        if keys:
            raise ModelError(
                f"the checkpoint in {str(folder / component)!r} {what} {named(keys)}",
                hint="weights and config.json do not belong together: download the model again",
            )


def require_finite(component: str, folder: Path, model: nn.Module) -> None:
    """Refuses weights that hold NaN or infinity: every video would come out broken.

    One pass over the weights without a copy: a sum is finite only if every term is, short of an overflow, which is
    looked into.

    Raises:
        ModelError: naming the tensors.
    """
    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
        and not bool(torch.isfinite(tensor.sum()))
        and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise ModelError(
            f"the checkpoint in {str(folder / component)!r} holds NaN or infinity in {named(broken)}",
            hint="it was damaged, or saved by a training that had diverged: download or train it again",
        )


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
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > file.stat().st_size:
            return 0
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return 0
    return 8 + length + max(ends, default=0)


def named(names: Sequence[str], count: int = 3) -> str:
    """The first few of a list of names, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
