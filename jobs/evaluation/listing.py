"""Which metrics there are, what weights they need, and whether those are here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miga.errors import ModelError
from miga.evaluation.measures import MEASURES, NOT_HERE
from miga.evaluation.weights import WEIGHTS, find_weights, weights_folder
from pipeline.evaluation.evaluator import EXTRA


def listing(places: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every metric with its weights: source, licence, command, and the path where they were found."""
    found: list[dict[str, Any]] = [
        {"metric": name, "about": measure.about, "weights": [_weights(part, places) for part in measure.networks]}
        for name, measure in MEASURES.items()
    ]
    found += [{"metric": name, "about": f"cannot be had: {why}", "weights": []} for name, (why, _) in NOT_HERE.items()]
    return [*found, *({"metric": name, "about": about, "weights": []} for name, about in EXTRA.items())]


def _weights(name: str, places: Mapping[str, str]) -> dict[str, Any]:
    weights = WEIGHTS[name]
    try:
        path: str | None = find_weights([name], places)[name].path
    except ModelError:
        path = None
    return {
        "name": name,
        "source": weights.source,
        "licence": weights.licence,
        "is_non_commercial": weights.is_non_commercial,
        "command": weights.command(weights_folder()),
        "path": path,
    }
