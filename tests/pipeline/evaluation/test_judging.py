"""What a study shows to whom, and what its file of answers says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from miga.errors import InputError, OutputError
from pipeline.evaluation.judging import (
    QUESTIONS,
    Answered,
    Item,
    Person,
    Side,
    Study,
    Trial,
    answer_line,
    checks_of,
    judgements_of,
    person_line,
    read_answers,
    study_line,
    trials_of,
)
from pipeline.evaluation.line_log import LineLog, Lines, parse_lines, read_lines
from pipeline.evaluation.study import compare, reliability


def study(num_items: int = 48, systems: tuple[str, ...] = ("MIGA", "FIFO"), **changes: Any) -> Study:
    pairs = [(a, b) for index, a in enumerate(systems) for b in systems[index + 1 :]]
    items = [
        Item(prompts=(f"a cat, {number}",), seed=number, system=a, against=b)
        for number, (a, b) in product(range(num_items), pairs)
    ]
    return Study(systems=systems, items=tuple(items), **({"seed": 7} | changes))


def of_kind(trials: list[Trial], kind: str) -> list[Trial]:
    return [trial for trial in trials if trial.kind == kind]


@pytest.mark.parametrize("num_items", [1, 2, 7, 48])
def test_every_person_sees_every_pair_once(num_items: int) -> None:
    for number in range(5):
        trials = trials_of(study(num_items), number)
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert sorted(trial.item for trial in of_kind(trials, "pair")) == list(range(num_items))


def test_sides_are_balanced_for_a_person_and_for_a_pair() -> None:
    left: dict[int, list[str]] = {}
    for number in range(8):
        pairs = of_kind(trials_of(study(), number), "pair")
        assert Counter(trial.left for trial in pairs) == {"MIGA": 24, "FIFO": 24}
        for trial in pairs:
            assert {trial.left, trial.right} == {"MIGA", "FIFO"}
            left.setdefault(trial.item, []).append(trial.left)
    for sides in left.values():
        assert all(len(set(two)) == 2 for two in zip(sides[::2], sides[1::2], strict=True))
    assert len({tuple(sides) for sides in left.values()}) > 8  # not the same way round for all


def test_order_and_sides_are_of_the_seed() -> None:
    assert trials_of(study(), 3) == trials_of(study(), 3)
    assert trials_of(study(), 3) != trials_of(study(seed=8), 3)
    orders = [[trial.item for trial in of_kind(trials_of(study(), number), "pair")] for number in range(4)]
    assert len({tuple(order) for order in orders}) == 4


def test_checks_and_repetitions() -> None:
    for number in range(6):
        trials = trials_of(study(), number)
        assert trials[0].kind == "pair"
        equal, broken, again = (of_kind(trials, kind) for kind in ("equal", "broken", "repeat"))
        assert (len(equal), len(broken), len(again)) == (2, 2, 2)
        assert 0.05 <= (len(equal) + len(broken)) / 48 <= 0.1
        assert all(trial.left == trial.right for trial in equal + broken)
        assert all(trial.broken for trial in broken)
        for trial in again:
            [first] = [each for each in of_kind(trials, "pair") if each.item == trial.item]
            assert (first.left, first.right) == (trial.right, trial.left)
            assert trial.number > first.number + 1
    sides = Counter(trial.broken for number in range(20) for trial in of_kind(trials_of(study(), number), "broken"))
    assert min(sides["left"], sides["right"]) > 10
    none = trials_of(study(checks=0.0, repeats=0.0), 0)
    assert {trial.kind for trial in none} == {"pair"}


def test_a_share_of_the_pairs_each() -> None:
    """People take turns: each pair is judged equally often, both ways round, by no one twice."""
    times: Counter[int] = Counter()
    left: dict[int, list[str]] = {}
    for number in range(24):
        pairs = of_kind(trials_of(study(per_person=10), number), "pair")
        assert len({trial.item for trial in pairs}) == 10
        assert Counter(trial.left for trial in pairs)["MIGA"] in (4, 5, 6)
        for trial in pairs:
            left.setdefault(trial.item, []).append(trial.left)
        times.update(trial.item for trial in pairs)
    assert set(times.values()) == {5}
    assert all(abs(2 * sides.count("MIGA") - len(sides)) <= 1 for sides in left.values())
    assert len(of_kind(trials_of(study(5, per_person=99), 0), "pair")) == 5


def test_three_systems() -> None:
    trials = of_kind(trials_of(study(10, ("a", "b", "c")), 0), "pair")
    assert Counter(frozenset((trial.left, trial.right)) for trial in trials) == {
        frozenset(pair): 10 for pair in (("a", "b"), ("a", "c"), ("b", "c"))
    }


# ---- the file ----


def answered(person: str, trial: Trial, side: Side, **changes: Any) -> Answered:
    about = {name: getattr(trial, name) for name in ("kind", "item", "left", "right", "broken")}
    about |= {"trial": trial.number, "answers": dict.fromkeys(QUESTIONS, side), "plays": 1, "took_s": 2.5} | changes
    return Answered(person=person, **about)


def system_side(trial: Trial, system: str) -> Side:
    return "left" if trial.left == system else "right"


def filled(log: LineLog, asked: Study, people: int = 3, wrong: str = "") -> None:
    """Everybody prefers MIGA, and sees what is wrong with checks, but for one."""
    log.append(study_line(asked))
    for number in range(people):
        name = f"person {number}"
        log.append(person_line(Person(person=name, number=number)))
        for trial in trials_of(asked, number):
            side: Side = system_side(trial, "MIGA") if trial.kind in ("pair", "repeat") else "tie"
            if trial.broken and name != wrong:
                side = "right" if trial.broken == "left" else "left"
            log.append(answer_line(answered(name, trial, side)))


def test_what_was_answered_comes_back(tmp_path: Path) -> None:
    asked = study(6)
    with LineLog(tmp_path / "answers.jsonl") as log:
        filled(log, asked, wrong="person 1")
    found = read_answers(read_lines(tmp_path / "answers.jsonl"), "answers.jsonl")
    assert found.study == asked
    assert (found.num_double, found.faults) == (0, ())
    comparisons = compare(judgements_of(found), "MIGA", "FIFO")
    assert [each.question for each in comparisons] == list(QUESTIONS)
    assert {each.counts for each in comparisons} == {(18, 0, 0)}
    people = reliability(checks_of(found), [person.person for person in found.people])
    assert [(each.num_checks, each.num_failed, each.num_repeats, each.num_same) for each in people] == [
        (8, 0, 4, 4), (8, 4, 4, 4), (8, 0, 4, 4),
    ]  # fmt: skip
    assert [each.has_failed for each in people] == [False, True, False]
    without = judgements_of(found, [each.person for each in people if not each.has_failed])
    assert {each.counts for each in compare(without, "MIGA", "FIFO")} == {(12, 0, 0)}


def test_a_side_stuck_to_is_seen_in_repetitions(tmp_path: Path) -> None:
    asked = study(6)
    trials = trials_of(asked, 0)
    lines = [study_line(asked), person_line(Person(person="ann", number=0))]
    lines += [answer_line(answered("ann", trial, "left")) for trial in trials]
    [ann] = reliability(checks_of(read_answers(as_lines(lines), "f")))
    assert (ann.num_repeats, ann.num_same) == (4, 0)
    assert ann.has_failed


def as_lines(lines: list[dict[str, Any]]) -> Lines:
    return parse_lines("".join(json.dumps(line) + "\n" for line in lines).encode())


def test_double_answers_and_foreign_lines_do_not_count() -> None:
    asked = study(4)
    trial = of_kind(trials_of(asked, 0), "pair")[0]
    first = answered("ann", trial, "tie")
    lines = [
        study_line(asked),
        person_line(Person(person="ann", number=0)),
        answer_line(first),
        answer_line(replace(first, answers=dict.fromkeys(QUESTIONS, "left"))),
        answer_line(replace(first, person="nobody")),
        answer_line(replace(first, trial=1, left="another")),
        answer_line(replace(first, trial=2, item=99)),
        answer_line(replace(first, trial=3, answers={"Beauty": "left"})),
        {**answer_line(replace(first, trial=4)), "answers": dict.fromkeys(QUESTIONS, "above")},
        {"line": "weather"},
    ]
    found = read_answers(as_lines(lines), "f")
    assert found.num_double == 1
    assert list(found.by_trial.values()) == [first]
    assert [fault.partition(" is ")[0] for fault in found.faults] == [f"line {n}" for n in range(5, 11)]
    assert {each.outcome for each in judgements_of(found)} == {"tie"}


def test_a_pair_that_could_not_be_played_does_not_count() -> None:
    asked = study(4)
    trial = of_kind(trials_of(asked, 0), "pair")[0]
    lines = [study_line(asked), person_line(Person(person="ann", number=0))]
    found = read_answers(as_lines([*lines, answer_line(answered("ann", trial, "tie", answers={}))]), "f")
    assert len(found.by_trial) == 1
    assert judgements_of(found) == []


@pytest.mark.parametrize("first", [{"line": "answer"}, {"line": "study"}, {**study_line(study(1)), "version": 2}])
def test_no_file_of_a_study(first: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        read_answers(as_lines([first]), "f")


# ---- lines that survive ----


def test_a_torn_line_is_said_and_what_follows_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for cut in range(1, 12):
        path.write_bytes(b'{"a": 1}\n' + b'{"b": 22222}\n'[:cut])
        read = read_lines(path)
        assert [line.values for line in read.found] == [{"a": 1}]
        assert read.faults == ["line 2 is left out: it is not whole: its write was cut off"]
        with LineLog(path) as log:
            log.append({"c": 3})
            log.append({"d": 4})
        after = read_lines(path)
        assert [line.values for line in after.found] == [{"a": 1}, {"c": 3}, {"d": 4}]
        assert [fault.partition(" is ")[0] for fault in after.faults] == ["line 2"]
    path.write_bytes(b'{"a": 1}\n{"b": 2}')  # whole, but for its end
    assert [line.values for line in read_lines(path).found] == [{"a": 1}, {"b": 2}]


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with LineLog(tmp_path / "lines"), pytest.raises(OutputError, match="another process"):
        LineLog(tmp_path / "lines")
    LineLog(tmp_path / "lines").close()
    with pytest.raises(OutputError, match="cannot be written"):
        LineLog(tmp_path / "no" / "lines")


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    """The writer is killed in the middle of its work: every line that it had reported is there, in order."""
    script = (
        "import sys\nfrom pipeline.evaluation.line_log import LineLog\nlog = LineLog(sys.argv[1])\n"
        "for n in range(10**9):\n    log.append({'n': n, 'text': 'x' * 1000})\n    print(n, flush=True)\n"
    )
    path = tmp_path / "lines"
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(50):
            last = int(writer.stdout.readline())
        writer.kill()
        writer.wait()
        writer.stdout.close()
    numbers = [line.values["n"] for line in read_lines(path).found]
    starts = [index for index, number in enumerate(numbers) if number == 0]
    assert len(starts) == 2
    assert len(numbers) - starts[1] > last
    assert all(b == a + 1 for a, b in pairwise(numbers) if b)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LineLog(tmp_path / "lines") as log:
        log.append({"a": 1})
        write = os.write

        def full(file: int, data: bytes) -> int:
            write(file, data[:3])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match="No space left"):
            log.append({"b": 2})
        monkeypatch.undo()
        log.append({"b": 2})
    read = read_lines(tmp_path / "lines")
    assert [line.values for line in read.found] == [{"a": 1}, {"b": 2}]
    assert len(read.faults) == 1
