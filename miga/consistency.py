"""The consistency score of latents. Source: MIGA Eq. 5-7."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from miga.queue import FrameQueue


def consistency_score(eval_FCHW: torch.Tensor, reference_FCHW: torch.Tensor, average_latents: bool = False) -> float:
    """How alike judged latents and the ones before them are: the mean of all pairwise cosines, in [-1, 1].

    Each latent becomes one vector over its positions: the mean over channels, L2-normalised. Both sides may be
    noisy: the score keeps its shape over time up to high levels (Fig. 3).

    Args:
        eval_FCHW: the judged latents.
        reference_FCHW: those they are compared with.
        average_latents: whether each side becomes one vector, the mean over its latents too, before it is normalised
            (as MIGA's program for VideoCrafter2 does): a single cosine.
    """
    if average_latents:
        eval_FCHW, reference_FCHW = (x.float().mean(0, keepdim=True) for x in (eval_FCHW, reference_FCHW))
    eval_FN, reference_FN = _directions(eval_FCHW), _directions(reference_FCHW)
    return float((eval_FN @ reference_FN.T).mean())


@dataclass(frozen=True)
class Evaluation:
    """One question of a search to its judge: how well do these latents go on from those?

    Attributes:
        judged: the latents that are judged; no others are looked at, and need be there.
        reference: those they are compared with.
        averages_latents: see `consistency_score`.
        candidate: which candidate of a search they are; 0 for what stands in the queue.
        search: the passes that grow one candidate, should this evaluation start a search; None: none can.
        num_candidates: candidates of that search.
    """

    judged: FrameQueue
    reference: FrameQueue
    averages_latents: bool = False
    candidate: int = 0
    search: Callable[[], Any] | None = None
    num_candidates: int = 0


Judge: TypeAlias = Callable[[Evaluation], float]
"""Answers an evaluation: the higher, the better."""


def judge_consistency(evaluation: Evaluation) -> float:
    """The consistency score."""
    judged, reference = evaluation.judged, evaluation.reference
    return consistency_score(judged.x_FCHW, reference.x_FCHW, evaluation.averages_latents)


class ConsistencyMeter:
    """Scores finished latents as they come, chunk by chunk, as the paper's Fig. 3 (b) does (4 against the 8 before)."""

    NUM_EVAL = 4
    NUM_REFERENCE = 8

    def __init__(self) -> None:
        self.scores: list[float] = []
        self._waiting: torch.Tensor | None = None

    def add(self, x_FCHW: torch.Tensor) -> None:
        """Takes the next finished latents of the video."""
        needed = self.NUM_REFERENCE + self.NUM_EVAL
        x = x_FCHW if self._waiting is None else torch.cat([self._waiting, x_FCHW])
        while len(x) >= needed:
            self.scores.append(consistency_score(x[self.NUM_REFERENCE : needed], x[: self.NUM_REFERENCE]))
            x = x[self.NUM_EVAL :]
        self._waiting = x.clone()


def _directions(x_FCHW: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x_FCHW.float().mean(dim=1).flatten(1), dim=1)
