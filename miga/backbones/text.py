"""What the backbones share that are told by text what to show: prompts checked, embedded once, sent and kept.

Legend: L tokens of a prompt, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, TypeAlias

import ftfy  # noqa: F401  diffusers cleans prompts differently, without a word, where it is not installed
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from miga.backbones.base import BackboneSpec
from miga.backbones.turns import Turn, Turns
from miga.errors import BadRowError

TextCondition: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Text embeddings `[L, D]` of the prompt and of the negative prompt."""


class TextEncoder(ABC):
    """A tokenizer and, where it was loaded, the text encoder.

    Args:
        tokenizer: one of transformers'.
        encoder: None where prompts are only to be checked.
    """

    max_tokens: ClassVar[int]
    """Tokens that the model reads, its marks included."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
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

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Embeddings `[L, D]`, float32 on the CPU. A blank prompt (a negative one may be) is embedded.

        Prompts are encoded one at a time: an embedding never depends on its neighbours.

        Raises:
            BadRowError: if a prompt is longer than the model reads.
        """
        assert self.encoder is not None, "loaded without the text encoder"
        return [self.encode_one(prompt).float().cpu() for prompt in prompts]

    @abstractmethod
    def encode_one(self, prompt: str) -> torch.Tensor:
        """The embedding `[L, D]` of one prompt."""

    def clean(self, prompt: str) -> str:
        """The prompt as the tokenizer is given it."""
        cleaned: str = prompt_clean(prompt)
        return cleaned

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's tokens with its marks, without padding.

        Raises:
            BadRowError: if there are more than the model reads.
        """
        tokens: list[int] = self.tokenizer(self.clean(prompt), truncation=False, verbose=False).input_ids
        if len(tokens) > self.max_tokens:
            raise BadRowError(
                f"the prompt has {len(tokens)} tokens, the model reads {self.max_tokens}",
                hint=f"shorten it by about {1 - self.max_tokens / len(tokens):.0%}, or give it as several prompts",
            )
        return tokens


class TextBackbone:
    """The part of `miga.backbones.base.Backbone` that is about text. Parts that were not loaded are None.

    Attributes:
        decodes_beside: whether latents are decoded while the network is called, whoever asks for either.
        turn: what a forward of the network and the decoding of a latent wait for.
    """

    spec: BackboneSpec
    device: torch.device
    text: TextEncoder | None
    vae: Any
    decodes_beside: bool = True
    turn: Turn = nullcontext

    @property
    def network(self) -> Any:
        """The network that denoises."""
        raise NotImplementedError

    def to(self, device: torch.device) -> None:
        """Moves what is loaded."""
        self.device = device
        for module in (self.network, self.vae, self.text.encoder if self.text else None):
            if module is not None:
                module.to(device)

    def save_memory(self, *, fp8: bool, vae_dtype: torch.dtype, decodes_beside: bool = True) -> None:
        """Makes it fit where it would not; denoisers and decoders are to be made afterwards.

        Args:
            fp8: whether the network's large weights are kept in 8 bits and widened layer by layer.
            vae_dtype: of the VAE and its cache.
            decodes_beside: whether latents are decoded while the network is called; else they take turns.
        """
        self.decodes_beside = decodes_beside
        self.turn = nullcontext if decodes_beside else Turns().taken
        if self.network is not None and fp8:
            self.network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=self.network.dtype)
        if self.vae is not None and vae_dtype != self.vae.dtype:
            self.vae.to(vae_dtype)

    def check_prompt(self, prompt: str) -> None:
        """Finds a bad prompt by the tokenizer alone.

        Raises:
            BadRowError: if it is blank, or longer than the model reads.
        """
        assert self.text is not None, "loaded without the tokenizer"
        self.text.check(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """One text embedding `[L, D]` per prompt, float32 on the CPU.

        Raises:
            BadRowError: if a prompt is longer than the model reads.
        """
        assert self.text is not None, "loaded without the text encoder"
        return self.text.encode(prompts)

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> TextCondition:
        """The two embeddings on the backbone's device; the denoiser pads, stacks and casts them."""
        return prompt_embedding.to(self.device), negative_embedding.to(self.device)
