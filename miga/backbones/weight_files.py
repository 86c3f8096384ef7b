"""Which files of a component hold its weights, and what their headers say: one list for the check and for the loader.

A loader takes the files by name: `STEM.safetensors`, or the shards that `STEM.safetensors.index.json` names. Whatever
else lies there (variants, copies, what other systems leave) is not weights; where only such is there, it is named.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from miga.errors import MigaError, ModelError
from miga.outside_data import INTEGERS, OutsideDataError, parse_json_object, read_file, shown, validated

PICKLES: Final = (".ckpt", ".pt", ".pth", ".bin")
"""How files are named that can run code when they are read."""
STEMS: Final = {"text_encoder": "model", "image_encoder": "model"}
"""How the weights of a component are called; all others are diffusers', `DIFFUSERS_STEM`."""
DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
MAX_HEADER_BYTES: Final = 64 * 2**20
FLOATS: Final = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Types of numbers, as safetensors names them, that mean what they say without scales beside them."""
QUANTIZED: Final = re.compile(
    r"scale_weight|scale_input|weight_scale|input_scale|scaled_fp8|(?:^|[._])(?:scales?|scale_inv|absmax|quant_state|quant_map|"
    r"nested_\w+|zeros?|zero_points?|qweight|qzeros|g_idx|comfy_quant|SCB|weight_format|bitsandbytes__\w+)(?:$|\.)"
)
"""Names of tensors that belong to weights stored in few bits."""
HARMLESS: Final = {
    "transformer": re.compile(r".*\.norm_added_q\.weight"),
    "transformer_2": re.compile(r".*\.norm_added_q\.weight"),
    "image_encoder": re.compile(r"visual_projection\.weight|(?:vision_model\.)?embeddings\.position_ids"),
    "text_encoder": re.compile(r"(?:decoder\..*|lm_head\.weight|.*\bposition_ids)"),
}
"""Tensors of published checkpoints that no module has a place for and that change nothing: a norm that Wan's attention
does not use; the half of UMT5 that writes; positions that are counted anyway."""


def printable(text: str, most: int = 300) -> str:
    """A text from a file for a message: cut, and without anything that a terminal would act on."""
    text = text if len(text) <= most else f"{text[:most]}…"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def named(names: Sequence[str], count: int = 3) -> str:
    """The first few of a list of names, and how many more there are."""
    listed = ", ".join(printable(name) for name in names[:count])
    return listed + (f" and {len(names) - count} more" if len(names) > count else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def visible_files(folder: Path, suffix: str = "") -> list[str]:
    """Names in a folder in order, but for hidden ones, such as the `._*` of macOS.

    Raises:
        ModelError: if the folder cannot be read.
    """
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(suffix) and not name.startswith("."))
    except OSError as error:
        raise ModelError(f"cannot read {str(folder)!r}: {error.strerror}", "see to its permissions") from error


def read_json(path: Path, *, plain_utf8: bool = False, any_integer: bool = False) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: of the file.
        plain_utf8: whether a library reads the file too, which takes no byte order mark.
        any_integer: whether whole numbers of more than 64 bits may stand in it.

    Raises:
        ModelError: if the file is missing or is not one.
    """
    try:
        data = read_file(path)
        if plain_utf8 and data.startswith(b"\xef\xbb\xbf"):
            raise OutsideDataError("it begins with a byte order mark, which diffusers does not read: save it without")
        return parse_json_object(data, integers=None if any_integer else INTEGERS)
    except FileNotFoundError as error:
        raise ModelError(
            f"model folder {str(path.parent)!r} has no {path.name}",
            hint="the folder is not in diffusers' layout, or was copied or downloaded incompletely",
        ) from error
    except OutsideDataError as error:
        raise ModelError(f"cannot read {str(path)!r}: {first_line(error)}", hint=_link_hint(path)) from error


def require_file(path: Path) -> None:
    """Refuses a file that cannot be read: a link to nothing or to itself, a pipe, one of somebody else.

    Raises:
        ModelError: saying which of them.
    """
    why = None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            why = "it is no regular file"
        elif not os.access(path, os.R_OK):
            why = "it may not be read"
    except FileNotFoundError:
        why = f"it is a link to {os.readlink(path)!r}, which is not there" if path.is_symlink() else "it is not there"
    except OSError as error:
        why = f"{error.strerror}"
    if why:
        raise ModelError(f"cannot load {str(path)!r}: {why}", hint=_link_hint(path))


