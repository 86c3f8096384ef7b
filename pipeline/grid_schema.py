"""A grid of `miga ablate` as a JSON schema, made of the types that read it; see `config_schema.py`.

What a schema cannot say is left to the reader: that a row's setting is one of the grid's, and that names differ.
"""

from __future__ import annotations

from typing import Any, get_type_hints

from pydantic import TypeAdapter

from miga.profiles import profiles
from pipeline.ablation import COLUMNS, Grid, Plot, Row, Setting, Table
from pipeline.config_schema import DRAFT, attribute_texts, plain_schema, sampler_schema


def grid_schema() -> dict[str, Any]:
    """The schema of a whole grid: every key with its type, range, default and text."""
    schema = _without_null(plain_schema(TypeAdapter(Grid).json_schema()))
    settings, tables = schema["properties"]["settings"], schema["properties"]["tables"]
    (setting,) = settings["patternProperties"].values()
    settings |= {"additionalProperties": False, "description": "ways to sample, by a name of your own"}
    tables |= {"minItems": 1, "description": "tables, in the order in which they are printed"}
    table = tables["items"]
    properties = table["properties"]
    _describe(setting, Setting)
    _describe(table, Table)
    _describe(properties["rows"]["items"], Row)
    _describe(properties["plot"], Plot)
    properties["rows"]["minItems"] = 1
    setting["properties"]["profile"]["examples"] = list(profiles())
    setting["properties"]["sampler"] |= sampler_schema()
    plot = properties["plot"]["properties"]
    for columns in (properties["columns"], plot["left"], plot["right"]):
        columns["items"] = {"enum": list(COLUMNS)}
    plot["x_column"]["enum"] = ["", *COLUMNS]
    return {"$schema": DRAFT, "title": "grid of miga ablate", **schema}


def _describe(schema: dict[str, Any], kind: type) -> None:
    texts = attribute_texts(kind)
    schema["description"] = (kind.__doc__ or "").partition("\n")[0]
    for name, entry in schema["properties"].items():
        entry["description"] = texts[name]
    assert schema["properties"].keys() == get_type_hints(kind).keys() - {"__pydantic_config__"}


def _without_null(value: Any) -> Any:
    """A grid has no word for None: what may be left out is left out."""
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_null(item) for key, item in value.items() if not (key == "default" and item is None)}
    kinds = [kind for kind in kept.get("anyOf", []) if kind != {"type": "null"}]
    return kept if len(kinds) != 1 else {key: item for key, item in kept.items() if key != "anyOf"} | kinds[0]
