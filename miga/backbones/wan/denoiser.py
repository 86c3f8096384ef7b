"""Wan's transformer as the sampler's `Denoiser`: every latent at its own level, guidance, clean latents out.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional

from miga.backbones.guided_denoiser import GuidedDenoiser, TextCondition, require_finite
from miga.backbones.turns import Turn
from miga.backbones.wan.causal.cache import KvCache
from miga.backbones.wan.causal.network import CausalWan
from miga.backbones.wan.experts import Experts
from miga.backbones.wan.padding import has_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.positions import positions, use_positions
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from miga.cached_call import CachedCall, TimeFrequencies
from miga.errors import BadRowError
from miga.frame_attention import FrameAttention, frame_call
from miga.schedule import NoiseSchedule
from miga.time_rotation import TimeRotation


class WanCondition(NamedTuple):
    """What the network reads beside the latents.

    Attributes:
        prompt, negative: text embeddings `[L, D]`.
        tokens_LD: of a picture; None of a model that reads none.
    """

    prompt: torch.Tensor
    negative: torch.Tensor
    tokens_LD: torch.Tensor | None = None


class WanDenoiser(GuidedDenoiser):
    """See `GuidedDenoiser`, which takes all but the first and the last two.

    Where the network takes a picture as channels, latents come with those behind their own, and go without.

    Args:
        transformer: predicts `noise - clean`; is made to take time steps per latent (see `wan/per_latent.py`) and
            positions (`wan/positions.py`). Or the two of Wan2.2: of a window that holds levels of both, both are asked,
            and every latent gets the answer of its own.
        low_noise_guidance: guidance scale of the second, as a share of the first one's; never below 1.
        clean_at_0: whether the network was trained to see clean latents at time step 0; else they have level 1's.
        compiled: whether its calls with a cache are compiled.
        frame_attention: what stands in for self-attention (see `GuidedDenoiser`).
        time_rotation: frequencies of time in the place of the network's own; None: those.
    """

    takes_positions = True

    def __init__(
        self,
        transformer: WanTransformer3DModel | Experts,
        schedule: NoiseSchedule,
        window: int,
        guidance_scale: float,
        guided_levels: tuple[int, int] | None = None,
        turn: Turn = nullcontext,
        *,
        low_noise_guidance: float = 1.0,
        clean_at_0: bool = False,
        compiled: bool = False,
        frame_attention: FrameAttention | None = None,
        time_rotation: TimeRotation | None = None,
    ) -> None:
        self.experts = transformer if isinstance(transformer, Experts) else Experts(transformer)
        for network in self.experts.all:
            use_per_latent_timesteps(network)
            use_positions(network)
        self._compiled = compiled
        self.time_rotation = time_rotation
        config = self.experts.high.config
        self._num_channels = config.out_channels or config.in_channels
        self._num_input_channels = config.in_channels
        self._reads_tokens = config.image_dim is not None
        self._timestep_of_level = schedule.timestep.clone()  # float32 or whole numbers: bfloat16 rounds 993 to 992
        if clean_at_0:
            self._timestep_of_level[0] = 0
        self._expert_of_level = self.experts.number_of(schedule)
        self._low_guidance_scale = max(1.0, guidance_scale * low_noise_guidance) if guidance_scale > 1.0 else 1.0
        super().__init__(schedule, window, guidance_scale, guided_levels, turn, frame_attention)

    @torch.no_grad()
    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[TextCondition | WanCondition],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity `[B, C, F, H, W]`, float32, under the prompt (branch 0) or the negative prompt (1)."""
        self._check(x_BFCHW, conditions)
        level_BF = level_BF.cpu()
        timestep_BF = self._timestep_of_level[level_BF]
        expert_BF = self._expert_of_level[level_BF]
        frames = frame_call(self.frame_attention, timestep_BF)
        with self.turn(), positions(position_BF, self.time_rotation, frames):
            answers = {
                number: self._forward(number, x_BFCHW, timestep_BF, conditions, branch)
                for number in sorted(set(expert_BF.flatten().tolist()))
            }
        if len(answers) == 1:
            return next(iter(answers.values()))
        is_low = (expert_BF == 1)[:, None, :, None, None].to(x_BFCHW.device)
        return torch.where(is_low, answers[1], answers[0])

    @functools.cached_property
    def _causal(self) -> CausalWan:
        return CausalWan(self.experts.high, compiled=self._compiled)

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
        return x_BFCHW[:, :, : self._num_channels].float() - sigma * prediction_BCFHW.transpose(1, 2)

    def scale_of(self, level_BF: torch.Tensor) -> torch.Tensor | float:
        """See `GuidedDenoiser.scale_of`: of the expert that answers."""
        if self._low_guidance_scale == self.guidance_scale or self.experts.low is None:
            return self.guidance_scale
        is_low_BF = self._expert_of_level[level_BF.cpu()] == 1
        scales = torch.tensor([self.guidance_scale, self._low_guidance_scale])
        return scales[is_low_BF.long()].to(level_BF.device)

    def _check(self, x_BFCHW: torch.Tensor, conditions: Sequence[Any]) -> None:
        """Refuses a window that comes without the picture that the network needs.

        Raises:
            BadRowError: naming what to give.
        """
        lacks_channels = x_BFCHW.shape[2] != self._num_input_channels
        if lacks_channels or (self._reads_tokens and any(len(each) < 3 or each[2] is None for each in conditions)):
            raise BadRowError(
                "this model makes videos from a picture, and none is given", "give the row an image, or --image"
            )
        positions = self.experts.high.config.pos_embed_seq_len
        if self._reads_tokens and positions is not None and any(len(each[2]) != positions for each in conditions):
            raise BadRowError(
                "this model makes videos between two pictures, and one is given", "give the row a last_image too"
            )

    def _forward(
        self, number: int, x_BFCHW: torch.Tensor, timestep_BF: torch.Tensor, conditions: Sequence[Any], branch: int
    ) -> torch.Tensor:
        with self.experts.asked(number) as transformer:
            x_BCFHW = x_BFCHW.transpose(1, 2).to(transformer.dtype)
            texts_LD = [condition[branch] for condition in conditions]
            text_BLD = torch.nn.utils.rnn.pad_sequence(texts_LD, batch_first=True)
            if not has_compact_padding(transformer):
                text_BLD = functional.pad(text_BLD, (0, 0, 0, NUM_TEXT_TOKENS - text_BLD.shape[1]))
            text_BLD = text_BLD.to(x_BCFHW.device, x_BCFHW.dtype)
            tokens = None
            if self._reads_tokens:  # of two pictures [B, 2 * tokens, D], which the embedder takes as [2 * B, tokens, D]
                tokens = torch.stack([condition[2] for condition in conditions]).to(x_BCFHW.device, x_BCFHW.dtype)
                if transformer.condition_embedder.image_embedder.pos_embed is not None:
                    tokens = tokens.unflatten(1, (2, -1)).flatten(0, 1)
            velocity: torch.Tensor = transformer(x_BCFHW, timestep_BF, text_BLD, tokens, return_dict=False)[0]
            return velocity.float()
