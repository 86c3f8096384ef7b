"""Statistics of a study: recorded reference values, closed forms, and what must hold of any study."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.agreement import fleiss_kappa, krippendorff_alpha
from pipeline.evaluation.bradley_terry import NoStrengthsError, bradley_terry, bradley_terry_batch, davidson
from pipeline.evaluation.study import (
    CheckAnswer,
    Judgement,
    Outcome,
    Reliability,
    compare,
    reliability,
    sign_test_p,
    strengths,
)

RECORDED = json.loads((Path(__file__).parent / "judging.json").read_text())
TABLE = RECORDED["table_a6"]


def judgement(person: object, prompt: object, outcome: Outcome, question: str = "q", **changes: str) -> Judgement:
    sides = {"system": "MIGA", "against": "FIFO"} | changes
    return Judgement(
        person=str(person), prompt=str(prompt), item=str(prompt), question=question, outcome=outcome, **sides
    )


def study_of(counts: tuple[int, int, int], question: str = "q") -> list[Judgement]:
    """48 prompts by 8 people, with so many wins, ties and losses."""
    outcomes: list[Outcome] = ["win"] * counts[0] + ["tie"] * counts[1] + ["loss"] * counts[2]
    places = product(range(48), range(8))
    return [
        judgement(person, prompt, outcome, question) for (prompt, person), outcome in zip(places, outcomes, strict=True)
    ]


@pytest.mark.parametrize("question", TABLE)
def test_the_papers_table(question: str) -> None:
    recorded = TABLE[question]
    [found] = compare(study_of(tuple(recorded["counts_win_tie_loss"]), question), "MIGA", "FIFO")
    assert list(found.counts) == recorded["counts_win_tie_loss"]
    assert [part.mean for part in found.percent] == pytest.approx(recorded["exact_percent"], abs=1e-12)
    assert found.win_rate.mean == pytest.approx(recorded["win_rate_half_ties"], abs=1e-15)
    assert found.win_rate_without_ties == pytest.approx(recorded["win_rate_without_ties"], abs=1e-15)
    assert found.log_strength == pytest.approx(recorded["bradley_terry_log_strength"], abs=1e-14)
    assert found.z_if_independent == pytest.approx(recorded["sign_test_z_if_independent"], abs=1e-12)
    assert found.num_people == 8
    wins, _, losses = found.counts
    pair = bradley_terry([[0, wins], [losses, 0]])
    assert pair[0] - pair[1] == pytest.approx(recorded["bradley_terry_log_strength"], abs=1e-10)


def test_agreement_as_recorded() -> None:
    recorded = RECORDED["agreement"]
    ratings = recorded["ratings_items_by_raters"]
    assert fleiss_kappa(ratings) == pytest.approx(recorded["fleiss_kappa"], abs=1e-15)
    assert krippendorff_alpha(ratings) == pytest.approx(recorded["krippendorff_alpha_nominal"], abs=1e-15)
    shuffled = [[ratings[item][person] for person in (2, 0, 3, 1)] for item in (5, 3, 1, 0, 2, 4)]
    assert fleiss_kappa(shuffled) == pytest.approx(fleiss_kappa(ratings), abs=1e-15)


def test_alpha_with_gaps_is_krippendorffs_own_example() -> None:
    """Example C of "Computing Krippendorff's alpha-reliability": four observers, gaps, alpha = 0.743."""
    gap = None
    people = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
        [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
    ]
    assert krippendorff_alpha([list(item) for item in zip(*people, strict=True)]) == pytest.approx(0.743, abs=5e-4)


def test_agreement_where_it_is_not_defined() -> None:
    assert math.isnan(fleiss_kappa([]))
    assert math.isnan(fleiss_kappa([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1, 1], [1, None]]))
    assert math.isnan(krippendorff_alpha([[1, None], [None, 2]]))
    for uneven in ([[1, 2], [1]], [[1], [2]], [[1, None]]):
        with pytest.raises(ValueError, match="equally often"):
            fleiss_kappa(uneven)


def test_perfect_agreement_and_disagreement() -> None:
    assert fleiss_kappa([[0, 0], [1, 1]]) == krippendorff_alpha([[0, 0], [1, 1]]) == 1.0
    assert fleiss_kappa([[0, 1], [1, 0]]) == -1.0
    assert krippendorff_alpha([[0, 1], [1, 0]]) == pytest.approx(1 - 1 / (2 / 3), abs=1e-15)


def test_strengths_as_recorded() -> None:
    recorded = RECORDED["bradley_terry"]
    found = bradley_terry(recorded["wins_row_over_column"])
    assert found == pytest.approx(recorded["log_strengths_mean_zero"], abs=1e-9)


def test_strengths_are_where_expected_wins_are_the_counted_ones() -> None:
    generator = np.random.default_rng(3)
    wins = generator.integers(1, 40, (5, 5)) * generator.choice([1, 1, 30], (5, 5))
    np.fill_diagonal(wins, 0)
    s = bradley_terry(wins)
    expected = (wins + wins.T) / (1 + np.exp(s[None, :] - s[:, None]))
    assert expected.sum(1) - np.diag(expected) == pytest.approx(wins.sum(1), rel=1e-9)
    assert s.sum() == pytest.approx(0, abs=1e-12)
    assert bradley_terry_batch(np.stack([wins, wins.T]).astype(float)) == pytest.approx(np.stack([s, -s]), abs=1e-9)


@pytest.mark.parametrize("wins", [[[0, 3], [0, 0]], [[0, 1, 0], [1, 0, 0], [5, 5, 0]], [[0, 0], [0, 0]]])
def test_no_strengths_where_one_never_wins(wins: list[list[int]]) -> None:
    with pytest.raises(NoStrengthsError):
        bradley_terry(wins)


def test_extreme_counts() -> None:
    found = bradley_terry([[0, 10**6], [1, 0]])
    assert found[0] - found[1] == pytest.approx(math.log(10**6), rel=1e-6)


@pytest.mark.parametrize("wins", [[[0, 1]], [[0, -1], [1, 0]], [[0, math.nan], [1, 0]]])
def test_no_table_of_comparisons(wins: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="square table"):
        bradley_terry(wins)


def test_davidson_of_two_is_a_closed_form() -> None:
    """Of two, win : tie : loss fit exactly: nu = ties / sqrt(wins losses)."""
    found = davidson([[0, 239], [61, 0]], [[0, 84], [84, 0]])
    assert found.log_strengths_K[0] - found.log_strengths_K[1] == pytest.approx(math.log(239 / 61), abs=1e-9)
    assert found.tie == pytest.approx(84 / math.sqrt(239 * 61), abs=1e-9)


def test_davidson_of_three_finds_what_its_counts_were_made_of() -> None:
    strength, nu = np.exp([0.7, 0.1, -0.8]), 0.6
    wins, ties = np.zeros((3, 3)), np.zeros((3, 3))
    for i, j in product(range(3), range(3)):
        if i != j:
            total = strength[i] + strength[j] + nu * math.sqrt(strength[i] * strength[j])
            wins[i, j], ties[i, j] = strength[i] / total, nu * math.sqrt(strength[i] * strength[j]) / total
    found = davidson(wins * 1000, (ties + ties.T) * 500)
    assert found.log_strengths_K == pytest.approx([0.7, 0.1, -0.8], abs=1e-8)
    assert found.tie == pytest.approx(0.6, abs=1e-8)
    with pytest.raises(NoStrengthsError):
        davidson([[0, 2], [1, 0]], [[0, 0], [0, 0]])
    with pytest.raises(ValueError, match="symmetric"):
        davidson([[0, 2], [1, 0]], [[0, 1], [0, 0]])


def test_sign_test() -> None:
    assert sign_test_p(5, 0) == sign_test_p(0, 5) == 2 / 32
    assert sign_test_p(0, 0) == sign_test_p(3, 3) == 1.0
    assert sign_test_p(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_either_side_may_be_named_first() -> None:
    study = study_of((200, 100, 84))
    mirrored = [each.mirrored() if index % 2 else each for index, each in enumerate(study)]
    assert compare(mirrored, "MIGA", "FIFO") == compare(study, "MIGA", "FIFO")
    [back] = compare(study, "FIFO", "MIGA")
    assert back.counts == (84, 100, 200)
    assert compare(study, "MIGA", "another") == []


def test_the_interval_is_over_prompts_and_over_people() -> None:
    """Where people differ and prompts do not, more prompts make it no narrower; and the other way round."""

    def width(num_prompts: int, num_people: int, by_person: bool) -> float:
        study = [
            judgement(u, p, "win" if (u if by_person else p) % 2 else "loss")
            for p, u in product(range(num_prompts), range(num_people))
        ]
        rate = compare(study, "MIGA", "FIFO")[0].win_rate
        return rate.high - rate.low

    assert width(40, 8, True) == pytest.approx(width(4, 8, True), abs=0.02)
    assert width(8, 40, False) == pytest.approx(width(8, 4, False), abs=0.02)
    assert width(40, 8, True) > 2 * width(40, 200, True)


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Prompts and people each shift the chance of a win: about 95 % of such studies' intervals hold the mean."""
    generator = np.random.default_rng(11)
    held = 0
    for _ in range(60):
        of_prompt, of_person = generator.normal(0, 0.15, 24), generator.normal(0, 0.15, 8)
        study = [
            judgement(u, p, "win" if generator.random() < 0.5 + of_prompt[p] + of_person[u] else "loss")
            for p, u in product(range(24), range(8))
        ]
        rate = compare(study, "MIGA", "FIFO")[0].win_rate
        held += rate.low <= 0.5 <= rate.high
    assert held >= 51


