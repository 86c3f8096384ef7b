"""The calls of a model's network that are timed against each other: one window, synthetic inputs, no sampler around it.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.benches.device_clock import Call
from miga.backbones.random_model import RandomModel, plain_twin
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.wan import WanBackbone
from miga.backbones.wan_attention import attention_backends
from miga.backbones.wan_per_latent import use_per_latent_timesteps
from miga.backbones.wan_spec import NUM_TEXT_TOKENS
from miga.config import SamplerConfig
from miga.profiles import resolve_config

PLAIN: Final = "diffusers' own, one time step"
PER_TOKEN: Final = "diffusers' own, a time step per token"
UNIFORM: Final = "one time step"
PER_LATENT: Final = "a time step per latent"
ONE_BY_ONE: Final = "two branches, one after the other"
BATCHED: Final = "two branches, in one batch"
WINDOW_TWO: Final = "window call, two branches"
WINDOW_ONE: Final = "window call, one branch"

NUM_FORWARDS: Final = {ONE_BY_ONE: 2, BATCHED: 2, WINDOW_TWO: 2}
"""Forwards of one window in a call; one where it is not named."""

_SDPA: Final = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""PyTorch's own kernels of attention."""


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
        return self._wan_forwards() if isinstance(self.backbone, WanBackbone) else self._unet_forwards()

    def windows(self) -> dict[str, Call]:
        """The denoiser as the sampler calls it, with classifier-free guidance and without."""
        unguided = self.backbone.denoiser(replace(self.config, guidance_scale=1.0))
        return {WINDOW_TWO: lambda: self._window(self.denoiser), WINDOW_ONE: lambda: self._window(unguided)}

    def attention_backends(self) -> list[str]:
        """Names that `attention` takes."""
        return attention_backends() if isinstance(self.backbone, WanBackbone) else list(_SDPA)

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """Inside, self-attention is computed by that backend.

        Raises:
            ModelError: if it does not work here (Wan).
        """
        if isinstance(self.backbone, WanBackbone):
            self.backbone.set_attention_backend(name)
            try:
                yield
            finally:
                self.backbone.set_attention_backend("native")
        else:
            with sdpa_kernel(_SDPA[name]):
                yield

    def compile(self) -> None:
        """Compiles the network's repeated blocks, for good: Wan's as the product does, the UNet's here alone."""
        if isinstance(self.backbone, WanBackbone):
            self.backbone.compile()
        else:
            self.backbone.network.compile()

    def _window(self, denoiser: Any) -> torch.Tensor:
        clean: torch.Tensor = denoiser(self.x_BFCHW, self.level_BF, [self.condition])
        return clean

    @property
    def _timesteps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`[1]`, the lowest, and `[1, F]`, on the CPU."""
        timestep_BF = self.denoiser.schedule.timestep[self.level_BF]
        return timestep_BF[:, 0], timestep_BF

    def _wan_forwards(self) -> dict[str, Call]:
        assert isinstance(self.backbone, WanBackbone)
        ours, plain = self.backbone.network, plain_twin(self.backbone.network)
        use_per_latent_timesteps(ours)
        x_BCFHW = self.x_BFCHW.transpose(1, 2).to(ours.dtype)
        timestep_B, timestep_BF = self._timesteps
        tokens = (self.x_BFCHW.shape[-2] // 2) * (self.x_BFCHW.shape[-1] // 2)
        plain_B, plain_BN = (each.to(x_BCFHW.device) for each in (timestep_B, timestep_BF.repeat_interleave(tokens, 1)))
        texts_BLD = [text_LD[None].to(x_BCFHW) for text_LD in self.texts_LD]
        padded_BLD = functional.pad(texts_BLD[0], (0, 0, 0, NUM_TEXT_TOKENS - texts_BLD[0].shape[1]))
        both_BLD = torch.nn.utils.rnn.pad_sequence([text[0] for text in texts_BLD], batch_first=True)

        def forward(network: Any, timestep: torch.Tensor, text_BLD: torch.Tensor) -> torch.Tensor:
            x = x_BCFHW.expand(len(text_BLD), -1, -1, -1, -1)
            return network(x, timestep.expand(len(text_BLD), *timestep.shape[1:]), text_BLD, return_dict=False)[0]

        return {
            PLAIN: lambda: forward(plain, plain_B, padded_BLD),
            PER_TOKEN: lambda: forward(plain, plain_BN, padded_BLD),
            UNIFORM: lambda: forward(ours, timestep_B, texts_BLD[0]),
            PER_LATENT: lambda: forward(ours, timestep_BF, texts_BLD[0]),
            ONE_BY_ONE: lambda: [forward(ours, timestep_BF, text_BLD) for text_BLD in texts_BLD],
            BATCHED: lambda: forward(ours, timestep_BF, both_BLD),
        }

    def _unet_forwards(self) -> dict[str, Call]:
        assert isinstance(self.backbone, VideoCrafter2Backbone)
        unet, settings = self.backbone.network, self.backbone.settings
        assert unet is not None
        x_BCFHW = self.x_BFCHW.transpose(1, 2).to(unet.dtype)
        timestep_B, timestep_BF = (each.to(x_BCFHW.device) for each in self._timesteps)
        text_BLD = torch.stack(list(self.texts_LD)).to(x_BCFHW)
        fps_B = torch.full((2,), settings.fps_condition, device=x_BCFHW.device)

        def forward(timestep: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            x = x_BCFHW.expand(len(rows), -1, -1, -1, -1)
            return unet(x, timestep.expand(len(rows), *timestep.shape[1:]), text_BLD[list(rows)], fps_B[: len(rows)])

        return {
            UNIFORM: lambda: forward(timestep_B, [0]),
            PER_LATENT: lambda: forward(timestep_BF, [0]),
            ONE_BY_ONE: lambda: [forward(timestep_BF, [row]) for row in (0, 1)],
            BATCHED: lambda: forward(timestep_BF, [0, 1]),
        }
