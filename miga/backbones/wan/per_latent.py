"""A time step for every latent, at the cost of one for all of them.

diffusers' Wan takes one time step per video, or one per token. The second way makes tensors of `[B, tokens, 6 * width]`
(1.2 GB at 480x832, and two copies in every block), though a latent's 1,560 tokens all share one time step.

Here every latent stands in the batch by itself instead: the blocks see `[B * F, tokens of a latent, width]` beside time
embeddings `[B * F, 1, 6, width]`, which broadcast. All that a block does token by token is then right as it stands.
Only attention goes across latents: its processors put the latents of a window together and take them apart again,
which moves no memory. Nothing is kept between calls and no parameter changes its name, so it bears compiled blocks
(`fullgraph=True`), copies of the module, gradient checkpointing, layerwise casting and LoRAs.

Legend: B windows, F latents, T tokens of a latent, D channels, U distinct (window, time step) pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTimeTextImageEmbedding
from torch import nn

from miga.backbones.wan.padding import has_compact_padding
from miga.backbones.wan.positions import CarryingRotary


def use_per_latent_timesteps(transformer: WanTransformer3DModel) -> None:
    """Makes a transformer take time steps `[B, F]`, one per latent; `[B]` stays possible.

    Where the latents of a window share a time step the result is that of `[B]` before, bit for bit. Weights and
    configuration stay the same. May be called before or after `use_compact_padding`.

    Args:
        transformer: changed in place; a second call does nothing.

    Raises:
        ValueError: if one of its tokens covers several latents.
    """
    if has_per_latent_timesteps(transformer):
        return
    if transformer.config.patch_size[0] != 1:
        raise ValueError(f"a token of this model covers {transformer.config.patch_size[0]} latents, not one")
    transformer.register_forward_pre_hook(_expand_timestep, with_kwargs=True)
    transformer.patch_embedding.register_forward_hook(_take_apart)
    transformer.condition_embedder.__class__ = _PerLatentEmbedding
    for block in transformer.blocks:
        block.attn1.set_processor(PerLatentAttention())
        if not has_compact_padding(transformer):  # whose processor takes latents apart too
            block.attn2.set_processor(PerLatentAttention())


def has_per_latent_timesteps(transformer: WanTransformer3DModel) -> bool:
    """Whether `use_per_latent_timesteps` has been called for it."""
    return isinstance(transformer.condition_embedder, _PerLatentEmbedding)


_PARAMETERS = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image", "return_dict")


def _expand_timestep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before the transformer: `timestep` as `[B, F]`."""
    kwargs = {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
    timestep, (batch, _, num_latents) = kwargs["timestep"], kwargs["hidden_states"].shape[:3]
    if timestep.dtype not in (torch.int64, torch.int32, torch.float32, torch.float64):
        raise ValueError(f"time steps must be whole numbers or float32: {timestep.dtype} rounds 993 to 992")
    if timestep.shape == (batch,):
        timestep = timestep[:, None].expand(batch, num_latents)
    if timestep.shape != (batch, num_latents):
        raise ValueError(
            f"time steps of shape {tuple(timestep.shape)} do not fit {batch} windows of {num_latents} latents: "
            f"[{batch}] or [{batch}, {num_latents}] do"
        )
    return (), {**kwargs, "timestep": timestep}


def _take_apart(module: nn.Module, args: tuple[torch.Tensor, ...], x_BDFHW: torch.Tensor) -> torch.Tensor:
    """After the patches are embedded: latents into the batch, `[B * F, D, T]`.

    The transformer flattens and transposes that to `[B * F, T, D]`, which is how the memory already lies.
    """
    num_latents = x_BDFHW.shape[2]
    x_BND = x_BDFHW.flatten(2).transpose(1, 2).contiguous()
    return x_BND.unflatten(1, (num_latents, -1)).flatten(0, 1).transpose(1, 2)


class _PerLatentEmbedding(WanTimeTextImageEmbedding):
    """The embedding of time steps and text; every distinct time step of a window is embedded once.

    Once per window, not once per call: as many rows go through the layers as without this module where levels are
    uniform, so that their matrix products round alike.
    """

    def forward(
        self,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        timestep_seq_len: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """`timestep` is `[B * F]`, `timestep_seq_len` F; time embeddings `[B * F, 1, D]` and `[B * F, 1, 6 * D]`."""
        assert timestep_seq_len is not None
        window = torch.arange(len(timestep), device=timestep.device) // timestep_seq_len
        pair_U2, index = torch.stack([window.to(timestep.dtype), timestep], dim=1).unique(dim=0, return_inverse=True)
        device = encoder_hidden_states.device
        temb_UD, projected_UD, text_BLD, image = super().forward(
            pair_U2[:, 1].to(device), encoder_hidden_states, encoder_hidden_states_image
        )
        index = index.to(device)
        return temb_UD[index, None], projected_UD[index, None], text_BLD, image


class PerLatentAttention(WanAttnProcessor):
    """diffusers' attention processor, over all latents of a window; any of its attention backends.

    Where the positions carry what stands in for attention (`wan/positions.py`), that is computed between the same
    projections, norms and rotations.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`hidden_states` is `[B * F, T, D]`; B is known from the text, F * T from the positions."""
        if encoder_hidden_states is not None:
            x_BND = hidden_states.reshape(encoder_hidden_states.shape[0], -1, hidden_states.shape[-1])
        else:
            assert rotary_emb is not None
            x_BND = hidden_states.reshape(-1, rotary_emb[0].shape[1], hidden_states.shape[-1])
        if isinstance(rotary_emb, CarryingRotary):
            return _attended(attn, x_BND, rotary_emb).reshape(hidden_states.shape)
        out_BND = super().__call__(attn, x_BND, encoder_hidden_states, attention_mask, rotary_emb)
        return out_BND.reshape(hidden_states.shape)


def _attended(attn: Any, x_BND: torch.Tensor, rotary: CarryingRotary) -> torch.Tensor:
    """Self-attention of diffusers' module, but for what stands in for the attention itself."""
    query_BND, key_BND, value_BND = (project(x_BND) for project in (attn.to_q, attn.to_k, attn.to_v))
    query, key, value = (
        each_BND.unflatten(2, (attn.heads, -1))
        for each_BND in (attn.norm_q(query_BND), attn.norm_k(key_BND), value_BND)
    )
    query, key = (_rotated(each, *rotary) for each in (query, key))
    out_BHND = rotary.attend(*(each.transpose(1, 2) for each in (query, key, value)))
    out_BND = out_BHND.transpose(1, 2).flatten(2, 3).type_as(query)
    for layer in attn.to_out:
        out_BND = layer(out_BND)
    return out_BND


def _rotated(x_BNHD: torch.Tensor, cos_BN1D: torch.Tensor, sin_BN1D: torch.Tensor) -> torch.Tensor:
    """Pairs of channels turned, as diffusers' processor does: its tables hold every value twice."""
    even, odd = x_BNHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_BN1D[..., 0::2], sin_BN1D[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x_BNHD)
