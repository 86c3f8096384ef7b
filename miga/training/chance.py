"""Random numbers of a training step: all of them follow from the step, so whoever goes on draws what was drawn."""

from __future__ import annotations

import numpy as np
import torch


class SeededChance:
    """See `miga.training.error_bank.Chance`.

    Args:
        words: what the numbers follow from, such as a seed, a step and a process.
    """

    def __init__(self, *words: int) -> None:
        self._rng = np.random.default_rng(list(words))

    def random(self) -> float:
        """See `Chance.random`."""
        return float(self._rng.random())

    def uniform(self, low: float, high: float) -> float:
        """See `Chance.uniform`."""
        return float(self._rng.uniform(low, high))

    def choice(self, count: int) -> int:
        """See `Chance.choice`."""
        return int(self._rng.integers(count))

    def first_latent(self, count: int) -> int:
        """See `Chance.first_latent`."""
        return int(self._rng.integers(count))

    def among(self, weights: dict[str, float]) -> str:
        """One of these names, each as often as its share of the weights says."""
        names, total = list(weights), sum(weights.values())
        return names[int(self._rng.choice(len(names), p=[weights[name] / total for name in names]))]

    def normal(self, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers, float32, on the CPU: the same whatever the device."""
        generator = torch.Generator().manual_seed(int(self._rng.integers(2**62)))
        return torch.randn(tuple(shape), generator=generator)
