"""The consistency score of latents. Source: MIGA Eq. 5-7."""

from __future__ import annotations

import torch


def consistency_score(eval_FCHW: torch.Tensor, reference_FCHW: torch.Tensor) -> float:
    """How alike judged latents and the ones before them are: the mean of all pairwise cosines, in [-1, 1].

    Each latent becomes one vector over its positions: the mean over channels, L2-normalised. Both sides may be
    noisy: the score keeps its shape over time up to high levels (Fig. 3).
    """
    eval_FN, reference_FN = _directions(eval_FCHW), _directions(reference_FCHW)
    return float((eval_FN @ reference_FN.T).mean())


def _directions(x_FCHW: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x_FCHW.float().mean(dim=1).flatten(1), dim=1)
