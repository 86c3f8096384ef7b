"""The tiny image-to-video model of the recordings (tests/fixtures/svi): upstream's names, diffusers' modules."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file

from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.lora_layout import WAN_NAMES
from miga.backbones.wan.spec import PUBLISHED

FIXTURES = Path(__file__).parent / "fixtures" / "svi"
NUM_FRAMES, NUM_LATENTS, HEIGHT, WIDTH = 21, 6, 32, 48


@functools.cache
def recorded(name: str) -> dict[str, torch.Tensor]:
    """The tensors of one recording."""
    return load_file(FIXTURES / f"{name}.safetensors")


def upstream_name(name: str) -> str:
    """Of a weight of diffusers' transformer."""
    for pattern, replacement in WAN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def tiny_transformer() -> WanTransformer3DModel:
    """The denoiser, every weight of the recording in its place."""
    config = json.loads((FIXTURES / "tiny_weights.json").read_text())["dit_config"]
    width, heads = config["dim"], config["num_heads"]
    transformer = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=config["in_dim"],
        out_channels=config["out_dim"], text_dim=config["text_dim"], freq_dim=config["freq_dim"],
        ffn_dim=config["ffn_dim"], num_layers=config["num_layers"], image_dim=config["clip_dim"],
        added_kv_proj_dim=width, eps=config["eps"],
    )  # fmt: skip
    weights = {name[4:]: tensor for name, tensor in recorded("tiny_weights").items() if name.startswith("dit.")}
    renamed = {name: weights.pop(upstream_name(name)) for name in transformer.state_dict()}
    assert not weights, "every weight has its place"
    transformer.load_state_dict(renamed)
    return transformer.eval()


def tiny_vae() -> AutoencoderKLWan:
    """The VAE."""
    facts = json.loads((FIXTURES / "tiny_weights.json").read_text())
    config = facts["vae_config"]
    vae = AutoencoderKLWan(
        base_dim=config["dim"], z_dim=config["z_dim"], dim_mult=config["dim_mult"],
        num_res_blocks=config["num_res_blocks"], temperal_downsample=config["temporal_downsample"],
        latents_mean=facts["latents_mean"], latents_std=facts["latents_std"],
    )  # fmt: skip
    weights = {name[4:]: tensor for name, tensor in recorded("tiny_weights").items() if name.startswith("vae.")}
    vae.load_state_dict(convert_wan_vae_to_diffusers(weights))
    return vae.eval()


def tiny_backbone() -> WanBackbone:
    """Both, as a backbone without text encoder and without what reads pictures: the recordings give their tokens."""
    spec = replace(
        PUBLISHED["Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"], name="recorded", window=NUM_LATENTS,
        height=HEIGHT, width=WIDTH, latent_height=4, latent_width=6, default_num_frames=41, sampler={},
    )  # fmt: skip
    return WanBackbone(spec, torch.device("cpu"), network=tiny_transformer(), vae=tiny_vae())


def pixels(frames_uint8: torch.Tensor) -> torch.Tensor:
    """Frames `[F, 3, H, W]` of -1 ... 1 of `[F, H, W, 3]` (or one frame)."""
    frames = frames_uint8.float() / 127.5 - 1.0
    return frames.permute(0, 3, 1, 2) if frames.dim() == 4 else frames.permute(2, 0, 1)
