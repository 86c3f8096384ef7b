"""A study in which people compare videos two at a time: what is shown to whom, in which order, on which side.

All of it follows from the study's seed and the number under which a person joined: a study goes on where it was left.

- Sides are balanced: every person sees a system on the left in half of its pairs, and every two people who join one
  after the other see each pair both ways round.
- Checks stand between the pairs: a video beside itself, where a tie is expected, and beside a broken copy of itself,
  where the whole one is. Some pairs are shown again with the sides swapped.
- With `per_person`, people take turns through the pairs, so that each pair is judged equally often, give or take one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field

from miga.errors import InputError
from miga.outside_data import OutsideDataError, validated
from pipeline.evaluation.line_log import Lines
from pipeline.evaluation.study import CheckAnswer, Judgement, Outcome

QUESTIONS: Final[Mapping[str, str]] = {
    "Subject Consistency": "In which video does the subject stay more the same?",
    "Background Consistency": "In which video does the background stay more the same?",
    "Motion Smoothness": "In which video is the motion smoother?",
    "Temporal Flicker": "Which video flickers less?",
}
"""Of the paper's study, by the name of the row in its Table A6; the words are ours."""

VERSION: Final = 1
Side: TypeAlias = Literal["left", "tie", "right"]
Kind: TypeAlias = Literal["pair", "equal", "broken", "repeat"]
_STRICT: Final = ConfigDict(extra="forbid", strict=True)
_SIDES: Final[tuple[Literal["left"], Literal["right"]]] = ("left", "right")
_LEAST_APART: Final = 3
"""Pairs between a pair and its repetition, where there are so many."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Two videos of one prompt and seed.

    Attributes:
        prompts, seed: what both were asked for.
        system, against: what made them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    prompts: tuple[str, ...]
    seed: int | None
    system: str
    against: str

    @property
    def prompt(self) -> str:
        """The prompts as one text."""
        return " / ".join(self.prompts)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study is: the first line of its file.

    Attributes:
        systems: names, the first being the one whose wins are counted.
        items: pairs that are judged.
        seed: of order and sides.
        per_person: pairs that each person gets; None: all.
        checks: share of a person's pairs that checks are added for; at least one of each kind.
        repeats: share of a person's pairs that are shown again; at least one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    systems: tuple[str, ...]
    items: tuple[Item, ...]
    seed: int
    per_person: Annotated[int, Field(ge=1)] | None = None
    checks: Annotated[float, Field(ge=0, le=1)] = 0.08
    repeats: Annotated[float, Field(ge=0, le=1)] = 0.05
    questions: tuple[str, ...] = tuple(QUESTIONS)
    version: Literal[1] = VERSION


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a person is shown at once.

    Attributes:
        number: from 0, in the person's order.
        kind: of it.
        item: index of the pair; of a check, of the pair that its video is of.
        left, right: systems whose videos these are.
        broken: the side that shows a broken copy, if one does.
    """

    number: int
    kind: Kind
    item: int
    left: str
    right: str
    broken: Literal["left", "right"] | None = None


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody who joined: a line of the file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    person: Annotated[str, Field(min_length=1, max_length=80)]
    number: Annotated[int, Field(ge=0)]
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A person's answers to one trial: a line of the file.

    Attributes:
        trial: its number.
        answers: question → the side that was chosen; empty: the pair could not be played.
        plays: whole views before the answers.
        took_s: from being shown to being answered.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    person: str
    trial: Annotated[int, Field(ge=0)]
    kind: Kind
    item: Annotated[int, Field(ge=0)]
    left: str
    right: str
    broken: Literal["left", "right"] | None
    answers: dict[str, Side]
    plays: Annotated[int, Field(ge=0)]
    took_s: float
    at: str = ""


def trials_of(study: Study, number: int) -> list[Trial]:
    """What the person who joined as `number` (from 0) is shown, in order."""
    order = random.Random(f"{study.seed} order of {number}")
    pairs = [_sided(study, item, "pair", is_swapped) for item, is_swapped in _share_of(study, number)]
    order.shuffle(pairs)
    trials = list(pairs)
    for pair in order.sample(pairs, min(len(pairs), _at_least_one(study.repeats, len(pairs)))):
        again = Trial(number=0, kind="repeat", item=pair.item, left=pair.right, right=pair.left)
        at = trials.index(pair)
        trials.insert(order.randint(min(at + 1 + _LEAST_APART, len(trials)), len(trials)), again)
    for check in _checks(study, pairs, order):
        trials.insert(order.randint(1, len(trials)), check)
    return [
        Trial(**{**asdict(trial), "number": index})  # dataclasses.replace, for all at once
        for index, trial in enumerate(trials)
    ]


def _share_of(study: Study, number: int) -> list[tuple[int, bool]]:
    """Items of a person, and whether the sides are swapped."""
    size = len(study.items)
    count = size if study.per_person is None else min(study.per_person, size)
    share = []
    for place in range(number * count, (number + 1) * count):
        turn, at = divmod(place, size)
        block = turn // 2 if count == size else 0
        shuffled = list(range(size))
        random.Random(f"{study.seed} sides of {block}").shuffle(shuffled)
        share.append((shuffled[at], bool((at + turn) % 2)))
    return share


def _sided(study: Study, index: int, kind: Kind, is_swapped: bool) -> Trial:
    item = study.items[index]
    left, right = (item.against, item.system) if is_swapped else (item.system, item.against)
    return Trial(number=0, kind=kind, item=index, left=left, right=right)


def _at_least_one(share: float, number: int) -> int:
    return max(1, round(share * number)) if share else 0


