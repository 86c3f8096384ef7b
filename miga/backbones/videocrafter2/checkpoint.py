"""The published `model.ckpt`: how it is read, and which module each of its tensors belongs to.

Its VAE and text encoder are named as in the programs that they were trained with (LDM, OpenCLIP); diffusers and
transformers have the same modules under other names. `place_of` is that dictionary.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from miga.backbones.loading import is_finite
from miga.backbones.tensor_files import read_pickle
from miga.backbones.videocrafter2.spec import LATENT_SCALE, PAD_TOKEN, Settings
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet
from miga.backbones.weight_files import PICKLES, named
from miga.errors import ModelError
from miga.schedule import NUM_TRAIN_TIMESTEPS, ddim_schedule, ddim_signal_scale

Component = Literal["unet", "vae", "text_encoder"]
State = Mapping[str, torch.Tensor]

UNET_PREFIX: Final = "model.diffusion_model."
VAE_PREFIX: Final = "first_stage_model."
TEXT_PREFIX: Final = "cond_stage_model.model."

_SCHEDULE: Final = "of the noise schedule, which miga.schedule computes"
UNNEEDED: Final = {
    **dict.fromkeys(
        (
            "betas",
            "alphas_cumprod",
            "alphas_cumprod_prev",
            "sqrt_alphas_cumprod",
            "sqrt_one_minus_alphas_cumprod",
            "log_one_minus_alphas_cumprod",
            "sqrt_recip_alphas_cumprod",
            "sqrt_recipm1_alphas_cumprod",
            "posterior_variance",
            "posterior_log_variance_clipped",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
            "scale_arr",
        ),
        _SCHEDULE,
    ),
    f"{TEXT_PREFIX}text_projection": "projects the text for comparison with images; prompts are not compared",
    f"{TEXT_PREFIX}logit_scale": "scales that comparison",
}
"""Tensors that go nowhere, and why. A checkpoint may lack them."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of the three modules, which a checkpoint does not say, and the settings that go into `miga.json`.

    The defaults are VideoCrafter2's.

    Attributes:
        unet: of `VideoCrafter2UNet`.
        vae: arguments of diffusers' `AutoencoderKL`.
        text: arguments of transformers' `CLIPTextConfig`.
        settings: see there.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: Mapping[str, Any] = field(
        default_factory=lambda: {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
    )
    text: Mapping[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 49408,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "projection_dim": 1024,
        }
    )
    settings: Settings = field(default_factory=Settings)

    def build(self, component: Component) -> nn.Module:
        """The module, on the meta device: names and shapes, no memory."""
        with torch.device("meta"):
            if component == "unet":
                return VideoCrafter2UNet(self.unet)
            if component == "vae":
                num_levels = len(self.vae["block_out_channels"])
                return AutoencoderKL(
                    **self.vae,
                    latent_channels=self.unet.in_channels,
                    down_block_types=("DownEncoderBlock2D",) * num_levels,
                    up_block_types=("UpDecoderBlock2D",) * num_levels,
                    scaling_factor=LATENT_SCALE,
                )
            vocab_size = self.text["vocab_size"]
            tokens = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": PAD_TOKEN}
            return CLIPTextModel(CLIPTextConfig(**self.text, **tokens, hidden_act="gelu"))


@dataclass(frozen=True)
class Place:
    """Where a tensor goes. Of several names each takes an equal share of its rows (fused query, key and value)."""

    component: Component
    names: tuple[str, ...]


def place_of(key: str, num_vae_levels: int = 4) -> Place | None:
    """Where a tensor of the checkpoint goes; None if it belongs to no module.

    Args:
        key: its name.
        num_vae_levels: resolutions of the VAE. LDM counts those of its decoder from the finest on, diffusers from the
            coarsest.
    """
    if key in UNNEEDED:
        return None
    if key.startswith(UNET_PREFIX):
        return Place("unet", (key.removeprefix(UNET_PREFIX),))
    if key.startswith(VAE_PREFIX):
        return Place("vae", (_vae_name(key.removeprefix(VAE_PREFIX), num_vae_levels),))
    if key.startswith(TEXT_PREFIX):
        return Place("text_encoder", _text_names(key.removeprefix(TEXT_PREFIX)))
    return None


_VAE_RULES: Final = (
    (r"\bdown\.(\d+)\.block\.(\d+)\.", r"down_blocks.\1.resnets.\2."),
    (r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\bup\.(\d+)\.block\.(\d+)\.", r"up_blocks.\1.resnets.\2."),
    (r"\bup\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"\bmid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"\bnorm_out\.", "conv_norm_out."),
)
_TEXT_RULES: Final = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)


def _vae_name(name: str, num_levels: int) -> str:
    for pattern, replacement in _VAE_RULES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up_blocks.{num_levels - 1 - int(found[1])}", name)


def _text_names(name: str) -> tuple[str, ...]:
    for pattern, replacement in _TEXT_RULES:
        name = re.sub(pattern, replacement, name)
    if fused := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name):
        return tuple(f"{fused[1]}{part}_proj.{fused[2]}" for part in "qkv")
    return (name,)


