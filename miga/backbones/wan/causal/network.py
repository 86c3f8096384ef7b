"""Wan's transformer over a few latents that see those of a cache: the same weights and the same arithmetic.

It runs the parts of diffusers' `WanTransformer3DModel` itself, so the module stays what it is for all other methods:
no hook, no attention processor and no parameter is changed. Two things are as in the programs that causal weights come
from, and not as in diffusers: the sinusoids of a time step are computed in float64 (float32 ones are 4e-5 off in the
result), and positions have no last one.

Legend: B videos, F latents of the call, T tokens of a latent, N tokens, H heads, D channels, C latent channels, L text
tokens, K pairs of channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.nn import functional

from miga.backbones.wan.causal.cache import JoinedCaches, KvCache
from miga.backbones.wan.causal.rope import Rope, Turns, axis_channels, frequencies, turned
from miga.backbones.wan.padding import has_compact_padding
from miga.cached_call import CachedCall, TimeFrequencies

Part: TypeAlias = Callable[..., Any]
AnyCache: TypeAlias = KvCache | JoinedCaches


class CausalWan:
    """A transformer's calls with a cache.

    Args:
        transformer: of text-to-video weights; not changed.
        compiled: whether a block's parts around its attention are compiled, one for all blocks.

    Raises:
        ValueError: if one of its tokens covers several latents, or it is conditioned on images.
    """

    def __init__(self, transformer: WanTransformer3DModel, *, compiled: bool = False) -> None:
        if transformer.config.patch_size[0] != 1:
            raise ValueError(f"a token of this model covers {transformer.config.patch_size[0]} latents, not one")
        if transformer.condition_embedder.image_embedder is not None:
            raise ValueError("a cache is for models that are conditioned on text alone")
        self.transformer = transformer
        parts: tuple[Part, Part] = compiled_parts() if compiled else (before_attention, behind_attention)
        self._before, self._behind = parts

    def open_cache(
        self,
        num_slots: int,
        latent_size: tuple[int, int],
        *,
        batch: int = 1,
        time_frequencies: TimeFrequencies | None = None,
    ) -> KvCache:
        """An empty cache.

        Args:
            num_slots: latents that it holds.
            latent_size: height and width of a latent.
            batch: videos.
            time_frequencies: other frequencies of time than the model's own.
        """
        config, transformer = self.transformer.config, self.transformer
        heads, head_channels = config.num_attention_heads, config.attention_head_dim
        rows, columns = (size // patch for size, patch in zip(latent_size, config.patch_size[1:], strict=True))
        own_K = frequencies(axis_channels(head_channels)[0])
        time = own_K if time_frequencies is None else time_frequencies(config.num_layers, heads, own_K)
        time_LHK = time if time.dim() == 3 else time[None, None]
        rope = Rope.of(head_channels, rows, columns, time_LHK, transformer.device, transformer.dtype)
        return KvCache(
            batch, num_slots, config.num_layers, heads, head_channels, rows * columns, rope, transformer.dtype,
            transformer.device,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self, x_BFCHW: torch.Tensor, call: CachedCall, texts_LD: Sequence[torch.Tensor], num_text_tokens: int
    ) -> torch.Tensor:
        """The velocity `noise - clean` `[B, F, C, H, W]`, float32; the cache keeps what the call says.

        Args:
            x_BFCHW: the latents.
            call: what they see, and when they are.
            texts_LD: a prompt's embedding for every video.
            num_text_tokens: that texts are padded to with zeros, which take part.
        """
        transformer, cache = self.transformer, call.cache
        if x_BFCHW.shape[1] != len(call.timesteps) or len(texts_LD) != len(x_BFCHW):
            raise ValueError(
                f"latents {list(x_BFCHW.shape)} for {len(call.timesteps)} time steps, {len(texts_LD)} texts"
            )
        x_BFTD = self._patches(x_BFCHW)
        temb_1FD, modulation = self._time(call.timesteps, x_BFTD)
        text = self._text(cache, texts_LD, num_text_tokens)
        turns: tuple[Turns, Turns | None] | None = None
        for layer, block in enumerate(transformer.blocks):
            if turns is None or cache.rope.is_per_layer or call.compression is not None:
                turns = self._turns(cache, layer, call)
            x_BFTD = self._block(layer, block, x_BFTD, modulation, text[layer], call, turns)
        shift, scale = (transformer.scale_shift_table + temb_1FD[:, :, None]).chunk(2, dim=2)
        x_BFTD = (transformer.norm_out(x_BFTD.float()) * (1 + scale) + shift).type_as(x_BFTD)
        return self._pixels(transformer.proj_out(x_BFTD), x_BFCHW.shape).float()

    def masked(
        self,
        x_BFCHW: torch.Tensor,
        timestep_BF: torch.Tensor,
        position_F: torch.Tensor,
        may_see_FF: torch.Tensor | None,
        text_BLD: torch.Tensor,
        num_text_tokens: int,
    ) -> torch.Tensor:
        """The velocity `[B, F, C, H, W]`, float32, of latents that see each other by a mask, without any cache.

        Gradients flow: it is what causal weights are trained with. A latent that sees clean latents at time step 0 is
        what a call before a cache of them gives.

        Args:
            x_BFCHW: the latents.
            timestep_BF: the time step of each.
            position_F: of each in time.
            may_see_FF: whether a latent (row) sees another (column); None: all see all.
            text_BLD: a prompt's embedding for every video, padded with zeros.
            num_text_tokens: that texts are padded to with zeros, which take part.
        """
        transformer = self.transformer
        x_BFTD = self._patches(x_BFCHW)
        temb_BFD, modulation = time_of(transformer, timestep_BF.double(), x_BFTD)
        text = text_of(transformer, text_BLD, num_text_tokens)
        config, tokens = transformer.config, x_BFTD.shape[2]
        rows, columns = (size // patch for size, patch in zip(x_BFCHW.shape[-2:], config.patch_size[1:], strict=True))
        time_K = frequencies(axis_channels(config.attention_head_dim)[0])
        rope = Rope.of(config.attention_head_dim, rows, columns, time_K[None, None], x_BFTD.device, torch.float32)
        turns = rope.turns(0, position_F.double())
        mask = None
        if may_see_FF is not None:
            mask = may_see_FF.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1).to(x_BFTD.device)
        for block, of_layer in zip(transformer.blocks, text, strict=True):
            query, key, value, gates = before_attention(block, x_BFTD, modulation)
            query, key, value = (each.transpose(1, 2) for each in (turned(query, turns), turned(key, turns), value))
            out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            x_BFTD = behind_attention(block, x_BFTD, out.transpose(1, 2), gates, of_layer)
        shift, scale = (transformer.scale_shift_table + temb_BFD[:, :, None]).chunk(2, dim=2)
        x_BFTD = (transformer.norm_out(x_BFTD.float()) * (1 + scale) + shift).type_as(x_BFTD)
        return self._pixels(transformer.proj_out(x_BFTD), x_BFCHW.shape).float()

    # ---- around the blocks ----

    def _patches(self, x_BFCHW: torch.Tensor) -> torch.Tensor:
        embedding = self.transformer.patch_embedding
        x_NCHW = x_BFCHW.flatten(0, 1).to(embedding.weight.dtype)
        weight, stride = embedding.weight[:, :, 0], embedding.stride[1:]
        x_NDHW = functional.conv2d(x_NCHW, weight, embedding.bias, stride)  # not the module: it may have hooks
        return x_NDHW.flatten(2).transpose(1, 2).unflatten(0, x_BFCHW.shape[:2]).contiguous()

    def _pixels(self, x_BFTD: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        _, patch_height, patch_width = self.transformer.config.patch_size
        height, width = shape[-2] // patch_height, shape[-1] // patch_width
        x = x_BFTD.unflatten(3, (patch_height, patch_width, -1)).unflatten(2, (height, width))
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _time(self, timesteps: Sequence[float], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `[1, F, D]` and their modulation `[1, F, 1, 6, D]` of every latent's time step."""
        return time_of(self.transformer, torch.tensor(timesteps, dtype=torch.float64)[None], like)

    def _text(
        self, cache: AnyCache, texts_LD: Sequence[torch.Tensor], num_text_tokens: int
    ) -> list[tuple[torch.Tensor, ...]]:
        """Keys and values of the prompts in every layer; computed when they change, once for all calls till then."""
        if cache.text is not None and all(old is new for old, new in zip(cache.text[0], texts_LD, strict=True)):
            return cache.text[1]
        text_BLD = torch.nn.utils.rnn.pad_sequence(list(texts_LD), batch_first=True)
        kept = text_of(self.transformer, text_BLD, num_text_tokens)
        cache.text = list(texts_LD), kept
        return kept

    # ---- a block ----

    def _turns(self, cache: AnyCache, layer: int, call: CachedCall) -> tuple[Turns, Turns | None]:
        """Of the latents of the call; of the cached ones None where tokens of a slot are not in order: those wait."""
        own = cache.rope.turns(layer, torch.tensor(call.positions, dtype=torch.float64))
        if not call.slots or cache.is_mixed(layer) or call.compression is not None:
            return own, None
        return own, cache.rope.turns(layer, torch.tensor(call.slot_positions, dtype=torch.float64))

    def _block(
        self,
        layer: int,
        block: Any,
        x_BFTD: torch.Tensor,
        modulation: torch.Tensor,
        text: tuple[torch.Tensor, ...],
        call: CachedCall,
        turns: tuple[Turns, Turns | None],
    ) -> torch.Tensor:
        query, key, value, gates = self._before(block, x_BFTD, modulation)
        out = self._attend(layer, block, query, key, value, call, turns)
        return self._behind(block, x_BFTD, out, gates, text)

    def _attend(
        self,
        layer: int,
        block: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        call: CachedCall,
        turns: tuple[Turns, Turns | None],
    ) -> torch.Tensor:
        cache: AnyCache = call.cache
        own_turns, slot_turns = turns
        if call.compression is not None:
            cache.compress(layer, query, call.compression)
        if call.keeps_queries:
            cache.keep_queries(layer, query)
        unseen = call.num_unseen * cache.tokens
        keys, values = [turned(key, own_turns)[:, unseen:]], [value[:, unseen:]]
        if call.slots:
            cached_key, cached_value, cell_BN = cache.read(layer, call.slots)
            if slot_turns is None:
                slot_turns = cache.rope.turns(layer, torch.tensor(call.slot_positions, dtype=torch.float64), cell_BN)
            keys.insert(0, turned(cached_key, slot_turns))
            values.insert(0, cached_value)
        out_BNHD = dispatch_attention_fn(
            turned(query, own_turns),
            torch.cat(keys, dim=1) if len(keys) > 1 else keys[0],
            torch.cat(values, dim=1) if len(values) > 1 else values[0],
            backend=getattr(block.attn1.processor, "_attention_backend", None),
        )
        cache.write(layer, key, value, call.writes)
        return out_BNHD.type_as(query)


