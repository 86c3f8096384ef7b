"""The JSON schema of configs says of every value what the reader of configs says."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from miga.backbones.registry import load_spec
from miga.errors import ConfigError
from miga.methods import methods
from miga.profiles import check_overrides, field_names, profiles, resolve_config
from pipeline.config import RunConfig, parse_config
from pipeline.config_schema import attribute_texts, config_schema

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
GRIDS = {"ablate.toml", "ablate-guidance.toml", "ablate-flex.toml"}
SHIPPED = [
    *sorted(path for path in (ROOT / "jobs" / "configs").glob("*.toml") if path.name not in GRIDS),
    ROOT / "infra" / "run.toml",
]
VALUES: tuple[Any, ...] = (
    True, False, 0, 1, -1, 16, 64, 65, 1000, 3600, 100_001, 2**31, 2**63, 2**64, 0.0, 0.5, -0.5, 1.5, 1e9, "", "none",
    "x", "auto", "float32", "windows", "libx264", [], ["x"], [""], [1], {}, {"x": 1},
)  # fmt: skip
"""Of every kind that TOML has, and at the ends of ranges."""


@pytest.fixture(scope="module")
def validator() -> Any:
    """With the types of TOML, as its editors have them: 1.0 is no whole number there, which in JSON it is."""
    schema = json.loads(json.dumps(config_schema(), allow_nan=False))
    jsonschema.Draft7Validator.check_schema(schema)
    types = jsonschema.Draft7Validator.TYPE_CHECKER.redefine("integer", lambda checker, value: type(value) is int)
    return jsonschema.validators.extend(jsonschema.Draft7Validator, type_checker=types)(schema)


def keys() -> Iterator[str]:
    for field in fields(RunConfig):
        value = getattr(RunConfig(), field.name)
        yield field.name
        if is_dataclass(value):
            yield from (f"{field.name}.{inner.name}" for inner in fields(value))


def is_read(values: dict[str, Any]) -> bool:
    """Whether the reader takes them; settings of the sampler as far as they are judged without a model."""
    try:
        check_overrides(parse_config(values, "test").sampler)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("key", list(keys()))
@pytest.mark.sampled(12)
def test_of_every_key_and_value_it_says_what_the_reader_says(validator: Any, key: str) -> None:
    section, _, name = key.rpartition(".")
    for value in VALUES:
        values = {section: {name: value}} if section else {name: value}
        assert validator.is_valid(values) == is_read(values), f"{key} = {value!r}"


@pytest.mark.parametrize("name", field_names()[1:])
@pytest.mark.sampled(24)
def test_of_every_setting_of_the_sampler_too(validator: Any, name: str) -> None:
    """But for what a number of one kind or another can hold: a schema has no 63 bits."""
    for value in (*VALUES, "miga", "unipc", "none"):
        if isinstance(value, int) and value >= 2**63:
            continue
        values = {"sampler": {name: value}}
        assert validator.is_valid(values) == is_read(values), f"sampler.{name} = {value!r}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid(validator: Any, path: Path) -> None:
    assert not list(validator.iter_errors(tomllib.loads(path.read_text())))


@pytest.mark.parametrize("profile", ["swift", "paper", "fifo", "scalingnoise", "stage-2-only"])
def test_resolved_settings_are_valid(validator: Any, profile: str) -> None:
    settings = resolve_config(profile, load_spec("sprites")).to_dict()
    settings = json.loads(json.dumps({name: value for name, value in settings.items() if name != "profile"}))
    assert not list(validator.iter_errors({"sampler": settings}))


def test_unknown_keys_are_none(validator: Any) -> None:
    for values in ({"seeds": 1}, {"workers": {"actors": 1}}, {"sampler": {"profile": "x"}}, {"sampler": {"x": 1}}):
        assert not validator.is_valid(values)
        assert not is_read(values)


def test_defaults_are_those_of_the_type() -> None:
    schema, defaults = config_schema(), RunConfig().to_dict()

    def check(part: dict[str, Any], values: dict[str, Any]) -> None:
        for name, entry in part["properties"].items():
            if values[name] == {}:
                assert (entry["type"], entry.get("default", {})) == ("object", {}), name
            elif isinstance(values[name], dict):
                check(entry, values[name])
            else:
                assert entry["default"] == ("none" if values[name] is None else values[name]), name

    check(schema, defaults)


def test_every_key_has_its_text() -> None:
    schema = config_schema()
    sections = [schema, *(entry for entry in schema["properties"].values() if "properties" in entry)]
    assert len(sections) == 7
    for section in sections:
        for name, entry in section["properties"].items():
            assert len(entry["description"]) > 10, name
            assert "None" not in entry["description"], name
    assert schema["properties"]["seed"]["description"] == "from which rows without a seed get theirs."
    assert set(schema["properties"]["sampler"]["properties"]) == set(field_names()) - {"profile"}
    assert schema["properties"]["sampler"]["properties"]["num_beams"]["description"].endswith("Read by: scalingnoise.")
    assert schema["properties"]["profile"]["examples"] == list(profiles())
    assert schema["properties"]["sampler"]["properties"]["method"]["enum"] == list(methods())


def test_it_has_no_references() -> None:
    assert "$ref" not in json.dumps(config_schema())
    assert "$defs" not in json.dumps(config_schema())


def test_texts_are_read_off_docstrings() -> None:
    from dataclasses import dataclass

    @dataclass
    class Base:
        """A base.

        Attributes:
            first, second: two at once,
                over two lines.
            third: replaced: with a colon; None is nothing.

        Raises:
            ValueError: never.
        """

        first: int
        second: int
        third: int

    @dataclass
    class Derived(Base):
        """Of it.

        Attributes:
            third: another.
        """

    assert attribute_texts(Base)["third"] == 'replaced: with a colon; "none" is nothing.'
    both = "two at once, over two lines."
    assert attribute_texts(Derived) == {"first": both, "second": both, "third": "another."}
