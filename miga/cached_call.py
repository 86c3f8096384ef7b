"""What a causal method asks of a network that keeps a cache of keys and values: numbers alone, and the cache itself.

Keys are cached without positions. A call says which slots of the cache it reads and at which places in time they
stand; so absolute, relative, cut and re-placed positions are one and the same to the network.

Legend: B videos, F latents of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

TimeFrequencies: TypeAlias = Callable[[int, int, torch.Tensor], torch.Tensor]
"""RoPE's frequencies of the time axis: from a model's layers, heads and own frequencies `[K]`, float64 radians a
latent, those to take: `[K]`, or `[layers, heads, K]`."""


@dataclass(frozen=True)
class Compression:
    """What becomes of cached latents before a block's first call: of their tokens, those most looked at stay.

    Attributes:
        candidates: slots whose tokens compete.
        into: slots for those that stay; as many tokens as they hold. They are among the candidates.
        num_query_latents: latents of the last clean call whose queries judge beside those of the block.
    """

    candidates: tuple[int, ...]
    into: tuple[int, ...]
    num_query_latents: int


@dataclass(frozen=True)
class CachedCall:
    """One call of the network over a few latents that see those of a cache.

    Attributes:
        cache: as `CachedDenoiser.open_cache` made it.
        timesteps: the time step of every latent, as the network is told it; 0 of a clean one.
        sigmas: the noise scale of every latent.
        positions: of every latent in time, as queries and as keys.
        slots: cached latents that are seen.
        slot_positions: of each of them in time.
        writes: where every latent's keys and values are kept; -1: nowhere.
        num_unseen: latents of the call, from its first on, that nothing sees.
        compression: what happens to the cache in every layer before it is read.
        keeps_queries: whether the latents' queries are kept for the next compression.
        first: index in the video of the call's first latent; the network does not look at it.
    """

    cache: Any
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    positions: tuple[float, ...]
    slots: tuple[int, ...] = ()
    slot_positions: tuple[float, ...] = ()
    writes: tuple[int, ...] = ()
    num_unseen: int = 0
    compression: Compression | None = None
    keeps_queries: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        if any(type(timestep) is not float for timestep in self.timesteps):
            raise ValueError(f"time steps must be floats, not {self.timesteps}: 937 is not 937.5, nor 833 833.3333")
        assert len(self.timesteps) == len(self.sigmas) == len(self.positions) == len(self.writes)
        assert len(self.slots) == len(self.slot_positions)

    def is_like(self, other: CachedCall) -> bool:
        """Whether the network does the same in both, each with a cache and latents of its own."""
        return replace(self, cache=None, first=0) == replace(other, cache=None, first=0)
