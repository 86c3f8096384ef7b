"""How a network that knows time by rotary positions may be told it otherwise, as the length of a window asks for.

Such a strategy is a value that a method's settings name (`SamplerConfig.time_rotation`). A backbone gives it to the
denoiser that it makes for these settings, and the denoiser to every call: it is never written into the network.
"""

from __future__ import annotations

from typing import Protocol

import torch


class TimeRotation(Protocol):
    """A strategy: the frequencies of the time axis for a window of so many latents."""

    def __call__(self, own_K: torch.Tensor, num_latents: int) -> torch.Tensor:
        """The frequencies `[K]`, float64 radians a latent, quickest first; `own_K` itself where nothing changes.

        Args:
            own_K: the network's own.
            num_latents: of the window.
        """
        ...
