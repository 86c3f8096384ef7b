"""What the manifest's column `quality` says of a row, as plain values for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.report.values import plain


def gate_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the quality gate says of a row: whether its video is good, which try was kept and why, and of every try.

    None where no gate was asked, or the column cannot be read.
    """
    try:
        given = parse_json_object(row["quality"]) if row.get("quality") else None
    except (OutsideDataError, TypeError):
        return None
    if given is None or not isinstance(given.get("good"), bool) or not isinstance(given.get("tries"), list):
        return None
    kept = given.get("kept")
    return {
        "good": given["good"],
        "kept": kept if type(kept) is int else 0,
        "why": str(given.get("why") or ""),
        "tries": [_try(each, kept) for each in given["tries"] if isinstance(each, dict)],
    }


def _try(given: Mapping[str, Any], kept: Any) -> dict[str, Any]:
    beyond, scores = given.get("beyond"), given.get("scores")
    words = [str(word) for word in beyond] if isinstance(beyond, list) else []
    shown = scores if isinstance(scores, dict) else {}
    return {
        "number": plain(given.get("number")),
        "seed": None if given.get("seed") is None else str(given["seed"]),
        "kept": given.get("number") == kept,
        "words": str(given.get("error") or "; ".join(words) or "within all limits"),
        "scores": {str(name): value for name, value in shown.items() if isinstance(value, int | float)},
    }
