"""LoRA of a transformer in training: two small factors beside a frozen weight, and their file.

W x + (alpha / rank) B A x, A drawn as Kaiming does, B zero: before training the model is what it was. The factors are
float32 whatever the weights are. Files have diffusers' names and say their alpha, so `--lora` and diffusers read them.

Source: LoRA (Hu et al. 2021); which layers, rank and alpha are those published for Stable Video Infinity.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from miga.errors import ConfigError

TARGETS: Final = r"blocks\.\d+\.(?:attn[12]\.(?:to_[qkv]|to_out\.0)|ffn\.net\.(?:0\.proj|2))"
"""q, k, v, o of self- and cross-attention and both layers of the feed-forward; not what reads pictures' tokens."""


class LoraLinear(nn.Module):
    """A frozen linear layer with a LoRA beside it.

    Args:
        base: the layer; its own parameters no longer learn.
        rank: of the factors.
        alpha: scale, times the rank.
        generator: draws A.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        bound = base.in_features**-0.5  # Kaiming, uniform, a = sqrt(5), as peft draws it
        down = (torch.rand(rank, base.in_features, generator=generator, dtype=torch.float32) * 2.0 - 1.0) * bound
        device = base.weight.device
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output with the LoRA's; the factors are rounded to the activations' type, gradients are not."""
        added = functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        out: torch.Tensor = self.base(x) + self.scale * added
        return out


def add_lora(network: nn.Module, rank: int, alpha: float, seed: int, targets: str = TARGETS) -> dict[str, LoraLinear]:
    """Puts a LoRA beside every layer whose name fits, and freezes everything else.

    Args:
        network: changed in place.
        rank: of the factors.
        alpha: scale, times the rank.
        seed: of A's.
        targets: regular expression of whole names.

    Returns:
        The layers by name.

    Raises:
        ConfigError: if the rank cannot be, or no layer fits.
    """
    if rank < 1 or not 0.0 < alpha < math.inf:
        raise ConfigError(f"a LoRA of rank {rank} and alpha {alpha} cannot be", "both must be greater than 0")
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoraLinear] = {}
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Linear) or re.fullmatch(targets, name) is None:
            continue
        parent, _, last = name.rpartition(".")
        layers[name] = LoraLinear(module, rank, alpha, generator)
        setattr(network.get_submodule(parent), last, layers[name])
    if not layers:
        raise ConfigError(f"no layer of this model is named {targets}", "give names of its linear layers")
    return layers


def write_lora(file: Path, layers: Mapping[str, LoraLinear], alpha: float) -> None:
    """The factors under diffusers' names, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = layer.down.detach().cpu().contiguous()
        tensors[f"transformer.{name}.lora_B.weight"] = layer.up.detach().cpu().contiguous()
    rank = next(iter(layers.values())).down.shape[0]
    stated = {"transformer.r": rank, "transformer.lora_alpha": alpha, "transformer.target_modules": sorted(layers)}
    unfinished = file.with_name(f".{file.name}")
    save_file(tensors, unfinished, {"format": "pt", "lora_adapter_metadata": json.dumps(stated)})
    os.replace(unfinished, file)
