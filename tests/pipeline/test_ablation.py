"""Grids and tables of an ablation, from made-up scores whose figures are known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miga.backbones.registry import load_spec
from miga.cost import count_calls
from miga.errors import ConfigError, UsageError
from miga.profiles import resolve_config
from pipeline.ablation import (
    COLUMNS,
    Row,
    ScoredVideo,
    Table,
    figure,
    fill_table,
    load_grid,
    merge_settings,
    paired_difference,
    parse_grid,
    table_as_dict,
    to_markdown,
)

ROOT = Path(__file__).parents[2]


def grid_values() -> dict[str, Any]:
    return {
        "settings": {"fifo": {"profile": "fifo"}, "wide": {"profile": "paper", "sampler": {"zigzag_width": 6}}},
        "tables": [
            {
                "name": "4",
                "title": "width",
                "header": ["L_zig"],
                "columns": ["os", "calls"],
                "rows": [{"cells": ["1"], "setting": "fifo"}, {"cells": ["6"], "setting": "wide"}],
            }
        ],
    }


def video(prompt: str, seed: int = 0, **values: float) -> ScoredVideo:
    return ScoredVideo(prompt=prompt, seed=seed, values=values)


def overall(*scores: float) -> list[ScoredVideo]:
    return [video(f"p{number}", overall=score) for number, score in enumerate(scores)]


# ---- the grid ----


def test_the_grid_that_comes_along_has_the_papers_tables() -> None:
    grid = load_grid(ROOT / "jobs" / "configs" / "ablate.toml")
    assert [table.name for table in grid.tables] == ["1", "3", "4", "5", "6", "A1", "A2", "A4", "profiles"]
    assert {row.setting for table in grid.tables for row in table.rows} == set(grid.settings)
    thresholds = [grid.settings[row.setting].sampler for row in grid.select(["a2"]).tables[0].rows]
    wanted = [0.07, 0.05, 0.03, 0.01, 0.007, 0.005, 0.003, 0.001]
    assert [sampler.get("reflection_threshold") for sampler in thresholds] == [*wanted, None]
    assert [table.plot.file for table in grid.tables if table.plot] == ["fig6", "fig5", "tradeoff"]
    # B.1: what is studied stands alone, on a diagonal queue without Stage 2.
    assert {grid.settings[row.setting].profile for row in grid.select(["5"]).tables[0].rows[2:]} == {
        "no-zigzag-no-stage-2-no-reflection"
    }


def test_the_grid_of_long_range_guidance_is_possible() -> None:
    """On the embedded model all of it; on one without positions all but their table."""
    grid = load_grid(ROOT / "jobs" / "configs" / "ablate-guidance.toml")
    assert [table.name for table in grid.tables] == ["from", "many", "positions", "level"]
    assert {row.setting for table in grid.tables for row in table.rows} == set(grid.settings)
    resolved = {
        name: resolve_config(setting.profile, load_spec("sprites"), setting.sampler)
        for name, setting in grid.settings.items()
    }
    assert merge_settings({name: sampler.to_dict() for name, sampler in resolved.items()}).keys() == resolved.keys()
    assert len({count_calls(resolved[row.setting], 30).total for row in grid.tables[0].rows}) == 1, "none costs more"
    other = load_spec("VideoCrafter/VideoCrafter2")
    for table in grid.tables:
        if table.name != "positions":
            for row in table.rows:
                setting = grid.settings[row.setting]
                resolve_config(setting.profile, other, setting.sampler)


def test_the_grid_of_flex_switches_each_part_by_itself() -> None:
    grid = load_grid(ROOT / "jobs" / "configs" / "ablate-flex.toml")
    assert {row.setting for table in grid.tables for row in table.rows} == set(grid.settings)
    spec = load_spec("sprites")
    resolved = {name: resolve_config("flex-like", spec, setting.sampler) for name, setting in grid.settings.items()}
    assert merge_settings({name: sampler.to_dict() for name, sampler in resolved.items()}).keys() == resolved.keys()
    for row in grid.tables[0].rows:
        values = resolved[row.setting].to_dict()
        switches = [values["rope_scale"] != 1.0, values["antiphase"] != 0.0, values["sink_latents"] > 0]
        assert switches == [cell == "x" for cell in row.cells]


def test_tables_are_chosen_by_name_with_the_settings_they_show() -> None:
    values = grid_values()
    values["tables"].append({**values["tables"][0], "name": "A1", "rows": values["tables"][0]["rows"][:1]})
    grid = parse_grid(values, "grid")
    assert list(grid.select(["a1"]).settings) == ["fifo"]
    assert grid.select(None) == grid
    with pytest.raises(UsageError, match="'7'"):
        grid.select(["7"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda g: g["settings"]["fifo"].pop("profile"), "settings.fifo.profile"),
        (lambda g: g["settings"]["fifo"].update(smapler={}), "settings.fifo.smapler"),
        (lambda g: g["settings"].update({"../up": {"profile": "fifo"}}), "../up"),
        (lambda g: g.update(tables=[]), "no [[tables]]"),
        (lambda g: g["tables"][0].update(rows=[]), "table '4' has no rows"),
        (lambda g: g["tables"][0].update(columns=["oss"]), "did you mean 'os'"),
        (lambda g: g["tables"][0]["rows"][1].update(setting="wied"), "did you mean 'wide'"),
        (lambda g: g["tables"][0]["rows"][1].update(cells=["6", "7"]), "2 cells under 1 headers"),
        (lambda g: g["tables"][0]["rows"][1].update(x="6"), "tables.0.rows.1.x"),
        (lambda g: g["tables"].append(g["tables"][0]), "two tables are named '4'"),
        (lambda g: g["tables"][0].update(plot={"file": "a", "left": ["so"]}), "'so'"),
        (lambda g: g["tables"][0].update(plot={"file": "a/b", "left": ["os"]}), "plot.file"),
    ],
)
def test_a_grid_that_cannot_be_says_where(change: Any, named: str) -> None:
    values = grid_values()
    parse_grid(values, "grid")
    change(values)
    with pytest.raises(ConfigError, match=re.escape(named)):
        parse_grid(values, "grid")


@pytest.mark.parametrize(("content", "named"), [(b"[settings", "not TOML"), (b"\xff\xfe", "UTF-8"), (None, "read")])
def test_a_file_that_is_no_grid_is_named(tmp_path: Path, content: bytes | None, named: str) -> None:
    file = tmp_path / "grid.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=named) as caught:
        load_grid(file)
    assert str(file) in str(caught.value)


def test_settings_with_equal_samplers_share_the_first_ones_run() -> None:
    resolved = {
        "a": {"profile": "paper", "zigzag_width": 4, "timesteps": ()},
        "b": {"profile": "paper", "zigzag_width": 2, "timesteps": ()},
        "c": {"timesteps": (), "zigzag_width": 4, "profile": "no-nothing"},
        "d": {"profile": "paper", "zigzag_width": 2, "timesteps": ()},
    }
    assert merge_settings(resolved) == {"a": "a", "b": "b", "c": "a", "d": "b"}


# ---- figures ----


def test_a_mean_is_over_videos_that_have_a_value() -> None:
    found = figure([*overall(0.9, 0.8), video("p9", overall=float("nan")), video("p10")], COLUMNS["os"])
    assert found is not None
    assert found.value == pytest.approx(0.85)
    assert found.num_videos == 2
    assert figure([video("p0")], COLUMNS["os"]) is None
    assert figure([], COLUMNS["os"]) is None


def test_a_rate_is_a_sum_over_a_sum() -> None:
    videos = [
        video("a", num_corrections=1, num_evaluations=10, num_searches=0),
        video("b", num_corrections=6, num_evaluations=20, num_searches=8),
    ]
    corrected, succeeded = figure(videos, COLUMNS["r_corr"]), figure(videos, COLUMNS["r_succ"])
    assert corrected is not None
    assert succeeded is not None
    assert corrected.value == pytest.approx(7 / 30)
    assert succeeded.value == pytest.approx(7 / 8)
    assert (corrected.low, corrected.high) == pytest.approx((1 / 10, 6 / 20))
    assert figure([video("a", num_corrections=0, num_searches=0)], COLUMNS["r_succ"]) is None


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """For a mean of normal numbers the bootstrap interval is close to the mean plus or minus 1.96 standard errors."""
    scores = np.random.default_rng(3).normal(0.9, 0.02, size=64)
    found = figure(overall(*scores), COLUMNS["os"])
    assert found is not None
    error = 1.96 * scores.std() / np.sqrt(len(scores))
    assert found.low == pytest.approx(scores.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(scores.mean() + error, abs=0.1 * error)
    assert figure(overall(*scores), COLUMNS["os"]) == found, "seeded"


def test_seeds_of_a_prompt_are_resampled_together() -> None:
    """Sixteen seeds that say the same as one must not make the interval narrower."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.9, 0.02, size=12)
    once = figure(overall(*scores), COLUMNS["os"])
    many = figure(
        [video(f"p{n}", seed, overall=score) for n, score in enumerate(scores) for seed in range(16)], COLUMNS["os"]
    )
    assert once is not None
    assert many is not None
    assert (many.value, many.low, many.high) == pytest.approx((once.value, once.low, once.high))
    assert many.num_videos == 12 * 16