def _link_hint(path: Path) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return "a cache of the hub was copied without its blobs: download the model again, or copy it following links"
    return "download the model again"


def weight_files(component: str, folder: Path, stem: str | None = None) -> list[Path]:
    """The files that hold a component's weights, each of them there and readable.

    Args:
        component: name of its folder; "" for weights that lie in `folder` itself.
        folder: of the model.
        stem: how the files are called; by default as in diffusers' layout.

    Raises:
        ModelError: if there are none, or none under the names that are loaded, naming those that are there; or if an
            index names files that are missing or lie elsewhere.
    """
    place = folder / component
    stem = stem or STEMS.get(component, DIFFUSERS_STEM)
    single, index = place / f"{stem}.safetensors", place / f"{stem}.safetensors.index.json"
    if os.path.lexists(place / "adapter_config.json"):
        raise ModelError(
            f"cannot load {str(place)!r}: it has an adapter_config.json, and transformers would add that adapter "
            "to the weights",
            hint="merge it into the weights, or remove it",
        )
    has_single, has_index = os.path.lexists(single), os.path.lexists(index)
    if has_index:
        shards = _shards(component, folder, index)
        if has_single and single not in shards:
            raise ModelError(
                f"cannot load {str(place)!r}: {single.name} and {index.name} with its {len(shards)} files are two sets "
                "of weights",
                hint="remove the one that is not meant",
            )
        return shards
    if not has_single:
        raise _no_weights(place, stem)
    require_file(single)
    return [single]


def _shards(component: str, folder: Path, index: Path) -> list[Path]:
    """The files that an index names."""
    place = folder / component
    try:
        content = validated(_Index, read_json(index, plain_utf8=True))
    except OutsideDataError as error:
        raise ModelError(f"cannot read {str(index)!r}: {error}", hint="download the model again") from error
    shards = sorted(set(content.weight_map.values()))
    for shard in shards:
        if os.path.basename(shard) != shard or not shard.endswith(".safetensors") or shard.startswith("."):
            raise ModelError(
                f"cannot load {str(place)!r}: {index.name} names {shown(shard)}, which is no .safetensors file beside "
                "it",
                hint="nothing outside the folder is read: download the model again",
            )
    missing = [shard for shard in shards if not os.path.lexists(place / shard)]
    if missing or not shards:
        raise ModelError(
            f"cannot load {str(place)!r}: {index.name} names {len(shards)} files, and "
            f"{named(missing) or 'none'} of them {'is' if len(missing) == 1 else 'are'} not there",
            hint="the download is not complete: start it again, it goes on where it was left",
        )
    for shard in shards:
        require_file(place / shard)
    return [place / shard for shard in shards]


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]
    metadata: dict[str, Any]


def _no_weights(place: Path, stem: str) -> ModelError:
    """What is said of a component without weights under their name, by what is there instead."""
    there = visible_files(place)
    found = [name for name in there if name.endswith(".safetensors")]
    shards = [name for name in found if re.search(r"-\d+-of-\d+\.", name)]
    pickles = [name for name in there if name.endswith(PICKLES)]
    start = f"cannot load {str(place)!r}: "
    indices = [name for name in there if ".index." in name and name.endswith(".json")]
    if shards and indices:
        return ModelError(
            f"{start}it has no {stem}.safetensors.index.json, but {named(indices)}",
            hint=f"if {indices[0]} is what is meant, rename it to {stem}.safetensors.index.json",
        )
    if shards:
        return ModelError(
            f"{start}{named(shards)} are parts of a whole, and {stem}.safetensors.index.json, which names them, is not "
            "there",
            hint="download the index too",
        )
    if found:
        return ModelError(
            f"{start}it has no {stem}.safetensors, but {named(found)}",
            hint=f"if {found[0]} is what is meant, and in diffusers' layout, rename it to {stem}.safetensors",
        )
    if pickles:
        return ModelError(
            f"{start}its weights are a pickle, {named(pickles)}, which can run code",
            hint="only safetensors are read: take a version of the model that has them",
        )
    others = [
        name for name in there if name.endswith((".gguf", ".sft", ".index.json", ".onnx", ".npz", ".h5", ".msgpack"))
    ]
    return ModelError(
        f"{start}it holds no weights, no *.safetensors" + (f", but {named(others)}" if others else ""),
        hint="the folder was copied or downloaded incompletely, or is in another format",
    )


