from __future__ import annotations

import json
import math
import pickle
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.records.manifest import SCHEMA
from pipeline.rows import BadRow, ManifestRow, bad_row_key, canonical_json, video_key

ROW = ManifestRow(
    key="k" * 64,
    id="a \U0001f408",
    row=3,
    shard=0,
    status="ok",
    prompts=("nul \x00 esc \x1b", "b"),
    seed=2**64 - 1,
    profile="paper",
    model="m",
    model_revision="r",
    config="{}",
    config_hash="h",
    fps=8,
    consistency=(0.1, math.nan, math.inf),
    searched_at=(1,),
    created_at=datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC),
    version="0.1.0",
)


def test_manifest_row_comes_back_from_json() -> None:
    text = ROW.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = ManifestRow.from_json(text)
    assert math.isnan(again.consistency[1])
    assert replace(again, consistency=()) == replace(ROW, consistency=())
    assert again.consistency[::2] == (0.1, math.inf)
    assert isinstance(again.fps, float)
    assert pickle.loads(pickle.dumps(ROW)).to_json() == text


@pytest.mark.parametrize("scores", [(0.1, 0.25), (0.1, math.nan, -math.inf)])
def test_json_has_every_column_in_order_and_times_in_utc(scores: tuple[float, ...]) -> None:
    at_noon = datetime(2024, 2, 29, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    values = json.loads(replace(ROW, consistency=scores, created_at=at_noon).to_json())
    assert list(values) == SCHEMA.names
    assert values["created_at"] == "2024-02-29T10:00:00+00:00"
    assert values["consistency"] == [score if math.isfinite(score) else str(score) for score in scores]
    assert (values["searched_at"], values["error"]) == ([1], None)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"key": 1, "colour": 2}'])
def test_broken_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        ManifestRow.from_json(text)


def test_times_need_a_zone_and_status_a_known_word() -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(ROW, created_at=datetime(2024, 1, 1))
    with pytest.raises(ValueError, match="status"):
        replace(ROW, status="fine")  # type: ignore[arg-type]


def test_columns_are_those_of_the_schema_in_order() -> None:
    assert [column.name for column in fields(ManifestRow)] == SCHEMA.names
    assert all(SCHEMA.field(name).metadata[b"description"] for name in SCHEMA.names)


def test_video_key_depends_on_all_that_makes_the_video_and_on_nothing_else() -> None:
    made_from = {
        "prompts": ("a",),
        "negative_prompt": None,
        "seed": 1,
        "num_frames": 9,
        "resolved_sampler_config": {"a": 1, "b": 2.0},
        "model_revision": "r",
    }
    key = video_key(**made_from)  # type: ignore[arg-type]
    assert len(key) == 64
    assert key == video_key(**(made_from | {"resolved_sampler_config": {"b": 2.0, "a": 1}}))  # type: ignore[arg-type]
    others = [
        {"prompts": ("a", "a")},
        {"negative_prompt": ""},
        {"seed": 2},
        {"num_frames": 13},
        {"resolved_sampler_config": {"a": 2, "b": 2.0}},
        {"model_revision": "s"},
    ]
    assert len({key} | {video_key(**(made_from | other)) for other in others}) == 7  # type: ignore[arg-type]


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": math.nan})


def test_bad_rows_have_keys_of_their_own() -> None:
    rows = [BadRow(index=i, id="x", source="p:1", error="e") for i in range(2)]
    assert bad_row_key(rows[0]) != bad_row_key(rows[1])
