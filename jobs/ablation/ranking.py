"""What a table's order becomes when stillness no longer counts as consistency, in words that follow from its figures.

VBench's consistency, smoothness and flicker are best of a picture that stands still, and cannot tell it from a video
that holds together. So O.S. is taken once more for as much of a video as moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipeline.ablation import COLUMNS, FilledRow, FilledTable

PLAIN: Final = "os"
MOVING: Final = "os_moving"


def ranking_of(filled: FilledTable) -> str:
    """The sentences; "" for a table that does not show both columns, or compares nothing."""
    rows = [row for row in filled.rows if {PLAIN, MOVING} <= row.figures.keys()]
    if len(rows) < 2 or not {PLAIN, MOVING} <= set(filled.columns):
        return ""
    before, behind = _ordered(rows, PLAIN), _ordered(rows, MOVING)
    sentences = [
        f"By O.S. the order is {_order(before, PLAIN)}.",
        "Where stillness no longer counts (O.S. times the share of a video that moves) it is "
        f"{_order(behind, MOVING)}.",
    ]
    moved = [
        f"{_name(row)} from {before.index(row) + 1} to {place}"
        for place, row in enumerate(behind, 1)
        if before.index(row) + 1 != place
    ]
    sentences.append(f"Places change: {', '.join(moved)}." if moved else "No place changes.")
    first = rows[0]
    certain = [
        f"{_name(row)} ({'more' if row.differences[MOVING].low > 0 else 'less'})"
        for row in behind
        if MOVING in row.differences and not row.differences[MOVING].low <= 0 <= row.differences[MOVING].high
    ]
    sentences.append(
        f"Told from {_name(first)} by more than chance, where stillness does not count: {', '.join(certain)}."
        if certain
        else f"None is told from {_name(first)} by more than chance where stillness does not count."
    )
    return " ".join(sentences)


def _ordered(rows: Sequence[FilledRow], column: str) -> list[FilledRow]:
    return sorted(rows, key=lambda row: -row.figures[column].value)


def _name(row: FilledRow) -> str:
    return " ".join(row.row.cells)


def _order(rows: Sequence[FilledRow], column: str) -> str:
    scale, digits = COLUMNS[column].scale, COLUMNS[column].digits
    return " > ".join(f"{_name(row)} {row.figures[column].value * scale:.{digits}f}" for row in rows)
