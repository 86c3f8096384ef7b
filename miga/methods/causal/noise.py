"""Noise of blocks that is drawn against what came before: one latent up, the next one down.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from miga.noise import NoiseSource

OWN_NOISE = "push"
"""The name of the noise that latents begin as."""


class AntiphaseNoise:
    """`z_0 = e_0`, `z_t = rho z_(t-1) + sqrt(1 - rho^2) e_t` over the latents' own noise; all else stays fresh.

    Every latent is standard normal still. FLEX's abstract names antiphase noise in place of independent noise within a
    chunk, and no formula: this is our reading, an AR(1) process as another paper's code has it.

    Args:
        source: of the independent noise.
        rho: correlation of neighbours, negative for antiphase.
        restart: latents after which a chain begins anew; 0: never.
    """

    def __init__(self, source: NoiseSource, rho: float, restart: int) -> None:
        self.source, self.rho, self.restart = source, rho, restart
        self.latent_shape = getattr(source, "latent_shape", None)
        self.device = getattr(source, "device", "cpu")
        self._last: tuple[int, torch.Tensor] | None = None

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """See `NoiseSource`."""
        if purpose != OWN_NOISE:
            return self.source(purpose, latents, candidate)
        return torch.stack([self._of(latent) for latent in latents])

    def _of(self, latent: int) -> torch.Tensor:
        """The chain is followed from its start, or from where it was left."""
        start = latent - latent % self.restart if self.restart else 0
        last = self._last if self._last is not None and start <= self._last[0] <= latent else None
        for index in range(start if last is None else last[0] + 1, latent + 1):
            drawn_CHW = self.source(OWN_NOISE, [index])[0]
            if last is not None and index > start:
                drawn_CHW = self.rho * last[1] + (1.0 - self.rho**2) ** 0.5 * drawn_CHW
            last = index, drawn_CHW
        assert last is not None
        self._last = last
        return last[1]