def test_a_paired_difference_sees_through_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(1)
    hard = rng.uniform(0.5, 1.0, size=32)
    gain = rng.normal(0.01, 0.002, size=32)
    mine, theirs = overall(*(hard + gain)), overall(*hard)
    found = paired_difference(mine, theirs, COLUMNS["os"])
    assert found is not None
    assert found.value == pytest.approx(gain.mean())
    error = 1.96 * gain.std() / np.sqrt(32)
    assert (found.low, found.high) == pytest.approx((gain.mean() - error, gain.mean() + error), abs=0.2 * error)
    alone = figure(mine, COLUMNS["os"])
    assert alone is not None
    assert alone.high - alone.low > 10 * (found.high - found.low)


def test_a_paired_difference_takes_the_videos_that_both_have() -> None:
    found = paired_difference(overall(0.9, 0.7), [*overall(0.8), video("other", overall=0.1)], COLUMNS["os"])
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.num_videos == 1
    assert paired_difference(overall(0.9), [video("other", overall=0.1)], COLUMNS["os"]) is None


# ---- tables ----


def table() -> Table:
    return Table(
        name="4",
        title="width",
        header=("L_zig",),
        columns=("os", "residual", "motion", "calls"),
        rows=(
            Row(cells=("1",), setting="fifo", paper_os=95.8),
            Row(cells=("4 | 6",), setting="wide"),
            Row(cells=("12",), setting="wider"),
        ),
        note="A note.",
    )


