"""A complete VideoCrafter2 checkpoint in the published format, of the recorded small modules, and its tokenizer.

7 MB, made without network in a moment: UNet, VAE and text tower are those whose outputs were recorded from the
original programs (`tests/fixtures`), the schedule's tensors are computed here from their definition.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from miga.backbones.videocrafter2.checkpoint import UNET_PREFIX, Architecture
from miga.backbones.videocrafter2.convert import convert_checkpoint
from miga.backbones.videocrafter2.spec import Settings
from miga.backbones.videocrafter2.unet import UNetConfig

FIXTURES = Path(__file__).parent / "fixtures"
SAMPLER: dict[str, Any] = {
    "num_steps": 8,
    "zigzag_width": 2,
    "handoff_level": 2,
    "num_guidance_latents": 2,
    "guidance_scale": 3.0,
    "num_eval_latents": 2,
    "num_reference_latents": 2,
    "num_reflection_guidance_latents": 4,
    "num_candidates": 2,
    "judged_group": 3,
}
SETTINGS = Settings(window=8, height=32, width=48, fps=6, default_num_frames=9, sampler=SAMPLER)
VAE_CONFIG: dict[str, Any] = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "sample_size": 32}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 772,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "projection_dim": 32,
}


def recorded_unet() -> dict[str, torch.Tensor]:
    """Weights, inputs and outputs of the small UNet."""
    return load_file(FIXTURES / "vc2_tiny_fixture.safetensors")


def recorded_text_vae() -> dict[str, torch.Tensor]:
    """Weights, inputs and outputs of the small text tower and VAE."""
    return load_file(FIXTURES / "vc2_text_vae_fixture.safetensors")


def architecture() -> Architecture:
    """Sizes of the recorded modules."""
    config = json.loads((FIXTURES / "vc2_tiny_fixture.json").read_text())["config"]
    return Architecture(unet=UNetConfig.from_dict(config), vae=VAE_CONFIG, text=TEXT_CONFIG, settings=SETTINGS)


def build_state() -> dict[str, torch.Tensor]:
    """The tensors under the checkpoint's names, float32 as there."""
    unet, others = recorded_unet(), recorded_text_vae()
    state = {UNET_PREFIX + name: unet[f"weight.{name}"] for name in weight_names(unet, "weight.")}
    for part in ("text", "vae"):
        state |= {name: others[f"{part}.weight.{name}"] for name in weight_names(others, f"{part}.weight.")}
    return {name: tensor.float() for name, tensor in state.items()} | schedule_tensors()


def weight_names(recorded: dict[str, torch.Tensor], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in recorded if name.startswith(prefix)]


def schedule_tensors() -> dict[str, torch.Tensor]:
    """What latent diffusion keeps of its schedule (Ho et al., Eq. 4 and 7), and VideoCrafter2's `use_scale`."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
    variance = betas * (1 - before) / (1 - a)
    tensors = {
        "betas": betas,
        "alphas_cumprod": a,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": a.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - a).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - a).log(),
        "sqrt_recip_alphas_cumprod": (1 / a).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / a - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - a),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - a),
        "scale_arr": torch.cat([torch.linspace(1, 0.7, 400), torch.full((1000,), 0.7)]),
    }
    return {name: tensor.float() for name, tensor in tensors.items()}


def write_checkpoint(file: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
    """A pickle as Lightning leaves it."""
    torch.save({"state_dict": build_state() if state is None else state, "epoch": 0, "global_step": 7}, file)
    return file


def build_tokenizer(folder: Path) -> Path:
    """CLIP's kind of tokenizer, of 772 tokens: bytes, bytes that end a word, 258 pairs of letters, and two marks."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [(first, second) for first in letters[:10] for second in letters][:258]
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


def build_tiny_videocrafter2(folder: Path) -> Path:
    """Writes checkpoint and tokenizer beside `folder`, and converts them into it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = write_checkpoint(folder.with_suffix(".ckpt"))
    tokenizer = build_tokenizer(folder.with_name(f"{folder.name}-tokenizer"))
    convert_checkpoint(checkpoint, folder, tokenizer=tokenizer, architecture=architecture())
    return folder
