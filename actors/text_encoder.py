"""Text encoding, a stage of its own: one worker holds the text encoder, and no distinct prompt is encoded twice.

Where a run has few prompts they are encoded at once, and the worker with its gigabytes is let go.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from miga.backbones.registry import load_backbone

NUM_KEPT = 512
"""Embeddings kept for prompts that come again; those of videos in flight are held by their rows besides."""


MAX_ENCODED_AHEAD = 64
"""Distinct prompts that a run may have for all to be encoded at its start: at most 8 MB each of Wan's."""


class TextEncoderWorker:
    """Holds tokenizer and text encoder: on the CPU, since the GPUs are the backbones', unless it is given a share.

    Raises:
        ModelError: if they cannot be loaded.
    """

    def __init__(
        self, model: str, revision: str | None, num_threads: int, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        torch.set_num_threads(num_threads)
        self._backbone = load_backbone(
            model, revision=revision, device=device, dtype=getattr(torch, dtype), components=("text",)
        )

    def encode(self, prompt: str) -> tuple[np.ndarray, float]:
        """The embedding `[tokens, channels]` of a prompt, and the seconds it took.

        Raises:
            BadRowError: if the prompt is blank or too long.
        """
        started_s = time.monotonic()
        (embedding,) = self._backbone.encode_prompts([prompt])
        return embedding.numpy(), time.monotonic() - started_s


class TextStage:
    """The coordinator's side: prompts to references of embeddings, each distinct prompt once.

    Args:
        encoder: the worker, an actor of Ray.
        all_prompts: all that will be asked for, where they are few. They are encoded together when the first is asked
            for; once all are done they are kept here, and the worker is ended.
    """

    def __init__(self, encoder: Any, all_prompts: Collection[str] = ()) -> None:
        assert len(all_prompts) <= MAX_ENCODED_AHEAD < NUM_KEPT
        self._encoder = encoder
        self._ahead = dict.fromkeys(all_prompts)
        self._kept: OrderedDict[str, tuple[ray.ObjectRef, ray.ObjectRef]] = OrderedDict()
        self.num_encoded = 0

    def embedding(self, prompt: str) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """References of a prompt's embedding and of the seconds it took, at once; the work goes on behind them."""
        for wanted in (prompt, *self._ahead):
            if wanted not in self._kept:
                assert self._encoder is not None, f"{wanted!r} is none of the prompts that were announced"
                self._kept[wanted] = tuple(self._encoder.encode.options(num_returns=2).remote(wanted))
                self.num_encoded += 1
        self._release()
        self._kept.move_to_end(prompt)
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return self._kept[prompt]

    def _release(self) -> None:
        """Ends the worker once all that was announced is encoded, and keeps copies that do not depend on it."""
        if self._encoder is None or not self._ahead:
            return
        references = [reference for pair in self._kept.values() for reference in pair]
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        if len(ready) < len(references):
            return
        for prompt, pair in self._kept.items():
            try:
                self._kept[prompt] = tuple(ray.put(ray.get(reference)) for reference in pair)
            except RayTaskError:  # a bad prompt: the error is the driver's already, and stays for whoever asks
                continue
        ray.kill(self._encoder, no_restart=True)
        self._encoder = None
