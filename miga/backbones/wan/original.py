"""Wan's weights as people have them: which part of a model a file holds, and what its tensors are in diffusers.

Names are those of Wan's own program (`Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`, `models_t5_umt5-xxl-enc-bf16.pth`,
`models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, ComfyUI's transformers and VAEs, with or without a prefix),
of transformers (ComfyUI's text and image encoders) or of diffusers. Sizes follow from shapes; every tensor has one
place in the module of these sizes, or the file is refused by the tensor's name. `original_names.py` has the names.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch

from miga.backbones.tensor_files import Stored, require_plain
from miga.backbones.wan.config import ClipVisionConfig, Umt5Config, WanTransformerConfig, WanVaeConfig
from miga.backbones.wan.original_names import Kind, library_tensors
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
    "visual.",
    "model.",
)
"""What ComfyUI and others put before the names; in a file of all parts, before those of each."""

HEAD_WIDTH: Final = 128
"""Of the transformer's attention, in all of Wan's models; shapes do not say it."""
LATENT_CHANNELS: Final = 16
"""Of Wan2.1's VAE. Mean and deviation of each are published for it, and stand in no file of weights."""
RESIDUAL_LATENTS: Final[Mapping[str, tuple[float, ...]]] = {
    "latents_mean": (
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    "latents_std": (
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
}  # fmt: skip
"""Of Wan2.2's VAE, which belongs to its 5B model. Source: `wan/modules/vae2_2.py` of Wan2.2."""
RESIDUAL_CHANNELS: Final = len(RESIDUAL_LATENTS["latents_mean"])
CONDITIONED_CHANNELS: Final = 36
"""That a transformer takes which is shown pictures: of the latent, of the mask, of the picture's latents."""
EMBEDDED_TOKENIZER: Final = "spiece_model"
"""In ComfyUI's text encoders: the bytes of the tokenizer's file."""

CONVERT_HINT: Final = (
    "Wan2.1's models of text and of pictures can be converted, 1.3B, 14B and what was trained from them, and Wan2.2's "
    "14B and 5B models; others are taken in diffusers' layout, as they are published"
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
        r"\btransformer\.resblocks\.",
        "CLIP under OpenCLIP's names",
        f"take its image encoder under the names of Wan's own program or of transformers, such as {CLIP_FILE}",
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

_SIGNS: Final[tuple[tuple[Kind, Literal["wan", "library"], str], ...]] = (
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
    ("image_encoder", "wan", r"(?:cls|pos)_embedding$|pre_norm\.|transformer\.\d+\.(?:attn|mlp|norm[12])\."),
    ("text_encoder", "wan", r"token_embedding\.|blocks\.\d+\.(?:attn|pos_embedding|ffn\.(?:gate|fc1|fc2))\."),
)
"""How names of each part begin, under the names of Wan's own program or of diffusers and transformers."""
_CLIP: Final = ("vision_model.", "visual.", "textual.")
_CLIP_BESIDE: Final = re.compile(r"textual\..*|log_scale|visual\.head")
"""In Wan's file of CLIP: the half that reads texts, and what compares the two."""


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
    is_clip = any(key.startswith(_CLIP) for key in tensors)
    beside_clip = [HARMLESS["image_encoder"], _CLIP_BESIDE] if is_clip else []
    of_clip = [key for key in tensors if any(pattern.fullmatch(key) for pattern in beside_clip)]
    unused = {*embedded, *of_clip}
    weights = {key: stored for key, stored in tensors.items() if key not in unused}
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
    beside = {"text_encoder": len(embedded), "image_encoder": len(of_clip)}
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
    tensors: dict[str, Stored] = {}
    for name, stored in section.items() if naming == "library" else library_tensors(part, section):
        if name in tensors:
            raise ModelError(
                f"{_file(section)} holds {named([tensors[name].key, stored.key])} for the same weight, {name}",
                hint="take a file that holds each tensor once",
            )
        tensors[name] = stored
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
        f"{_file(tensors)} is no part of Wan that is known here: it holds {listed}",
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

    def keys_of(names: Iterable[str]) -> list[str]:
        return sorted({found.tensors[name].key for name in names})  # several may be parts of one

    tied = {"encoder.embed_tokens.weight"}
    wanted = {name: tuple(tensor.shape) for name, tensor in module_of(config).state_dict().items() if name not in tied}
    shapes = found.shapes
    common = wanted.keys() & shapes.keys()
    problems = {
        f"lacks, by {LIBRARY[found.part]}' names,": sorted(wanted.keys() - shapes.keys()),
        "has no place for": keys_of(shapes.keys() - wanted.keys()),
        "has another shape than the other tensors say for": keys_of(
            name for name in common if wanted[name] != shapes[name]
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
    made = LATENT_CHANNELS
    if channels == RESIDUAL_CHANNELS:  # as many as Wan2.1's are with controls
        made = _shape(found, "proj_out.weight", 2)[0] // math.prod(patch)
    if channels not in (LATENT_CHANNELS, CONDITIONED_CHANNELS) and not channels == made == RESIDUAL_CHANNELS:
        why = {
            32: "it is conditioned on other videos",
            RESIDUAL_CHANNELS: f"it makes {made}, so it is conditioned on controls",
        }.get(channels, "it is another model's")
        raise ModelError(
            f"{found.title} takes {channels} channels, a latent of Wan2.1 has {LATENT_CHANNELS}, one of Wan2.2's 5B "
            f"{RESIDUAL_CHANNELS}: {why}",
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
            "out_channels": made,
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
    """Of four levels with two blocks each, the last two of which halve time, as all of Wan's.

    Where others differ, tensors are missing or have no place.
    """
    is_residual = any(re.match(r"encoder\.down_blocks\.\d+\.resnets\.", name) for name in found.tensors)
    latent = _shape(found, "quant_conv.weight", 5)[0] // 2
    model, channels = ("Wan2.2's 5B", RESIDUAL_CHANNELS) if is_residual else ("Wan2.1", LATENT_CHANNELS)
    if latent != channels:
        raise ModelError(
            f"{found.title} makes latents of {latent} channels, those of {model} have {channels}",
            hint=f"it is another model's: {CONVERT_HINT}",
        )
    base, pixels = _shape(found, "encoder.conv_in.weight", 5)[:2]
    first = "resnets.0.conv1" if is_residual else "conv2"
    blocks = [level if is_residual else 3 * level for level in range(4)]
    levels = [_shape(found, f"encoder.down_blocks.{block}.{first}.weight", 5)[0] for block in blocks]
    sizes: dict[str, Any] = {"base_dim": base, "z_dim": latent, "dim_mult": [max(1, width // base) for width in levels]}
    if is_residual:
        patch = max(1, math.isqrt(pixels // 3))
        sizes |= {
            **RESIDUAL_LATENTS,
            "is_residual": True,
            "decoder_base_dim": max(1, _shape(found, "decoder.conv_out.weight", 5)[1] // sizes["dim_mult"][0]),
            "patch_size": patch,
            "in_channels": 3 * patch**2,
            "out_channels": 3 * patch**2,
            "scale_factor_spatial": 2 ** (len(levels) - 1) * patch,
        }
    return validated(WanVaeConfig, sizes)


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
    if stated.model_type == "ti2v" and config.in_channels != RESIDUAL_CHANNELS:
        raise ModelError(
            f"{str(file)!r}: model_type is 'ti2v', Wan2.2's 5B model, and the weights beside it take "
            f"{config.in_channels} channels",
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
        "s2v": "a model that is conditioned on sound",
        "animate": "Wan2.2-Animate, which is conditioned on images and poses",
    }
    if stated.model_type not in ("t2v", "i2v", "flf2v", "ti2v"):
        what = kinds.get(stated.model_type, "no model of text or of pictures")
        raise ModelError(f"{str(file)!r}: model_type is {stated.model_type!r}: it is {what}", hint=CONVERT_HINT)
    if stated.text_len != 512:
        raise ModelError(f"{str(file)!r}: text_len is {stated.text_len}, Wan2.1 reads 512 tokens", hint=CONVERT_HINT)
