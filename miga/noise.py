"""Noise by name: every noise latent is a function of what it is for, never of the order in which noise was drawn.

So a video is the same on one GPU and on eight, in one go and resumed, with windows computed in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch


class NoiseSource(Protocol):
    """Standard normal latents by name; tests and other programs may pass their own."""

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """Noise `[F, C, H, W]`, float32, for the latents of the given indices in the video.

        Args:
            purpose: what it is for: "base" (the base clip), "renoise" (the base clip brought to its levels), "push"
                (a new latent at the tail), "search@J" (a candidate for the tail from latent J on), "step@r" (a
                stochastic solver's step from level r).
            latents: index of each latent in the video.
            candidate: which candidate of a search.
        """
        ...


class NamedNoise:
    """Noise from a seed: SHA-256 of the name is the key of a counter-based generator on the CPU, whatever the device.

    Not torch's generator: it reads 32 bits of its seed, so that among 65,000 names two would share their noise, and its
    normal numbers differ in the last bit between CPUs (decisions/0005).

    Args:
        seed: of the video, 0 ... 2**64 - 1.
        latent_shape: channels, height and width of a latent.
        device: where the noise is wanted.
    """

    def __init__(self, seed: int, latent_shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.latent_shape = latent_shape
        self.device = device

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """See `NoiseSource`."""
        return torch.stack([self._one(purpose, latent, candidate) for latent in latents]).to(self.device)

    def _one(self, purpose: str, latent: int, candidate: int) -> torch.Tensor:
        name = f"{self.seed}/{purpose}/{latent}/{candidate}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
        generator = np.random.Generator(np.random.Philox(key=key))
        return torch.from_numpy(generator.standard_normal(self.latent_shape, dtype=np.float32))
