"""Wan's transformer as the sampler's `Denoiser`: every latent at its own level, guidance, clean latents out.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional

from miga.backbones.turns import Turn
from miga.backbones.wan_padding import has_compact_padding
from miga.backbones.wan_per_latent import use_per_latent_timesteps
from miga.backbones.wan_spec import NUM_TEXT_TOKENS
from miga.errors import NonFiniteError
from miga.schedule import NoiseSchedule

WanCondition = tuple[torch.Tensor, torch.Tensor]
"""Text embeddings `[L, D]` of the prompt and of the negative prompt, without their padding."""


class WanDenoiser:
    """See `miga.backbones.base.BranchedDenoiser`.

    Args:
        transformer: predicts `noise - clean`; is made to take time steps per latent (see `wan_per_latent.py`).
        schedule: what the levels stand for.
        window: most latents of a call.
        guidance_scale: of classifier-free guidance; 1 means one forward a call instead of two.
        guided_levels: it acts on latents of these levels alone, first and last included; None for all. A call without
            any such latent takes one forward.
        turn: what a forward has to wait for.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        schedule: NoiseSchedule,
        window: int,
        guidance_scale: float,
        guided_levels: tuple[int, int] | None = None,
        turn: Turn = nullcontext,
    ) -> None:
        use_per_latent_timesteps(transformer)
        self.transformer = transformer
        self.schedule = schedule
        self.window = window
        self.guidance_scale = guidance_scale
        self.guided_levels = guided_levels or (0, schedule.num_steps)
        self.turn = turn

    def __call__(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[WanCondition]
    ) -> torch.Tensor:
        """Predicted clean latents, float32.

        Raises:
            NonFiniteError: if the network returns NaN or infinity.
        """
        branches = range(self.num_branches(level_BF))
        predictions = [self.predict_branch(x_BFCHW, level_BF, conditions, branch) for branch in branches]
        return self.combine(x_BFCHW, level_BF, predictions)

    def num_branches(self, level_BF: torch.Tensor) -> int:
        """See `BranchedDenoiser`."""
        return 2 if self.guidance_scale != 1.0 and bool(self._is_guided(level_BF).any()) else 1

    @torch.no_grad()
    def predict_branch(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[WanCondition], branch: int
    ) -> torch.Tensor:
        """Velocity `[B, C, F, H, W]`, float32, under the prompt (branch 0) or the negative prompt (1)."""
        x_BCFHW = x_BFCHW.transpose(1, 2).to(self.transformer.dtype)
        timestep_BF = self.schedule.timestep[level_BF.cpu()]  # float32 or whole numbers: bfloat16 rounds 993 to 992
        with self.turn():
            return self._forward(x_BCFHW, timestep_BF, [condition[branch] for condition in conditions])

    @torch.no_grad()
    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """See `BranchedDenoiser`.

        Raises:
            NonFiniteError: if the network returned NaN or infinity.
        """
        velocity = predictions[0]
        if len(predictions) > 1:
            away = predictions[1]
            scale_BF = 1.0 + (self.guidance_scale - 1.0) * self._is_guided(level_BF).to(velocity)
            velocity = away + scale_BF[:, None, :, None, None] * (velocity - away)
        sigma = self.schedule.at(self.schedule.sigma, level_BF, velocity)
        clean_BFCHW = x_BFCHW.float() - sigma * velocity.transpose(1, 2)
        if not torch.isfinite(clean_BFCHW).all():
            raise NonFiniteError(
                "the network returned NaN or infinity",
                hint="if it happens to every row, the weights are broken or do not bear the dtype: try float32",
            )
        return clean_BFCHW

    def _is_guided(self, level_BF: torch.Tensor) -> torch.Tensor:
        return (self.guided_levels[0] <= level_BF) & (level_BF <= self.guided_levels[1])

    def _forward(
        self, x_BCFHW: torch.Tensor, timestep_BF: torch.Tensor, texts_LD: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        text_BLD = torch.nn.utils.rnn.pad_sequence(list(texts_LD), batch_first=True)
        if not has_compact_padding(self.transformer):
            text_BLD = functional.pad(text_BLD, (0, 0, 0, NUM_TEXT_TOKENS - text_BLD.shape[1]))
        text_BLD = text_BLD.to(x_BCFHW.device, x_BCFHW.dtype)
        return self.transformer(x_BCFHW, timestep_BF, text_BLD, return_dict=False)[0].float()
