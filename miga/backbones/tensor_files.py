"""Files of weights that are converted: safetensors and torch's own, looked into without holding what they hold.

A file of torch (`.pth`, `.ckpt`) is a pickle. It is read with `weights_only=True`, which runs no code in it, and mapped
into memory: a tensor takes room when it is asked for.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from miga.backbones.weight_files import FLOATS, QUANTIZED, Entry, first_line, header_of, named, opened, require_file
from miga.errors import ModelError

SAFETENSORS: Final = (".safetensors", ".sft")
NUMBERS: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""Types as safetensors names them."""
QUANTIZED_HINT: Final = "quantized weights are not converted: take the file in bfloat16, float16 or float32"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        key: its name there.
        file: which.
        entry: its type and shape.
        read: gives it, on the CPU.
    """

    key: str
    file: Path
    entry: Entry
    read: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self.dtype.itemsize * math.prod(self.entry.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return next(kind for kind, name in NUMBERS.items() if name == self.entry.dtype)


def tensors_of(file: Path) -> dict[str, Stored]:
    """Every tensor of a file by its name; nothing of them is read yet.

    Raises:
        ModelError: if the file is missing, cut off, broken, of another format, or holds anything beside tensors.
    """
    require_file(file)
    if file.suffix == ".gguf":
        raise ModelError(f"{str(file)!r} is a GGUF file, whose weights are quantized", hint=QUANTIZED_HINT)
    if file.suffix in SAFETENSORS:
        return dict(_of_safetensors(file))
    state = read_pickle(file, "a model's file as it was published")
    kinds = {key: NUMBERS.get(tensor.dtype, str(tensor.dtype)) for key, tensor in state.items()}
    strange = sorted(key for key, tensor in state.items() if tensor.layout is not torch.strided or tensor.is_quantized)
    if strange:
        raise ModelError(f"{str(file)!r} does not store plain numbers in {named(strange)}", hint=QUANTIZED_HINT)
    return {
        key: Stored(key, file, Entry(kinds[key], tuple(tensor.shape)), lambda tensor=tensor: tensor)  # type: ignore[misc]
        for key, tensor in state.items()
    }


def _of_safetensors(file: Path) -> Iterator[tuple[str, Stored]]:
    def reader(key: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            with opened(file) as tensors:
                tensor: torch.Tensor = tensors.get_tensor(key)
            return tensor

        return read

    for key, entry in header_of(file).items():
        yield key, Stored(key, file, entry, reader(key))


def require_plain(tensors: Mapping[str, Stored]) -> None:
    """Refuses weights that mean nothing without scales, which would be loaded as they are.

    Raises:
        ModelError: naming the tensors.
    """
    if scales := sorted(key for key in tensors if QUANTIZED.search(key)):
        raise ModelError(
            f"{_files(tensors)} is quantized: it has scales beside its weights, {named(scales)}", hint=QUANTIZED_HINT
        )
    if strange := sorted(key for key, stored in tensors.items() if stored.entry.dtype not in FLOATS):
        kinds = sorted({tensors[key].entry.dtype for key in strange})
        raise ModelError(
            f"{_files(tensors)} holds numbers of type {', '.join(kinds)}: {named(strange)}", hint=QUANTIZED_HINT
        )


def _files(tensors: Mapping[str, Stored]) -> str:
    return ", ".join(repr(str(file)) for file in sorted({stored.file for stored in tensors.values()})[:1])


def read_pickle(file: Path, what: str, entries: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch, mapped from it rather than read; nothing in it is ever run.

    Args:
        file: where it lies.
        what: what it should be, for hints.
        entries: under which of these names the tensors may be, the first one that is there.

    Raises:
        ModelError: if the file is missing, truncated, none of torch, or holds anything beside tensors and plain values.
    """
    if not os.path.isfile(file):
        raise ModelError(f"checkpoint {str(file)!r} does not exist", hint=f"name {what}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint {str(file)!r} holds code or objects beside its weights; it was not loaded, nothing in it was "
            f"run: {first_line(error)}",
            hint=f"take {what}; whoever trusts this file can save its 'state_dict' alone",
        ) from error
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # RuntimeError, EOFError, OSError, ValueError, by what is broken
        raise ModelError(
            f"checkpoint {str(file)!r} cannot be read: {type(error).__name__}: {first_line(error)}",
            hint="it was downloaded incompletely, or torch.save of 1.6 or later did not write it: download it again",
        ) from error
    entry = next(
        (entry for entry in entries if isinstance(content, dict) and isinstance(content.get(entry), dict)), None
    )
    return _state_dict(content if entry is None else content[entry], file, what)


def _state_dict(content: Any, file: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors by name: at the top, or under "state_dict" (Lightning) or "module" (DeepSpeed)."""
    for key in ("state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(value) for value in content.values()):
        raise ModelError(f"checkpoint {str(file)!r} holds no named tensors", hint=f"name {what}, not another file")
    wrapper = "_forward_module."
    state = {str(key).removeprefix(wrapper): value for key, value in content.items()}
    if len(state) != len(content):
        raise ModelError(
            f"checkpoint {str(file)!r} holds tensors twice, with and without {wrapper!r}", hint="take the published one"
        )
    return state
