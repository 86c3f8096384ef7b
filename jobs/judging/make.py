"""A study, opened anew or gone on with, and served until the program is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from miga.errors import UsageError
from pipeline.evaluation.judge_server import JudgeServer, JudgeSession
from pipeline.evaluation.judging import QUESTIONS, Answers, Item, Study, read_answers, study_line
from pipeline.evaluation.line_log import LineLog
from pipeline.evaluation.pairs import System, open_systems, pair_up, pairs_of
from pipeline.upkeep.loopback import serve_until_stopped

_MOST_SAID = 10


def plan_study(
    systems: Sequence[System],
    *,
    seed: int,
    per_person: int | None,
    checks: float,
    repeats: float,
    say: Callable[[str], None],
) -> Study:
    """The study of all pairs that these runs have in common; what they have not is said.

    Raises:
        UsageError: if they have none.
    """
    pairing = pair_up(systems)
    for text in pairing.left_out[:_MOST_SAID]:
        say(f"left out: {text}")
    if len(pairing.left_out) > _MOST_SAID:
        say(f"left out: {len(pairing.left_out) - _MOST_SAID} more; `miga compare` names all of them")
    if not pairing.asked:
        raise UsageError(
            "these runs have no videos of the same prompt, seed, length and size",
            "make them of one prompt file with one seed",
        )
    items = [
        Item(prompts=prompts, seed=row_seed, system=system.name, against=against.name)
        for prompts, row_seed in pairing.asked
        for system, against in pairs_of(systems)
    ]
    return Study(
        systems=tuple(system.name for system in systems),
        items=tuple(items),
        seed=seed,
        per_person=per_person,
        checks=checks,
        repeats=repeats,
        questions=tuple(QUESTIONS),
    )


def begin(log: LineLog, study: Study, say: Callable[[str], None]) -> Answers:
    """What the file holds; an empty one gets the line of the study first.

    Raises:
        UsageError: if it holds the answers of another study.
        InputError: if it is no file of answers.
    """
    answers = read_answers(log.lines, str(log.path))
    for fault in answers.faults:
        say(f"{log.path}: {fault}")
    if answers.num_double:
        say(f"{log.path}: {answers.num_double} answers were given twice; the first ones count")
    if answers.study is None:
        log.append(study_line(study))
        return replace(answers, study=study)
    if unlike := [name for name, value in vars(study).items() if getattr(answers.study, name) != value]:
        raise UsageError(
            f"{log.path} holds the answers of another study: {', '.join(unlike)} differ",
            "name another file: --answers FILE.jsonl; or the runs and options that it was begun with",
        )
    return answers


def serve_study(
    outs: Sequence[str],
    path: str,
    *,
    seed: int,
    per_person: int | None,
    checks: float,
    repeats: float,
    port: int | None,
    say: Callable[[str], None],
    told: Callable[[JudgeServer], None],
) -> None:
    """Serves the study of these runs until the process is told to stop.

    Args:
        outs: the runs.
        path: of the file of answers.
        seed: of order and sides.
        per_person: pairs that each person gets; None: all.
        checks: share of pairs that checks are added for.
        repeats: share of pairs that are shown again.
        port: of loopback; None: any that is free.
        say: is told what is left out, and what of the file cannot be read.
        told: is given the server once it listens.
    """
    systems = open_systems(outs)
    study = plan_study(systems, seed=seed, per_person=per_person, checks=checks, repeats=repeats, say=say)
    if not Path(path).parent.is_dir():
        raise UsageError(f"--answers {path}: there is no folder {Path(path).parent}", "make it, or name another file")
    with LineLog(path) as log:
        session = JudgeSession(study, {system.name: system for system in systems}, log, begin(log, study, say))
        try:
            server = JudgeServer(session, port or 0)
            told(server)
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
            try:
                serve_until_stopped(server)
            finally:
                signal.signal(signal.SIGTERM, before)
        finally:
            session.close()
