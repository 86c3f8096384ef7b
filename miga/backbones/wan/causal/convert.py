"""Published causal weights, in the layouts of their programs, as the tensors of diffusers' `WanTransformer3DModel`.

A file is a pickle of tensors alone or a safetensors file. Its weights may be in an entry ("generator_ema",
"generator", "model") or bare, and carry the prefixes that FSDP, activation checkpointing and compiling leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch

from miga.errors import ModelError

_WRAPPERS: Final = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_LEAVES: Final = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_PARTS: Final = {
    "self_attn.o": "attn1.to_out.0", "cross_attn.o": "attn2.to_out.0", "norm3": "norm2", "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"{old}.{name}": f"{new}.to_{name}" for old, new in (("self_attn", "attn1"), ("cross_attn", "attn2")) for name in "qkv"},
    **{f"{old}.norm_{name}": f"{new}.norm_{name}" for old, new in (("self_attn", "attn1"), ("cross_attn", "attn2")) for name in "qk"},
}  # fmt: skip


def diffusers_name(name: str) -> str:
    """A tensor's name as diffusers has it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    name = name.removeprefix("model.")
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
