"""The kind of machine that bytes depend on: kernels of another one round otherwise."""

from __future__ import annotations

import platform

import torch


def machine() -> dict[str, str]:
    """What is written down beside recorded bytes, and held against this machine."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "processor": platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }
