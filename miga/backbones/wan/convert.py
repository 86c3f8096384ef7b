"""Wan's weights as people have them to a folder in diffusers' layout, once; the same numbers bit for bit.

Parts come from folders of Wan's own layout, from single files as ComfyUI has them, and from folders in diffusers'
layout, in any mixture: `sources.py` finds them, `original.py` knows what is in them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import diffusers
from diffusers import UniPCMultistepScheduler
from transformers import CLIPVisionConfig, UMT5Config

from miga.backbones.converted_folder import folder_made_whole, require_new, write_json, write_weights
from miga.backbones.loading import resolve_folder
from miga.backbones.model_config import arguments
from miga.backbones.tensor_files import Stored
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.config import ClipVisionConfig, Umt5Config, WanTransformerConfig, WanVaeConfig
from miga.backbones.wan.original import CALLED, MORE_PARTS, PARTS, Found, Part, PartConfig, config_of
from miga.backbones.wan.sources import TOKENIZER_PLACES, existing, gather, has_tokenizer, require_all
from miga.backbones.wan.spec import module_of
from miga.backbones.weight_files import DIFFUSERS_STEM, STEMS, named
from miga.errors import ModelError

TOKENIZER: Final = "google/umt5-xxl"
"""UMT5's, on the hub."""
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER_HINT: Final = (
    f"give the folder of UMT5's tokenizer (tokenizer.json) by --tokenizer, or a hub name such as {TOKENIZER}"
)
FLOW_SHIFTS: Final = {False: 3.0, True: 5.0}
"""What Wan's models were published with in diffusers, Wan2.2's 5B last; the sampler's own setting decides here."""
_INDEX: Final[Mapping[Part, list[str]]] = {
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "image_encoder": ["transformers", "CLIPVisionModel"],
}
_BOUNDARIES: Final = {False: 0.875, True: 0.9}
"""Share of the noise from which on the first of two transformers is asked, as published: of text, of pictures."""
_CLIP_PROCESSOR: Final[Mapping[str, Any]] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}
"""What diffusers' own pipeline reads pictures with; pictures are stretched to the square, as Wan's own program does."""
SMALL_FILES_BYTES: Final = 64 * 2**20
"""More than tokenizer and configurations take."""


