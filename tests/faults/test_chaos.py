"""A short chaos run, and what the program that makes longer ones says of them; see `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.local import LocalStorage
from tests.faults.chaos import (
    KINDS,
    Outcome,
    calm_dataset,
    chaos_prompts,
    is_local,
    kinds_of,
    planned,
    run_seed,
    seeds_of,
)
from tests.faults.harness import dataset
from tests.made_run import make_run


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3], ids=["bucket", "folder"])
def test_videos_under_faults_are_those_of_a_calm_run(seed: int, tmp_path: Path) -> None:
    prompts = chaos_prompts(8)
    expected = calm_dataset(prompts, tmp_path / "calm")
    outcome = run_seed(seed, prompts, expected, last_s=15.0, folder=tmp_path / "chaos")
    assert outcome.is_whole, [outcome, outcome.orphans, outcome.complaints]
    assert outcome.num_faults >= 3, outcome


@pytest.mark.slow
def test_twenty_seeds_have_every_kind_of_fault() -> None:
    for first in range(1, 30):
        assert {kind for seed in range(first, first + 20) for kind in planned(seed)} == set(KINDS)


def test_a_folder_has_no_server_and_what_is_left_out_is_never_drawn() -> None:
    for seed in range(1, 20):
        assert ("silence the server" in kinds_of(seed)) is not is_local(seed)
        assert "pull a cable" not in {*kinds_of(seed, ["pull a cable"]), *planned(seed, ["pull a cable"])}


def test_seeds() -> None:
    assert seeds_of("1-3,7") == [1, 2, 3, 7]
    for wrong in ("3-1", "x", ""):
        with pytest.raises(ValueError, match=r".+"):
            seeds_of(wrong)


@pytest.mark.slow
def test_what_must_not_be_is_counted(tmp_path: Path) -> None:
    """Eight rows as they should be, held against another dataset; and a file that belongs to nothing."""
    out = make_run(LocalStorage(tmp_path / "out"), tmp_path).storage.root
    expected = dataset(out)
    expected[1] = expected[1] | {"sha256": "another"}
    expected[3] = expected[3] | {"error_type": "RowError"}
    expected[8] = expected[7] | {"id": "8"}
    (tmp_path / "out" / "checkpoint").mkdir()
    (tmp_path / "out" / "checkpoint" / "left.part").touch()
    outcome = Outcome(1, "folder", len(expected))
    outcome.judge(out, expected)
    assert (outcome.rows, outcome.lost, outcome.doubled, outcome.differing) == (8, [8], [], [1, 3])
    assert (outcome.orphans, outcome.complaints) == (["checkpoint/left.part"], [])
    assert not outcome.is_whole