@dataclass(frozen=True)
class Entry:
    """A tensor as a file's header describes it."""

    dtype: str
    shape: tuple[int, ...]


def entries_of(component: str, folder: Path) -> dict[str, Entry]:
    """Every tensor of a component's files, from their headers.

    Raises:
        ModelError: if a file is broken, a tensor stands in two of them, or its numbers mean nothing by themselves.
    """
    entries: dict[str, Entry] = {}
    for file in weight_files(component, folder):
        found = header_of(file)
        if twice := sorted(entries.keys() & found.keys()):
            raise ModelError(
                f"cannot load {str(folder / component)!r}: {named(twice)} stand in {file.name} and in another file",
                hint="the files are of two models: download it again",
            )
        entries |= found
    if strange := sorted(name for name, entry in entries.items() if entry.dtype not in FLOATS):
        kinds = sorted({entries[name].dtype for name in strange})
        if harmless := HARMLESS.get(component):
            strange = [name for name in strange if not harmless.fullmatch(name)]
        if strange:
            raise ModelError(
                f"the checkpoint in {str(folder / component)!r} holds numbers of type {', '.join(kinds)}: "
                f"{named(strange)}",
                hint=_QUANTIZED_HINT,
            )
    return entries


_QUANTIZED_HINT: Final = "quantized weights are not supported: take the model in bfloat16, float16 or float32"


def header_of(file: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file.

    Raises:
        ModelError: if the file is none, or shorter or longer than its header says.
    """
    size, wanted = file.stat().st_size, _stated_bytes(file)
    if size != wanted:
        raise ModelError(
            f"cannot load {str(file)!r}: it has {size:,} bytes, and its header "
            + (f"speaks of {wanted:,}" if wanted else "is broken"),
            hint="the file is cut off or damaged: download it again",
        )
    with opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: Entry(str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}


def _stated_bytes(file: Path) -> int:
    """How long a safetensors file should be, by its header; 0 if that is none."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(MAX_HEADER_BYTES, file.stat().st_size):
                return 0
            header: Mapping[str, Any] = parse_json_object(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


@contextmanager
def opened(file: Path, what: str = "") -> Iterator[Any]:
    """A safetensors file; whatever the library raises becomes a `ModelError`.

    Args:
        file: where it lies.
        what: how a message calls it; by default its path.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (MigaError, MemoryError):
        raise
    except Exception as error:  # safetensors' own, OSError, and what torch makes of a type that it does not know
        raise ModelError(
            f"{what or f'cannot load {str(file)!r}'}: it cannot be read: {type(error).__name__}: {first_line(error)}",
            hint="the file is broken, or no safetensors: download it again",
        ) from error


def require_fitting(
    component: str,
    folder: Path,
    *,
    missing: Sequence[str] = (),
    mismatched: Sequence[str] = (),
    left_over: Sequence[str] = (),
    note: str = "",
) -> None:
    """Refuses weights that libraries would only warn about, and fill with random numbers or drop.

    Args:
        component: name of its folder.
        folder: of the model.
        missing: weights that the module has and the checkpoint has not.
        mismatched: weights that have another shape there.
        left_over: weights that the checkpoint alone has; `HARMLESS` ones may be.
        note: what is known of the reason, for the hint.

    Raises:
        ModelError: if there are any, naming them.
    """
    harmless = HARMLESS.get(component)
    left_over = [name for name in left_over if not (harmless and harmless.fullmatch(name))]
    if scales := sorted(name for name in left_over if QUANTIZED.search(name)):
        raise ModelError(
            f"the checkpoint in {str(folder / component)!r} is quantized: it has scales that are not applied here, "
            f"{named(scales)}",
            hint=_QUANTIZED_HINT,
        )
    kinds = {"lacks": missing, "has another shape for": mismatched, "has no place for": left_over}
    for what, names in kinds.items():
        if names:
            raise ModelError(
                f"the checkpoint in {str(folder / component)!r} {what} {named(sorted(names))}",
                hint=f"weights and config.json do not belong together: download or convert the model again{note}",
            )
