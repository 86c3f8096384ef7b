"""The quality gate: what lies beyond it, which try is kept, and what is recorded of all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from miga.errors import ConfigError
from miga.outside_data import OutsideDataError
from pipeline.config import QualityConfig, RunConfig, parse_config
from pipeline.records.quality import (
    Try,
    is_marked,
    judge,
    kept_row,
    seeds_of,
    sorted_tries,
    tried_keys,
    try_seed,
)
from pipeline.records.scores import manifest_scores
from pipeline.rows import SEED_LIMIT, ManifestRow

GATE = QualityConfig(least={"final_consistency": 0.8}, most={"searches": 4.0}, retries=2)


def row(seed: int = 5, **changes: Any) -> ManifestRow:
    values: dict[str, Any] = {
        "key": f"{seed:064x}", "id": "x", "row": 3, "shard": 0, "status": "ok", "prompts": ("a cat",), "seed": seed,
        "profile": "p", "model": "m", "model_revision": "r", "config": "{}", "config_hash": "h", "version": "0",
        "created_at": datetime(2024, 1, 1, tzinfo=UTC), "uri": f"/out/video/00000/{seed}-e1a1.mp4", "sha256": "ab",
        "attempt": 1,
    }  # fmt: skip
    return ManifestRow(**(values | changes))


def tried(number: int, **scores: float) -> Try:
    seed = try_seed(5, number)
    return Try(number=number, seed=seed, row=row(seed), scores=scores)


def test_what_lies_beyond() -> None:
    good = judge({"final_consistency": 0.8, "searches": 4.0}, GATE)
    assert (good.is_good, good.words, good.unknown) == (True, (), ())
    bad = judge({"final_consistency": 0.6, "searches": 6.0}, GATE)
    assert bad.beyond == {"final_consistency": pytest.approx(0.25), "searches": pytest.approx(0.5)}
    assert bad.words == ("final_consistency 0.6 is less than 0.8", "searches 6 is more than 4")
    unknown = judge({"final_consistency": float("nan")}, GATE)
    assert (unknown.is_good, unknown.unknown) == (True, ("final_consistency", "searches"))


def test_a_metric_may_have_both_limits() -> None:
    band = QualityConfig(least={"searches": 2.0}, most={"searches": 4.0})
    assert [judge({"searches": value}, band).is_good for value in (1.0, 2.0, 4.0, 5.0)] == [False, True, True, False]
    at_zero = QualityConfig(most={"searches": 0.0})
    assert judge({"searches": 3.0}, at_zero).beyond == {"searches": 3.0}


def test_seeds_of_tries() -> None:
    seeds = [try_seed(seed, number) for seed in range(50) for number in range(5)]
    assert len(set(seeds)) == 250
    assert all(0 <= seed < SEED_LIMIT for seed in seeds)
    assert try_seed(2**64 - 1, 0) == 2**64 - 1
    assert seeds_of(7, GATE) == [7, try_seed(7, 1), try_seed(7, 2)]
    assert seeds_of(7, QualityConfig()) == [7]
    assert seeds_of(7, QualityConfig(retries=3)) == [7]


def test_the_best_try_is_kept() -> None:
    tries = [tried(0, final_consistency=0.5, searches=2.0), tried(1, final_consistency=0.7, searches=9.0),
             tried(2, final_consistency=0.6, searches=3.0)]  # fmt: skip
    kept = kept_row(tries, GATE)
    values = json.loads(kept.quality or "")
    assert (values["kept"], values["good"], kept.seed) == (2, False, try_seed(5, 2))
    assert values["why"] == (
        "the best of 3 tries, none of them within all limits: final_consistency 0.6 is less than 0.8"
    )
    assert [each["number"] for each in values["tries"]] == [0, 1, 2]
    assert values["tries"][1]["beyond"] == ["final_consistency 0.7 is less than 0.8", "searches 9 is more than 4"]
    assert [each["seed"] for each in values["tries"]] == [try_seed(5, number) for number in range(3)]
    assert is_marked(kept)
    assert tried_keys(kept) == [kept.key, *(each.row.key for each in tries if each.row)]
    equal = [tried(0, final_consistency=0.7), tried(1, final_consistency=0.7)]
    assert json.loads(kept_row(equal, GATE).quality or "")["kept"] == 0


def test_a_good_try_ends_it_and_says_so() -> None:
    kept = kept_row([tried(0, final_consistency=0.5), tried(1, final_consistency=0.9)], GATE)
    values = json.loads(kept.quality or "")
    assert (values["kept"], values["good"]) == (1, True)
    assert values["why"] == (
        "it is within all limits after 1 that were not; not judged by searches, which it has no score of"
    )
    assert not is_marked(kept)
    marked = kept_row([tried(0, final_consistency=0.5)], replace(GATE, retries=0))
    assert json.loads(marked.quality or "")["why"].startswith("it is marked, and not made again: final_consistency 0.5")


def test_a_try_without_a_video_is_recorded_and_not_kept() -> None:
    failed = Try(number=1, seed=9, row=None, scores={}, error="NonFiniteError: NaN")
    values = json.loads(kept_row([tried(0, final_consistency=0.1), failed], GATE).quality or "")
    assert values["kept"] == 0
    assert values["tries"][1] == {"number": 1, "seed": 9, "error": "NonFiniteError: NaN"}


def test_tries_come_back_from_their_files() -> None:
    one = tried(1, final_consistency=0.5)
    assert Try.from_json(one.to_json()) == one
    for data in (b"{}", one.to_json()[:-9], one.to_json().replace(b"a cat", b"a dog"), b'{"number": 1}'):
        with pytest.raises(OutsideDataError):
            Try.from_json(data)


def test_tries_behind_a_gap_do_not_count() -> None:
    assert [each.number for each in sorted_tries([tried(3), tried(1), tried(0)])] == [0, 1]
    assert sorted_tries([tried(1)]) == []


def test_scores_of_the_manifest() -> None:
    made = row(final_consistency=(0.5, float("nan"), 0.7), num_evaluations=3, num_searches=2, network_calls=40)
    assert manifest_scores(made) == {
        "final_consistency": pytest.approx(0.6), "lowest_consistency": 0.5, "searches": 2.0, "corrections": 0.0,
        "network_calls": 40.0,
    }  # fmt: skip
    assert manifest_scores(row()) == {}


def test_the_section_of_a_config() -> None:
    config = parse_config({"quality": {"least": {"motion": 1}, "most": {"searches": 2.5}, "retries": 3}}, "x")
    assert config.quality == QualityConfig(least={"motion": 1.0}, most={"searches": 2.5}, retries=3)
    assert parse_config(json.loads(config.to_json()), "x") == config
    assert not RunConfig().quality.is_asked
    for wrong in ({"least": {"motion": "high"}}, {"retries": -1}, {"retries": 1.5}, {"at_least": {}}, {"least": 3}):
        with pytest.raises(ConfigError):
            parse_config({"quality": wrong}, "x")
