"""The names of Wan's own program → those of diffusers and transformers, for every part of a Wan model.

Most are diffusers' own conversions. Tables here are of what those do not know: the text encoder, CLIP's image encoder,
whose queries, keys and values are one tensor in Wan's program, and the blocks of Wan2.2's VAE, which lie one level
deeper than those of Wan2.1's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from miga.backbones.tensor_files import Stored
from miga.backbones.weight_files import Entry

Rules: TypeAlias = Sequence[tuple[str, str]]
Kind: TypeAlias = Literal["transformer", "vae", "text_encoder", "image_encoder"]

_TEXT_RULES: Final[Rules] = (
    (r"token_embedding\.weight", "shared.weight"),
    (r"norm\.weight", "encoder.final_layer_norm.weight"),
    (r"blocks\.(\d+)\.norm1\.weight", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"blocks\.(\d+)\.attn\.([qkvo])\.weight", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (
        r"blocks\.(\d+)\.pos_embedding\.embedding\.weight",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (r"blocks\.(\d+)\.norm2\.weight", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"blocks\.(\d+)\.ffn\.gate\.0\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wi_0.weight"),
    (r"blocks\.(\d+)\.ffn\.fc1\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wi_1.weight"),
    (r"blocks\.(\d+)\.ffn\.fc2\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wo.weight"),
)
"""`gate` is what the activation is applied to, `wi_0` in transformers."""
_RESIDUAL_RULES: Final[Rules] = tuple(
    (rf"{half}coder\.{way}samples\.(\d+)\.{way}samples\.{theirs}", rf"{half}coder.{way}_blocks.\1.{ours}")
    for half, way in (("en", "down"), ("de", "up"))
    for theirs, ours in (
        (r"(\d+)\.residual\.0\.gamma", r"resnets.\2.norm1.gamma"),
        (r"(\d+)\.residual\.2\.(weight|bias)", r"resnets.\2.conv1.\3"),
        (r"(\d+)\.residual\.3\.gamma", r"resnets.\2.norm2.gamma"),
        (r"(\d+)\.residual\.6\.(weight|bias)", r"resnets.\2.conv2.\3"),
        (r"(\d+)\.shortcut\.(weight|bias)", r"resnets.\2.conv_shortcut.\3"),
        (r"\d+\.((?:resample\.1|time_conv)\.(?:weight|bias))", rf"{way}sampler.\2"),
    )
)
"""Of Wan2.2's VAE. A level is a block with a shortcut: some residual blocks, then at most one that resamples.

Source: `wan/modules/vae2_2.py` of Wan2.2; the same names as diffusers' `scripts/convert_wan_to_diffusers.py` makes.
"""
_BLOCK: Final = r"transformer\.(\d+)\."
_CLIP_RULES: Final[Rules] = (
    (r"cls_embedding", "embeddings.class_embedding"),
    (r"pos_embedding", "embeddings.position_embedding.weight"),
    (r"patch_embedding\.weight", "embeddings.patch_embedding.weight"),
    (r"pre_norm\.(weight|bias)", r"pre_layrnorm.\1"),
    (r"post_norm\.(weight|bias)", r"post_layernorm.\1"),
    (rf"{_BLOCK}norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (rf"{_BLOCK}attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (rf"{_BLOCK}mlp\.0\.(weight|bias)", r"encoder.layers.\1.mlp.fc1.\2"),
    (rf"{_BLOCK}mlp\.2\.(weight|bias)", r"encoder.layers.\1.mlp.fc2.\2"),
)
_CLIP_QKV: Final = re.compile(rf"{_BLOCK}attn\.to_qkv\.(weight|bias)")
"""Queries, keys and values, one below the other.

Source: `wan/modules/clip.py` of Wan2.1, whose classes are OpenCLIP's under other names.
"""
_CLIP_FLAT: Final = {"cls_embedding": 1, "pos_embedding": 2}
"""What has sides of 1 in front in Wan's program, and how many sides it has in transformers."""


def library_tensors(part: Kind, tensors: Mapping[str, Stored]) -> Iterator[tuple[str, Stored]]:
    """The tensors of a part under diffusers' or transformers' names, cut and flattened as those have them.

    Args:
        part: which; "transformer" for both of two.
        tensors: by the names of Wan's own program. One that is not known keeps its name.
    """
    if part == "image_encoder":
        for name, stored in tensors.items():
            yield from _clip_tensors(name, stored)
        return
    if part == "text_encoder":
        names = {name: renamed(name, _TEXT_RULES) or name for name in tensors}
    else:
        known = {name: renamed(name, _RESIDUAL_RULES) for name in tensors if part == "vae"}
        rest = [name for name in tensors if known.get(name) is None]
        names = {name: new for name, new in known.items() if new is not None} | _diffusers_names(part, rest)
    for name, stored in tensors.items():
        yield names[name], stored


def renamed(name: str, rules: Rules) -> str | None:
    """By the rule for it, if there is one."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _clip_tensors(name: str, stored: Stored) -> Iterator[tuple[str, Stored]]:
    """One of CLIP's image encoder: three if it is queries, keys and values."""
    if match := _CLIP_QKV.fullmatch(name):
        for number, letter in enumerate("qkv"):
            yield f"encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}", _third(stored, number)
        return
    num_sides = _CLIP_FLAT.get(name)
    yield renamed(name, _CLIP_RULES) or name, stored if num_sides is None else _flat(stored, num_sides)


def _third(stored: Stored, number: int) -> Stored:
    """One of three parts, one below the other; all of it where there are not three, which then has a wrong shape."""
    shape = stored.entry.shape
    if not shape or shape[0] % 3:
        return stored
    rows = shape[0] // 3
    part = slice(number * rows, (number + 1) * rows)
    entry = Entry(stored.entry.dtype, (rows, *shape[1:]))
    return replace(stored, entry=entry, read=lambda: stored.read()[part])


def _flat(stored: Stored, num_sides: int) -> Stored:
    """Without sides of 1 in front; as it is where there are others, which then has a wrong shape."""
    shape = stored.entry.shape
    left = shape[len(shape) - num_sides :]
    if len(shape) <= num_sides or set(shape[: len(shape) - num_sides]) != {1}:
        return stored
    return replace(stored, entry=Entry(stored.entry.dtype, left), read=lambda: stored.read().reshape(left))


def _diffusers_names(part: Literal["transformer", "vae"], names: Sequence[str]) -> dict[str, str]:
    """Name in Wan's program → name in diffusers; one that is not known stays as it is.

    diffusers' own conversions are given the names in the tensors' place. Where two become one, or one cannot be taken
    apart, each is given by itself.
    """
    from diffusers.loaders import single_file_utils

    convert: Callable[[dict[str, str]], Mapping[str, Any]] = {
        "transformer": single_file_utils.convert_wan_transformer_to_diffusers,
        "vae": single_file_utils.convert_wan_vae_to_diffusers,
    }[part]
    try:
        converted = convert({name: name for name in names})
    except (ValueError, LookupError, AttributeError, TypeError):
        converted = {}
    if len(converted) != len(names):
        return {name: _diffusers_name(convert, name) for name in names}
    return {name: new for new, name in converted.items()}


def _diffusers_name(convert: Callable[[dict[str, str]], Mapping[str, Any]], name: str) -> str:
    try:
        (new,) = convert({name: name})
    except (ValueError, LookupError, AttributeError, TypeError):  # it takes names apart, and this is none of Wan's
        return name
    return new
