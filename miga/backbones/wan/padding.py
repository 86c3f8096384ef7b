"""Cross-attention over a text's words and two padding tokens in place of hundreds, with the same result.

Wan pads every text embedding with zeros to 512 tokens and attends to all of them. The padding tokens are all equal, so
their keys and values are too: one of them, with the logarithm of their number added to its logit, has the weight of
all. It takes two here, whose weights add up to the number: the second makes up for what the first one's logit loses to
rounding, which in bfloat16 would be up to 1.6 %.

The logits travel to the attention as one more channel of the embedded text, so nothing is kept between calls: it works
under autograd, gradient checkpointing and compiled blocks, and survives copying the module.

Legend: B windows, L text tokens, D text channels, N video tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from miga.backbones.wan.spec import NUM_TEXT_TOKENS

NUM_SLOTS: Final = 2
"""Padding tokens that stand for all."""


def use_compact_padding(transformer: WanTransformer3DModel, num_tokens: int = NUM_TEXT_TOKENS) -> None:
    """Makes a transformer attend to the words of a text and a summary of its padding.

    Afterwards `encoder_hidden_states` `[B, L, D]` may have any `L <= num_tokens`: it is taken as padded with zeros to
    `num_tokens`, whether or not it is. Trailing zero rows of any text of the batch count as padding too, so texts of
    different lengths are stacked with zeros. Weights, configuration and results stay the same.

    Args:
        transformer: changed in place; a second call does nothing.
        num_tokens: length that the text is thought to be padded to.

    Raises:
        ValueError: if the transformer is conditioned on images as well.
    """
    if has_compact_padding(transformer):
        return
    if any(block.attn2.add_k_proj is not None for block in transformer.blocks):
        raise ValueError("compact padding is for models that are conditioned on text alone")
    embedder = transformer.condition_embedder.text_embedder
    embedder.register_forward_pre_hook(partial(_trim, num_tokens))
    embedder.register_forward_hook(partial(_append_logits, num_tokens))
    for block in transformer.blocks:
        block.attn2.set_processor(_CompactAttention())


def has_compact_padding(transformer: WanTransformer3DModel) -> bool:
    """Whether `use_compact_padding` has been called for it."""
    return isinstance(transformer.blocks[0].attn2.processor, _CompactAttention)


def num_words(text_BLD: torch.Tensor) -> torch.Tensor:
    """Tokens of every text before its trailing zero rows, int64 `[B]`."""
    position_L = torch.arange(1, text_BLD.shape[1] + 1, device=text_BLD.device)
    return ((text_BLD != 0).any(dim=-1) * position_L).amax(dim=1)


def _trim(num_tokens: int, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Before the text is embedded: to the words of the longest text, and the slots."""
    (text_BLD,) = args
    if text_BLD.shape[1] > num_tokens:
        raise ValueError(f"a text of {text_BLD.shape[1]} tokens is longer than the {num_tokens} it is padded to")
    if text_BLD.shape[1] == num_tokens:
        text_BLD = text_BLD[:, : int(num_words(text_BLD).amax())]
    return (nn.functional.pad(text_BLD, (0, 0, 0, NUM_SLOTS)),)


def _append_logits(
    num_tokens: int, module: nn.Module, args: tuple[torch.Tensor, ...], embedded_BLD: torch.Tensor
) -> torch.Tensor:
    """After it: one more channel, with what is added to the logit of every token."""
    words_B = num_words(args[0])
    num_rows = embedded_BLD.shape[1]
    number_B = (num_tokens - words_B).double()  # of padding tokens
    first_B = (number_B.log() - 0.02).to(embedded_BLD.dtype)  # less than all, after rounding too
    second_B = (number_B - first_B.double().exp()).log().to(embedded_BLD.dtype)
    is_word_BL = torch.arange(num_rows, device=embedded_BLD.device) < words_B[:, None]
    logit_BL = torch.zeros_like(embedded_BLD[..., 0]).masked_fill(~is_word_BL, -torch.inf)
    logit_BL[:, -NUM_SLOTS], logit_BL[:, -1] = first_B, second_B
    return torch.cat([embedded_BLD, logit_BL[..., None]], dim=-1)


class _CompactAttention:
    """diffusers' attention processor for `attn2`, with the logits taken from the text's last channel."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        text_BLD, logit_BL = encoder_hidden_states[..., :-1], encoder_hidden_states[..., -1]
        # one row of the batch per window, also where every latent is one (see `wan/per_latent.py`)
        x_BND = hidden_states.reshape(text_BLD.shape[0], -1, hidden_states.shape[-1])
        query = attn.norm_q(attn.to_q(x_BND)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(text_BLD)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(text_BLD).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=logit_BL[:, None, None, :].to(query.dtype)
        )
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2))).reshape(hidden_states.shape)
