"""The config of a run as a JSON schema, made of the types that read it, so that it cannot say anything else.

Editors complete and check TOML files by it (first line of a file: `#:schema ./miga-config.schema.json`).
A key's text is the one in the docstring of its class. Draft 7, without references: what editors read.

Of the sampler's settings it knows names and types. Their ranges depend on model and profile, and so does which of them
are read: `miga config show` judges those.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any, Final, get_args, get_type_hints

from pydantic import TypeAdapter

from miga.methods import methods
from miga.profiles import profiles, setting_types
from pipeline.config import NONE, RunConfig

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_NO_VALUE: Final = {"enum": [NONE, ""], "description": "leaves it out"}
"""How TOML, which has no null, says None."""


def config_schema() -> dict[str, Any]:
    """The schema of a whole config: every key with its type, range, default and text."""
    schema = plain_schema(TypeAdapter(RunConfig).json_schema(), _NO_VALUE)
    _describe(schema, RunConfig)
    schema["properties"]["profile"]["examples"] = list(profiles())
    schema["properties"]["sampler"] |= sampler_schema()
    return {"$schema": DRAFT, "title": "config of a run of miga", **schema}


def attribute_texts(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its attributes, by name; None as TOML says it."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base) and base.__doc__:
            texts |= _texts_of(inspect.cleandoc(base.__doc__))
    return texts


def _texts_of(docstring: str) -> dict[str, str]:
    section = re.search(r"^Attributes:\n((?:(?: +.*)?\n?)*)", docstring, re.MULTILINE)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", section[1].rstrip()) if section else ():
        names, _, text = entry.partition(":")
        said = re.sub(r"\bNone\b", f'"{NONE}"', " ".join(text.split()))
        texts |= {name.strip(): said for name in names.split(",")}
    return texts


def plain_schema(schema: dict[str, Any], null: dict[str, Any] | None = None) -> Any:
    """A schema of pydantic's with its references put in place, without titles of its own making.

    Args:
        schema: of pydantic's.
        null: how TOML says null where it is read here, "none" as a default included; None leaves null as it is.
    """
    return _plain(schema, schema.get("$defs", {}), null)


def _plain(value: Any, definitions: dict[str, Any], null: dict[str, Any] | None) -> Any:
    if isinstance(value, list):
        return [_plain(item, definitions, null) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _plain(definitions[value["$ref"].rpartition("/")[2]], definitions, null)
    if null is not None and value == {"type": "null"}:
        return dict(null)
    left_out = ("$defs", "title") if isinstance(value.get("type", value.get("anyOf")), str | list) else ("$defs",)
    plain = {key: _plain(item, definitions, null) for key, item in value.items() if key not in left_out}
    if null is not None and "default" in plain and plain["default"] is None:
        plain["default"] = NONE
    return plain


def _describe(schema: dict[str, Any], kind: type) -> None:
    """Puts the texts of a class's docstring to its keys, and those of its sections' to theirs."""
    texts, kinds = attribute_texts(kind), get_type_hints(kind)
    schema["description"] = (inspect.getdoc(kind) or "").partition("\n")[0]
    for field in fields(kind):
        entry = schema["properties"][field.name]
        if is_dataclass(kinds[field.name]):
            _describe(entry, kinds[field.name])
        entry["description"] = texts[field.name]


def sampler_schema() -> dict[str, Any]:
    """Every setting that a method reads."""
    properties: dict[str, Any] = {}
    for name, kind in setting_types().items():
        readers = [method for method in methods().values() if name in get_type_hints(method.settings)]
        text = attribute_texts(readers[0].settings).get(name, "")
        read_by = "" if len(readers) == len(methods()) else f" Read by: {', '.join(method.name for method in readers)}."
        properties[name] = {**_setting_schema(name, kind), "description": f"{text}{read_by}".strip()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _setting_schema(name: str, kind: Any) -> dict[str, Any]:
    if name == "method":
        return {"enum": list(methods())}
    if get_args(kind) and all(isinstance(value, str) for value in get_args(kind)):
        return {"enum": list(get_args(kind))}
    types = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": types[kind]} if kind in types else {"type": "array", "items": {"type": "integer"}}
