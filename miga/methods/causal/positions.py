"""Where the latents of a call stand in time for RoPE, and how fast time turns: two choices of their own.

Keys are cached without positions, so every system is a function from what is read to numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from miga.cached_call import TimeFrequencies
from miga.methods.causal.settings import CausalSettings

TRAINED_LATENTS: Final = 21
"""Of the clips that Wan's positions were learned on."""


@dataclass(frozen=True)
class Places:
    """Of one call.

    Attributes:
        cached: of the slots it reads.
        own: of its own latents.
    """

    cached: tuple[float, ...]
    own: tuple[float, ...]


def absolute(cached: Sequence[int], own: Sequence[int]) -> Places:
    """Everyone at its index in the video. Source: Self-Forcing, LongLive."""
    return Places(tuple(map(float, cached)), tuple(map(float, own)))


def relative(cached: Sequence[int], own: Sequence[int], num_unseen: int = 0) -> Places:
    """One behind the other from 0 on, so that the distance to the sink stays. Source: Infinity-RoPE, Reward Forcing.

    The first `num_unseen` of a call are no keys: they stand where those before the others stand.
    """
    first = len(cached) - num_unseen
    return Places(tuple(map(float, range(len(cached)))), tuple(float(first + place) for place in range(len(own))))


def cut(cached: Sequence[int], own: Sequence[int], at: int) -> Places:
    """Relative ones, but the latents being made are far away, as behind a cut. Source: Infinity-RoPE's RoPE cut."""
    return Places(relative(cached, own).cached, tuple(float(at + place) for place in range(len(own))))


def anchored(num_anchor: int, working: Sequence[int], own: Sequence[int]) -> Places:
    """The anchor ends right before the working cache, all else is absolute. Source: Rolling Forcing."""
    first = own[0] - len(working) - num_anchor
    return Places(
        tuple(float(place) for place in (*range(first, first + num_anchor), *working)), tuple(map(float, own))
    )


def frequencies_of(config: CausalSettings) -> TimeFrequencies | None:
    """The frequencies that a config asks for; None for the model's own."""
    if config.rope_jitter:
        return jittered(config.rope_jitter)
    if config.rope_scale != 1.0:
        return modulated(config.rope_low / 100, config.rope_high / 100, config.rope_scale)
    return None


def jittered(sigma: float) -> TimeFrequencies:
    """Every head has a base of its own, `theta (1 + sigma u)`, u even in -1 ... 1.

    Source: LoL's multi-head RoPE jitter.
    Of the paper: the law, sigma 0.8, all heads, time alone. Our reading: one draw a layer and head, the same in every
    video, from a name.
    """

    def frequencies(num_layers: int, num_heads: int, own_K: torch.Tensor) -> torch.Tensor:
        drawn = [_even(f"rope jitter/{layer}/{head}") for layer in range(num_layers) for head in range(num_heads)]
        base_LH1 = 1.0 + sigma * torch.tensor(drawn, dtype=torch.float64).view(num_layers, num_heads, 1)
        exponent_K = -torch.arange(len(own_K), dtype=torch.float64) / len(own_K)
        return own_K * base_LH1**exponent_K

    return frequencies


def modulated(low: float, high: float, scale: float) -> TimeFrequencies:
    """Frequencies of less than `low` turns in a trained clip are slowed by `scale`, those of more than `high` are kept.

    Between them the share grows evenly. FLEX's abstract says that low ones are interpolated and high ones extrapolated;
    the ramp and its ends are our reading (YaRN's form), no parity is claimed.
    """

    def frequencies(num_layers: int, num_heads: int, own_K: torch.Tensor) -> torch.Tensor:
        turns_K = TRAINED_LATENTS * own_K / (2 * math.pi)
        kept_K = ((turns_K - low) / (high - low)).clamp(0.0, 1.0)
        return own_K * (kept_K + (1.0 - kept_K) / scale)

    return frequencies


def _even(name: str) -> float:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    return float(np.random.Generator(np.random.Philox(key=key)).uniform(-1.0, 1.0))
