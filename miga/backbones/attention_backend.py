"""Which of diffusers' attention backends the transformer's self-attention runs on.

Cross-attention stays with PyTorch's own: it is over few tokens, under a mask that most backends do not take.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import torch

from miga.backbones.weight_files import first_line
from miga.errors import ModelError

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


def attention_backends() -> list[str]:
    """The names that diffusers knows; most need a package or a card of their own."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    return [backend.value for backend in AttentionBackendName]


def check_attention_backend(name: str) -> None:
    """Refuses a name that diffusers does not know; whether a backend works is known only where it is to run.

    Raises:
        ModelError: naming the nearest.
    """
    if name != "auto" and name not in attention_backends():
        near = difflib.get_close_matches(name, attention_backends(), 1)
        raise ModelError(
            f"attention backend {name!r} is unknown",
            (f"did you mean {near[0]!r}? " if near else "") + f"backends: auto, {', '.join(attention_backends())}",
        )


def set_attention_backend(transformer: WanTransformer3DModel, name: str) -> None:
    """Sets the backend, and tries it once on a few zeros. diffusers sets it for every model of the process.

    Raises:
        ModelError: if there is no such backend, or its package is missing, or it does not work on this device and
            dtype.
    """
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _check_attention_backend_requirements,
        dispatch_attention_fn,
    )

    check_attention_backend(name)
    heads, head_width = transformer.config.num_attention_heads, transformer.config.attention_head_dim
    probe = torch.zeros(1, 16, heads, head_width, device=transformer.device, dtype=transformer.dtype)
    try:
        _check_attention_backend_requirements(AttentionBackendName(name))
        dispatch_attention_fn(probe, probe, probe, backend=AttentionBackendName(name))
    except Exception as error:  # a missing package, a kernel that refuses device, dtype or size: each its own kind
        raise ModelError(
            f"attention backend {name!r} does not work here: {first_line(error)}",
            "install what it needs, or leave it at 'auto'",
        ) from error
    transformer.set_attention_backend(name)
