"""A tiny Wan2.1 in the layouts that people have: its tensors under the names of Wan's program and of ComfyUI's files.

The names are made from diffusers' and transformers' by the tables here, in the other direction than `miga convert`
goes. What differs from the published files is the sizes alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from tests.tiny_wan import build_tokenizer

State = dict[str, torch.Tensor]

TEXT_DIM = 32
HEADS = 2
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": 128,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
}
VAE: dict[str, Any] = {"base_dim": 4}
VAE_22: dict[str, Any] = {
    "base_dim": 4,
    "decoder_base_dim": 8,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
"""Wan2.2's kind, which its 5B model has."""
TEXT: dict[str, Any] = {"d_model": TEXT_DIM, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 3}

TRANSFORMER_NAMES = (
    (r"condition_embedder\.time_embedder\.linear_1\.(.*)", r"time_embedding.0.\1"),
    (r"condition_embedder\.time_embedder\.linear_2\.(.*)", r"time_embedding.2.\1"),
    (r"condition_embedder\.text_embedder\.linear_1\.(.*)", r"text_embedding.0.\1"),
    (r"condition_embedder\.text_embedder\.linear_2\.(.*)", r"text_embedding.2.\1"),
    (r"condition_embedder\.time_proj\.(.*)", r"time_projection.1.\1"),
    (r"patch_embedding\.(.*)", r"patch_embedding.\1"),
    (r"scale_shift_table", "head.modulation"),
    (r"proj_out\.(.*)", r"head.head.\1"),
    (r"blocks\.(\d+)\.scale_shift_table", r"blocks.\1.modulation"),
    (r"blocks\.(\d+)\.attn1\.to_([qkv])\.(.*)", r"blocks.\1.self_attn.\2.\3"),
    (r"blocks\.(\d+)\.attn1\.to_out\.0\.(.*)", r"blocks.\1.self_attn.o.\2"),
    (r"blocks\.(\d+)\.attn1\.norm_([qk])\.(.*)", r"blocks.\1.self_attn.norm_\2.\3"),
    (r"blocks\.(\d+)\.attn2\.to_([qkv])\.(.*)", r"blocks.\1.cross_attn.\2.\3"),
    (r"blocks\.(\d+)\.attn2\.to_out\.0\.(.*)", r"blocks.\1.cross_attn.o.\2"),
    (r"blocks\.(\d+)\.attn2\.norm_([qk])\.(.*)", r"blocks.\1.cross_attn.norm_\2.\3"),
    (r"blocks\.(\d+)\.norm2\.(.*)", r"blocks.\1.norm3.\2"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj\.(.*)", r"blocks.\1.ffn.0.\2"),
    (r"blocks\.(\d+)\.ffn\.net\.2\.(.*)", r"blocks.\1.ffn.2.\2"),
)
VAE_NAMES = (
    (r"quant_conv\.(.*)", r"conv1.\1"),
    (r"post_quant_conv\.(.*)", r"conv2.\1"),
    (r"(encoder|decoder)\.conv_in\.(.*)", r"\1.conv1.\2"),
    (r"(encoder|decoder)\.norm_out\.gamma", r"\1.head.0.gamma"),
    (r"(encoder|decoder)\.conv_out\.(.*)", r"\1.head.2.\2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", r"\1.middle.1.\2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0\.(.*)", r"\1.middle.0.\2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1\.(.*)", r"\1.middle.2.\2"),
    (r"encoder\.down_blocks\.(.*)", r"encoder.downsamples.\1"),
    *(
        (rf"decoder\.up_blocks\.{level}\.resnets\.{block}\.(.*)", rf"decoder.upsamples.{4 * level + block}.\1")
        for level in range(4)
        for block in range(3)
    ),
    *(
        (rf"decoder\.up_blocks\.{level}\.upsamplers\.0\.(.*)", rf"decoder.upsamples.{4 * level + 3}.\1")
        for level in range(3)
    ),
)
RESIDUAL_NAMES = (
    (r"\.norm1\.gamma$", ".residual.0.gamma"),
    (r"\.conv1\.(weight|bias)$", r".residual.2.\1"),
    (r"\.norm2\.gamma$", ".residual.3.gamma"),
    (r"\.conv2\.(weight|bias)$", r".residual.6.\1"),
    (r"\.conv_shortcut\.(weight|bias)$", r".shortcut.\1"),
)
"""Inside the VAE's blocks."""
VAE_22_NAMES = (
    *(rule for rule in VAE_NAMES if "blocks" not in rule[0]),
    (r"encoder\.down_blocks\.(\d)\.resnets\.(.*)", r"encoder.downsamples.\1.downsamples.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsampler\.(.*)", r"encoder.downsamples.\1.downsamples.2.\2"),
    (r"decoder\.up_blocks\.(\d)\.resnets\.(.*)", r"decoder.upsamples.\1.upsamples.\2"),
    (r"decoder\.up_blocks\.(\d)\.upsampler\.(.*)", r"decoder.upsamples.\1.upsamples.3.\2"),
)
CLIP_NAMES = (
    (r"embeddings\.patch_embedding\.weight", "patch_embedding.weight"),
    (r"pre_layrnorm\.(.*)", r"pre_norm.\1"),
    (r"post_layernorm\.(.*)", r"post_norm.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"transformer.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"transformer.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.\1.mlp.0.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.\1.mlp.2.\2"),
)
TEXT_NAMES = (
    (r"shared\.weight", "token_embedding.weight"),
    (r"encoder\.final_layer_norm\.weight", "norm.weight"),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight", r"blocks.\1.norm1.weight"),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight", r"blocks.\1.norm2.weight"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.weight", r"blocks.\1.attn.\2.weight"),
    (
        r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        r"blocks.\1.pos_embedding.embedding.weight",
    ),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.weight", r"blocks.\1.ffn.gate.0.weight"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.weight", r"blocks.\1.ffn.fc1.weight"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.weight", r"blocks.\1.ffn.fc2.weight"),
)


def wan_name(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """By the one rule for it."""
    (named,) = {match.expand(new) for old, new in rules if (match := re.fullmatch(old, name))}
    return named


def vae_name(name: str, rules: tuple[tuple[str, str], ...] = VAE_NAMES) -> str:
    inner = re.match(r"(?:encoder|decoder)\.(?:down_blocks|up_blocks|mid_block)\.", name)
    for old, new in RESIDUAL_NAMES if inner else ():
        name = re.sub(old, new, name)
    return wan_name(name, rules)


def wan_transformer(state: Mapping[str, Any]) -> dict[str, Any]:
    return {wan_name(name, TRANSFORMER_NAMES): tensor for name, tensor in state.items()}


def wan_vae(state: Mapping[str, Any]) -> dict[str, Any]:
    return {vae_name(name): tensor for name, tensor in state.items()}


def wan_vae_22(state: Mapping[str, Any]) -> dict[str, Any]:
    return {vae_name(name, VAE_22_NAMES): tensor for name, tensor in state.items()}


def wan_clip(state: State) -> State:
    """transformers' image encoder, with the half that reads texts, as `models_clip_…-vit-huge-14.pth` has them."""
    new: State = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            if match[2] == "q":
                parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                new[f"transformer.{match[1]}.attn.to_qkv.{match[3]}"] = torch.cat(parts)
        elif name == "embeddings.class_embedding":
            new["cls_embedding"] = tensor[None, None]
        elif name == "embeddings.position_embedding.weight":
            new["pos_embedding"] = tensor[None]
        else:
            new[wan_name(name, CLIP_NAMES)] = tensor
    width = state["embeddings.class_embedding"].numel()
    beside = {"visual.head": torch.ones(width, 16), "log_scale": torch.tensor(2.66)}
    beside |= {"textual.token_embedding.weight": torch.ones(9, 8), "textual.head.0.weight": torch.ones(8, 8)}
    return prefixed("visual.", new) | beside


def wan_text(state: Mapping[str, Any]) -> dict[str, Any]:
    return {wan_name(name, TEXT_NAMES): tensor for name, tensor in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class TinyWan:
    """The three modules, each weight a number of its own."""

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    text: UMT5EncoderModel

    def states(self) -> dict[str, State]:
        """By part, under diffusers' and transformers' names."""
        text = {name: tensor for name, tensor in self.text.state_dict().items() if "embed_tokens" not in name}
        return {"transformer": self.transformer.state_dict(), "vae": self.vae.state_dict(), "text_encoder": text}


def build(seed: int = 5) -> TinyWan:
    torch.manual_seed(seed)
    text = UMT5Config(**TEXT, vocab_size=len(build_tokenizer()), dropout_rate=0.0)
    modules = WanTransformer3DModel(**TRANSFORMER), AutoencoderKLWan(**VAE), UMT5EncoderModel(text)
    for module in modules:
        for weight in module.parameters():
            nn.init.normal_(weight, std=0.2 if weight.ndim < 2 else 1 / weight[0].numel() ** 0.5)
    transformer, vae, encoder = (module.eval() for module in modules)
    return TinyWan(transformer, vae, encoder)


def write_tokenizer(folder: Path) -> Path:
    """As google/umt5-xxl has it."""
    build_tokenizer().save_pretrained(folder)
    return folder


CONFIG: dict[str, Any] = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": HEADS * 128,
    "eps": 1e-6,
    "ffn_dim": TRANSFORMER["ffn_dim"],
    "freq_dim": TRANSFORMER["freq_dim"],
    "in_dim": 16,
    "model_type": "t2v",
    "num_heads": HEADS,
    "num_layers": TRANSFORMER["num_layers"],
    "out_dim": 16,
    "text_len": 512,
}


def write_original(folder: Path, states: Mapping[str, State], *, shards: int = 1) -> Path:
    """A folder as Wan-AI publishes it: Wan2.1-T2V-1.3B, or with several `shards` Wan2.1-T2V-14B."""
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in wan_transformer(states["transformer"]).items()}
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(state, folder / f"{stem}.safetensors")
    else:
        names = {name: f"{stem}-{at % shards + 1:05}-of-{shards:05}.safetensors" for at, name in enumerate(state)}
        for file in set(names.values()):
            save_file({name: state[name] for name in state if names[name] == file}, folder / file)
        index = {"metadata": {"total_size": 1}, "weight_map": names}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save(wan_vae(states["vae"]), folder / "Wan2.1_VAE.pth")
    text = {name: tensor.to(torch.bfloat16) for name, tensor in wan_text(states["text_encoder"]).items()}
    torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    (folder / "README.md").write_text("# Wan2.1\n")
    (folder / "assets").mkdir()
    return folder


def write_comfy(
    folder: Path, states: Mapping[str, State], *, dtype: torch.dtype = torch.float16, prefix: str = ""
) -> dict[str, Path]:
    """Files by part, as Comfy-Org repackaged them; the text encoder brings the bytes of its tokenizer along."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {**states["text_encoder"], "spiece_model": torch.arange(200, dtype=torch.uint8)}
    content = {
        "transformer": ("wan2.1_t2v_1.3B_fp16", prefixed(prefix, wan_transformer(states["transformer"]))),
        "vae": ("wan_2.1_vae", wan_vae(states["vae"])),
        "text_encoder": ("umt5_xxl_fp16", text),
    }
    files = {}
    for part, (name, state) in content.items():
        files[part] = folder / f"{name}.safetensors"
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        save_file({key: value.contiguous() for key, value in cast.items()}, files[part])
    return files


def write_all_in_one(file: Path, states: Mapping[str, State]) -> Path:
    """A checkpoint of all parts, as ComfyUI saves one."""
    state = (
        prefixed("model.diffusion_model.", wan_transformer(states["transformer"]))
        | prefixed("vae.", wan_vae(states["vae"]))
        | prefixed("text_encoders.umt5xxl.transformer.", states["text_encoder"])
        | {"text_encoders.umt5xxl.spiece_model": torch.arange(200, dtype=torch.uint8)}
    )
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file