def time_of(
    transformer: WanTransformer3DModel, timestep_BF: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings `[B, F, D]` and their modulation `[B, F, 1, 6, D]` of every latent's time step, float64."""
    embedder = transformer.condition_embedder
    half = transformer.config.freq_dim // 2
    scale_K = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64, device=timestep_BF.device) / half)
    angle_BFK = timestep_BF[..., None] * scale_K
    waves = torch.cat([angle_BFK.cos(), angle_BFK.sin()], dim=-1)
    weight = embedder.time_embedder.linear_1.weight
    dtype = weight.dtype if weight.dtype.itemsize > 1 else like.dtype  # of layers kept in 8 bits: what they compute in
    temb_BFD = embedder.time_embedder(waves.to(like.device, dtype)).type_as(like)
    projected = embedder.time_proj(embedder.act_fn(temb_BFD))
    return temb_BFD, projected.unflatten(2, (1, 6, -1))


def text_of(
    transformer: WanTransformer3DModel, text_BLD: torch.Tensor, num_text_tokens: int
) -> list[tuple[torch.Tensor, ...]]:
    """Keys and values of texts in every layer, and where padding is compact what is added to their logits."""
    is_compact = has_compact_padding(transformer)
    if not is_compact:
        text_BLD = functional.pad(text_BLD, (0, 0, 0, num_text_tokens - text_BLD.shape[1]))
    embedded_BLD = transformer.condition_embedder.text_embedder(text_BLD.to(transformer.device, transformer.dtype))
    bias: tuple[torch.Tensor, ...] = ()
    if is_compact:  # see `padding.py`
        bias = (embedded_BLD[..., -1][:, None, None],)
        embedded_BLD = embedded_BLD[..., :-1]
    kept = []
    for block in transformer.blocks:
        attn = block.attn2
        key, value = attn.norm_k(attn.to_k(embedded_BLD)), attn.to_v(embedded_BLD)
        kept.append((*(each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in (key, value)), *bias))
    return kept


