"""The calls of a model's network that are timed against each other: one window, synthetic inputs, no sampler around it.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch

from jobs.benches.device_clock import Call
from miga.backbones.random_model import RandomModel
from miga.config import SamplerConfig
from miga.profiles import resolve_config

UNIFORM: Final = "one time step"
PER_LATENT: Final = "a time step per latent"
ONE_BY_ONE: Final = "two branches, one after the other"
BATCHED: Final = "two branches, in one batch"
WINDOW_TWO: Final = "window call, two branches"
WINDOW_ONE: Final = "window call, one branch"

NUM_FORWARDS: Final = {ONE_BY_ONE: 2, BATCHED: 2, WINDOW_TWO: 2}
"""Forwards of one window in a call; one where it is not named."""


class NetworkCalls:
    """Inputs of one window at the published mix of levels, and what can be done with them.

    Attributes:
        model: whose network it is.
        config: profile `paper`.
    """

    def __init__(self, model: RandomModel) -> None:
        self.model, self.backbone = model, model.backbone
        self.config: SamplerConfig = resolve_config("paper", model.spec)
        self.denoiser = self.backbone.denoiser(self.config)
        generator = torch.Generator().manual_seed(1)
        shape = (1, self.config.window, *model.spec.latent_shape)
        self.x_BFCHW = torch.randn(shape, generator=generator).to(self.backbone.device)
        step_F = torch.arange(self.config.window) // self.config.zigzag_width
        self.level_BF = (self.config.handoff_level + step_F)[None].clamp(max=self.config.num_steps)
        self.texts_LD = model.embeddings()
        self.condition = self.backbone.condition(*self.texts_LD)

    def forwards(self) -> dict[str, Call]:
        """The network alone: time steps for a clip and for a latent, one branch and two."""
        model, (text_LD, negative_LD) = self.model, self.texts_LD
        x_BCFHW = self.x_BFCHW.transpose(1, 2).to(self.backbone.network.dtype)
        timestep_B, timestep_BF = self._timesteps
        return {
            **model.reference_forwards(x_BCFHW, timestep_B, timestep_BF, text_LD),
            UNIFORM: lambda: model.forward(x_BCFHW, timestep_B, [text_LD]),
            PER_LATENT: lambda: model.forward(x_BCFHW, timestep_BF, [text_LD]),
            ONE_BY_ONE: lambda: [model.forward(x_BCFHW, timestep_BF, [each]) for each in (text_LD, negative_LD)],
            BATCHED: lambda: model.forward(x_BCFHW, timestep_BF, [text_LD, negative_LD]),
        }

    def windows(self) -> dict[str, Call]:
        """The denoiser as the sampler calls it, with classifier-free guidance and without."""
        unguided = self.backbone.denoiser(replace(self.config, guidance_scale=1.0))
        return {WINDOW_TWO: lambda: self._window(self.denoiser), WINDOW_ONE: lambda: self._window(unguided)}

    def _window(self, denoiser: Any) -> torch.Tensor:
        clean: torch.Tensor = denoiser(self.x_BFCHW, self.level_BF, [self.condition])
        return clean

    @property
    def _timesteps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`[1]`, the lowest, and `[1, F]`, on the CPU."""
        timestep_BF = self.denoiser.schedule.timestep[self.level_BF]
        return timestep_BF[:, 0], timestep_BF
