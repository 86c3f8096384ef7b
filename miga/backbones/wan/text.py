"""Prompts to text embeddings, as Wan's pipeline makes them.

Legend: L tokens of a prompt with its end mark, D channels.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from miga.backbones.text import TextEncoder
from miga.backbones.wan.spec import NUM_TEXT_TOKENS


class WanTextEncoder(TextEncoder):
    """UMT5; embeddings are without their padding, which is zeros to the network (`wan/padding.py`)."""

    max_tokens: ClassVar[int] = NUM_TEXT_TOKENS

    def encode_one(self, prompt: str) -> torch.Tensor:
        """The embedding `[L, D]` of one prompt."""
        length = len(self.tokens(prompt))
        padded = self.tokenizer(
            self.clean(prompt), padding="max_length", max_length=NUM_TEXT_TOKENS, return_tensors="pt"
        )
        ids, mask = padded.input_ids.to(self.encoder.device), padded.attention_mask.to(self.encoder.device)
        embedding: torch.Tensor = self.encoder(ids, mask).last_hidden_state[0, :length]
        return embedding