@functools.cache
def compiled_parts(backend: str = "inductor") -> tuple[Part, Part]:
    """`before_attention` and `behind_attention`, compiled for each shape that they see: a full cache has one."""
    before, behind = (
        torch.compile(part, fullgraph=True, backend=backend) for part in (before_attention, behind_attention)
    )
    return before, behind


def before_attention(
    block: Any, x_BFTD: torch.Tensor, modulation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Queries, keys and values `[B, F * T, H, D]` of a block, without positions, and the gates of what follows."""
    shift, scale, *gates = (block.scale_shift_table + modulation.float()).unbind(3)
    attn = block.attn1
    x_BND = (block.norm1(x_BFTD.float()) * (1 + scale) + shift).type_as(x_BFTD).flatten(1, 2)
    query, key, value = attn.norm_q(attn.to_q(x_BND)), attn.norm_k(attn.to_k(x_BND)), attn.to_v(x_BND)
    query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
    return query, key, value, tuple(gates)


def behind_attention(
    block: Any,
    x_BFTD: torch.Tensor,
    attended_BNHD: torch.Tensor,
    gates: tuple[torch.Tensor, ...],
    text: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """The rest of a block: output of self-attention, cross-attention, feed-forward."""
    gate, shift, scale, ff_gate = gates
    attn, cross = block.attn1, block.attn2
    out = attn.to_out[0](attended_BNHD.flatten(2)).reshape(x_BFTD.shape)
    x_BFTD = (x_BFTD.float() + out * gate).type_as(x_BFTD)
    x_BND = block.norm2(x_BFTD.float()).type_as(x_BFTD).flatten(1, 2)
    query = cross.norm_q(cross.to_q(x_BND)).unflatten(2, (cross.heads, -1)).transpose(1, 2)
    bias = text[2].to(query.dtype) if len(text) > 2 else None
    out = functional.scaled_dot_product_attention(query, text[0], text[1], attn_mask=bias)
    x_BFTD = x_BFTD + cross.to_out[0](out.transpose(1, 2).flatten(2)).reshape(x_BFTD.shape)
    x = (block.norm3(x_BFTD.float()) * (1 + scale) + shift).type_as(x_BFTD)
    return (x_BFTD.float() + block.ffn(x).float() * ff_gate).type_as(x_BFTD)
