"""A third backbone, as small as one can be: the protocol by example. `docs/bring-your-own-model.md` quotes it whole.

Its network predicts the noise, as VideoCrafter2's does, and is exact: clean latents are normally distributed around
the colour that the prompt names. So it is known what every video must look like.

Legend: B windows in a batch, F latents, C = 3 channels (red, green, blue), H, W latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from miga.backbones.base import BackboneSpec, Component
from miga.config import SamplerConfig
from miga.errors import BadRowError
from miga.schedule import ddim_schedule

COLOURS = {"": (0.0, 0.0, 0.0), "red": (0.4, -0.4, -0.4), "sea green": (-0.3, 0.4, 0.2)}
STD = 0.1
"""Of the clean latents around their colour."""


def network(x_BFCHW: torch.Tensor, timestep_BF: torch.Tensor, colour_BC: torch.Tensor) -> torch.Tensor:
    """The noise in `x`: what a trained network would predict. Every latent has a time step of its own."""
    training = ddim_schedule(1000)  # time step t of 0 ... 999 is its level t + 1
    alpha, sigma = (training.at(table, timestep_BF + 1, x_BFCHW) for table in (training.alpha, training.sigma))
    mean = colour_BC[:, None, :, None, None]
    clean = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_BFCHW - alpha * mean)
    return (x_BFCHW - alpha * clean) / sigma


class TenLineDenoiser:
    """The network under a schedule and guidance: noise in, clean latents out."""

    def __init__(self, config: SamplerConfig) -> None:
        self.window, self.schedule, self.config = config.window, ddim_schedule(config.num_steps), config

    def __call__(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        timestep_BF, config = self.schedule.timestep[level_BF.cpu()], self.config
        eps, away = (network(x_BFCHW, timestep_BF, torch.stack(colours)) for colours in zip(*conditions, strict=True))
        is_guided_BF = (config.guidance_low_level <= level_BF) & (level_BF <= config.guidance_high_level)
        scale_BF = torch.where(is_guided_BF, config.guidance_scale, 1.0)
        eps = away + scale_BF[..., None, None, None] * (eps - away)
        alpha, sigma = (self.schedule.at(table, level_BF, eps) for table in (self.schedule.alpha, self.schedule.sigma))
        return (x_BFCHW - sigma * eps) / alpha


class TenLineBackbone:
    """See `miga.backbones.base.Backbone`."""

    spec = BackboneSpec(
        family="ten-line", name="ten-line", revision="1", window=6, latent_channels=3, latent_height=4, latent_width=6,
        height=32, width=48, fps=8, frames_per_latent=1, frames_first_latent=1, default_num_frames=20,
        forward_flops=1e4, sampler={"num_steps": 20, "guidance_scale": 2.0},
    )  # fmt: skip

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def check_prompt(self, prompt: str) -> None:
        if not prompt or prompt not in COLOURS:
            raise BadRowError(f"{prompt!r} is no colour that is known", f"known: {', '.join(filter(None, COLOURS))}")

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        return [torch.tensor(COLOURS[prompt]) for prompt in prompts]

    def condition(
        self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return prompt_embedding.to(self.device), negative_embedding.to(self.device)

    def denoiser(self, config: SamplerConfig) -> TenLineDenoiser:
        return TenLineDenoiser(config)

    def frame_decoder(self) -> TenLineBackbone:
        return self  # it keeps nothing of a video

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        pixels = x_FCHW.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).permute(0, 2, 3, 1)
        return ((pixels + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).cpu()


def load(*, components: Sequence[Component], device: torch.device, dtype: torch.dtype) -> TenLineBackbone:
    """What `model = "tests.ten_line_backbone:load"` calls. There are no weights to load here."""
    return TenLineBackbone(device)
