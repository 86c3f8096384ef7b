"""What a table's order becomes where stillness does not count: sentences that follow from made-up figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.ablation.ranking import ranking_of
from miga.metrics.pixels import MovementMeter
from pipeline.ablation import Row, ScoredVideo, Table, fill_table, parse_grid, to_markdown


def videos(overall: float, moves: float, spread: float = 0.01) -> list[ScoredVideo]:
    return [
        ScoredVideo(
            prompt=f"p{number}",
            seed=0,
            values={
                "overall": overall + spread * number / 9,
                "overall_moving": (overall + spread * number / 9) * moves,
            },
        )
        for number in range(10)
    ]


def table(*names: str, columns: tuple[str, ...] = ("os", "os_moving")) -> Table:
    rows = tuple(Row(cells=(name,), setting=name) for name in names)
    return Table(name="1", title="methods", header=("method",), columns=columns, rows=rows)


def test_the_still_one_leads_until_stillness_does_not_count() -> None:
    made = {"still": videos(0.98, 0.1), "lively": videos(0.9, 0.9), "middle": videos(0.95, 0.5)}
    text = ranking_of(fill_table(table("still", "lively", "middle"), made))
    assert "By O.S. the order is still 98.50 > middle 95.50 > lively 90.50." in text
    assert "it is lively 81.45 > middle 47.75 > still 9.85." in text
    assert "Places change: lively from 3 to 1, still from 1 to 3." in text
    assert "Told from still by more than chance, where stillness does not count: lively (more), middle (more)." in text


def test_where_nothing_changes_it_says_so() -> None:
    made = {"a": videos(0.9, 0.5), "b": videos(0.8, 0.5)}
    filled = fill_table(table("a", "b"), made)
    assert "No place changes." in ranking_of(filled)
    assert "b (less)" in ranking_of(filled)
    alike = ranking_of(fill_table(table("a", "b"), {"a": videos(0.9, 0.5), "b": videos(0.9, 0.5)}))
    assert "None is told from a by more than chance" in alike
    assert ranking_of(fill_table(table("a", "b", columns=("os",)), made)) == ""
    assert ranking_of(fill_table(table("a"), made)) == ""


def test_a_setting_that_cannot_be_is_left_out_and_its_table_says_why() -> None:
    rows = [{"cells": ["A"], "setting": "a"}, {"cells": ["B"], "setting": "b"}]
    values: dict[str, Any] = {
        "settings": {"a": {"profile": "direct"}, "b": {"profile": "freepca", "where_possible": True}},
        "tables": [
            {"name": "1", "title": "t", "header": ["m"], "columns": ["os"], "rows": rows, "note": "A note."},
            {"name": "2", "title": "t", "header": ["m"], "columns": ["os"], "rows": rows[1:]},
        ],
    }
    grid = parse_grid(values, "grid").without({"b": "no cells there"})
    assert [one.name for one in grid.tables] == ["1"]
    assert grid.settings.keys() == {"a"}
    assert "A note. Not here: B (no cells there)." in to_markdown(fill_table(grid.tables[0], {"a": videos(0.9, 0.5)}))


def test_movement_is_what_many_pixels_see() -> None:
    def score(frames: list[np.ndarray]) -> float:
        meter = MovementMeter()
        for frame in frames:
            meter.add(frame)
        return meter.score

    noise = np.random.default_rng(0).integers(0, 12, (40, 32, 32, 3)).astype(np.uint8)
    assert score(list(noise)) == 0.0, "noise does not move"
    moving = []
    for number in range(40):
        frame = np.zeros((32, 32, 3), np.uint8)
        frame[8:16, number % 24 : number % 24 + 8] = 255
        moving.append(frame)
    assert score(moving) == 1.0
    half = [*moving[:20], *[moving[19]] * 32]
    assert score(half) == (20 - 12 + 11) / (52 - 12)
    assert np.isnan(score(moving[:12]))
