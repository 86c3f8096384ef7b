"""The kind of machine that bytes depend on: kernels of another one round otherwise."""

from __future__ import annotations

import hashlib
import platform
from functools import cache

import torch
from torch.nn import functional


def machine() -> dict[str, str]:
    """What is written down beside recorded bytes, and held against this machine.

    What a processor can do is not enough: of two with the same instructions, by different makers, one is given other
    kernels. So small products, convolutions, attention and functions are computed, and their bytes are part of it.
    """
    return {
        "torch": torch.__version__.partition("+")[0],
        "processor": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "rounding": _rounding(),
    }


@cache
def _rounding() -> str:
    """Digest of what this machine makes of fixed numbers, on one thread."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        digest = hashlib.sha256()
        for found in _probes():
            digest.update(found.contiguous().numpy().tobytes())
    finally:
        torch.set_num_threads(num_threads)
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _probes() -> list[torch.Tensor]:
    """Float32 of the sizes and kinds that the embedded model computes."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, up = (torch.randn(*shape, generator=generator) for shape in ((192, 192), (192, 192), (640, 192)))
    heads = torch.randn(3, 1, 6, 192, 32, generator=generator)
    video, kernel = (torch.randn(*shape, generator=generator) for shape in ((1, 16, 3, 16, 16), (16, 16, 3, 3, 3)))
    return [
        functional.linear(rows, weight),
        functional.gelu(functional.linear(rows, up), approximate="tanh"),
        functional.layer_norm(rows, (192,)),
        functional.scaled_dot_product_attention(*heads),
        functional.silu(functional.conv3d(video, kernel)),
        torch.softmax(rows, -1),
        torch.exp(rows).cumsum(-1),
    ]
