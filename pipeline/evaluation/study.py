"""What a study says in which people compare videos two at a time: counts, rates, intervals, agreement, strengths.

Judgements of one pair are not independent, and neither are those of one person. So intervals come from a bootstrap that
draws prompts and people anew, both at once: a judgement counts as often as its prompt times as often as its person was
drawn. With one person alone, only prompts are drawn, and the interval says nothing about other people.

Legend: P prompts, U people, O = 3 outcomes (win, tie, loss), R resamples, K systems.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.agreement import fleiss_kappa, krippendorff_alpha
from pipeline.evaluation.bradley_terry import (
    Davidson,
    NoStrengthsError,
    bradley_terry_batch,
    davidson,
    with_half_ties,
)
from pipeline.evaluation.paired import COVERAGE, NUM_RESAMPLES, Interval

Outcome: TypeAlias = Literal["win", "tie", "loss"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
MOST_FAILED_CHECKS: Final = 0.2
"""Of a person's checks; whoever fails more is listed, and left out of the second table."""

_MIRRORED: Final[Mapping[Outcome, Outcome]] = {"win": "loss", "tie": "tie", "loss": "win"}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One answer to one question about one pair of videos.

    Attributes:
        person: who answered.
        prompt: of both videos.
        item: the pair, such as its prompt with its seed.
        question: what was asked.
        system, against: what made the two videos.
        outcome: of `system`.
    """

    person: str
    prompt: str
    item: str
    question: str
    system: str
    against: str
    outcome: Outcome

    def mirrored(self) -> Judgement:
        """The same, said of the other system."""
        return Judgement(
            person=self.person,
            prompt=self.prompt,
            item=self.item,
            question=self.question,
            system=self.against,
            against=self.system,
            outcome=_MIRRORED[self.outcome],
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of the table: a question, and how often a system was preferred to another (the paper's Table A6).

    Attributes:
        counts: of (win, tie, loss).
        percent: of (win, tie, loss), of 100, with intervals over prompts and people.
        win_rate: a tie counted as half a win, of 1, with its interval.
        prompts_for, prompts_against, prompts_even: prompts by what the majority of their judgements says, ties apart.
        num_people: who judged.
        alpha: Krippendorff's, of the three outcomes; NaN where it is not defined.
        kappa: Fleiss', over the items that everybody judged; NaN where it is not defined.
        num_common_items: those items.
    """

    question: str
    system: str
    against: str
    counts: tuple[int, int, int]
    percent: tuple[Interval, Interval, Interval]
    win_rate: Interval
    prompts_for: int
    prompts_against: int
    prompts_even: int
    num_people: int
    alpha: float
    kappa: float
    num_common_items: int

    @property
    def win_rate_without_ties(self) -> float:
        """Wins of wins and losses; NaN where there is neither."""
        wins, _, losses = self.counts
        return wins / (wins + losses) if wins + losses else math.nan

    @property
    def log_strength(self) -> float:
        """Of Bradley and Terry, over the other system, without ties; infinite where one never won."""
        wins, _, losses = self.counts
        if not wins or not losses:
            return math.nan if wins == losses else math.copysign(math.inf, wins - losses)
        return math.log(wins / losses)

    @property
    def z_if_independent(self) -> float:
        """Of the sign test over judgements. They are not independent: it is too large, and here to compare with."""
        wins, _, losses = self.counts
        return (wins - losses) / math.sqrt(wins + losses) if wins + losses else math.nan

    @property
    def sign_test_p(self) -> float:
        """Of the two-sided exact sign test over the majorities of prompts; those that are even are left out."""
        return sign_test_p(self.prompts_for, self.prompts_against)


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Strengths of several systems in one question.

    Attributes:
        question: which.
        systems: in the order of the rest.
        log_strengths: mean zero, a tie as half a win; NaN where no finite ones fit.
        intervals: of each, over prompts and people; NaN where too many resamples have no finite ones.
        undetermined: share of the resamples that have none.
        davidson: the same with ties as an outcome of their own; None where it has none.
    """

    question: str
    systems: tuple[str, ...]
    log_strengths: tuple[float, ...]
    intervals: tuple[Interval, ...]
    undetermined: float
    davidson: Davidson | None


@dataclass(frozen=True, kw_only=True)
class CheckAnswer:
    """An answer whose right one is known: a pair of equal videos, a broken copy, or a pair that is shown again.

    Attributes:
        person: who answered.
        kind: "equal": a tie was expected; "broken": the other side was; "repeat": what the person had said before.
        is_right: whether it was answered so.
    """

    person: str
    kind: Literal["equal", "broken", "repeat"]
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How a person did in checks.

    Attributes:
        num_checks, num_failed: equal and broken pairs, answer by answer.
        num_repeats, num_same: answers to pairs shown again with the sides swapped.
    """

    person: str
    num_checks: int
    num_failed: int
    num_repeats: int
    num_same: int

    @property
    def has_failed(self) -> bool:
        """Whether more checks were failed than may be."""
        return self.num_failed > MOST_FAILED_CHECKS * self.num_checks


