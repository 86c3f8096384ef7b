"""Which videos of several runs belong together, and how the others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miga.errors import OutputError, UsageError
from pipeline.evaluation.pairs import open_systems, pair_up

PROMPTS = ["a cat", "a dog", ["a tide", "a storm"]]


def test_all_pairs_of_like_runs(tmp_path: Path, make_run: Any) -> None:
    outs = [make_run(tmp_path / name, shade, PROMPTS) for name, shade in (("a", 10), ("b", 90))]
    systems = open_systems(outs)
    assert [system.name for system in systems] == ["a", "b"]
    pairing = pair_up(systems)
    assert pairing.asked == ((("a cat",), 0), (("a dog",), 1), (("a tide", "a storm"), 2))
    assert pairing.left_out == ()
    assert [system.storage.exists(system.video_path(pairing.asked[2])) for system in systems] == [True, True]


def test_what_has_no_partner_is_named(tmp_path: Path, make_run: Any) -> None:
    a = make_run(tmp_path / "a", 10, ["a cat", "a dog", "a hen", "a cow", "a cow"], seeds=[0, 1, 2, 3, 3], failed=(2,))
    b = make_run(tmp_path / "b", 90, ["a cat", "a dog", "a hen", "a pig"], seeds=[0, 7, 2, 4])
    pairing = pair_up(open_systems([a, b]))
    assert pairing.asked == ((("a cat",), 0),)
    assert sorted(pairing.left_out) == sorted(
        [
            "a: row 2 (a hen (seed 2)) has no video: NonFiniteError",
            "a: row 4 is left out: row 3 has its prompt and seed (a cow (seed 3))",
            "a dog (seed 1) of a: b has it with seed 7",
            "a dog (seed 7) of b: a has it with seed 1",
            "a cow (seed 3) of a: b does not have that prompt",
            "a hen (seed 2) of b: a does not have that prompt",
            "a pig (seed 4) of b: a does not have that prompt",
        ]
    )


def test_other_forms_are_named(tmp_path: Path, make_run: Any) -> None:
    a = make_run(tmp_path / "a", 10, ["a cat"])
    b = make_run(tmp_path / "b", 90, ["a cat"], num_frames=9)
    assert pair_up(open_systems([a, b])).left_out == ("a cat (seed 0): num_frames differs: 5 in a, 9 in b",)
    assert len(pair_up(open_systems([a, b]), form=("height",)).asked) == 1


def test_names_that_are_alike(tmp_path: Path, make_run: Any) -> None:
    outs = [make_run(tmp_path / name / "out", 10, ["a cat"]) for name in ("a", "b")]
    assert [system.name for system in open_systems(outs)] == outs


def test_refusals(tmp_path: Path, make_run: Any) -> None:
    a = make_run(tmp_path / "a", 10, ["a cat"])
    with pytest.raises(UsageError, match="two or more"):
        open_systems([a])
    with pytest.raises(UsageError, match="twice"):
        open_systems([a, a + "/"])
    with pytest.raises(OutputError, match="holds no run"):
        open_systems([a, str(tmp_path / "none")])