def test_one_person_and_one_prompt() -> None:
    [one] = compare([judgement("ann", 1, "win")], "MIGA", "FIFO")
    assert one.win_rate.mean == 1.0
    assert math.isnan(one.win_rate.low)
    assert math.isnan(one.alpha)
    assert math.isnan(one.kappa)
    assert one.log_strength == math.inf
    [alone] = compare([judgement("ann", p, "win" if p else "loss") for p in range(9)], "MIGA", "FIFO")
    assert alone.win_rate.low < 8 / 9 < alone.win_rate.high
    assert math.isnan(alone.kappa)


def test_kappa_is_over_the_items_that_all_have_judged() -> None:
    outcomes: list[tuple[Outcome, Outcome]] = [("win", "win"), ("loss", "loss"), ("tie", "win")]
    study = [judgement(u, p, outcome) for p, pair in enumerate(outcomes) for u, outcome in enumerate(pair)]
    study.append(judgement(0, "only one", "loss"))
    [found] = compare(study, "MIGA", "FIFO")
    assert found.num_common_items == 3
    assert found.kappa == pytest.approx(fleiss_kappa(outcomes), abs=1e-15)
    assert found.alpha == pytest.approx(krippendorff_alpha(outcomes), abs=1e-15)
    assert (found.prompts_for, found.prompts_against, found.prompts_even) == (2, 2, 0)


