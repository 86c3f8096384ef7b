"""Wan's transformer as the sampler's `Denoiser`: every latent at its own level, guidance, clean latents out.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional

from miga.backbones.guided_denoiser import GuidedDenoiser, TextCondition, require_finite
from miga.backbones.turns import Turn
from miga.backbones.wan.causal.cache import KvCache
from miga.backbones.wan.causal.network import CausalWan
from miga.backbones.wan.padding import has_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.positions import positions, use_positions
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from miga.cached_call import CachedCall, TimeFrequencies
from miga.schedule import NoiseSchedule


class WanDenoiser(GuidedDenoiser):
    """See `GuidedDenoiser`, which takes all but the first.

    Args:
        transformer: predicts `noise - clean`; is made to take time steps per latent (see `wan/per_latent.py`) and
            positions (`wan/positions.py`).
        compiled: whether its calls with a cache are compiled.
    """

    takes_positions = True

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        schedule: NoiseSchedule,
        window: int,
        guidance_scale: float,
        guided_levels: tuple[int, int] | None = None,
        turn: Turn = nullcontext,
        *,
        compiled: bool = False,
    ) -> None:
        use_per_latent_timesteps(transformer)
        use_positions(transformer)
        self.transformer = transformer
        self._causal = CausalWan(transformer, compiled=compiled)
        super().__init__(schedule, window, guidance_scale, guided_levels, turn)

    @torch.no_grad()
    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[TextCondition],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity `[B, C, F, H, W]`, float32, under the prompt (branch 0) or the negative prompt (1)."""
        x_BCFHW = x_BFCHW.transpose(1, 2).to(self.transformer.dtype)
        timestep_BF = self.schedule.timestep[level_BF.cpu()]  # float32 or whole numbers: bfloat16 rounds 993 to 992
        with self.turn(), positions(position_BF):
            return self._forward(x_BCFHW, timestep_BF, [condition[branch] for condition in conditions])

    def open_cache(
        self,
        num_slots: int,
        latent_size: tuple[int, int],
        *,
        batch: int = 1,
        time_frequencies: TimeFrequencies | None = None,
    ) -> KvCache:
        """See `CachedDenoiser.open_cache`."""
        return self._causal.open_cache(num_slots, latent_size, batch=batch, time_frequencies=time_frequencies)

    @torch.no_grad()
    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[TextCondition]) -> torch.Tensor:
        """See `CachedDenoiser.call_cached`."""
        with self.turn():
            velocity_BFCHW = self._causal(x_BFCHW, call, [condition[0] for condition in conditions], NUM_TEXT_TOKENS)
        sigma_F111 = torch.tensor(call.sigmas, dtype=torch.float64, device=x_BFCHW.device)[:, None, None, None]
        clean_BFCHW = (x_BFCHW.double() - sigma_F111 * velocity_BFCHW.double()).float()
        require_finite(clean_BFCHW)
        return clean_BFCHW

    def to_clean(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, prediction_BCFHW: torch.Tensor) -> torch.Tensor:
        """From the velocity `noise - clean`."""
        sigma = self.schedule.at(self.schedule.sigma, level_BF, prediction_BCFHW)
        return x_BFCHW.float() - sigma * prediction_BCFHW.transpose(1, 2)

    def _forward(
        self, x_BCFHW: torch.Tensor, timestep_BF: torch.Tensor, texts_LD: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        text_BLD = torch.nn.utils.rnn.pad_sequence(list(texts_LD), batch_first=True)
        if not has_compact_padding(self.transformer):
            text_BLD = functional.pad(text_BLD, (0, 0, 0, NUM_TEXT_TOKENS - text_BLD.shape[1]))
        text_BLD = text_BLD.to(x_BCFHW.device, x_BCFHW.dtype)
        return self.transformer(x_BCFHW, timestep_BF, text_BLD, return_dict=False)[0].float()
