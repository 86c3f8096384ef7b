"""Prompts to text embeddings: OpenCLIP's ViT-H/14 text tower without its last layer, in transformers' modules.

Legend: B prompts, L = 77 tokens with the padding (the network attends to it too), D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ftfy  # noqa: F401  diffusers cleans prompts differently, without a word, where it is not installed
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import CLIPTextModel

from miga.backbones.videocrafter2.spec import NUM_TEXT_TOKENS, PAD_TOKEN
from miga.errors import BadRowError


class VideoCrafter2TextEncoder:
    """A tokenizer and, where it was loaded, the text encoder.

    Args:
        tokenizer: CLIP's, of transformers. Its own padding is not used: `PAD_TOKEN` is.
        encoder: None where prompts are only to be checked.
    """

    def __init__(self, tokenizer: Any, encoder: CLIPTextModel | None) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder

    def check(self, prompt: str) -> None:
        """Finds a bad prompt without the encoder.

        Raises:
            BadRowError: if it is blank, or longer than the model reads.
        """
        if not prompt_clean(prompt):
            raise BadRowError("the prompt is blank", hint="describe the video, or remove the row")
        self.tokens(prompt)

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Embeddings `[L, D]`, float32 on the CPU. A blank prompt (a negative one may be) is embedded.

        Prompts are encoded one at a time: an embedding never depends on its neighbours.

        Raises:
            BadRowError: if a prompt is longer than the model reads.
        """
        assert self.encoder is not None, "loaded without the text encoder"
        return [penultimate(self.encoder, torch.tensor([self.tokens(prompt)]))[0].float().cpu() for prompt in prompts]

    def tokens(self, prompt: str) -> list[int]:
        """Start mark, the prompt, end mark, and padding up to L.

        Raises:
            BadRowError: if the prompt is longer than the model reads (OpenCLIP would cut it off).
        """
        tokens: list[int] = self.tokenizer(prompt_clean(prompt).lower(), truncation=False, verbose=False).input_ids
        if len(tokens) > NUM_TEXT_TOKENS:
            raise BadRowError(
                f"the prompt has {len(tokens)} tokens, the model reads {NUM_TEXT_TOKENS}",
                hint=f"shorten it by about {1 - NUM_TEXT_TOKENS / len(tokens):.0%}, or give it as several prompts",
            )
        return tokens + [PAD_TOKEN] * (NUM_TEXT_TOKENS - len(tokens))


@torch.no_grad()
def penultimate(encoder: CLIPTextModel, tokens_BL: torch.Tensor) -> torch.Tensor:
    """What all layers but the last make of the tokens, `[B, L, D]`, after the final normalisation."""
    hidden = encoder(tokens_BL.to(encoder.device), output_hidden_states=True).hidden_states
    return encoder.final_layer_norm(hidden[-2])  # hidden[0] is what enters the first layer