def test_strengths_of_three_systems_in_a_study() -> None:
    generator = np.random.default_rng(0)
    names, strength = ["a", "b", "c"], [0.8, 0.0, -0.8]
    study = []
    for p, u, (i, j) in product(range(20), range(5), [(0, 1), (0, 2), (1, 2)]):
        chance = 1 / (1 + math.exp(strength[j] - strength[i]))
        outcome: Outcome = "win" if generator.random() < chance else "loss"
        study.append(judgement(u, p, outcome, system=names[i], against=names[j]))
    [found] = strengths(study, names)
    wins = np.zeros((3, 3))
    for each in study:
        i, j = names.index(each.system), names.index(each.against)
        wins[(i, j) if each.outcome == "win" else (j, i)] += 1
    assert found.log_strengths == pytest.approx(tuple(bradley_terry(wins)), abs=1e-9)
    for value, interval in zip(found.log_strengths, found.intervals, strict=True):
        assert interval.low < value < interval.high
    assert found.intervals[0].low > found.intervals[2].high
    assert found.undetermined < 0.01
    assert found.davidson is None


def test_strengths_that_are_infinite_have_no_interval() -> None:
    [found] = strengths([judgement(u, p, "win") for p, u in product(range(4), range(2))], ["MIGA", "FIFO"])
    assert found.undetermined == 1.0
    assert all(map(math.isnan, found.log_strengths))
    assert all(math.isnan(interval.low) for interval in found.intervals)


def test_who_fails_checks() -> None:
    answers = [CheckAnswer(person="ann", kind="equal", is_right=right) for right in (True, True, True, True, False)]
    answers += [CheckAnswer(person="bob", kind="broken", is_right=right) for right in (True, True, False, False)]
    answers += [CheckAnswer(person="ann", kind="repeat", is_right=right) for right in (True, False)]
    ann, bob, cy = reliability(answers, ["ann", "bob", "cy"])
    assert ann == Reliability(person="ann", num_checks=5, num_failed=1, num_repeats=2, num_same=1)
    assert (ann.has_failed, bob.has_failed, cy.has_failed) == (False, True, False)  # a fifth is not more than a fifth
