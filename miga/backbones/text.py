"""Prompts to text embeddings, as far as that is the same for all models: cleaned, checked, embedded one by one.

Legend: L tokens of a prompt, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import ftfy  # noqa: F401  diffusers cleans prompts differently, without a word, where it is not installed
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from miga.errors import BadRowError

_WHOLE: Final[dict[str, Any]] = {"truncation": False, "verbose": False}


def _cleaned(prompt: str) -> str:
    """The prompt as diffusers cleans it: broken encodings mended, HTML's escapes resolved, white space made single.

    In printable ASCII without an `&` there is nothing to mend or to resolve, which saves nine tenths of the time.
    """
    if prompt.isascii() and prompt.isprintable() and "&" not in prompt:
        return " ".join(prompt.split())
    cleaned: str = prompt_clean(prompt)
    return cleaned


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
        if not _cleaned(prompt):
            raise BadRowError("the prompt is blank", hint="describe the video, or remove the row")
        self.tokens(prompt)

    def check_many(self, prompts: Sequence[str]) -> list[BadRowError | None]:
        """What `check` says of each prompt, in a fraction of the time: the tokenizer is called once."""
        found: list[BadRowError | None] = [None] * len(prompts)
        counts = self._count_tokens([self.clean(prompt) for prompt in prompts])
        for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            if count > self.max_tokens or not _cleaned(prompt):
                try:
                    self.check(prompt)
                except BadRowError as error:
                    found[number] = error
        return found

    def _count_tokens(self, cleaned: Sequence[str]) -> list[int]:
        """Tokens of each text, marks included, without what transformers makes of them beside."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is None or not hasattr(fast, "encode_batch_fast"):
            return list(map(len, self.tokenizer(list(cleaned), **_WHOLE).input_ids))
        fast.no_padding()  # transformers sets both anew with every call
        fast.no_truncation()
        return list(map(len, fast.encode_batch_fast(list(cleaned))))

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
        return _cleaned(prompt)

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's tokens with its marks, without padding.

        Raises:
            BadRowError: if there are more than the model reads.
        """
        tokens: list[int] = self.tokenizer(self.clean(prompt), **_WHOLE).input_ids
        if len(tokens) > self.max_tokens:
            raise BadRowError(
                f"the prompt has {len(tokens)} tokens, the model reads {self.max_tokens}",
                hint=f"shorten it by about {1 - self.max_tokens / len(tokens):.0%}, or give it as several prompts",
            )
        return tokens
