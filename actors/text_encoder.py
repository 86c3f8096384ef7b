"""Text encoding, a stage of its own: one worker holds the text encoder, and no distinct prompt is encoded twice.

Prompts are encoded ahead of need, several in a call; a row is begun once its prompts are encoded. Where a run has few
prompts they are encoded at once, and the worker with its gigabytes is let go.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeAlias

import ray
import torch
from ray.exceptions import RayError

from actors.messages import Embedding
from miga.backbones.registry import load_backbone
from miga.errors import MigaError, ModelError

NUM_KEPT: Final = 512
"""Embeddings kept for prompts that come again; those of videos in flight are held by their rows besides."""

MAX_ENCODED_AHEAD: Final = 64
"""Distinct prompts that a run may have for all to be encoded at its start: at most 8 MB each of Wan's."""

WhenReady: TypeAlias = Callable[[Any, Callable[[Future[Any]], None]], None]
"""See `Inbox.when_ready`."""


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

    def encode(self, prompt: str) -> Embedding:
        """The embedding `[tokens, channels]` of a prompt, and the seconds it took.

        Raises:
            BadRowError: if the prompt is too long.
        """
        started_s = time.monotonic()
        (embedding,) = self._backbone.encode_prompts([prompt])
        return embedding.numpy(), time.monotonic() - started_s

    def encode_all(self, prompts: Sequence[str]) -> list[Embedding | dict[int, MigaError] | None]:
        """The embedding of each, None where there is none; behind them, by position, why not."""
        found: list[Embedding | None] = []
        errors: dict[int, MigaError] = {}
        for number, prompt in enumerate(prompts):
            try:
                found.append(self.encode(prompt))
            except MigaError as error:
                found.append(None)
                errors[number] = error
        return [*found, errors]


class TextStage:
    """The coordinator's side: prompts to references of embeddings, each distinct prompt once.

    Args:
        encoder: the worker, an actor of Ray.
        when_ready: has something called, in the coordinator's thread, once a reference is there.
        all_prompts: all that will be asked for, where they are few. They are encoded together when the first is asked
            for; once all are done they are kept here, and the worker is ended.
    """

    def __init__(self, encoder: Any, when_ready: WhenReady, all_prompts: Collection[str] = ()) -> None:
        assert len(all_prompts) <= MAX_ENCODED_AHEAD < NUM_KEPT
        self._encoder = encoder
        self._when_ready = when_ready
        self._ahead = list(dict.fromkeys(all_prompts))
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._errors: dict[str, MigaError] = {}
        self._pending: set[str] = set()
        self._waiting: list[tuple[set[str], Callable[[], None]]] = []
        self.num_encoded = 0

    def prepare(self, prompts: Iterable[str]) -> None:
        """Has prompts encoded that will be needed soon; those that are kept already are not encoded again."""
        wanted = dict.fromkeys([*prompts, *self._ahead])
        new = [prompt for prompt in wanted if prompt not in self._kept]
        if not new:
            return
        assert self._encoder is not None, f"{new[0]!r} is none of the prompts that were announced"
        *references, errors = self._encoder.encode_all.options(num_returns=len(new) + 1).remote(new)
        self._kept.update(zip(new, references, strict=True))
        self._pending.update(new)
        self.num_encoded += len(new)
        self._when_ready(errors, partial(self._encoded, new))

    def when_encoded(self, prompts: Sequence[str], action: Callable[[], None]) -> None:
        """Calls `action` once all of them are encoded, or have turned out to be impossible; at once if they are."""
        self.prepare(prompts)
        if missing := self._pending.intersection(prompts):
            self._waiting.append((missing, action))
        else:
            action()

    def embeddings(self, prompts: Sequence[str]) -> list[Any]:
        """References of the `Embedding` of each.

        Raises:
            MigaError: if one of them could not be encoded.
        """
        self.prepare(prompts)
        for prompt in prompts:
            if prompt in self._errors:
                raise self._errors[prompt]
            self._kept.move_to_end(prompt)
        found = [self._kept[prompt] for prompt in prompts]
        while len(self._kept) > NUM_KEPT:
            self._errors.pop(self._kept.popitem(last=False)[0], None)
        return found

    def close(self) -> None:
        """Ends the worker, if it is still there."""
        if self._encoder is not None:
            ray.kill(self._encoder, no_restart=True)
            self._encoder = None

    def _encoded(self, prompts: Sequence[str], future: Future[Any]) -> None:
        """A call has returned.

        Raises:
            ModelError: if the text encoder itself is of no use.
        """
        try:
            errors: dict[int, MigaError] = future.result()
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MigaError):
                raise cause from None
            raise ModelError(
                f"the text encoder's process cannot be used: {_last_line(cause or error)}",
                "most often the machine has too little memory for it: text_dtype = 'bfloat16' needs half",
            ) from error
        self._errors |= {prompts[number]: error for number, error in errors.items()}
        self._pending.difference_update(prompts)
        self._release()
        waiting, self._waiting = self._waiting, []
        for missing, action in waiting:
            missing &= self._pending
            if missing:
                self._waiting.append((missing, action))
            else:
                action()

    def _release(self) -> None:
        """Ends the worker once all that was announced is encoded, and keeps copies that do not depend on it."""
        if self._encoder is None or not self._ahead or self._pending:
            return
        for prompt, reference in self._kept.items():
            if prompt not in self._errors:
                self._kept[prompt] = ray.put(ray.get(reference))
        self.close()


def _last_line(error: BaseException) -> str:
    """Where Python's tracebacks name the error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
