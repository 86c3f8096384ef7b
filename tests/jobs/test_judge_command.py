"""`miga judge` as a process, killed while people judge; and what `--report` prints."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.judging import (
    QUESTIONS,
    Answered,
    Item,
    Person,
    Side,
    Study,
    answer_line,
    person_line,
    study_line,
    trials_of,
)
from tests.cli import run

RECORDED = json.loads((Path(__file__).parent.parent / "pipeline" / "evaluation" / "judging.json").read_text())


def write_study(path: Path, systems: tuple[str, ...], outcome: Any, people: int = 8, prompts: int = 48) -> Study:
    """A file of answers; `outcome(person, item, question)` says which side the first system's is."""
    pairs = [(a, b) for index, a in enumerate(systems) for b in systems[index + 1 :]]
    items = [
        Item(prompts=(f"prompt {number}",), seed=0, system=a, against=b)
        for number, (a, b) in product(range(prompts), pairs)
    ]
    study = Study(systems=systems, items=tuple(items), seed=3)
    lines = [study_line(study)]
    for number in range(people):
        name = f"p{number}"
        lines.append(person_line(Person(person=name, number=number)))
        for trial in trials_of(study, number):
            answers: dict[str, Side] = {}
            for question in QUESTIONS:
                side: Side = "tie"
                if trial.broken and name != "p1":
                    side = "right" if trial.broken == "left" else "left"
                elif trial.kind in ("pair", "repeat"):
                    first_is = "left" if trial.left == items[trial.item].system else "right"
                    found = outcome(number, trial.item, question)
                    side = {"win": first_is, "tie": "tie", "loss": "right" if first_is == "left" else "left"}[found]  # type: ignore[assignment]
                answers[question] = side
            about = {key: getattr(trial, key) for key in ("kind", "item", "left", "right", "broken")}
            lines.append(
                answer_line(Answered(person=name, trial=trial.number, answers=answers, plays=1, took_s=9.0, **about))
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return study


def as_the_paper(person: int, item: int, question: str) -> str:
    win, tie, _ = RECORDED["table_a6"][question]["counts_win_tie_loss"]
    place = (item * 8 + person) * 7 % 384  # mixed, each outcome as often as in the paper
    return "win" if place < win else "tie" if place < win + tie else "loss"


def test_the_report_is_the_papers_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    write_study(path, ("MIGA", "FIFO"), as_the_paper)
    status, text, _ = run(capsys, "judge", "--report", "--answers", path, "--json")
    assert status == 0
    values = json.loads(text)
    assert [line["question"] for line in values["all"]["comparisons"]] == list(QUESTIONS)
    for line in values["all"]["comparisons"]:
        recorded = RECORDED["table_a6"][line["question"]]
        assert line["counts_win_tie_loss"] == recorded["counts_win_tie_loss"]
        for (mean, low, high), wanted in zip(line["percent_win_tie_loss"], recorded["exact_percent"], strict=True):
            assert mean == pytest.approx(wanted, abs=1e-12)
            assert low < mean < high
        assert line["log_strength"] == pytest.approx(recorded["bradley_terry_log_strength"], abs=1e-12)
    assert [person["person"] for person in values["people"] if person["has_failed"]] == ["p1"]
    assert sum(values["without_failed"]["comparisons"][0]["counts_win_tie_loss"]) == 7 * 48
    status, text, _ = run(capsys, "judge", "--report", "--answers", path)
    assert "MIGA against FIFO" in text
    assert re.search(r"Subject Consistency +\| 62\.24 \[", text)
    assert "Without p1, who failed more than a fifth of the checks" in text
    assert "Krippendorff's alpha" in text


@pytest.mark.slow
def test_the_report_of_three_systems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    write_study(path, ("a", "b", "c"), lambda u, i, q: "win" if (3 * u + i // 3) % 5 else "loss", people=3, prompts=10)
    values = json.loads(run(capsys, "judge", "--report", "--answers", path, "--json")[1])
    assert len(values["all"]["comparisons"]) == 3 * len(QUESTIONS)
    strengths = values["all"]["strengths"][0]
    assert strengths["systems"] == ["a", "b", "c"]
    means = [each[0] for each in strengths["log_strengths"]]
    assert means[0] > means[1] > means[2]
    assert math.fsum(means) == pytest.approx(0, abs=1e-9)
    assert "Bradley and Terry" in run(capsys, "judge", "--report", "--answers", path)[1]


def test_a_torn_line_is_said_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    write_study(path, ("a", "b"), lambda u, i, q: "win", people=1, prompts=4)
    path.write_bytes(path.read_bytes()[:-20])
    assert "is left out: it is not whole" in run(capsys, "judge", "--report", "--answers", path)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--report"], "holds no answers"), (["out"], "one was named"), ([], "two or more"),
        (["a", "b", "--port", "99999"], "--port 99999"), (["a", "b", "--checks", "1.5"], "--checks 1.5"),
        (["a", "b", "--per-person", "0"], "--per-person 0"),
    ],
)  # fmt: skip
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, message = run(capsys, "judge", *arguments)
    assert status == 2
    assert said in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_kill_loses_no_answer(tmp_path: Path) -> None:
    """The server is killed over and over while answers come; every one that it had taken is in the file."""
    import http.client

    from pipeline.storage.local import LocalStorage
    from tests.made_run import make_run

    for name in ("a", "b"):
        folder = tmp_path / f"prompts-{name}"
        folder.mkdir()
        make_run(LocalStorage(tmp_path / name), folder, 8)
    path, taken = tmp_path / "answers.jsonl", 0
    command = [sys.executable, "-m", "jobs.cli", "judge", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    for _ in range(3):
        server = subprocess.Popen([*command, "--answers", str(path)], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        page = json.loads(server.stdout.readline())["page"]
        found = re.fullmatch(r"http://(127\.0\.0\.1:\d+)(/.*)", page)
        assert found
        connection = http.client.HTTPConnection(found[1], timeout=60)
        connection.request("GET", found[2])
        answer = connection.getresponse()
        answer.read()
        headers = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0], "Origin": f"http://{found[1]}"}
        headers["Content-Type"] = "application/json"

        def post(
            where: str, values: dict[str, Any], connection: Any = connection, headers: Any = headers
        ) -> tuple[int, Any]:
            connection.request("POST", where, json.dumps(values), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        shown = post("/join", {"person": "ann"})[1]
        assert shown["done"] == taken
        for _ in range(3):
            body = {"person": "ann", "trial": shown["trial"], "answers": {}, "plays": 0}
            status, shown = post("/answer", body)
            assert status == 200
            taken += 1
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
        connection.close()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["trial"] for line in lines if line["line"] == "answer"] == list(range(taken))