def convert_wan(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    parts: Mapping[Part, str | Path] | None = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the folder, whole or not at all.

    Args:
        sources: files and folders, whose parts are recognised by their tensors.
        out: the folder to make; it must not exist.
        parts: files that are to be a part, or its folder, whatever the sources hold.
        tokenizer: a folder, or a hub name; by default what lies in a folder of the sources, else `TOKENIZER`.
        progress: is told what is being written.
        notes: what else model_index.json is to say; names begin with an underscore.

    Returns:
        What was written: the folder, files, number of tensors and bytes by part, and how many tensors were left out.

    Raises:
        ModelError: if a part is missing, broken, quantized or of another model.
        UsageError: if a part is given twice.
        OutputError: if `out` exists, or cannot be written.
    """
    out = Path(os.path.expanduser(out))
    require_new(out)
    chosen = {part: existing(file) for part, file in (parts or {}).items()}
    places = [existing(source) for source in sources]
    gathered = gather(places, chosen)
    require_all(gathered, places, out)
    parts_there = [part for part in (*PARTS, *MORE_PARTS) if part in gathered.parts]
    configs = {part: config_of(gathered.parts[part], gathered.stated) for part in parts_there}
    transformer, text = configs["transformer"], configs["text_encoder"]
    assert isinstance(transformer, WanTransformerConfig)
    assert isinstance(text, Umt5Config)
    if text.d_model != transformer.text_dim:
        raise ModelError(
            f"{gathered.parts['text_encoder'].title} makes texts of {text.d_model} numbers a token, "
            f"{gathered.parts['transformer'].title} reads {transformer.text_dim}",
            hint="they are of two models; Wan reads texts with UMT5-XXL, such as umt5_xxl_fp16.safetensors",
        )
    _check_together(gathered.parts, configs)
    words = _tokenizer_folder(tokenizer, gathered.tokenizer)
    num_bytes = {part: gathered.parts[part].num_bytes for part in parts_there}
    with folder_made_whole(out, sum(num_bytes.values()) + SMALL_FILES_BYTES) as unfinished:
        _write_descriptions(unfinished, gathered.parts, configs, notes or {})
        _write_tokenizer(unfinished, words, tokenizer)
        for part in parts_there:
            found = gathered.parts[part]
            names = named([file.name for file in found.files])
            progress(f"writing the {CALLED[part]}, {num_bytes[part] / 1e6:,.0f} MB, from {names}")
            write_weights(unfinished / part, STEMS.get(part, DIFFUSERS_STEM), _in_order(found, configs[part]))
    return {
        "folder": str(out),
        "files": {part: [str(file) for file in gathered.parts[part].files] for part in parts_there},
        "tokenizer": str(words),
        "tensors": {part: len(gathered.parts[part].tensors) for part in parts_there},
        "bytes": num_bytes,
        "left_out": sum(found.left_out for found in gathered.parts.values()),
    }


def _check_together(parts: Mapping[Part, Found], configs: Mapping[Part, PartConfig]) -> None:
    """Whether the parts belong to one model.

    Raises:
        ModelError: if not, naming the files.
    """
    transformer, second, image = (configs.get(part) for part in ("transformer", "transformer_2", "image_encoder"))
    vae = configs["vae"]
    assert isinstance(transformer, WanTransformerConfig)
    assert isinstance(vae, WanVaeConfig)
    if vae.z_dim != transformer.out_channels:
        raise ModelError(
            f"{parts['vae'].title} makes latents of {vae.z_dim} channels, {parts['transformer'].title} reads "
            f"{transformer.out_channels}",
            hint="they are of two models: Wan2.2_VAE.pth is of Wan2.2's 5B model alone, Wan2.1_VAE.pth of all others",
        )
    if second is not None and second != transformer:
        raise ModelError(
            f"{parts['transformer'].title} and {parts['transformer_2'].title} are not of one size",
            hint="they are of two models: Wan2.2 has a pair of each kind, high and low noise",
        )
    if image is not None and (not isinstance(image, ClipVisionConfig) or image.hidden_size != transformer.image_dim):
        reads = f"tokens of {transformer.image_dim} numbers" if transformer.image_dim else "no pictures' tokens"
        raise ModelError(
            f"{parts['transformer'].title} reads {reads}, and {parts['image_encoder'].title} is named beside it",
            hint="leave the image encoder out" if transformer.image_dim is None else "it is another model's",
        )


def _in_order(found: Found, config: PartConfig) -> dict[str, Stored]:
    """As the module has them."""
    return {name: found.tensors[name] for name in module_of(config).state_dict() if name in found.tensors}


def _write_descriptions(
    folder: Path, parts: Mapping[Part, Found], configs: Mapping[Part, PartConfig], notes: Mapping[str, Any]
) -> None:
    """All but the weights and the tokenizer."""
    for part, config in configs.items():
        (folder / part).mkdir()
        if isinstance(config, Umt5Config):
            kind = parts[part].tensors["shared.weight"].dtype
            text = UMT5Config(**arguments(config), architectures=["UMT5EncoderModel"], dtype=kind)
            text.save_pretrained(folder / part)
        elif isinstance(config, ClipVisionConfig):
            kind = next(iter(parts[part].tensors.values())).dtype
            clip = CLIPVisionConfig(**arguments(config), architectures=["CLIPVisionModel"], dtype=kind)
            clip.save_pretrained(folder / part)
            (folder / "image_processor").mkdir()
            write_json(folder / "image_processor" / "preprocessor_config.json", _CLIP_PROCESSOR)
        else:
            module: Any = module_of(config)
            module.save_config(folder / part)
    transformer, vae = configs["transformer"], configs["vae"]
    assert isinstance(transformer, WanTransformerConfig)
    assert isinstance(vae, WanVaeConfig)
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFTS[vae.is_residual],
    )
    scheduler.save_pretrained(folder / "scheduler")
    takes_pictures = transformer.in_channels != transformer.out_channels
    there: dict[str, Any] = {part: named_as for part, named_as in _INDEX.items() if part in parts}
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "WanImageToVideoPipeline" if takes_pictures else "WanPipeline",
            "_diffusers_version": diffusers.__version__,
            "_converted_from": {part: [file.name for file in found.files] for part, found in parts.items()},
            "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
            **({"image_encoder": [None, None], "image_processor": [None, None]} if takes_pictures else {}),
            **({"expand_timesteps": True} if vae.is_residual else {}),
            **({"boundary_ratio": _BOUNDARIES[takes_pictures]} if "transformer_2" in parts else {}),
            **there,
            **({"image_processor": ["transformers", "CLIPImageProcessor"]} if "image_encoder" in parts else {}),
            **notes,
        },
    )


def _tokenizer_folder(asked: str | Path | None, there: Path | None) -> Path:
    """Where the tokenizer's files are.

    Raises:
        ModelError: if it is not to be had.
    """
    if asked is None and there is not None:
        return there
    name = TOKENIZER if asked is None else asked
    try:
        folder = resolve_folder(name, None, TOKENIZER_FILES)
    except ModelError as error:
        raise ModelError(
            f"cannot load a tokenizer from {str(name)!r}: {error.message}",
            hint=_TOKENIZER_HINT,
        ) from error
    for place in (folder, *(folder / inner for inner in TOKENIZER_PLACES)):
        if has_tokenizer(place):
            return place
    raise ModelError(
        f"cannot load a tokenizer from {str(name)!r}: no tokenizer.json or spiece.model",
        hint=_TOKENIZER_HINT,
    )


def _write_tokenizer(folder: Path, source: Path, asked: str | Path | None) -> None:
    """Its files as they are, tried as a backbone would load them."""
    place = folder / "tokenizer"
    place.mkdir()
    for name in TOKENIZER_FILES:
        if os.path.isfile(source / name):
            shutil.copyfile(source / name, place / name)
    try:
        WanBackbone.load_tokenizer(folder)
    except ModelError as error:
        raise ModelError(
            f"the tokenizer of {str(asked or source)!r} cannot be used: "
            + error.message.replace(str(place), str(source)).replace(str(folder), str(source)),
            hint=_TOKENIZER_HINT,
        ) from error
