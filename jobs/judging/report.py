"""What a file of answers says, as tables and as values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.shared.table import format_table
from miga.errors import InputError
from pipeline.evaluation.judging import Answers, checks_of, judgements_of, read_answers
from pipeline.evaluation.line_log import read_lines
from pipeline.evaluation.paired import Interval
from pipeline.evaluation.study import Comparison, Judgement, Reliability, Strengths, compare, reliability, strengths


def read_study(path: str) -> Answers:
    """The answers in a file.

    Raises:
        InputError: if there are none, or it is no file of a study.
    """
    answers = read_answers(read_lines(path), path)
    if answers.study is None:
        raise InputError(f"{path} holds no answers", "let people judge first: miga judge OUT_A OUT_B")
    return answers


def report_values(answers: Answers) -> dict[str, Any]:
    """All that the report says, as plain values: with everybody, and without those who failed checks."""
    study = answers.study
    assert study is not None
    people = reliability(checks_of(answers), [person.person for person in answers.people])
    sound = [person.person for person in people if not person.has_failed]
    return {
        "systems": list(study.systems),
        "pairs": len(study.items),
        "people": [vars(person) | {"has_failed": person.has_failed} for person in people],
        "unplayable": sum(not answered.answers for answered in answers.by_trial.values()),
        "double": answers.num_double,
        "faults": list(answers.faults),
        "all": _values(judgements_of(answers), study.systems),
        "without_failed": _values(judgements_of(answers, sound), study.systems) if len(sound) < len(people) else None,
    }


def _values(judgements: Sequence[Judgement], systems: Sequence[str]) -> dict[str, Any]:
    comparisons = [
        _comparison_values(line)
        for system, against in itertools.combinations(systems, 2)
        for line in compare(judgements, system, against)
    ]
    of_many = strengths(judgements, systems) if len(systems) > 2 else []
    return {"comparisons": comparisons, "strengths": [_strength_values(each) for each in of_many]}


def _comparison_values(line: Comparison) -> dict[str, Any]:
    return {
        "question": line.question,
        "system": line.system,
        "against": line.against,
        "counts_win_tie_loss": list(line.counts),
        "percent_win_tie_loss": [_interval_values(part) for part in line.percent],
        "win_rate_half_ties": _interval_values(line.win_rate),
        "win_rate_without_ties": line.win_rate_without_ties,
        "log_strength": line.log_strength,
        "prompts_for_even_against": [line.prompts_for, line.prompts_even, line.prompts_against],
        "sign_test_p": line.sign_test_p,
        "sign_test_z_if_independent": line.z_if_independent,
        "people": line.num_people,
        "krippendorff_alpha": line.alpha,
        "fleiss_kappa": line.kappa,
        "items_all_have_judged": line.num_common_items,
    }


def _interval_values(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def _strength_values(found: Strengths) -> dict[str, Any]:
    return {
        "question": found.question,
        "systems": list(found.systems),
        "log_strengths": [_interval_values(each) for each in found.intervals],
        "undetermined_resamples": found.undetermined,
        "davidson_log_strengths": None if found.davidson is None else found.davidson.log_strengths_K.tolist(),
        "davidson_tie": None if found.davidson is None else found.davidson.tie,
    }


def report_text(answers: Answers) -> str:
    """The report for people: the paper's Table A6 with intervals, and how far it is to be trusted."""
    study = answers.study
    assert study is not None
    people = reliability(checks_of(answers), [person.person for person in answers.people])
    failed = [person.person for person in people if person.has_failed]
    judgements = judgements_of(answers)
    counts = f"{len(study.items)} pairs, {len(people)} people, {len(judgements)} answers"
    parts = [f"{counts}; [low, high] is 95 %, over prompts and people drawn anew", *_tables(judgements, study.systems)]
    if failed:
        sound = [person.person for person in people if not person.has_failed]
        parts += [f"Without {', '.join(failed)}, who failed more than a fifth of the checks:"]
        parts += _tables(judgements_of(answers, sound), study.systems)
    parts.append(format_table([_person_row(person) for person in people]))
    if unplayable := sum(not answered.answers for answered in answers.by_trial.values()):
        parts.append(f"{unplayable} pairs could not be played, and were not judged.")
    if answers.num_double:
        parts.append(f"{answers.num_double} answers were given twice; the first ones count.")
    parts += answers.faults
    return "\n\n".join(parts)


def _tables(judgements: Sequence[Judgement], systems: Sequence[str]) -> list[str]:
    parts = []
    for system, against in itertools.combinations(systems, 2):
        lines = compare(judgements, system, against)
        parts.append(f"{system} against {against}: " + ("no answers yet" if not lines else ""))
        if lines:
            parts += [format_table([_row(line) for line in lines]), format_table([_trust_row(line) for line in lines])]
    if len(systems) > 2 and judgements:
        parts.append("Strengths (Bradley and Terry, natural logarithm, mean zero, a tie as half a win):")
        parts.append(format_table([_strength_row(found) for found in strengths(judgements, systems)]))
    return parts


def _row(line: Comparison) -> Mapping[str, Any]:
    percent = dict(zip(("win %", "tie %", "loss %"), map(_percent, line.percent), strict=True))
    return {"question": line.question, **percent, "win rate, ties half": _rate(line.win_rate)}


def _trust_row(line: Comparison) -> Mapping[str, Any]:
    return {
        "question": line.question,
        "prompts for/even/against": f"{line.prompts_for}/{line.prompts_even}/{line.prompts_against}",
        "sign test p": _number(line.sign_test_p, 2),
        "Krippendorff's alpha": _number(line.alpha),
        "Fleiss' kappa": _number(line.kappa),
        "of pairs": line.num_common_items,
    }


def _strength_row(found: Strengths) -> Mapping[str, Any]:
    each = {name: _rate(interval) for name, interval in zip(found.systems, found.intervals, strict=True)}
    tie = "-" if found.davidson is None else f"{found.davidson.tie:.2f}"
    return {"question": found.question, **each, "Davidson's nu": tie}


def _person_row(person: Reliability) -> Mapping[str, Any]:
    return {
        "person": person.person,
        "checks failed": f"{person.num_failed} of {person.num_checks}" + (" (too many)" if person.has_failed else ""),
        "said the same again": f"{person.num_same} of {person.num_repeats}",
    }


def _percent(interval: Interval) -> str:
    text = f"{interval.mean:.2f}"
    return text if math.isnan(interval.low) else f"{text} [{interval.low:.1f}, {interval.high:.1f}]"


def _rate(interval: Interval) -> str:
    text = _number(interval.mean)
    return text if math.isnan(interval.low) else f"{text} [{interval.low:.3f}, {interval.high:.3f}]"


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}g}" if digits == 2 else f"{value:.{digits}f}"
