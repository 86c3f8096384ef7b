"""What each tensor of a LoRA's file changes: every one of them is used once, or the file is refused by its name.

The layouts differ in names alone. A key is `PREFIX MODULE . ROLE`: the module under diffusers' name, Wan's own, or
either with underscores (kohya, musubi-tuner); the role one of the two factors, their `alpha`, or a plain difference.

Legend: A `[rank, in]` and B `[out, rank]` are the two factors of a weight's change.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from miga.backbones.weight_files import FLOATS, Entry, named

Role: TypeAlias = Literal["down", "up", "up_bias", "alpha", "diff", "diff_b", "diff_m"]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_ROLES: Final[dict[Role, str]] = {
    "down": r"(?:lora_A(?:\.[\w-]+)?|lora_down|lora\.down|lora_linear_layer\.down)\.weight",
    "up": r"(?:lora_B(?:\.[\w-]+)?|lora_up|lora\.up|lora_linear_layer\.up)\.weight",
    "up_bias": r"lora_B(?:\.[\w-]+)?\.bias",
    "alpha": "alpha",
    "diff": "(?:diff|w_norm)",
    "diff_b": "(?:diff_b|b_norm)",
    "diff_m": "diff_m",
}
"""How a key ends, by what the tensor is. "default" and the like are names that peft gives an adapter."""

_KEY: Final = re.compile(r"(?P<module>.+?)\.(?:" + "|".join(f"(?P<{role}>{end})" for role, end in _ROLES.items()) + ")")
_PREFIX: Final = re.compile(
    r"(?:(?:base_model\.model|model|module|diffusion_model|transformer|pipe|dit|generator)\.)*"
    r"(?:lora_unet_+|lora_transformer_+|lycoris_+)?"
)
_WRAPPERS: Final = re.compile(r"_(?:fsdp_wrapped_module|checkpoint_wrapped_module|orig_mod)\.")
_TEXT: Final = re.compile(r"(?:text_encoder|lora_te|conditioner|text_model|text_encoders)")
_IMAGE: Final = re.compile(r"k_img|v_img|img_emb|add_[kv]_proj|norm_added|image_embedder")
_OTHER_KINDS: Final = {
    "DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
    "LoHa": re.compile(r"\bhada_"),
    "LoKr": re.compile(r"\blokr_"),
    "OFT": re.compile(r"\b(?:oft_|boft_)"),
    "a convolution in three factors": re.compile(r"lora_mid\b"),
    "one that changes shapes": re.compile(r"reshape_weight"),
}
WAN_NAMES: Final = (
    (r"^condition_embedder\.(text|time)_embedder\.linear_1", r"\1_embedding.0"),
    (r"^condition_embedder\.(text|time)_embedder\.linear_2", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^condition_embedder\.image_embedder\.pos_embed", "img_emb.emb_pos"),
    (r"^proj_out", "head.head"),
    (r"^scale_shift_table", "head.modulation"),
    (r"\.scale_shift_table", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0", ".o"),
    (r"\.add_([kv])_proj", r".\1_img"),
    (r"\.norm_added_k", ".norm_k_img"),
    (r"\.to_([qkv])", r".\1"),
    (r"\.norm2", ".norm3"),
    (r"\.ffn\.net\.0\.proj", ".ffn.0"),
    (r"\.ffn\.net\.2", ".ffn.2"),
)
"""From diffusers' names of the transformer's modules to those of Wan's own program."""


@dataclass(frozen=True)
class Change:
    """What is added to one weight.

    Attributes:
        target: name of the weight.
        keys: of the tensors in the file: one, a difference of the weight's shape; or two, the factors B and A.
        factor: what they are multiplied by, the user's scale apart.
    """

    target: str
    keys: tuple[str, ...]
    factor: float = 1.0


