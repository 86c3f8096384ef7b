"""The JSON schema of grids takes the shipped grid, and refuses what its reader refuses."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miga.errors import ConfigError
from pipeline.ablation import COLUMNS, parse_grid
from pipeline.grid_schema import grid_schema

jsonschema = pytest.importorskip("jsonschema")

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SHIPPED, GUIDANCE = (tomllib.loads((CONFIGS / name).read_text()) for name in ("ablate.toml", "ablate-guidance.toml"))
SMALL: dict[str, Any] = {
    "settings": {"a": {"profile": "paper", "sampler": {"num_steps": 20}}},
    "tables": [
        {
            "name": "1", "title": "t", "header": ["h"], "columns": ["sc"], "note": "n",
            "rows": [{"cells": ["x"], "setting": "a", "x": 1.0, "paper_os": 95.0}],
            "plot": {"file": "f", "left": ["os"], "right": ["calls"], "x_column": "calls", "log_x": True},
        }
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(json.dumps(grid_schema(), allow_nan=False))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_grids_are_valid(validator: Any) -> None:
    for values in (SHIPPED, GUIDANCE, SMALL):
        parse_grid(values, "test")
        assert [error.message for error in validator.iter_errors(values)] == []


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda grid: grid.update(setings={}),
    lambda grid: grid.pop("tables"),
    lambda grid: grid.update(tables=[]),
    lambda grid: grid["settings"].update({"no name": {"profile": "paper"}}),
    lambda grid: grid["settings"]["a"].pop("profile"),
    lambda grid: grid["settings"]["a"].update(profil="paper"),
    lambda grid: grid["tables"][0].update(titel="t"),
    lambda grid: grid["tables"][0].update(rows=[]),
    lambda grid: grid["tables"][0]["columns"].append("scc"),
    lambda grid: grid["tables"][0]["rows"][0].update(sett="a"),
    lambda grid: grid["tables"][0]["rows"][0].update(x="1"),
    lambda grid: grid["tables"][0]["rows"][0].update(x="none"),
    lambda grid: grid["tables"][0]["rows"][0].update(cells="x"),
    lambda grid: grid["tables"][0]["plot"].update(file="a/b"),
    lambda grid: grid["tables"][0]["plot"].update(left=["osx"]),
    lambda grid: grid["tables"][0]["plot"].update(x_column="callz"),
    lambda grid: grid["tables"][0].update(plot="none"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_what_the_reader_refuses_is_not_valid(validator: Any, number: int) -> None:
    grid = copy.deepcopy(SMALL)
    CHANGES[number](grid)
    with pytest.raises(ConfigError):
        parse_grid(grid, "test")
    assert not validator.is_valid(grid)


def test_misspelt_settings_of_the_sampler_are_not_valid(validator: Any) -> None:
    """The reader leaves them to the model, where they are refused as well."""
    grid = copy.deepcopy(SMALL)
    grid["settings"]["a"]["sampler"] = {"num_step": 20}
    assert not validator.is_valid(grid)


def test_every_key_has_its_text_and_columns_are_completed() -> None:
    schema = grid_schema()
    table = schema["properties"]["tables"]["items"]
    parts = [table, table["properties"]["plot"], table["properties"]["rows"]["items"]]
    parts += schema["properties"]["settings"]["patternProperties"].values()
    for part in parts:
        assert part["description"]
        assert all(len(entry["description"]) > 3 for entry in part["properties"].values())
        assert part["additionalProperties"] is False
    assert table["properties"]["columns"]["items"]["enum"] == list(COLUMNS)
