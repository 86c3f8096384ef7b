"""VideoCrafter2's UNet as the sampler's `Denoiser`: every latent at its own level, guidance, clean latents out.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from miga.backbones.guided_denoiser import GuidedDenoiser, TextCondition
from miga.backbones.turns import Turn
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.schedule import NoiseSchedule


class VideoCrafter2Denoiser(GuidedDenoiser):
    """See `GuidedDenoiser`, which takes all but these two.

    Args:
        unet: predicts the noise.
        fps_condition: frames per second that the network is told.
    """

    def __init__(
        self,
        unet: VideoCrafter2UNet,
        schedule: NoiseSchedule,
        window: int,
        guidance_scale: float,
        fps_condition: int,
        guided_levels: tuple[int, int] | None = None,
        turn: Turn = nullcontext,
    ) -> None:
        self.unet = unet
        super().__init__(schedule, window, guidance_scale, guided_levels, turn)
        self.fps_condition = fps_condition

    @torch.no_grad()
    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[TextCondition],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise `[B, C, F, H, W]`, float32, under the prompt (branch 0) or the negative prompt (1)."""
        assert position_BF is None, "the frames of this model carry no positions"
        x_BCFHW = x_BFCHW.transpose(1, 2).to(self.unet.dtype)
        timestep = self._timesteps(level_BF).to(x_BFCHW.device)
        with self.turn():
            return self._forward(x_BCFHW, timestep, [condition[branch] for condition in conditions])

    def to_clean(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, prediction_BCFHW: torch.Tensor) -> torch.Tensor:
        """From the noise."""
        tables = (self.schedule.alpha, self.schedule.sigma)
        alpha, sigma = (self.schedule.at(table, level_BF, prediction_BCFHW) for table in tables)
        return (x_BFCHW.float() - sigma * prediction_BCFHW.transpose(1, 2)) / alpha

    def _timesteps(self, level_BF: torch.Tensor) -> torch.Tensor:
        """One per window `[B]` where its latents share a level (cheaper, the same result), else one each `[B, F]`."""
        timestep_BF = self.schedule.timestep[level_BF.cpu()]
        return timestep_BF[:, 0] if (timestep_BF == timestep_BF[:, :1]).all() else timestep_BF

    def _forward(self, x_BCFHW: torch.Tensor, timestep: torch.Tensor, texts_LD: Sequence[torch.Tensor]) -> torch.Tensor:
        text_BLD = torch.stack(list(texts_LD)).to(x_BCFHW.device, x_BCFHW.dtype)
        fps_B = torch.full((len(x_BCFHW),), self.fps_condition, device=x_BCFHW.device)
        return self.unet(x_BCFHW, timestep, text_BLD, fps_B).float()
