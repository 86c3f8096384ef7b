"""RIFLEx: the rotary frequency of time that makes a video repeat itself, lowered until it no longer does.

Source: Zhao et al. 2025, "RIFLEx: A Free Lunch for Length Extrapolation in Video Diffusion Transformers";
decisions/0014.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

SHARE: Final = 0.9
"""Of a period, what the whole video is made to be of the lowered component's."""


def rounded_period(frequency: float) -> int:
    """Latents after which a component is where it was (the paper's N_k), as its program rounds them."""
    return round(2.0 * math.pi / frequency)


def component_of(own_K: torch.Tensor, repetition: int) -> int:
    """The component, counted from 1, whose rounded period is nearest to where a video first repeats itself.

    Args:
        own_K: the network's frequencies of time, radians a latent.
        repetition: latents after which content comes back.
    """
    distances = [abs(rounded_period(frequency) - repetition) for frequency in own_K.tolist()]
    return 1 + distances.index(min(distances))


def lowered(own_K: torch.Tensor, component: int, num_latents: int) -> torch.Tensor:
    """The frequencies with that component's, counted from 1, such that the video is 0.9 of its period."""
    changed_K = own_K.clone()
    changed_K[component - 1] = SHARE * 2.0 * math.pi / num_latents
    return changed_K


@dataclass(frozen=True)
class LoweredFrequency:
    """See `TimeRotation`. A video no longer than the component's rounded period is left alone: it repeats nothing.

    Attributes:
        component: which one, counted from 1; 0: the one that `repetition` points to.
        repetition: latents after which content comes back.
    """

    component: int
    repetition: int

    def __call__(self, own_K: torch.Tensor, num_latents: int) -> torch.Tensor:
        """See `TimeRotation`.

        Raises:
            ValueError: if the network has no such component.
        """
        component = self.component or component_of(own_K, self.repetition)
        if component > len(own_K):
            raise ValueError(f"rope_component = {component}: the network has {len(own_K)} components of time")
        period = rounded_period(float(own_K[component - 1]))
        return lowered(own_K, component, num_latents) if num_latents > period else own_K
