"""Text encoding, a stage of its own: one worker holds the text encoder, and no distinct prompt is encoded twice."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

import numpy as np
import ray
import torch

from miga.backbones.registry import load_backbone

NUM_KEPT = 512
"""Embeddings kept for prompts that come again; those of videos in flight are held by their rows besides."""


class TextEncoderWorker:
    """Holds tokenizer and text encoder, on the CPU: the GPUs are the backbones'.

    Raises:
        ModelError: if they cannot be loaded.
    """

    def __init__(self, model: str, revision: str | None, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._backbone = load_backbone(model, revision=revision, device="cpu", components=("text",))

    def encode(self, prompt: str) -> tuple[np.ndarray, float]:
        """The embedding `[tokens, channels]` of a prompt, and the seconds it took.

        Raises:
            BadRowError: if the prompt is blank or too long.
        """
        started_s = time.monotonic()
        (embedding,) = self._backbone.encode_prompts([prompt])
        return embedding.numpy(), time.monotonic() - started_s


class TextStage:
    """The coordinator's side: prompts to references of embeddings, each distinct prompt once."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._kept: OrderedDict[str, tuple[ray.ObjectRef, ray.ObjectRef]] = OrderedDict()
        self.num_encoded = 0

    def embedding(self, prompt: str) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """References of a prompt's embedding and of the seconds it took, at once; the work goes on behind them."""
        if prompt not in self._kept:
            self._kept[prompt] = tuple(self._encoder.encode.options(num_returns=2).remote(prompt))
            self.num_encoded += 1
        self._kept.move_to_end(prompt)
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return self._kept[prompt]
