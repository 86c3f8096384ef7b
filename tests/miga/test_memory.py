"""A video without end is made in memory that does not grow: late in it as many bytes of tensors are alive as early."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.video import Progress, make_video
from tests.miga.closed_form import SHAPE, GaussianDenoiser, make_config, make_fifo_config

PERIOD = 12
"""Latents after which groups of 2, windows of stride 3 and the meter's chunks of 4 stand as they stood before."""
EARLY, LATE = 132, 504
"""Latents of about 500 and 2,000 frames; multiples of `PERIOD`."""


class RepeatDecoder:
    """Four frames a latent that carry its values, and a memory of the last latent, as a causal VAE has."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        self._last = x_FCHW[-1].clone()
        pixels = (x_FCHW[:, :3].permute(0, 2, 3, 1) * 50.0 + 128.0).clamp(0, 255).to(torch.uint8)
        return pixels.repeat_interleave(4, dim=0)


def endless(config: SamplerConfig) -> Iterator[Progress]:
    channels, height, width = SHAPE
    spec = BackboneSpec(
        family="wan", name="closed form", revision="", window=config.window, latent_channels=channels,
        latent_height=height, latent_width=width, height=height, width=width, fps=16,
    )  # fmt: skip
    backbone: Any = SimpleNamespace(
        spec=spec,
        device=torch.device("cpu"),
        condition=lambda positive, negative: 0.5,
        denoiser=GaussianDenoiser,
        frame_decoder=RepeatDecoder,
    )
    nothing = torch.zeros(0)
    return make_video(backbone, config, [nothing], nothing, num_latents=None, seed=0)


@pytest.fixture(autouse=True)
def only_new_objects() -> Iterator[None]:
    """Hides all that is alive already from the collector, which makes counting quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def alive() -> tuple[int, int]:
    """Bytes of all tensors, shared storage counted once, and the number of objects that hold others."""
    gc.collect()
    objects = gc.get_objects()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in objects
        if type(tensor) is torch.Tensor
    }
    return sum(storages.values()), len(objects)


@pytest.mark.parametrize(
    ("config", "searches"),
    [
        (make_config(self_reflection=True, reflection_threshold=0.0), True),
        (make_config(), False),
        (make_fifo_config(), False),
    ],
    ids=["with reflection", "without", "fifo"],
)
@pytest.mark.slow
def test_what_is_alive_does_not_grow_with_the_video(config: SamplerConfig, searches: bool) -> None:
    seen: dict[int, list[tuple[int, int]]] = {EARLY: [], LATE: []}
    num_searches = 0
    for step in itertools.takewhile(lambda step: step.num_latents_done <= LATE, endless(config)):
        num_searches += sum(step.trace.searched)
        for mark, counts in seen.items():
            if mark - PERIOD < step.num_latents_done <= mark:
                counts.append(alive())
    early, late = (tuple(map(max, zip(*counts, strict=True))) for counts in seen.values())
    assert early[0] > config.window * math.prod(SHAPE) * 4, "the queue itself must have been counted"
    assert late[0] == early[0]
    assert late[1] - early[1] < (LATE - EARLY) // PERIOD, "one object kept per period would be as many"
    assert bool(num_searches) == searches
