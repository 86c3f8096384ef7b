"""Noise that is arranged along a video: latents share noise, or a mean of it, so that what they show is alike.

An arrangement is a `NoiseSource` around another. It changes where a video begins, its noise named "base", and nothing
else: a stochastic solver's steps stay independent. A latent's noise follows from its index alone, never from the length
of the video.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from miga.noise import NoiseSource

ARRANGED: Final = "base"


def base_latents(num_latents: int, window: int, sources: Sequence[Sequence[int]]) -> list[int]:
    """Which latent's noise each latent of a video takes over.

    Source: FreeNoise (Qiu et al. 2023), noise rescheduling: behind the first window, every `stride` latents take the
    noise of those a window before them, as that is by then, in another order.

    Args:
        num_latents: of the video.
        window: latents whose noise is their own.
        sources: of every stride behind the window, the latents that its latents take their noise from, in order.

    Raises:
        ValueError: if the sources end before the video does, or name a latent that is not there yet.
    """
    found = list(range(min(window, num_latents)))
    for group in sources:
        if any(not 0 <= latent < len(found) for latent in group):
            raise ValueError(f"latents {list(group)} cannot all lend their noise: {len(found)} are there by then")
        found += [found[latent] for latent in group]
    if len(found) < num_latents:
        raise ValueError(f"the order of {len(found)} latents is said, of a video of {num_latents}")
    return found[:num_latents]


@dataclass
class ShuffledNoise:
    """FreeNoise's: the first window's noise over and over, each stride of it in an order of its own.

    Two latents a window apart so have the noise of the same latents behind them, and nowhere is it the same twice in a
    row. As a stride's order is drawn by name too, any part of a video can be noised alone.

    Attributes:
        inner: whose noise is arranged.
        window: latents whose noise is their own.
        stride: latents that are shuffled among themselves.
        sources: see `base_latents`; None: drawn from the noise called "shuffle", so that the seed decides.
    """

    inner: NoiseSource
    window: int
    stride: int
    sources: Sequence[Sequence[int]] | None = None
    _drawn: list[list[int]] = field(default_factory=list)

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """See `NoiseSource`."""
        if purpose != ARRANGED:
            return self.inner(purpose, latents, candidate)
        length = max(latents, default=-1) + 1
        base = base_latents(length, self.window, self._sources_of(length))
        return self.inner(purpose, [base[latent] for latent in latents], candidate)

    def _sources_of(self, length: int) -> Sequence[Sequence[int]]:
        if self.sources is not None:
            return self.sources
        while self.window + self.stride * len(self._drawn) < length:
            start = self.stride * len(self._drawn)
            behind = range(start + self.window, start + self.window + self.stride)
            order = self.inner("shuffle", behind).flatten(1)[:, 0].argsort()
            self._drawn.append([start + int(place) for place in order])
        return self._drawn


@dataclass(frozen=True)
class MeanSharedNoise:
    """FreePCA's: every window of noise has the first one's mean over its latents, and its own deviations from a mean.

    A last window that is cut is arranged as if it were whole.

    Attributes:
        inner: whose noise is arranged.
        window: latents that share a mean.
    """

    inner: NoiseSource
    window: int

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """See `NoiseSource`."""
        own_FCHW = self.inner(purpose, latents, candidate)
        blocks = {latent // self.window for latent in latents} - {0}
        if purpose != ARRANGED or not blocks:
            return own_FCHW
        mean_CHW = self._mean(0, candidate)
        shift = {block: mean_CHW - self._mean(block, candidate) for block in blocks}
        rows = [
            own_CHW + shift[latent // self.window] if latent >= self.window else own_CHW
            for latent, own_CHW in zip(latents, own_FCHW, strict=True)
        ]
        return torch.stack(rows)

    def _mean(self, block: int, candidate: int) -> torch.Tensor:
        """Of a window's own noise over its latents `[C, H, W]`."""
        latents = range(block * self.window, (block + 1) * self.window)
        return self.inner(ARRANGED, latents, candidate).mean(0)