@dataclass(frozen=True)
class AdapterSettings:
    """What a file of diffusers may state of itself, peft's `LoraConfig`; the defaults are peft's.

    Attributes:
        r, lora_alpha: rank and alpha of every layer that no pattern names.
        rank_pattern, alpha_pattern: those of layers by name, or by the end of their name.
        use_rslora: whether alpha is divided by the root of the rank.
        use_dora, use_qalora: kinds that more than two factors belong to.
        layer_replication: blocks that were doubled.
        init_lora_weights: how training began; some ways change the weights themselves.
    """

    r: int = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    use_qalora: bool = False
    layer_replication: list[list[int]] | None = None
    init_lora_weights: bool | str | None = True

    def factor(self, module: str, rank: int) -> float:
        """What a layer's factors are multiplied by.

        Raises:
            ValueError: if the file's tensors are of another rank.
        """
        stated = _of_pattern(self.rank_pattern, module, self.r)
        if stated != rank:
            raise ValueError(f"it states rank {stated} for {module}, whose factors are of rank {rank}")
        alpha = _of_pattern(self.alpha_pattern, module, self.lora_alpha)
        return float(alpha) / (rank**0.5 if self.use_rslora else rank)

    def problems(self) -> list[str]:
        """Kinds of adapter that are not a product of two factors, or that belong to changed weights."""
        began = str(self.init_lora_weights).lower()
        return [
            *(["it states that it is DoRA"] if self.use_dora else []),
            *(["it states that it is QA-LoRA"] if self.use_qalora else []),
            *(["it states that blocks were replicated"] if self.layer_replication else []),
            *(
                [f"it was begun by {began!r}, which changes the model's own weights"]
                if began.startswith(("pissa", "olora", "corda", "loftq"))
                else []
            ),
        ]


def _of_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """peft's patterns: a module's name, or the end of it; "^" before it means the whole name."""
    for key, value in pattern.items():
        name = key.removeprefix("^").removesuffix(".lora_B.weight")
        if module == name or (not key.startswith("^") and module.endswith(f".{name}")):
            return value
    return default


@dataclass
class LoraPlan:
    """What a file's tensors change.

    Attributes:
        changes: of the weights, in the order of the file.
        problems: sentences about tensors that have no place, by name; empty if the file can be used.
    """

    changes: list[Change] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan_lora(
    entries: Mapping[str, Entry],
    alphas: Mapping[str, float],
    settings: AdapterSettings | None,
    weights: Shapes,
) -> LoraPlan:
    """Gives every tensor of a LoRA's file its place.

    Args:
        entries: the file's header.
        alphas: the value of every `alpha`, by key.
        settings: what the file states of itself.
        weights: shape of every weight of the model, by diffusers' name.
    """
    modules = _aliases(weights)
    parts: dict[str, dict[Role, str]] = defaultdict(dict)
    refused: dict[str, list[str]] = defaultdict(list)
    for key, entry in sorted(entries.items()):
        name, role = _role_of(key)
        module = modules.get(name.replace(".", "_")) if role else None
        if module is None or role is None:
            refused[_why_no_place(key, role is not None)].append(key)
        elif role in parts[module]:
            refused["twice, in two layouts or of two adapters"] += [parts[module][role], key]
        elif role != "alpha" and entry.dtype not in FLOATS:
            refused[f"numbers of type {entry.dtype}, which mean nothing without their scales"].append(key)
        else:
            parts[module][role] = key
    plan = LoraPlan(problems=settings.problems() if settings else [])
    for module, keys in parts.items():
        try:
            plan.changes += _changes_of(module, keys, entries, alphas, settings, weights)
        except _PlaceError as refusal:
            refused[refusal.why] += refusal.keys
        except ValueError as error:
            plan.problems.append(str(error))
    plan.problems += [f"{why}: {named(keys)}" for why, keys in refused.items()]
    if not entries:
        plan.problems.append("it holds no tensors at all")
    return plan


class _PlaceError(ValueError):
    def __init__(self, why: str, keys: Sequence[str]) -> None:
        super().__init__(why)
        self.why, self.keys = why, list(keys)


