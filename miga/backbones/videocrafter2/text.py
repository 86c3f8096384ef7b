"""Prompts to text embeddings: OpenCLIP's ViT-H/14 text tower without its last layer, in transformers' modules.

Legend: B prompts, L = 77 tokens with the padding (the network attends to it too), D channels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import CLIPTextModel

from miga.backbones.text import TextEncoder
from miga.backbones.videocrafter2.spec import NUM_TEXT_TOKENS, PAD_TOKEN


class VideoCrafter2TextEncoder(TextEncoder):
    """CLIP's tokenizer, whose own padding is not used (`PAD_TOKEN` is), and OpenCLIP's text tower.

    A prompt that is too long is refused, where OpenCLIP would cut it off.
    """

    max_tokens: ClassVar[int] = NUM_TEXT_TOKENS

    def clean(self, prompt: str) -> str:
        """OpenCLIP's tokenizer knows small letters alone."""
        return super().clean(prompt).lower()

    def encode_one(self, prompt: str) -> torch.Tensor:
        """The embedding `[L, D]` of one prompt, its padding included."""
        return penultimate(self.encoder, torch.tensor([self.padded_tokens(prompt)]))[0]

    def padded_tokens(self, prompt: str) -> list[int]:
        """Start mark, the prompt, end mark, and padding up to L."""
        tokens = self.tokens(prompt)
        return tokens + [PAD_TOKEN] * (NUM_TEXT_TOKENS - len(tokens))


@torch.no_grad()
def penultimate(encoder: CLIPTextModel, tokens_BL: torch.Tensor) -> torch.Tensor:
    """What all layers but the last make of the tokens, `[B, L, D]`, after the final normalisation."""
    hidden = encoder(tokens_BL.to(encoder.device), output_hidden_states=True).hidden_states
    return encoder.final_layer_norm(hidden[-2])  # hidden[0] is what enters the first layer
