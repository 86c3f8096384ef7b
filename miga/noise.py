"""Noise by name: every noise latent is a function of what it is for, never of the order in which noise was drawn.

So a video is the same on one GPU and on eight, in one go and resumed, with windows computed in any order.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np
import torch

THREADED_FROM: Final = 2**15
"""Numbers in a latent from which on several latents are drawn side by side: NumPy lets other threads run meanwhile."""
_MAX_THREADS: Final = 8


class NoiseSource(Protocol):
    """Standard normal latents by name; tests and other programs may pass their own."""

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """Noise `[F, C, H, W]`, float32, for the latents of the given indices in the video.

        Args:
            purpose: what it is for: "base" (the base clip), "renoise" (the base clip brought to its levels), "push"
                (a new latent at the tail), "anchor" (an anchor brought to a level), "search@J" (a candidate for the
                tail from latent J on), "step@r" (a stochastic solver's step from level r). Where a latent meets the
                same level twice, the name says in which part: "base/step@r", "search@J/step@r", "second/renoise",
                "second/step@r". "shuffle": what latents are put in another order by (`noise_arrangement.py`).
            latents: index of each latent in the video.
            candidate: which candidate of a search.
        """
        ...


class NamedNoise:
    """Noise from a seed: SHA-256 of the name is the key of a counter-based generator on the CPU, whatever the device.

    Large latents are drawn on several threads, which changes none of them.

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
        drawn_FCHW = np.empty((len(latents), *self.latent_shape), np.float32)

        def draw(row: int) -> None:
            self._draw(f"{self.seed}/{purpose}/{latents[row]}/{candidate}", drawn_FCHW[row])

        if len(latents) > 1 and math.prod(self.latent_shape) >= THREADED_FROM:
            list(_threads().map(draw, range(len(latents))))
        else:
            for row in range(len(latents)):
                draw(row)
        return torch.from_numpy(drawn_FCHW).to(self.device)

    def _draw(self, name: str, into_CHW: np.ndarray) -> None:
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=into_CHW)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(_MAX_THREADS, usable), thread_name_prefix="miga-noise")
