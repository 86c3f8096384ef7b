"""Prompts to text embeddings, as Wan's pipeline makes them.

Legend: L tokens of a prompt with its end mark, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ftfy  # noqa: F401  diffusers cleans prompts differently, without a word, where it is not installed
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import UMT5EncoderModel

from miga.backbones.wan_spec import NUM_TEXT_TOKENS
from miga.errors import BadRowError


class WanTextEncoder:
    """A tokenizer and, where it was loaded, the text encoder.

    Args:
        tokenizer: one of transformers'.
        encoder: None where prompts are only to be checked.
    """

    def __init__(self, tokenizer: Any, encoder: UMT5EncoderModel | None) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder

    def check(self, prompt: str) -> None:
        """Finds a bad prompt without the encoder.

        Raises:
            BadRowError: if it is blank, or longer than the model reads.
        """
        if not prompt_clean(prompt):
            raise BadRowError("the prompt is blank", hint="describe the video, or remove the row")
        self._tokens(prompt)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Embeddings `[L, D]`, float32 on the CPU, without padding. A blank prompt (a negative one may be) is embedded.

        Prompts are encoded one at a time: an embedding never depends on its neighbours.

        Raises:
            BadRowError: if a prompt is longer than the model reads.
        """
        assert self.encoder is not None, "loaded without the text encoder"
        embeddings = []
        for prompt in prompts:
            length = len(self._tokens(prompt))
            padded = self.tokenizer(
                prompt_clean(prompt), padding="max_length", max_length=NUM_TEXT_TOKENS, return_tensors="pt"
            )
            ids, mask = padded.input_ids.to(self.encoder.device), padded.attention_mask.to(self.encoder.device)
            embeddings.append(self.encoder(ids, mask).last_hidden_state[0, :length].float().cpu())
        return embeddings

    def _tokens(self, prompt: str) -> list[int]:
        tokens: list[int] = self.tokenizer(prompt_clean(prompt), truncation=False, verbose=False).input_ids
        if len(tokens) > NUM_TEXT_TOKENS:
            raise BadRowError(
                f"the prompt has {len(tokens)} tokens, the model reads {NUM_TEXT_TOKENS}",
                hint=f"shorten it by about {1 - NUM_TEXT_TOKENS / len(tokens):.0%}, or give it as several prompts",
            )
        return tokens
