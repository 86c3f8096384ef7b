"""Published models with random weights, at full size or made smaller: speed and memory without a checkpoint.

Sizes, dtypes and what stays in float32 are those of the models as they are loaded; what they draw is noise. There is no
text encoder: conditions are random too. Each family makes its own (`wan/random_model.py` and its like).

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from miga.backbones.base import BackboneSpec
from miga.errors import UsageError

_SDPA: Final = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""PyTorch's own kernels of attention."""

PLAIN: Final = "diffusers' own, one time step"
PER_TOKEN: Final = "diffusers' own, a time step per token"
"""Reference forwards, as tables call them."""


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """By how much a model is made smaller than published.

    Attributes:
        scale: of a frame's height and width.
        layers: blocks of Wan's transformer, or residual blocks of a level of VideoCrafter2's UNet; None for all.
        channels: of network and VAE, as a share.

    Raises:
        UsageError: if one is out of range.
    """

    scale: float = 1.0
    layers: int | None = None
    channels: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "channels"):
            if not 0.0 < (value := getattr(self, name)) <= 1.0:
                raise UsageError(f"--{name} {value:g} is out of range", "it must be above 0 and at most 1, a share")
        if self.layers is not None and self.layers < 1:
            raise UsageError(f"--layers {self.layers} is out of range", "it must be at least 1")


FULL_SIZE: Final = Reduction()


class RandomModel(ABC):
    """A backbone with random weights, without a text encoder.

    Args:
        backbone: as `load_backbone` would hand it out.
        label: what it is, and by how much it is smaller than published; belongs beside every figure.
        is_full_size: whether it is as published.

    Attributes:
        text_tokens: of a synthetic prompt and of its negative prompt.
    """

    text_tokens: ClassVar[tuple[int, int]]
    backbone: Any

    def __init__(self, backbone: Any, label: str, *, is_full_size: bool) -> None:
        self.backbone, self.label, self.is_full_size = backbone, label, is_full_size

    @property
    def spec(self) -> BackboneSpec:
        """Of the backbone."""
        spec: BackboneSpec = self.backbone.spec
        return spec

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Channels of a text token."""

    def embeddings(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Random text embeddings `[L, D]` of a prompt and of a negative prompt, float32 on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        prompt, negative = (torch.randn(length, self.text_width, generator=generator) for length in self.text_tokens)
        return prompt, negative

    @abstractmethod
    def forward(self, x_BCFHW: torch.Tensor, timestep: torch.Tensor, texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
        """The network alone, as the denoiser calls it: one window under each of those texts, in one batch.

        Args:
            x_BCFHW: the window, `[1, C, F, H, W]`.
            timestep: `[1]` of the clip, or `[1, F]` of every latent, on the CPU.
            texts_LD: one embedding, or that of the prompt and that of the negative prompt.
        """

    def reference_forwards(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, timestep_BF: torch.Tensor, text_LD: torch.Tensor
    ) -> Mapping[str, Callable[[], Any]]:
        """The same window through networks that are not ours, by what they are called in a table."""
        return {}

    def attention_backends(self) -> list[str]:
        """Names that `attention` takes."""
        return list(_SDPA)

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """Inside, self-attention is computed by that backend.

        Raises:
            ModelError: if it does not work here.
        """
        with sdpa_kernel(_SDPA[name]):
            yield

    def compile(self) -> None:
        """Compiles the network's repeated blocks, for good."""
        self.backbone.network.compile()


def fill_randomly(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """Gives every parameter values and memory, whatever it had: weights of unit gain, norms of 1, biases of 0.

    Args:
        module: changed in place; may be on the meta device.
        device: of the parameters.
        dtype: of them, but for those that the module says are kept in float32.
        seed: of the values.
    """
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(module.named_parameters()):
        *path, leaf = name.split(".")
        is_kept = dtype.itemsize == 2 and not kept.isdisjoint([*path, leaf])
        options: dict[str, Any] = {"device": device, "dtype": torch.float32 if is_kept else dtype}
        if leaf == "bias":
            value = torch.zeros(parameter.shape, **options)
        elif leaf == "gamma" or parameter.ndim == 1:
            value = torch.ones(parameter.shape, **options)
        else:
            value = torch.randn(parameter.shape, generator=generator, **options)
            value *= math.prod(parameter.shape[1:]) ** -0.5
        owner = module.get_submodule(".".join(path))
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())), "a part has no memory"
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, buffer.to(device))
    module.eval()


def layers_of(reduction: Reduction, published: int, name: str) -> int:
    """Layers of a reduced model.

    Raises:
        UsageError: for more than there are.
    """
    if reduction.layers is not None and reduction.layers > published:
        raise UsageError(f"--layers {reduction.layers} is more than {name} has", f"it must be at most {published}")
    return reduction.layers or published


def rounded(value: float, step: int) -> int:
    """The nearest multiple, at least one step."""
    return max(step, round(value / step) * step)


def label_of(
    name: str, spec: BackboneSpec, published: BackboneSpec, reduction: Reduction, layers: tuple[int, int, str]
) -> tuple[str, bool]:
    """What the model is, and whether it is as published. `layers`: how many it has, how many it should, of what."""
    size, changes = f"{spec.height}x{spec.width}", []
    if layers[0] != layers[1]:
        changes.append(f"{layers[0]} of {layers[1]} {layers[2]}")
    if (spec.height, spec.width) != (published.height, published.width):
        changes.append(f"{size} of {published.height}x{published.width}")
    if reduction.channels != 1.0:
        changes.append(f"{reduction.channels:g} of the channels")
    if not changes:
        return f"{name} at full size, {spec.window} latents of {size}, random weights", True
    return f"{name} REDUCED to {', '.join(changes)}: no figure of the published model", False
