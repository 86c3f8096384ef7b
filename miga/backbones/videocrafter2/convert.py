"""The published `model.ckpt` to a folder of safetensors in diffusers' layout, once; the same numbers bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from miga.backbones.converted_folder import folder_made_whole, require_new, write_json
from miga.backbones.loading import resolve_folder
from miga.backbones.videocrafter2.backbone import require_tokenizer_files
from miga.backbones.videocrafter2.checkpoint import (
    Architecture,
    Component,
    read_checkpoint,
    require_sound,
    split_state,
)
from miga.backbones.videocrafter2.spec import NUM_TEXT_TOKENS, PIPELINE_CLASS
from miga.backbones.weight_files import DIFFUSERS_STEM, first_line
from miga.errors import ModelError
from miga.schedule import DDIM_LINEAR_END, DDIM_LINEAR_START, NUM_TRAIN_TIMESTEPS

TOKENIZER: Final = "openai/clip-vit-large-patch14"
"""Its tokens are OpenCLIP's; the checkpoint holds none."""

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
PUBLISHED_ARCHITECTURE: Final = Architecture()


def convert_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path = TOKENIZER,
    architecture: Architecture | None = None,
) -> dict[str, Any]:
    """Writes the folder, whole or not at all.

    Args:
        checkpoint: `model.ckpt`. It is mapped into memory, not read as a whole.
        out: the folder to make; it must not exist.
        tokenizer: a folder, or a hub name, of CLIP's tokenizer.
        architecture: sizes of the modules; by default VideoCrafter2's.

    Returns:
        What was written: the folder, the number of tensors and their bytes by component, and those left out.

    Raises:
        ModelError: if the checkpoint or the tokenizer is missing, broken or of another model.
        OutputError: if `out` exists, or cannot be written.
    """
    checkpoint, out = (Path(os.path.expanduser(path)) for path in (checkpoint, out))
    require_new(out)
    architecture = architecture or PUBLISHED_ARCHITECTURE
    state = read_checkpoint(checkpoint)
    parts = split_state(state, architecture)
    words = load_tokenizer(tokenizer, architecture.text["vocab_size"])
    require_sound(state)
    num_bytes = {name: sum(tensor.nbytes for tensor in part.values()) for name, part in parts.items()}
    with folder_made_whole(out, sum(num_bytes.values())) as unfinished:
        _write(unfinished, parts, words, architecture, checkpoint.name)
    return {
        "folder": str(out),
        "tensors": {name: len(part) for name, part in parts.items()},
        "bytes": num_bytes,
        "left_out": len(state.keys()) - _num_used(state, parts),
    }


def _num_used(state: Mapping[str, torch.Tensor], parts: Mapping[Component, Mapping[str, torch.Tensor]]) -> int:
    """Tensors of the checkpoint that went somewhere; a fused one became three."""
    num_split = sum(key.endswith(("in_proj_weight", "in_proj_bias")) for key in state)
    return sum(len(part) for part in parts.values()) - 2 * num_split


def load_tokenizer(name_or_dir: str | Path, vocab_size: int) -> Any:
    """CLIP's tokenizer, checked: the marks of start and end are its last two tokens.

    Raises:
        ModelError: if it is not to be had, or is another tokenizer.
    """
    folder = resolve_folder(name_or_dir, None, TOKENIZER_FILES)
    try:
        require_tokenizer_files(folder)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=NUM_TEXT_TOKENS)
        marks = tokenizer("").input_ids
    except Exception as error:  # whatever transformers and tokenizers raise while they read it
        why = error.message if isinstance(error, ModelError) else f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(
            f"cannot load a tokenizer from {str(name_or_dir)!r}: {why}",
            hint=f"give the folder of CLIP's tokenizer (tokenizer.json), or a hub name such as {TOKENIZER}",
        ) from error
    if marks != [vocab_size - 2, vocab_size - 1] or len(tokenizer) != vocab_size:
        raise ModelError(
            f"the tokenizer of {str(name_or_dir)!r} is not CLIP's: it has {len(tokenizer)} tokens and marks start and "
            f"end by {marks}, where the text encoder has {vocab_size} and is marked by the last two",
            hint=f"give the folder of CLIP's tokenizer, or a hub name such as {TOKENIZER}",
        )
    return tokenizer


def _write(
    folder: Path,
    parts: Mapping[Component, Mapping[str, torch.Tensor]],
    tokenizer: Any,
    architecture: Architecture,
    source: str,
) -> None:
    (folder / "unet").mkdir()
    write_json(folder / "unet" / "config.json", {"_class_name": "VideoCrafter2UNet", **architecture.unet.to_dict()})
    unet = {name: tensor.contiguous() for name, tensor in parts["unet"].items()}
    save_file(unet, folder / "unet" / f"{DIFFUSERS_STEM}.safetensors", metadata={"format": "pt"})
    for component in ("vae", "text_encoder"):
        module: Any = architecture.build(component)
        # shares of a fused tensor and matrices cut from convolutions: in memory of their own, as safetensors asks
        state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in parts[component].items()}
        module.load_state_dict(state, assign=True)
        module.save_pretrained(folder / component)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler = DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=DDIM_LINEAR_START,
        beta_end=DDIM_LINEAR_END,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="linspace",
    )
    scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / "miga.json", asdict(architecture.settings))
    write_json(
        folder / "model_index.json",
        {
            "_class_name": PIPELINE_CLASS,
            "_diffusers_version": diffusers.__version__,
            "_converted_from": source,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["miga.backbones.videocrafter2.unet", "VideoCrafter2UNet"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
