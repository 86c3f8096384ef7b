"""Builds a complete Wan folder with random weights: 0.5 MB, made and loaded without network in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

NUM_CHANNELS = 4
TEXT_DIM = 16
IMAGE_DIM = 20
CLIP_CONFIG: dict[str, Any] = {
    "hidden_size": IMAGE_DIM,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 28,
    "projection_dim": 16,
    "hidden_act": "gelu",
}
SETTINGS: dict[str, Any] = {
    "window": 6,
    "height": 32,
    "width": 48,
    "fps": 8,
    "negative_prompt": "blurred, slow",
    "default_num_frames": 41,
    "sampler": {"num_steps": 20, "zigzag_width": 2},
}
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": NUM_CHANNELS,
    "out_channels": NUM_CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
PLAIN_VAE_CONFIG: dict[str, Any] = {
    "base_dim": 8,
    "dim_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
RESIDUAL_VAE_CONFIG: dict[str, Any] = {
    "base_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
}


def build_tokenizer() -> T5TokenizerFast:
    """Letters, and a few words."""
    words = ["▁a", "▁red", "▁ball", "▁boat", "▁rolls"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -3.0), (".", -3.0)]
    vocabulary += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"] + [(word, -2.0) for word in words]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def build_transformer(*, seed: int = 1, **overrides: Any) -> WanTransformer3DModel:
    """Weights large enough that text, time step and position all matter."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(**{**TRANSFORMER_CONFIG, **overrides})
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0 / module.in_features**0.5)
            nn.init.normal_(module.bias, std=0.1)
    return transformer.eval()


def build_vae(*, residual: bool = False) -> AutoencoderKLWan:
    """The causal VAE of Wan2.1, or with `residual` of Wan2.2's kind; its latents are not normalised."""
    torch.manual_seed(2)
    config = RESIDUAL_VAE_CONFIG if residual else PLAIN_VAE_CONFIG
    mean, std = [-0.4, 0.1, 0.3, 0.0], [1.5, 0.7, 1.0, 2.1]
    return AutoencoderKLWan(**config, z_dim=NUM_CHANNELS, latents_mean=mean, latents_std=std).eval()


def build_tiny_wan(folder: Path, *, residual: bool = False, settings: dict[str, Any] | None = None) -> Path:
    """Writes the folder.

    Args:
        folder: where to.
        residual: which VAE.
        settings: contents of `miga.json`; by default `SETTINGS`.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    text_config = UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text_config).eval(),
        transformer=build_transformer(),
        vae=build_vae(residual=residual),
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "miga.json").write_text(json.dumps(SETTINGS if settings is None else settings, indent=2))
    return folder


IMAGE_KINDS = ("i2v", "t2v-a14b", "i2v-a14b", "ti2v")
"""Wan2.1's image model, Wan2.2's models of two experts, and its model whose first latent is given."""


def build_tiny_image_wan(folder: Path, kind: str, *, settings: dict[str, Any] | None = None) -> Path:
    """Writes the folder of a model of one of `IMAGE_KINDS`, in the layout that it was published in."""
    takes_image = kind.startswith("i2v")
    overrides: dict[str, Any] = {"in_channels": 2 * NUM_CHANNELS + 4} if takes_image else {}
    if kind == "i2v":
        overrides |= {"image_dim": IMAGE_DIM, "added_kv_proj_dim": 24}
    build_tiny_wan(folder, residual=kind == "ti2v", settings=settings)
    transformer = build_transformer(**overrides)
    transformer.save_pretrained(folder / "transformer")
    index = json.loads((folder / "model_index.json").read_text())
    if kind.endswith("a14b"):
        build_transformer(seed=5, **overrides).save_pretrained(folder / "transformer_2")
        index |= {
            "transformer_2": ["diffusers", "WanTransformer3DModel"],
            "boundary_ratio": 0.9 if takes_image else 0.875,
        }
    if takes_image:
        index |= {
            "_class_name": "WanImageToVideoPipeline",
            "image_encoder": [None, None],
            "image_processor": [None, None],
        }
    if kind == "i2v":
        torch.manual_seed(3)
        CLIPVisionModel(CLIPVisionConfig(**CLIP_CONFIG)).eval().save_pretrained(folder / "image_encoder")
        size = {"height": 28, "width": 28}
        CLIPImageProcessor(do_center_crop=False, size=size).save_pretrained(folder / "image_processor")
        index |= {
            "image_encoder": ["transformers", "CLIPVisionModel"],
            "image_processor": ["transformers", "CLIPImageProcessor"],
        }
    if kind == "ti2v":
        index["expand_timesteps"] = True
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def shard(folder: Path) -> Path:
    """Writes the transformer of a folder anew, in two files and an index."""
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", local_files_only=True)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    transformer.save_pretrained(folder / "transformer", max_shard_size="60KB")
    return folder


def load_pipeline(folder: Path) -> WanPipeline:
    """diffusers' own pipeline of that folder."""
    pipeline = WanPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
