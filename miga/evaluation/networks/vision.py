"""Image towers of transformers: DINO, DINOv2 and CLIP, one vector a frame.

Legend: F frames, C = 3 (RGB, normalised by `miga.evaluation.preprocessing`), H, W sides, D entries of a feature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model, ViTConfig, ViTModel


class Dino(nn.Module):
    """DINO: the class token after the last norm. Frames need not be square.

    Position embeddings of other sizes are interpolated as DINO's program does it, which samples at slightly other
    places than transformers' own method.

    Source: Caron et al. (arXiv 2104.14294).
    """

    def __init__(self, config: ViTConfig | None = None) -> None:
        super().__init__()
        config = config or ViTConfig(layer_norm_eps=1e-6)
        self.model: Any = ViTModel(config, add_pooling_layer=False)
        _interpolate_as_dino(self.model.embeddings, config.patch_size)
        self.eval()

    def forward(self, frames_FCHW: Tensor) -> Tensor:
        """Features `[F, D]`."""
        found: Tensor = self.model(frames_FCHW, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return found


def _interpolate_as_dino(embeddings: Any, patch: int) -> None:
    """Has embeddings of transformers put position embeddings of other sizes where DINO's programs do."""

    def interpolate(tokens: Tensor, height: int, width: int) -> Tensor:
        return _dino_places(embeddings.position_embeddings, height // patch, width // patch)

    embeddings.interpolate_pos_encoding = interpolate


def _dino_places(known: Tensor, rows: int, columns: int) -> Tensor:
    side = round((known.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return known
    grid = known[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # the tenth is DINO's, against rounding; it also moves the places that are sampled
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([known[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class DinoV2(nn.Module):
    """DINOv2 ViT-B/14: the class token after the last norm, of frames of 224 x 224. Source: arXiv 2304.07193."""

    def __init__(self, config: Dinov2Config | None = None) -> None:
        super().__init__()
        config = config or Dinov2Config(image_size=518, patch_size=14)
        self.model: Any = Dinov2Model(config)
        _interpolate_as_dino(self.model.embeddings, config.patch_size)
        self.eval()

    def forward(self, frames_FCHW: Tensor) -> Tensor:
        """Features `[F, D]`."""
        found: Tensor = self.model(frames_FCHW).last_hidden_state[:, 0]
        return found


class ClipImages(nn.Module):
    """CLIP's image tower: the embedding after the projection. Source: Radford et al. (arXiv 2103.00020)."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.model: Any = CLIPVisionModelWithProjection(config)
        self.eval()

    def forward(self, frames_FCHW: Tensor) -> Tensor:
        """Features `[F, D]`."""
        found: Tensor = self.model(frames_FCHW).image_embeds
        return found


def clip_b32() -> ClipImages:
    """ViT-B/32, 512 entries."""
    return ClipImages(CLIPVisionConfig())


def clip_l14() -> ClipImages:
    """ViT-L/14, 768 entries."""
    return ClipImages(
        CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            projection_dim=768,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
        )
    )


_DINO_NAMES: Final = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.mlp\.", r"layers.\1.mlp."),
    (r"^norm\.", "layernorm."),
)
_HUB_ATTENTION: Final = (
    (r"\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
)
_HUB_VIT_NAMES: Final = (
    (r"^encoder\.layer\.", "layers."),
    *_HUB_ATTENTION,
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def dino_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of DINO's own file, or of the hub's, under this network's names."""
    found: dict[str, Tensor] = {}
    is_hubs = "embeddings.cls_token" in state_dict
    for name, tensor in state_dict.items():
        if name.startswith("pooler."):
            continue
        for pattern, ours in _HUB_VIT_NAMES if is_hubs else _DINO_NAMES:
            name = re.sub(pattern, ours, name)
        if split := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"model.layers.{split[1]}.attention.{part}_proj.{split[2]}"] = piece
        else:
            found[f"model.{name}"] = tensor
    return found


def dinov2_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the hub's file under this network's names."""
    found: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for pattern, ours in _HUB_ATTENTION:
            name = re.sub(pattern, ours, name)
        found[f"model.{name}"] = tensor
    return found


_CLIP_BLOCK: Final = r"^visual\.transformer\.resblocks\.(\d+)\."
_CLIP_NAMES: Final = (
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (_CLIP_BLOCK + r"ln_([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (_CLIP_BLOCK + r"attn\.out_proj\.", r"vision_model.encoder.layers.\1.self_attn.out_proj."),
    (_CLIP_BLOCK + r"mlp\.c_fc\.", r"vision_model.encoder.layers.\1.mlp.fc1."),
    (_CLIP_BLOCK + r"mlp\.c_proj\.", r"vision_model.encoder.layers.\1.mlp.fc2."),
)


def clip_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of OpenAI's own file, or of the hub's, under this network's names."""
    found: dict[str, Tensor] = {}
    is_hubs = any(name.startswith("vision_model.") for name in state_dict)
    for name, tensor in state_dict.items():
        if is_hubs:
            if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith(".position_ids"):
                found[f"model.{name}"] = tensor
            continue
        if not name.startswith("visual."):
            continue
        for pattern, ours in _CLIP_NAMES:
            name = re.sub(pattern, ours, name)
        if name == "visual.proj":
            found["model.visual_projection.weight"] = tensor.T
        elif split := re.fullmatch(_CLIP_BLOCK + r"attn\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"model.vision_model.encoder.layers.{split[1]}.self_attn.{part}_proj.{split[2]}"] = piece
        else:
            found[f"model.{name}"] = tensor
    return found
