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


def still_score(eval_FCHW: torch.Tensor, reference_FCHW: torch.Tensor) -> float:
    """How alike two groups of latents are in what stands still: a weighted cosine, in [-1, 1].

    Each group becomes its mean over time, over all channels: that takes out motion, and most of the noise. A cell
    weighs `v / (v + own)`: `own` is the reference's variance over time in that cell (mean over channels), `v` its mean
    over all cells. So a cell that moves as most do counts half, one that never changes whole. Of one reference latent
    alone all weigh the same. Costs a few operations per number, and no call of the network.

    Args:
        eval_FCHW: the judged latents.
        reference_FCHW: those they are compared with.
    """
    judged_CHW, reference_CHW = (x_FCHW.float().mean(0) for x_FCHW in (eval_FCHW, reference_FCHW))
    own_HW = reference_FCHW.float().var(0, correction=0).mean(0)
    usual = own_HW.mean()
    weight_HW = usual / (usual + own_HW) if bool(usual > 0) else torch.ones_like(own_HW)
    root_HW = weight_HW.sqrt()
    return float(torch.cosine_similarity((root_HW * judged_CHW).flatten(), (root_HW * reference_CHW).flatten(), dim=0))


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
        anchors: what stands still is compared with them, or with the reference where there are none (`still_score`);
            None: the published score.
    """

    judged: FrameQueue
    reference: FrameQueue
    averages_latents: bool = False
    candidate: int = 0
    search: Callable[[], Any] | None = None
    num_candidates: int = 0
    anchors: tuple[FrameQueue, ...] | None = None


Judge: TypeAlias = Callable[[Evaluation], float]
"""Answers an evaluation: the higher, the better."""


def judge_consistency(evaluation: Evaluation) -> float:
    """The consistency score, or that of what stands still."""
    judged, reference = evaluation.judged, evaluation.reference
    if evaluation.anchors is not None:
        anchors_FCHW = torch.cat([each.x_FCHW for each in evaluation.anchors or (reference,)])
        return still_score(judged.x_FCHW, anchors_FCHW)
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