def sign_test_p(num_for: int, num_against: int) -> float:
    """Of the two-sided exact sign test: how likely a split so uneven is by chance; 1 where there is nothing."""
    number = num_for + num_against
    tail = sum(math.comb(number, k) for k in range(min(num_for, num_against) + 1))
    return min(1.0, float(2 * tail / 2**number))


def questions_of(judgements: Iterable[Judgement]) -> list[str]:
    """The questions, in the order in which they first come."""
    return list(dict.fromkeys(judgement.question for judgement in judgements))


def compare(judgements: Iterable[Judgement], system: str, against: str) -> list[Comparison]:
    """A line for every question.

    Args:
        judgements: those of other systems are left out; either side may be named first.
        system: whose wins are counted.
        against: the other.
    """
    sides = {(system, against): False, (against, system): True}
    mine = [
        judgement.mirrored() if sides[judgement.system, judgement.against] else judgement
        for judgement in judgements
        if (judgement.system, judgement.against) in sides
    ]
    return [
        _compare_one([judgement for judgement in mine if judgement.question == question], question, system, against)
        for question in questions_of(mine)
    ]


def _compare_one(judgements: Sequence[Judgement], question: str, system: str, against: str) -> Comparison:
    table_PUO = _outcome_table(judgements)
    counts_O = table_PUO.sum(axis=(0, 1))
    drawn_RO = _resampled(table_PUO)
    total_R = drawn_RO.sum(axis=1)
    share_RO = np.divide(drawn_RO, total_R[:, None], out=np.full_like(drawn_RO, np.nan), where=total_R[:, None] > 0)
    share_O = counts_O / counts_O.sum()
    lead_P = table_PUO[:, :, 0].sum(axis=1) - table_PUO[:, :, 2].sum(axis=1)
    ratings = _ratings(judgements)
    common = [row for row in ratings if None not in row]
    has_common = bool(common) and len(common[0]) > 1
    return Comparison(
        question=question,
        system=system,
        against=against,
        counts=(int(counts_O[0]), int(counts_O[1]), int(counts_O[2])),
        percent=(
            _interval(100 * share_O[0], 100 * share_RO[:, 0], table_PUO),
            _interval(100 * share_O[1], 100 * share_RO[:, 1], table_PUO),
            _interval(100 * share_O[2], 100 * share_RO[:, 2], table_PUO),
        ),
        win_rate=_interval(share_O[0] + share_O[1] / 2, share_RO[:, 0] + share_RO[:, 1] / 2, table_PUO),
        prompts_for=int((lead_P > 0).sum()),
        prompts_against=int((lead_P < 0).sum()),
        prompts_even=int((lead_P == 0).sum()),
        num_people=table_PUO.shape[1],
        alpha=krippendorff_alpha(ratings),
        kappa=fleiss_kappa(common) if has_common else math.nan,
        num_common_items=len(common),
    )


