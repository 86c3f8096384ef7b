"""The recorded figures of `tests/fixtures/evaluation`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[2] / "fixtures" / "evaluation"


def figures(name: str) -> Any:
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as found:
        return {key: found[key] for key in found}


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the largest value."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