def made(score: float, residual: float, calls: float) -> list[ScoredVideo]:
    return [video(f"p{n}", overall=score, residual=residual, network_calls=calls, num_frames=100) for n in range(4)]


def test_a_table_has_the_best_of_each_column_bold_and_no_empty_columns() -> None:
    videos = {"fifo": made(0.9, 0.03, 600), "wide": made(0.95, 0.02, 900), "wider": made(0.95, 0.05, 600)}
    filled = fill_table(table(), videos)
    assert filled.columns == ("os", "residual", "calls")
    lines = [line for line in to_markdown(filled).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == ["L_zig", "O.S.", "residual", "calls a frame", "O.S. against the first row", "O.S. in the paper"]
    assert cells[2] == ["1", "90.00 [90.00, 90.00]", "3.00 [3.00, 3.00]", "**6.00** [6.00, 6.00]", "", "95.80"]
    assert cells[3] == [r"4 \| 6", "**95.00** [95.00, 95.00]", "**2.00** [2.00, 2.00]", "9.00 [9.00, 9.00]",
                        "+5.00 [+5.00, +5.00]", ""]  # fmt: skip
    assert cells[4][1:3] == ["**95.00** [95.00, 95.00]", "5.00 [5.00, 5.00]"]
    assert len({len(line) for line in lines}) == 1, "they line up"
    assert "A note." in to_markdown(filled)


def test_a_column_without_a_choice_has_no_best() -> None:
    videos = {name: made(0.9, 0.03, 600) for name in ("fifo", "wide", "wider")}
    assert "**" not in to_markdown(fill_table(table(), videos))


def test_a_table_for_machines_is_unscaled() -> None:
    videos = {"fifo": made(0.9, 0.03, 600), "wide": made(0.95, 0.02, 900), "wider": []}
    values = table_as_dict(fill_table(table(), videos))
    first, second, third = values["rows"]
    assert first["figures"]["os"] == {"value": pytest.approx(0.9), "low": pytest.approx(0.9),
                                      "high": pytest.approx(0.9), "num_videos": 4}  # fmt: skip
    assert first["against_first_row"] == {}
    assert second["against_first_row"]["calls"]["value"] == pytest.approx(3.0)
    assert third["figures"] == {}
