"""Wan2.1's weights as people have them: which part of the model a file holds, and what its tensors are in diffusers.

Names are those of Wan's own program (`Wan2.1_VAE.pth`, `models_t5_umt5-xxl-enc-bf16.pth`, ComfyUI's transformers and
VAEs, with or without a prefix), of transformers (ComfyUI's text encoders) or of diffusers. Sizes follow from shapes;
every tensor has one place in the module of these sizes, or the file is refused by the tensor's name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch

from miga.backbones.tensor_files import Stored, require_plain
from miga.backbones.wan.config import ClipVisionConfig, Umt5Config, WanTransformerConfig, WanVaeConfig
from miga.backbones.wan.spec import ARCHITECTURES, module_of
from miga.backbones.weight_files import HARMLESS, named
from miga.errors import ModelError
from miga.outside_data import OutsideDataError, validated

Part: TypeAlias = Literal["transformer", "transformer_2", "vae", "text_encoder", "image_encoder"]
PartConfig: TypeAlias = WanTransformerConfig | WanVaeConfig | Umt5Config | ClipVisionConfig
Tensors: TypeAlias = Mapping[str, Stored]

PARTS: Final[tuple[Part, ...]] = ("transformer", "vae", "text_encoder")
"""Of every model."""
MORE_PARTS: Final[tuple[Part, ...]] = ("transformer_2", "image_encoder")
"""Of some: Wan2.2's 14B models, the first of which is for high noise; Wan2.1's image models."""
CALLED: Final[Mapping[Part, str]] = {
    "transformer": "transformer",
    "transformer_2": "transformer for low noise",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "image_encoder": "image encoder",
}
LIBRARY: Final[Mapping[Part, str]] = {
    "transformer": "diffusers",
    "transformer_2": "diffusers",
    "vae": "diffusers",
    "text_encoder": "transformers",
    "image_encoder": "transformers",
}
"""Whose module it becomes."""

PREFIXES: Final = (
    "model.diffusion_model.",
    "diffusion_model.",
    "text_encoders.umt5xxl.transformer.",
    "first_stage_model.",
    "vae.",
    "vision_model.",
    "model.",
)
"""What ComfyUI and others put before the names; in a file of all parts, before those of each."""

HEAD_WIDTH: Final = 128
"""Of the transformer's attention, in all of Wan's models; shapes do not say it."""
LATENT_CHANNELS: Final = 16
"""Of Wan2.1's VAE. Mean and deviation of each are published for it, and stand in no file of weights."""
CONDITIONED_CHANNELS: Final = 36
"""That a transformer takes which is shown pictures: of the latent, of the mask, of the picture's latents."""
EMBEDDED_TOKENIZER: Final = "spiece_model"
"""In ComfyUI's text encoders: the bytes of the tokenizer's file."""

CONVERT_HINT: Final = (
    "Wan2.1's models of text and of pictures can be converted, 1.3B, 14B and what was trained from them, and Wan2.2's "
    "14B models; others are taken in diffusers' layout, as they are published"
)
VIT_H: Final = ClipVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    projection_dim=1024,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    hidden_act="gelu",
)
"""CLIP's image encoder of Wan2.1's image models (ViT-H/14)."""
CLIP_FILE: Final = "clip_vision_h.safetensors"

