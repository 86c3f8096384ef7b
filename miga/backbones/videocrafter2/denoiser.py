"""VideoCrafter2's UNet as the sampler's `Denoiser`: every latent at its own level, guidance, clean latents out.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from miga.backbones.guided_denoiser import GuidedDenoiser, TextCondition
from miga.backbones.turns import Turn
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.frame_attention import FrameAttention, frame_call
from miga.frame_texts import FrameTexts, SeveralConditions, TextsOfFrames
from miga.schedule import NoiseSchedule


class VideoCrafter2Denoiser(GuidedDenoiser):
    """See `GuidedDenoiser`, which takes all but these three.

    Args:
        unet: predicts the noise.
        fps_condition: frames per second that the network is told.
        frame_texts: which text each frame of a window under several prompts stands under.
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
        *,
        frame_attention: FrameAttention | None = None,
        frame_texts: FrameTexts | None = None,
    ) -> None:
        self.unet = unet
        super().__init__(schedule, window, guidance_scale, guided_levels, turn, frame_attention)
        self.fps_condition = fps_condition
        self.frame_texts = frame_texts

    @torch.no_grad()
    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[TextCondition | SeveralConditions],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise `[B, C, F, H, W]`, float32, under the prompt (branch 0) or the negative prompt (1)."""
        assert position_BF is None, "the frames of this model carry no positions"
        x_BCFHW = x_BFCHW.transpose(1, 2).to(self.unet.dtype)
        timestep = self._timesteps(level_BF)
        told: dict[str, Any] = {}
        if self.frame_attention is not None:
            told["frames"] = frame_call(self.frame_attention, timestep)
        if branch == 0 and any(isinstance(condition, SeveralConditions) for condition in conditions):
            texts = [self._texts_of_frames(*pair) for pair in zip(conditions, level_BF, strict=True)]
            text_BLD = torch.cat([text.down_FLD for text in texts])
            told["up_context_BLD"] = torch.cat([text.up_FLD for text in texts]).to(x_BCFHW)
        else:
            text_BLD = torch.stack([one_of(condition)[branch] for condition in conditions])
        fps_B = torch.full((len(x_BCFHW),), self.fps_condition, device=x_BCFHW.device)
        with self.turn():
            return self.unet(x_BCFHW, timestep.to(x_BCFHW.device), text_BLD.to(x_BCFHW), fps_B, **told).float()

    def _texts_of_frames(self, condition: TextCondition | SeveralConditions, level_F: torch.Tensor) -> TextsOfFrames:
        """The prompt of every frame of a window."""
        if not isinstance(condition, SeveralConditions):
            text_FLD = condition[0].expand(len(level_F), -1, -1)
            return TextsOfFrames(text_FLD, text_FLD)
        assert self.frame_texts is not None, "nobody said which frames of the window stand under which prompt"
        step = self.schedule.num_steps - int(level_F.max())
        return self.frame_texts([each[0] for each in condition.conditions], len(level_F), step)

    def to_clean(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, prediction_BCFHW: torch.Tensor) -> torch.Tensor:
        """From the noise."""
        tables = (self.schedule.alpha, self.schedule.sigma)
        alpha, sigma = (self.schedule.at(table, level_BF, prediction_BCFHW) for table in tables)
        return (x_BFCHW.float() - sigma * prediction_BCFHW.transpose(1, 2)) / alpha

    def _timesteps(self, level_BF: torch.Tensor) -> torch.Tensor:
        """One per window `[B]` where its latents share a level (cheaper, the same result), else one each `[B, F]`."""
        timestep_BF = self.schedule.timestep[level_BF.cpu()]
        return timestep_BF[:, 0] if (timestep_BF == timestep_BF[:, :1]).all() else timestep_BF


def one_of(condition: TextCondition | SeveralConditions) -> TextCondition:
    """The condition whose negative prompt a window has."""
    one: TextCondition = condition.conditions[0] if isinstance(condition, SeveralConditions) else condition
    return one