def _aliases(weights: Shapes) -> dict[str, str]:
    """Both names of every module, and of every weight of no module, with underscores, to diffusers' name of it."""
    aliases: dict[str, str] = {}
    for name in {weight.removesuffix(".weight").removesuffix(".bias") for weight in weights}:
        wan = name
        for pattern, replacement in WAN_NAMES:
            wan = re.sub(pattern, replacement, wan)
        aliases |= {alias.replace(".", "_"): name for alias in (name, wan)}
    return aliases


def _role_of(key: str) -> tuple[str, Role | None]:
    """Name of the module, without what is before it, and what the tensor is to it; no role if it is none known."""
    text = _WRAPPERS.sub("", key)
    prefix = _PREFIX.match(text)
    match = _KEY.fullmatch(text[prefix.end() :] if prefix else text)
    if match is None:
        return key, None
    role = next(role for role in _ROLES if match[role] is not None)
    return f"{match['module']}.modulation" if role == "diff_m" else match["module"], role


def _why_no_place(key: str, has_role: bool) -> str:
    if _TEXT.match(key):
        return "changes the text encoder too"
    for kind, pattern in _OTHER_KINDS.items():
        if pattern.search(key):
            return f"is of a kind that cannot be fused here, {kind}"
    if _IMAGE.search(key):
        return "changes what only image-to-video models have"
    return "the model has no such layer" if has_role else "no part of a LoRA that is known here"


def _changes_of(
    module: str,
    keys: Mapping[Role, str],
    entries: Mapping[str, Entry],
    alphas: Mapping[str, float],
    settings: AdapterSettings | None,
    weights: Shapes,
) -> Iterator[Change]:
    weight = module if module in weights else f"{module}.weight"
    differences: dict[Role, str] = {"diff": weight, "diff_m": weight, "diff_b": f"{module}.bias"}
    for role, target in differences.items():
        if key := keys.get(role):
            yield _difference(target, key, entries[key], weights)
    if not keys.keys() & {"down", "up", "up_bias", "alpha"}:
        return
    if not {"down", "up"} <= keys.keys():
        raise _PlaceError("one of a pair, whose other is not there", list(keys.values()))
    down, up = (entries[keys[role]].shape for role in ("down", "up"))
    if not _is_product(up, down, weights.get(weight, ())):
        raise _PlaceError(f"another shape than the model's {list(weights.get(weight, ()))}", [keys["down"], keys["up"]])
    factor = _factor(module, down[0], keys.get("alpha"), alphas, settings)
    yield Change(weight, (keys["up"], keys["down"]), factor)
    if key := keys.get("up_bias"):
        difference = _difference(f"{module}.bias", key, entries[key], weights)
        yield Change(difference.target, difference.keys, factor)


def _difference(target: str, key: str, entry: Entry, weights: Shapes) -> Change:
    if target not in weights:
        raise _PlaceError("the model's layer has no such weight", [key])
    if entry.shape != weights[target]:
        raise _PlaceError(f"another shape than the model's {list(weights[target])}", [key])
    return Change(target, (key,))


def _is_product(up: tuple[int, ...], down: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether B A has the shape of the weight; those of convolutions may have sides of 1, or be flat."""
    if len(up) < 2 or len(down) < 2 or len(weight) < 2 or up[1] != down[0] or not down[0]:
        return False
    is_whole = tuple(size for size in down[1:] if size != 1) == tuple(size for size in weight[1:] if size != 1)
    is_flat = len(down) == 2 and down[1] == math.prod(weight[1:])
    return up[0] == weight[0] and math.prod(up[2:]) == 1 and (is_whole or is_flat)


def _factor(
    module: str, rank: int, key: str | None, alphas: Mapping[str, float], settings: AdapterSettings | None
) -> float:
    if key is None:
        return 1.0 if settings is None else settings.factor(module, rank)
    if settings is not None:
        raise _PlaceError("an alpha beside the one that the file states of itself", [key])
    if key not in alphas or not math.isfinite(alphas[key]):
        raise _PlaceError("an alpha that is no number", [key])
    return alphas[key] / rank