_FOREIGN: Final = (
    (r"^(?:.*\.)?(?:lora_(?:A|B|up|down|unet_|te)|hada_|lokr_)", "a LoRA", "give it by --lora beside the model"),
    (
        r"\bvace_(?:blocks|patch_embedding)",
        "of VACE, which is conditioned on videos",
        CONVERT_HINT,
    ),
    (
        r"face_adapter|face_encoder|motion_encoder|pose_patch_embedding",
        "of Wan2.2-Animate, which is conditioned on images and poses",
        CONVERT_HINT,
    ),
    (r"audio_(?:injector|encoder|proj)|casual_audio", "of a model that is conditioned on sound", CONVERT_HINT),
    (
        r"control_adapter|\bref_conv\b|control_(?:blocks|embed)",
        "of a model that is conditioned on controls",
        CONVERT_HINT,
    ),
    (r"cam_encoder|camera_(?:encoder|adapter)", "of a model that is conditioned on cameras", CONVERT_HINT),
    (
        r"^(?:model\.)?visual\.",
        "CLIP's image encoder under the names of Wan's own program, whose queries, keys and values are one tensor",
        f"take the same under transformers' names, such as ComfyUI's {CLIP_FILE}, by --image-encoder",
    ),
    (
        r"coder\.(?:down|up)samples\.\d+\.(?:down|up)samples\.",
        "of Wan2.2's VAE, which belongs to its 5B model",
        "take that model in diffusers' layout: Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    ),
    (
        r"\bdouble_blocks\.|\bjoint_blocks\.|\bsingle_blocks\.",
        "of a model built on MMDiT, such as HunyuanVideo",
        CONVERT_HINT,
    ),
    (r"\binput_blocks\.|\bmiddle_block\.", "of a U-Net", "VideoCrafter2's is converted from its model.ckpt as a whole"),
    (r"^(?:.*\.)?transformer_blocks\.\d", "of another model, such as CogVideoX or LTX", CONVERT_HINT),
)
"""Names that say what else a file is, what it is then called, and what to do."""

_SIGNS: Final[tuple[tuple[Part, Literal["wan", "library"], str], ...]] = (
    ("transformer", "library", r"blocks\.\d+\.attn[12]\.|condition_embedder\."),
    ("transformer", "wan", r"blocks\.\d+\.(?:self|cross)_attn\.|head\.modulation|time_projection\."),
    ("vae", "library", r"(?:en|de)coder\.(?:mid_block|down_blocks|up_blocks|conv_in|norm_out)\."),
    ("vae", "wan", r"(?:en|de)coder\.(?:middle|downsamples|upsamples|head)\."),
    ("text_encoder", "library", r"encoder\.block\.\d+\.layer\.|shared\.weight|encoder\.embed_tokens\."),
    (
        "image_encoder",
        "library",
        r"embeddings\.(?:class|patch|position)_embedding|encoder\.layers\.\d+\.|pre_layrnorm\.",
    ),
    ("text_encoder", "wan", r"token_embedding\.|blocks\.\d+\.(?:attn|pos_embedding|ffn\.(?:gate|fc1|fc2))\."),
)
"""How names of each part begin, under the names of Wan's own program or of diffusers and transformers."""


@dataclass(frozen=True)
class Found:
    """The tensors of one part.

    Attributes:
        part: which.
        tensors: by diffusers' or transformers' names.
        left_out: tensors that no module has a place for and that change nothing.
        files: that they come from.
    """

    part: Part
    tensors: Tensors
    left_out: int
    files: tuple[Path, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors."""
        return {name: stored.entry.shape for name, stored in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(stored.num_bytes for stored in self.tensors.values())

    @property
    def title(self) -> str:
        """For messages."""
        return f"the {CALLED[self.part]} in {str(self.files[0])!r}"


def parts_of(tensors: Tensors) -> list[Found]:
    """The parts that a file holds, or several files of one part; one of them usually.

    Raises:
        ModelError: if it is quantized, or is something else, saying what, or holds a tensor twice.
    """
    embedded = [key for key in tensors if key.rpartition(".")[2] == EMBEDDED_TOKENIZER]
    is_clip = any(key.startswith("vision_model.") for key in tensors)
    projection = [key for key in tensors if is_clip and HARMLESS["image_encoder"].fullmatch(key)]
    weights = {key: stored for key, stored in tensors.items() if key not in (*embedded, *projection)}
    require_plain(weights)
    sections: dict[str, dict[str, Stored]] = defaultdict(dict)
    for key, stored in weights.items():
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        sections[prefix][key.removeprefix(prefix)] = stored
    found = [_recognised(section) for section in sections.values()]
    if not found:
        raise _unknown(tensors)
    if twice := sorted(part for part, count in Counter(each.part for each in found).items() if count > 1):
        raise ModelError(
            f"{_file(tensors)} holds two of one part, a {CALLED[twice[0]]} under two prefixes",
            hint="take a file that holds each part once",
        )
    beside = {"text_encoder": len(embedded), "image_encoder": len(projection)}
    return [replace(each, left_out=each.left_out + beside.get(each.part, 0)) for each in found]


def _file(tensors: Tensors) -> str:
    return repr(str(next(iter(tensors.values())).file)) if tensors else "the file"


def _recognised(section: Mapping[str, Stored]) -> Found:
    """One part, its tensors under the names of diffusers or transformers."""
    _require_known(section)
    signs = [(part, naming, re.compile(pattern)) for part, naming, pattern in _SIGNS]
    votes = Counter((part, naming) for part, naming, sign in signs for name in section if sign.match(name))
    if not votes:
        raise _unknown(section)
    part, naming = votes.most_common(1)[0][0]
    names = {name: name for name in section} if naming == "library" else _library_names(part, list(section))
    tensors: dict[str, Stored] = {}
    for key, name in names.items():
        if name in tensors:
            raise ModelError(
                f"{_file(section)} holds {named([tensors[name].key, key])} for the same weight, {name}",
                hint="take a file that holds each tensor once",
            )
        tensors[name] = section[key]
    tensors, num_dropped = _without_harmless(part, tensors)
    return Found(part, tensors, num_dropped, tuple(sorted({stored.file for stored in section.values()})))


def _require_known(names: Mapping[str, Stored]) -> None:
    """Refuses what other models have, and says which they are.

    Raises:
        ModelError: naming the tensors.
    """
    for pattern, what, hint in _FOREIGN:
        if found := sorted(name for name in names if re.search(pattern, name)):
            raise ModelError(f"{_file(names)} is {what}: it holds {named([names[name].key for name in found])}", hint)


def _unknown(tensors: Tensors) -> ModelError:
    listed = named(sorted(stored.key for stored in tensors.values())) or "no tensors at all"
    return ModelError(
        f"{_file(tensors)} is no part of Wan2.1 that is known here: it holds {listed}",
        hint="a transformer, a VAE or a text encoder is wanted, under the names of Wan's own program, of ComfyUI or of "
        "diffusers, such as wan2.1_t2v_1.3B_bf16.safetensors, wan_2.1_vae.safetensors and umt5_xxl_fp16.safetensors",
    )


def _without_harmless(part: Part, tensors: dict[str, Stored]) -> tuple[dict[str, Stored], int]:
    """Without what changes nothing. Of the words' table, which transformers ties, one of the two names is kept."""
    harmless = HARMLESS.get(part)
    kept = {name: stored for name, stored in tensors.items() if not (harmless and harmless.fullmatch(name))}
    tied, shared = kept.get("encoder.embed_tokens.weight"), kept.get("shared.weight")
    if part == "text_encoder" and tied is not None:
        if shared is None:
            kept["shared.weight"] = tied
        elif tied.entry != shared.entry or not torch.equal(tied.read(), shared.read()):
            raise ModelError(
                f"{str(tied.file)!r} holds {tied.key} and {shared.key}, which are one table of words, and differ",
                hint="take the text encoder as it was published",
            )
        del kept["encoder.embed_tokens.weight"]
    return kept, len(tensors) - len(kept) - (tied is not None and shared is None)


@dataclass(frozen=True, kw_only=True)
class WanModelConfig:
    """What `config.json` beside Wan's own weights may state; what it leaves out follows from the weights."""

    model_type: str = "t2v"
    dim: int | None = None
    in_dim: int | None = None
    out_dim: int | None = None
    ffn_dim: int | None = None
    freq_dim: int | None = None
    text_dim: int | None = None
    text_len: int = 512
    num_heads: int | None = None
    num_layers: int | None = None
    eps: float = 1e-6


@dataclass(frozen=True)
class Stated:
    """What a configuration says of a transformer, and where."""

    file: Path
    config: WanModelConfig


# ---- names ----

_TEXT_RULES: Final = (
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
"""From the names of Wan's text encoder to transformers'. `gate` is what the activation is applied to, `wi_0` there."""


def _library_names(part: Part, names: Sequence[str]) -> dict[str, str]:
    """Name in Wan's program → name in diffusers or transformers; one that is not known stays as it is.

    diffusers' own conversions are given the names in the tensors' place. Where two become one, or one cannot be taken
    apart, each is given by itself.
    """
    if part == "text_encoder":
        return {name: _text_name(name) for name in names}
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
        return {name: _library_name(convert, name) for name in names}
    return {name: new for new, name in converted.items()}


def _library_name(convert: Callable[[dict[str, str]], Mapping[str, Any]], name: str) -> str:
    try:
        (new,) = convert({name: name})
    except (ValueError, LookupError, AttributeError, TypeError):  # it takes names apart, and this is none of Wan's
        return name
    return new


def _text_name(name: str) -> str:
    for pattern, replacement in _TEXT_RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


# ---- sizes ----


def config_of(found: Found, stated: Stated | None = None) -> PartConfig:
    """The configuration of the part's module, from its tensors' shapes; checked against every one of them.

    Args:
        found: the part.
        stated: what a config.json says of a transformer; without one its heads are `HEAD_WIDTH` wide, and models as
            wide as the published ones have their depth.

    Raises:
        ModelError: if tensors are missing, left over or of another shape, or it is another model's part.
    """
    try:
        if found.part in ("transformer", "transformer_2"):
            config: PartConfig = _transformer_config(found, stated)
        elif found.part == "image_encoder":
            config = VIT_H
        elif found.part == "vae":
            config = _vae_config(found)
        else:
            config = _text_config(found)
    except OutsideDataError as error:
        raise ModelError(
            f"{found.title} has sizes that no such part has: {error}", hint="it is broken, or another model's"
        ) from error
    require_every_tensor(found, config)
    return config


def require_every_tensor(found: Found, config: PartConfig) -> None:
    """Refuses a part whose tensors are not those of the module of this configuration.

    Raises:
        ModelError: naming those that are missing, left over or of another shape.
    """
    tied = {"encoder.embed_tokens.weight"}
    wanted = {name: tuple(tensor.shape) for name, tensor in module_of(config).state_dict().items() if name not in tied}
    shapes = found.shapes
    common = wanted.keys() & shapes.keys()
    problems = {
        f"lacks, by {LIBRARY[found.part]}' names,": sorted(wanted.keys() - shapes.keys()),
        "has no place for": sorted(found.tensors[name].key for name in shapes.keys() - wanted.keys()),
        "has another shape than the other tensors say for": sorted(
            found.tensors[name].key for name in common if wanted[name] != shapes[name]
        ),
    }
    if said := [f"{what} {named(names)}" for what, names in problems.items() if names]:
        raise ModelError(
            f"{found.title} {'; it '.join(said)}",
            hint=f"it was cut off or changed, or is another model's: {CONVERT_HINT}",
        )


def _shape(found: Found, name: str, num_sides: int) -> tuple[int, ...]:
    """Of a tensor that sizes are read from."""
    stored = found.tensors.get(name)
    if stored is None:
        raise ModelError(
            f"{found.title} lacks, by {LIBRARY[found.part]}' names, {name}",
            hint=f"it was cut off, or is another model's: {CONVERT_HINT}",
        )
    if len(stored.entry.shape) != num_sides or 0 in stored.entry.shape:
        raise ModelError(
            f"{found.title}: {stored.key} has the shape {list(stored.entry.shape)}", hint="it is another model's"
        )
    return stored.entry.shape


def _count(found: Found, pattern: str) -> int:
    """One more than the highest number of a block."""
    numbers = [int(match[1]) for name in found.tensors if (match := re.match(pattern, name))]
    return 1 + max(numbers, default=-1)


def _transformer_config(found: Found, stated: Stated | None) -> WanTransformerConfig:
    width, channels, *patch = _shape(found, "patch_embedding.weight", 5)
    if channels not in (LATENT_CHANNELS, CONDITIONED_CHANNELS):
        why = {
            32: "it is conditioned on other videos",
            48: "it is Wan2.2's 5B model, or is conditioned on controls",
        }.get(channels, "it is another model's")
        raise ModelError(
            f"{found.title} takes {channels} channels, a latent of Wan2.1 has {LATENT_CHANNELS}: {why}",
            hint=CONVERT_HINT,
        )
    embedder = "condition_embedder"
    num_heads = stated.config.num_heads if stated else None
    if num_heads is None and width % HEAD_WIDTH:
        raise ModelError(
            f"{found.title} is {width} wide, no multiple of {HEAD_WIDTH}, which Wan's heads are wide",
            hint="name the folder that holds its config.json, which says how many heads it has",
        )
    heads = num_heads or width // HEAD_WIDTH
    if width % heads:
        raise ModelError(
            f"{found.title} is {width} wide, and its config.json states {heads} heads", hint="they are of two models"
        )
    num_layers = _count(found, r"blocks\.(\d{1,6})\.")
    depth = {other.width: other.num_layers for other in ARCHITECTURES.values()}.get(width, num_layers)
    if stated is None and num_layers != depth:
        raise ModelError(
            f"{found.title} has {num_layers} blocks; models {width} wide have {depth}",
            hint="it was cut off; if it is meant so, name the folder whose config.json states num_layers",
        )
    image = f"{embedder}.image_embedder"
    reads_pictures = any(name.startswith(f"{image}.") for name in found.tensors)
    two_pictures = found.tensors.get(f"{image}.pos_embed")
    config = validated(
        WanTransformerConfig,
        {
            "image_dim": _shape(found, f"{image}.norm1.weight", 1)[0] if reads_pictures else None,
            "added_kv_proj_dim": width if any(".add_k_proj." in name for name in found.tensors) else None,
            "pos_embed_seq_len": _shape(found, f"{image}.pos_embed", 3)[1] if two_pictures else None,
            "patch_size": patch,
            "num_attention_heads": heads,
            "attention_head_dim": width // heads,
            "in_channels": channels,
            "out_channels": LATENT_CHANNELS,
            "text_dim": _shape(found, f"{embedder}.text_embedder.linear_1.weight", 2)[1],
            "freq_dim": _shape(found, f"{embedder}.time_embedder.linear_1.weight", 2)[1],
            "ffn_dim": _shape(found, "blocks.0.ffn.net.0.proj.weight", 2)[0],
            "num_layers": num_layers,
            "cross_attn_norm": any(".norm2." in name for name in found.tensors),
            "qk_norm": "rms_norm_across_heads" if any(".norm_q." in name for name in found.tensors) else None,
        },
    )
    if stated:
        _check_stated(stated.file, stated.config, config)
    return config


def _vae_config(found: Found) -> WanVaeConfig:
    """Of four levels with two blocks each, the last two of which halve time, as all of Wan2.1's.

    Where others differ, tensors are missing or have no place.
    """
    latent = _shape(found, "quant_conv.weight", 5)[0] // 2
    if latent != LATENT_CHANNELS:
        raise ModelError(
            f"{found.title} makes latents of {latent} channels, Wan2.1's have {LATENT_CHANNELS}",
            hint=f"it is another model's: {CONVERT_HINT}",
        )
    base = _shape(found, "encoder.conv_in.weight", 5)[0]
    levels = [_shape(found, f"encoder.down_blocks.{3 * level}.conv2.weight", 5)[0] for level in range(4)]
    return validated(
        WanVaeConfig,
        {
            "base_dim": base,
            "z_dim": latent,
            "dim_mult": [max(1, width // base) for width in levels],
        },
    )


def _text_config(found: Found) -> Umt5Config:
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = _shape(found, "shared.weight", 2)
    buckets, heads = _shape(found, f"{attention}.relative_attention_bias.weight", 2)
    inner = _shape(found, f"{attention}.q.weight", 2)[0]
    num_layers = _count(found, r"encoder\.block\.(\d{1,6})\.")
    if num_layers > 1 and not any(
        "relative_attention_bias" in name for name in found.tensors if ".block.0." not in name
    ):
        raise ModelError(
            f"{found.title} is T5, of {vocabulary:,} words, as image models have: only its first layer has positions",
            hint="Wan2.1 reads texts with UMT5-XXL, such as umt5_xxl_fp16.safetensors",
        )
    return validated(
        Umt5Config,
        {
            "vocab_size": vocabulary,
            "d_model": width,
            "d_kv": max(1, inner // heads),
            "d_ff": _shape(found, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
            "num_layers": num_layers,
            "num_heads": heads,
            "relative_attention_num_buckets": buckets,
        },
    )


def _check_stated(file: Path, stated: WanModelConfig, config: WanTransformerConfig) -> None:
    """Refuses a config.json that does not speak of these weights.

    Raises:
        ModelError: naming the key.
    """
    ours: dict[str, tuple[Any, Any]] = {
        "dim": (stated.dim, config.width),
        "in_dim": (stated.in_dim, config.in_channels),
        "out_dim": (stated.out_dim, config.out_channels),
        "ffn_dim": (stated.ffn_dim, config.ffn_dim),
        "freq_dim": (stated.freq_dim, config.freq_dim),
        "text_dim": (stated.text_dim, config.text_dim),
        "num_layers": (stated.num_layers, config.num_layers),
    }
    for key, (theirs, value) in ours.items():
        if theirs is not None and theirs != value:
            raise ModelError(
                f"{str(file)!r}: {key} is {theirs}, and the weights beside it say {value}",
                hint="they are of two models, or the download is not complete: download it again",
            )
    if stated.model_type in ("i2v", "flf2v") and config.in_channels == LATENT_CHANNELS:
        raise ModelError(
            f"{str(file)!r}: model_type is {stated.model_type!r}, an image-to-video model, and the weights beside it "
            f"take {config.in_channels} channels",
            hint="they are of two models: download it again",
        )
    if stated.eps != config.eps:
        raise ModelError(f"{str(file)!r}: eps is {stated.eps}, Wan2.1's is {config.eps}", hint=CONVERT_HINT)


def check_model_type(file: Path, stated: WanModelConfig) -> None:
    """Refuses what is no model of text or of pictures by what it says of itself.

    Raises:
        ModelError: saying what it is.
    """
    kinds = {
        "vace": "VACE, which is conditioned on videos",
        "ti2v": "Wan2.2's 5B model, which has another VAE",
        "s2v": "a model that is conditioned on sound",
        "animate": "Wan2.2-Animate, which is conditioned on images and poses",
    }
    if stated.model_type not in ("t2v", "i2v", "flf2v"):
        what = kinds.get(stated.model_type, "no model of text or of pictures")
        raise ModelError(f"{str(file)!r}: model_type is {stated.model_type!r}: it is {what}", hint=CONVERT_HINT)
    if stated.text_len != 512:
        raise ModelError(f"{str(file)!r}: text_len is {stated.text_len}, Wan2.1 reads 512 tokens", hint=CONVERT_HINT)