def read_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, mapped from the file rather than read; nothing in it is ever run.

    Raises:
        ModelError: if the file is missing, truncated, no checkpoint of torch, or holds anything beside tensors and
            plain values.
    """
    return read_pickle(file, "VideoCrafter2's model.ckpt")


def is_checkpoint(file: Path) -> bool:
    """Whether a file is meant as VideoCrafter2's: by its name, unless it holds something else, or by what it holds."""
    prefixes = (VAE_PREFIX, TEXT_PREFIX)
    is_named = file.suffix == ".ckpt"
    if file.suffix not in PICKLES or not os.path.isfile(file):
        return is_named
    try:
        names = read_checkpoint(file).keys()
    except ModelError:  # which is said when it is converted
        return is_named
    has_unet = any(name.startswith(f"{UNET_PREFIX}input_blocks.") for name in names)
    is_foreign = any(
        re.match(rf"(?:{re.escape(UNET_PREFIX)})?(?:blocks|encoder|decoder|token_embedding)\.", n) for n in names
    )
    return has_unet or any(name.startswith(prefixes) for name in names) or (is_named and not is_foreign)


def split_state(state: State, architecture: Architecture) -> dict[Component, dict[str, torch.Tensor]]:
    """The checkpoint's tensors under the names of their modules; every one used once, none missing, none left over.

    Works on the meta device too.

    Raises:
        ModelError: if it is a checkpoint of another model.
    """
    num_levels = len(architecture.vae["block_out_channels"])
    parts: dict[Component, dict[str, torch.Tensor]] = {"unet": {}, "vae": {}, "text_encoder": {}}
    left_over = []
    for key, tensor in state.items():
        if key in UNNEEDED:
            continue
        if (place := place_of(key, num_levels)) is None:
            left_over.append(key)
            continue
        shares = tensor.chunk(len(place.names)) if len(place.names) > 1 else (tensor,)
        parts[place.component] |= dict(zip(place.names, shares, strict=False))
    problems = [_listed("has no place for", left_over)]
    for component, given in parts.items():
        wanted = {name: value.shape for name, value in architecture.build(component).state_dict().items()}
        parts[component] = given = {name: _as_linear(value, wanted.get(name)) for name, value in given.items()}
        shapes = {name: value.shape for name, value in given.items()}
        common = wanted.keys() & shapes.keys()
        problems += [
            _listed(f"lacks, of the {component},", wanted.keys() - shapes.keys()),
            _listed(f"has beside the {component}", shapes.keys() - wanted.keys()),
            _listed(
                f"has of another shape, of the {component},", (name for name in common if wanted[name] != shapes[name])
            ),
        ]
    if found := [problem for problem in problems if problem]:
        raise ModelError(
            f"this is no checkpoint of VideoCrafter2: it {'; it '.join(found)}",
            hint="take model.ckpt of VideoCrafter/VideoCrafter2 (text to video, 320 x 512)",
        )
    return parts


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers mean what they say: no whole numbers, which belong to scales, and nothing sparse."""
    is_float = tensor.is_floating_point() and tensor.dtype.itemsize > 1
    return is_float and tensor.layout is torch.strided and not tensor.is_quantized


def _as_linear(tensor: torch.Tensor, wanted: torch.Size | None) -> torch.Tensor:
    """LDM's attention projects by 1 x 1 convolutions, diffusers' by matrices: the same numbers."""
    is_pointwise = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    return tensor[:, :, 0, 0] if is_pointwise and wanted == tensor.shape[:2] else tensor


def _listed(what: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{what} {named(listed)}" if listed else ""


def require_sound(state: State) -> None:
    """Finds weights that are not finite, and a model trained on another noise schedule.

    Raises:
        ModelError: naming the tensors.
    """
    if strange := sorted(key for key, value in state.items() if not _is_plain(value)):
        kinds = sorted({str(state[key].dtype).removeprefix("torch.") for key in strange})
        raise ModelError(
            f"the checkpoint's weights are of type {', '.join(kinds)}, or not stored as plain numbers, in "
            f"{named(strange)}",
            hint="quantized checkpoints are not converted: take the published model.ckpt",
        )
    if broken := sorted(key for key, value in state.items() if not is_finite(value)):
        raise ModelError(
            f"the checkpoint's weights are NaN or infinite in {named(broken)}", hint="it is broken: download it again"
        )
    schedule = ddim_schedule(NUM_TRAIN_TIMESTEPS)
    known = {"alphas_cumprod": schedule.alpha[1:] ** 2, "scale_arr": ddim_signal_scale(schedule)[1:]}
    for key, expected in known.items():
        given = state.get(key)
        if given is None:
            continue
        rounding = max(1e-5, torch.finfo(given.dtype).eps)  # a checkpoint may be stored in half precision
        given = given[:NUM_TRAIN_TIMESTEPS].double()
        if given.shape != expected.shape or not torch.allclose(given, expected, rtol=rounding, atol=1e-7):
            raise ModelError(
                f"the checkpoint was trained on another noise schedule: its {key} differs from VideoCrafter2's",
                hint="take model.ckpt of VideoCrafter/VideoCrafter2 (text to video, 320 x 512)",
            )
