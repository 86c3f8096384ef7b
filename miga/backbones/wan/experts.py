"""Wan2.2's two transformers, of which each answers for its own noise levels, and where they lie.

The first one answers from `boundary` noise on, the second below. Both may be on the card; or one at a time, and the
other in the machine's memory: then whoever is asked trades places with the other. Uniform levels trade once a video,
windows of mixed levels up to twice a pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from miga.schedule import NoiseSchedule


class Experts:
    """One transformer, or two.

    Args:
        high: answers for all levels, or for those from the boundary on.
        low: answers below; None: there is one only.
        boundary: share of the noise from which on `high` answers.

    Attributes:
        one_at_a_time: whether only the one that is asked is on the device.
    """

    def __init__(
        self, high: WanTransformer3DModel, low: WanTransformer3DModel | None = None, boundary: float | None = None
    ) -> None:
        assert (low is None) == (boundary is None), "a boundary is between two"
        self.high, self.low, self.boundary = high, low, boundary
        self.one_at_a_time = False
        self._device: torch.device = high.device
        self._lock = threading.RLock()

    @property
    def all(self) -> tuple[Any, ...]:
        """The transformers, the first one first."""
        return (self.high,) if self.low is None else (self.high, self.low)

    def number_of(self, schedule: NoiseSchedule) -> torch.Tensor:
        """Which transformer answers for every level of a schedule: 0 or 1."""
        if self.boundary is None:
            return torch.zeros(len(schedule.timestep), dtype=torch.int64)
        return schedule.expert_of_level(self.boundary)

    @contextmanager
    def asked(self, number: int) -> Iterator[Any]:
        """One of them, on the device while it is asked."""
        network = self.all[number]
        if not self.one_at_a_time or self.low is None:
            yield network
            return
        with self._lock:  # while one is computing, nobody takes it away
            if network.device != self._device:
                self.all[1 - number].to("cpu")
                network.to(self._device)
            yield network

    def to(self, device: torch.device) -> None:
        """Moves them; of two that take turns, the first one alone."""
        self._device = device
        for number, network in enumerate(self.all):
            network.to("cpu" if self.one_at_a_time and number else device)
