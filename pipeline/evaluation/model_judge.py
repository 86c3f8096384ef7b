"""A judge that is a model of this machine."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.evaluation.http_judge import Sampling
from pipeline.evaluation.vision_judge import ORDER, SYSTEM, JudgeFailedError


class AnsweringModel(Protocol):
    """What is needed of it: `miga.backbones.vision_language.VisionLanguageModel`."""

    name: str

    def answer(
        self,
        frames: Sequence[npt.NDArray[np.uint8]],
        question: str,
        *,
        system: str,
        seed: int,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
        max_tokens: int,
    ) -> str:
        """What the model says of frames `[H, W, C]`."""
        ...


class ModelJudge:
    """See `VisionJudge`: one call at a time, each sample of a question under a seed of its own."""

    at_once = 1

    def __init__(self, model: AnsweringModel, sampling: Sampling | None = None) -> None:
        self._model, self._sampling = model, sampling or Sampling()
        self.name = model.name

    def ask(self, frames: Sequence[bytes], question: str, sample: int) -> str:
        """See `VisionJudge.ask`."""
        images = [np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in frames]
        drawn = self._sampling
        try:
            return self._model.answer(
                images,
                f"{question} {ORDER}",
                system=SYSTEM,
                seed=zlib.crc32(f"{question} {sample}".encode()),
                temperature=drawn.temperature,
                top_p=drawn.top_p,
                repetition_penalty=drawn.repetition_penalty,
                max_tokens=drawn.max_tokens,
            )
        except (RuntimeError, ValueError) as error:  # of torch: memory, numbers that are none
            raise JudgeFailedError(f"the model failed: {type(error).__name__}: {error}") from error
