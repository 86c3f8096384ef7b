"""Strengths of several systems from comparisons of two at a time.

Legend: R resamples, K systems. `wins_KK[i, j]` is how often system i was preferred to system j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

_MOST_STEPS: Final = 200
_PRECISION: Final = 1e-11
_LONGEST_STEP: Final = 2.0


class NoStrengthsError(ValueError):
    """No finite strengths fit: some systems never won, or never lost, against all the others."""


@dataclass(frozen=True)
class Davidson:
    """Strengths where ties are an outcome of their own.

    Attributes:
        log_strengths_K: mean zero.
        tie: nu of the model: between equals, a tie is nu / (2 + nu) of all outcomes.
    """

    log_strengths_K: Array
    tie: float


def with_half_ties(wins_KK: npt.ArrayLike, ties_KK: npt.ArrayLike) -> Array:
    """The wins with each tie as half a win for either side; `ties_KK` is symmetric."""
    return np.asarray(wins_KK, np.float64) + np.asarray(ties_KK, np.float64) / 2.0


def bradley_terry(wins_KK: npt.ArrayLike) -> Array:
    """Log strengths of most likelihood, mean zero: i is preferred to j with probability 1 / (1 + exp(s_j - s_i)).

    Source: Bradley and Terry 1952; when there is a maximum: Ford 1957.

    Args:
        wins_KK: counts, which may be fractions (a tie as half a win for either side).

    Raises:
        NoStrengthsError: if there is no maximum.
        ValueError: if it is no square of numbers that are 0 or more.
    """
    wins = _checked(wins_KK)
    strengths_RK = bradley_terry_batch(wins[None])
    if np.isnan(strengths_RK).any():
        raise NoStrengthsError("some systems won, or lost, every comparison with all the others")
    return np.asarray(strengths_RK[0])


def bradley_terry_batch(wins_RKK: Array) -> Array:
    """`bradley_terry` of many tables at once; NaN for those without a maximum. Newton's method, with shorter steps
    where a whole one would not raise the likelihood.
    """
    wins_RKK = np.array(wins_RKK, np.float64)
    num_systems = wins_RKK.shape[-1]
    wins_RKK[:, range(num_systems), range(num_systems)] = 0.0
    strengths_RK = np.full(wins_RKK.shape[:2], np.nan)
    is_fit_R = _is_connected(wins_RKK)
    if is_fit_R.any():
        strengths_RK[is_fit_R] = _newton(wins_RKK[is_fit_R])
    return strengths_RK


def davidson(wins_KK: npt.ArrayLike, ties_KK: npt.ArrayLike) -> Davidson:
    """Strengths of most likelihood with ties as an outcome of their own. Source: Davidson 1970.

    Between i and j: win, tie and loss are as p_i : nu sqrt(p_i p_j) : p_j, where p is the strength.

    Args:
        wins_KK: counts.
        ties_KK: counts, symmetric.

    Raises:
        NoStrengthsError: if there is no maximum (as of `bradley_terry`, with a tie as a win for either side), or there
            are no ties or ties only, for which nu is 0 or infinite.
        ValueError: as `bradley_terry`.
    """
    wins, ties = _checked(wins_KK), _checked(ties_KK)
    if wins.shape != ties.shape or not np.array_equal(ties, ties.T):
        raise ValueError("ties are a symmetric table of the same systems")
    np.fill_diagonal(wins, 0.0)
    np.fill_diagonal(ties, 0.0)
    if not _is_connected((wins + ties)[None])[0] or not ties.any() or not wins.any():
        raise NoStrengthsError("wins, or ties, are lacking that strengths could be made of")
    return _davidson_newton(wins, ties)


def _checked(counts_KK: npt.ArrayLike) -> Array:
    counts = np.array(counts_KK, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("comparisons are a square table of numbers that are 0 or more")
    return counts


def _is_connected(wins_RKK: Array) -> npt.NDArray[np.bool_]:
    """Whether from each system a way of wins leads to each other one."""
    num_systems = wins_RKK.shape[-1]
    reach = np.asarray((wins_RKK > 0) | np.eye(num_systems, dtype=bool))
    for _ in range(max(1, num_systems.bit_length())):
        reach = np.asarray(np.matmul(reach.astype(np.int64), reach.astype(np.int64)) > 0)
    return np.asarray(reach.all(axis=(1, 2)))


def _newton(wins_RKK: Array) -> Array:
    num_systems = wins_RKK.shape[-1]
    games_RKK = wins_RKK + np.swapaxes(wins_RKK, 1, 2)
    eye = np.eye(num_systems)
    strengths = np.zeros(wins_RKK.shape[:2])
    scale = np.maximum(games_RKK.sum(axis=(1, 2)), 1.0)
    best = _likelihood(wins_RKK, strengths)
    for _ in range(_MOST_STEPS):
        chance = 1.0 / (1.0 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
        slope = (wins_RKK - games_RKK * chance).sum(axis=2)
        if (np.abs(slope).max(axis=1) <= _PRECISION * scale).all():
            break
        bend = games_RKK * chance * np.swapaxes(chance, 1, 2)
        matrix = eye * bend.sum(axis=2)[:, :, None] - bend + scale[:, None, None] / num_systems
        step = np.linalg.solve(matrix, slope[..., None])[..., 0]
        step *= np.minimum(1.0, _LONGEST_STEP / np.maximum(np.abs(step).max(axis=1), 1e-300))[:, None]
        for _ in range(30):
            found = _likelihood(wins_RKK, strengths + step)
            is_worse = found < best - 1e-12 * np.abs(best)
            if not is_worse.any():
                break
            step[is_worse] /= 2.0
        strengths, best = strengths + step, np.maximum(found, best)
    return np.asarray(strengths - strengths.mean(axis=1, keepdims=True))


def _likelihood(wins_RKK: Array, strengths_RK: Array) -> Array:
    """Its logarithm."""
    gap = strengths_RK[:, None, :] - strengths_RK[:, :, None]
    return np.asarray(-(wins_RKK * np.logaddexp(0.0, gap)).sum(axis=(1, 2)))


def _davidson_newton(wins_KK: Array, ties_KK: Array) -> Davidson:
    """In the strengths and log nu the logarithm of the likelihood is that of a logit model, so it has one maximum."""
    num_systems = len(wins_KK)
    pairs = [(i, j) for i in range(num_systems) for j in range(i + 1, num_systems)]
    rows_N3K, counts_N3 = [], []
    for i, j in pairs:
        eye = np.eye(num_systems + 1)
        rows_N3K.append([eye[i], eye[j], (eye[i] + eye[j]) / 2 + eye[num_systems]])
        counts_N3.append([wins_KK[i, j], wins_KK[j, i], ties_KK[i, j]])
    features, counts = np.array(rows_N3K), np.array(counts_N3)
    games, total = counts.sum(axis=1), counts.sum()
    mean_zero = np.zeros((num_systems + 1, num_systems + 1))
    mean_zero[:num_systems, :num_systems] = total / num_systems
    value, best = np.zeros(num_systems + 1), -np.inf
    step: Any = np.zeros_like(value)
    for _ in range(_MOST_STEPS):
        for _ in range(40):
            scores = features @ (value + step)
            log_chance = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            found = float((counts * log_chance).sum())
            if found >= best - 1e-12 * abs(best):
                break
            step = step / 2.0
        value, best = value + step, max(best, found)
        chance = np.exp(log_chance)
        slope = np.einsum("nc,nck->k", counts - games[:, None] * chance, features)
        if np.abs(slope).max() <= _PRECISION * total:
            break
        mean = np.einsum("nc,nck->nk", chance, features)
        second = np.einsum("n,nc,nck,ncl->kl", games, chance, features, features)
        bend = second - np.einsum("n,nk,nl->kl", games, mean, mean)
        step = np.linalg.solve(bend + mean_zero, slope)
        step *= min(1.0, _LONGEST_STEP / max(float(np.abs(step).max()), 1e-300))
    strengths = value[:num_systems] - value[:num_systems].mean()
    return Davidson(strengths, float(np.exp(value[num_systems])))
