"""A worker that evaluates videos, one call a video. `actors/driver/evaluation.py` makes it a Ray actor.

It keeps nothing but its networks: whatever it noted of a video is in storage when the call ends.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import ray
import torch

from actors.worker.scratch import remove_abandoned
from miga.errors import MigaError, Scope
from pipeline.evaluation.evaluator import EvaluationSettings, Evaluator
from pipeline.evaluation.records import EvaluatedRow
from pipeline.evaluation.videos import Video

CONCURRENCY_GROUPS: Final = {"news": 1}
"""Calls that are answered while a video is being looked at."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFailed:
    """Why an attempt ended without results."""

    error_type: str
    error: str
    scope: Scope
    retryable: bool


@dataclass(frozen=True, kw_only=True)
class EvaluatorInfo:
    """What a worker says of itself."""

    node: str
    node_id: str
    pid: int


class EvaluationWorker:
    """Evaluates videos."""

    def __init__(self, settings: EvaluationSettings) -> None:
        self._settings = settings
        self._evaluator: Evaluator | None = None

    def load(self) -> EvaluatorInfo:
        """Gets ready; networks are loaded as they are needed."""
        remove_abandoned()
        torch.set_num_threads(self._settings.num_threads)
        self._evaluator = Evaluator(self._settings)
        return EvaluatorInfo(
            node=platform.node(),
            node_id=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
            pid=os.getpid(),
        )

    @ray.method(concurrency_group="news", enable_task_events=False)
    def num_steps(self) -> int:
        """How often it has come a little further, whatever it is looking at."""
        return 0 if self._evaluator is None else self._evaluator.num_steps

    def evaluate(self, video: Video, measures: Sequence[str]) -> EvaluatedRow | EvaluationFailed:
        """The results of one video, or why there are none; it raises nothing."""
        assert self._evaluator is not None, "it was not loaded"
        try:
            return self._evaluator.evaluate(video, measures)
        except MigaError as error:
            return EvaluationFailed(
                error_type=type(error).__name__, error=str(error), scope=error.scope, retryable=error.retryable
            )
        except (Exception, MemoryError) as error:  # whatever it is: another try, then this video is given up
            text = next(iter(str(error).splitlines()), "no message")
            return EvaluationFailed(error_type=type(error).__name__, error=text[:500], scope="worker", retryable=True)