def _outcome_table(judgements: Sequence[Judgement]) -> npt.NDArray[np.float64]:
    prompts = _numbered(judgement.prompt for judgement in judgements)
    people = _numbered(judgement.person for judgement in judgements)
    table = np.zeros((len(prompts), len(people), len(OUTCOMES)))
    for judgement in judgements:
        place = prompts[judgement.prompt], people[judgement.person], OUTCOMES.index(judgement.outcome)
        table[place] += 1
    return table


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _draws(number: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """How often each of so many is drawn, in every resample."""
    return generator.multinomial(number, np.full(number, 1 / number), NUM_RESAMPLES).astype(np.float64)


def _resampled(table_PUX: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over prompts and people `[R, X]`, both drawn anew in each resample."""
    generator = np.random.default_rng(0)
    times_RP, times_RU = (_draws(number, generator) for number in table_PUX.shape[:2])
    sums = [(times_RP @ table_PUX[:, :, x] * times_RU).sum(axis=1) for x in range(table_PUX.shape[2])]
    return np.stack(sums, axis=1)


def _interval(value: float, draws_R: npt.NDArray[np.float64], table_PUX: npt.NDArray[np.float64]) -> Interval:
    """With the resamples' quantiles; none where there is one prompt and one person."""
    if table_PUX.shape[:2] == (1, 1) or np.isnan(draws_R).all():
        return Interval(float(value), math.nan, math.nan)
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.nanquantile(draws_R, [tail, 1.0 - tail])
    return Interval(float(value), float(low), float(high))


def _ratings(judgements: Sequence[Judgement]) -> list[list[Outcome | None]]:
    """Item by person; None where there is no answer."""
    people = list(dict.fromkeys(judgement.person for judgement in judgements))
    by_item: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for judgement in judgements:
        by_item[judgement.item][judgement.person] = judgement.outcome
    return [[answers.get(person) for person in people] for answers in by_item.values()]


def strengths(judgements: Sequence[Judgement], systems: Sequence[str]) -> list[Strengths]:
    """Strengths of the systems in every question, from all pairs of them.

    Args:
        judgements: of any of them.
        systems: at least two.
    """
    return [
        _strengths_in([judgement for judgement in judgements if judgement.question == question], question, systems)
        for question in questions_of(judgements)
    ]


def _strengths_in(judgements: Sequence[Judgement], question: str, systems: Sequence[str]) -> Strengths:
    number = {system: index for index, system in enumerate(systems)}
    prompts = _numbered(judgement.prompt for judgement in judgements)
    people = _numbered(judgement.person for judgement in judgements)
    size = len(systems)
    wins = np.zeros((len(prompts), len(people), size, size))
    ties = np.zeros((size, size))
    for judgement in judgements:
        i, j = number[judgement.system], number[judgement.against]
        place = prompts[judgement.prompt], people[judgement.person]
        if judgement.outcome == "tie":
            ties[i, j] += 1
            ties[j, i] += 1
        wins[place][i, j] += {"win": 1.0, "tie": 0.5, "loss": 0.0}[judgement.outcome]
        wins[place][j, i] += {"win": 0.0, "tie": 0.5, "loss": 1.0}[judgement.outcome]
    table_PUX = wins.reshape(len(prompts), len(people), size * size)
    values_K = bradley_terry_batch(wins.sum(axis=(0, 1))[None])[0]
    drawn_RK = bradley_terry_batch(_resampled(table_PUX).reshape(-1, size, size))
    undetermined = float(np.isnan(drawn_RK[:, 0]).mean())
    if undetermined > (1.0 - COVERAGE) / 2.0:  # they are infinite there, so the interval is open
        drawn_RK = np.full_like(drawn_RK, np.nan)
    whole_wins = wins.sum(axis=(0, 1)) - ties / 2
    assert np.allclose(with_half_ties(whole_wins, ties), wins.sum(axis=(0, 1)))
    try:
        of_davidson = davidson(whole_wins, ties)
    except NoStrengthsError:
        of_davidson = None
    return Strengths(
        question=question,
        systems=tuple(systems),
        log_strengths=tuple(map(float, values_K)),
        intervals=tuple(_interval(values_K[k], drawn_RK[:, k], table_PUX) for k in range(size)),
        undetermined=undetermined,
        davidson=of_davidson,
    )


def reliability(answers: Iterable[CheckAnswer], people: Iterable[str] = ()) -> list[Reliability]:
    """How each person did in checks, in the order of `people`, then as they come."""
    counts: dict[str, Counter[str]] = {person: Counter() for person in people}
    for answer in answers:
        count = counts.setdefault(answer.person, Counter())
        count["repeat" if answer.kind == "repeat" else "check"] += 1
        count["same" if answer.kind == "repeat" else "failed"] += answer.is_right == (answer.kind == "repeat")
    return [
        Reliability(
            person=person,
            num_checks=count["check"],
            num_failed=count["failed"],
            num_repeats=count["repeat"],
            num_same=count["same"],
        )
        for person, count in counts.items()
    ]