def _checks(study: Study, pairs: Sequence[Trial], order: random.Random) -> list[Trial]:
    """Checks of both kinds in turn, of videos that are among the person's."""
    count = max(2, round(study.checks * len(pairs))) if study.checks and pairs else 0
    checks = []
    for index in range(count):
        pair = order.choice(pairs)
        shown = order.choice([pair.left, pair.right])
        broken: Literal["left", "right"] | None = order.choice(_SIDES) if index % 2 else None
        kind: Kind = "broken" if broken else "equal"
        checks.append(Trial(number=0, kind=kind, item=pair.item, left=shown, right=shown, broken=broken))
    return checks


# ---- the file of answers ----


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a file of answers says.

    Attributes:
        study: its study; None: it is empty.
        people: in the order in which they joined.
        by_trial: (person, trial) → the answers that count: the first ones.
        num_double: answers to what had been answered.
        faults: lines that are left out, in words.
    """

    study: Study | None
    people: tuple[Person, ...]
    by_trial: Mapping[tuple[str, int], Answered]
    num_double: int
    faults: tuple[str, ...]


def study_line(study: Study) -> dict[str, Any]:
    """The study as the first line of its file."""
    return {"line": "study", **asdict(study)}


def person_line(person: Person) -> dict[str, Any]:
    """Somebody who joined, as a line."""
    return {"line": "person", **asdict(person)}


def answer_line(answered: Answered) -> dict[str, Any]:
    """Answers as a line."""
    return {"line": "answer", **asdict(answered)}


def read_answers(lines: Lines, path: str) -> Answers:
    """What the lines of a file of answers say.

    Raises:
        InputError: if its first line is not that of a study that this program reads.
    """
    if not lines.found and not lines.faults:
        return Answers(study=None, people=(), by_trial={}, num_double=0, faults=())
    if not lines.found or lines.found[0].values.get("line") != "study":
        raise InputError(f"{path} does not begin with the line of a study", "name a file that `miga judge` has made")
    try:
        study = validated(Study, _without_kind(lines.found[0].values))
    except OutsideDataError as error:
        raise InputError(f"the study of {path} cannot be read: {error}", "name another file, or restore it") from error
    people: dict[str, Person] = {}
    by_trial: dict[tuple[str, int], Answered] = {}
    num_double, faults = 0, list(lines.faults)
    for number, values in lines.found[1:]:
        try:
            if values.get("line") == "person":
                person = validated(Person, _without_kind(values))
                people.setdefault(person.person, person)
                continue
            answered = _checked(study, people, validated(Answered, _without_kind(values)))
        except OutsideDataError as error:
            faults.append(f"line {number} is left out: {error}")
            continue
        num_double += (key := (answered.person, answered.trial)) in by_trial
        by_trial.setdefault(key, answered)
    return Answers(
        study=study,
        people=tuple(people.values()),
        by_trial=by_trial,
        num_double=num_double,
        faults=tuple(faults),
    )


def _without_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "line"}


def _checked(study: Study, people: Mapping[str, Person], answered: Answered) -> Answered:
    """Answers that are of this study.

    Raises:
        OutsideDataError: if they are not.
    """
    if answered.person not in people:
        raise OutsideDataError(f"{answered.person!r} has not joined")
    if answered.item >= len(study.items) or not {answered.left, answered.right} <= set(study.systems):
        raise OutsideDataError("it is of no pair of this study")
    if answered.answers and set(answered.answers) != set(study.questions):
        raise OutsideDataError("it does not answer the study's questions")
    return answered


def judgements_of(answers: Answers, people: Iterable[str] | None = None) -> list[Judgement]:
    """The judgements that count: those of pairs, without checks and repetitions.

    Args:
        answers: of a file.
        people: whose; None: everybody's.
    """
    study = answers.study
    assert study is not None
    wanted = {person.person for person in answers.people} if people is None else set(people)
    found = []
    for answered in answers.by_trial.values():
        if answered.kind != "pair" or answered.person not in wanted:
            continue
        item = study.items[answered.item]
        for question in study.questions:
            if question not in answered.answers:
                continue
            found.append(
                Judgement(
                    person=answered.person,
                    prompt=item.prompt,
                    item=f"{answered.item}",
                    question=question,
                    system=item.system,
                    against=item.against,
                    outcome=_outcome(answered, answered.answers[question], item.system),
                )
            )
    return found


def _outcome(answered: Answered, side: Side, system: str) -> Outcome:
    if side == "tie":
        return "tie"
    return "win" if (answered.left if side == "left" else answered.right) == system else "loss"


def checks_of(answers: Answers) -> list[CheckAnswer]:
    """Every answer whose right one is known; a repetition is compared with what the person had said before."""
    found = []
    before = {(each.person, each.item): each for each in answers.by_trial.values() if each.kind == "pair"}
    for answered in answers.by_trial.values():
        if answered.kind == "pair":
            continue
        for question, side in answered.answers.items():
            if answered.kind == "repeat":
                first = before.get((answered.person, answered.item))
                if first is None or question not in first.answers:
                    continue
                is_right = _seen(answered, side) == _seen(first, first.answers[question])
            else:
                is_right = side == {"left": "right", "right": "left", None: "tie"}[answered.broken]
            found.append(CheckAnswer(person=answered.person, kind=answered.kind, is_right=is_right))
    return found


def _seen(answered: Answered, side: Side) -> str:
    """The system that was chosen, or a tie, which no system is called in this."""
    return "=" if side == "tie" else f"system {answered.left if side == 'left' else answered.right}"
