"""A study in a real Chromium, with the keyboard alone and with the mouse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.judge_server import JudgeServer
from pipeline.evaluation.judging import QUESTIONS, Answers, read_answers, trials_of
from pipeline.evaluation.line_log import read_lines
from tests.pace import paced
from tests.pipeline.evaluation.test_judge_server import serving

pytestmark = pytest.mark.browser

NUM_FRAMES = 9  # 1.1 s


@pytest.fixture
def outs(tmp_path: Path, make_run: Any) -> list[str]:
    names = (("miga", 10), ("fifo", 90))
    return [make_run(tmp_path / name, shade, ["a cat", "a dog"], num_frames=NUM_FRAMES) for name, shade in names]


@contextmanager
def opened(browser: Any, server: JudgeServer) -> Iterator[Any]:
    """The page; nothing may have gone wrong in it, or gone out."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.invitation)
    page.wait_for_selector("#name:focus")
    yield page
    context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(server.address)] == []


def phase(page: Any, *wanted: str) -> None:
    page.wait_for_function("wanted => wanted.includes(document.body.dataset.phase)", arg=list(wanted))


def join(page: Any, name: str) -> None:
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    phase(page, "playing", "asking", "done")


def answers_in(path: Path) -> Answers:
    return read_answers(read_lines(path), str(path))


@pytest.mark.slow
def test_a_study_by_keyboard_alone(browser: Any, outs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with serving(outs, path, time.monotonic, checks=0.0, repeats=0.0) as server, opened(browser, server) as page:
        trials = trials_of(server.session.study, 0)
        join(page, "ann")
        for trial in trials:
            phase(page, "asking")
            assert page.inner_text("#progress") == f"Pair {trial.number + 1} of {len(trials)}"
            for key in ("ArrowLeft", "2", "3", "ArrowDown"):
                page.keyboard.press(key)
            page.keyboard.press("Backspace")
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Enter")
            page.wait_for_function("n => document.body.dataset.phase === 'done' || !document.querySelector('#progress')"
                                   ".textContent.startsWith(`Pair ${n} `)", arg=trial.number + 1)  # fmt: skip
        phase(page, "done")
        assert page.inner_text("#done p").startswith("That was the last pair")
    found = answers_in(path)
    assert len(found.by_trial) == len(trials) == 2
    wanted = dict(zip(QUESTIONS, ("left", "tie", "right", "right"), strict=True))
    for trial in trials:
        answered = found.by_trial["ann", trial.number]
        assert answered.answers == wanted
        assert (answered.left, answered.right, answered.plays) == (trial.left, trial.right, 1)
        assert answered.took_s >= NUM_FRAMES / 8 * 0.9


@pytest.mark.slow
def test_no_answer_before_a_whole_view_and_a_pause(browser: Any, outs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with serving(outs, path, time.monotonic, checks=0.0) as server, opened(browser, server) as page:
        join(page, "ann")
        phase(page, "playing")
        for key in ("ArrowLeft", "1", "Enter", "Backspace", "r"):
            page.keyboard.press(key)
        assert page.evaluate("document.querySelectorAll('[aria-pressed=true]').length") == 0
        assert page.is_disabled("#next")
        assert page.is_disabled("fieldset button >> nth=0")
        page.keyboard.press("p")
        phase(page, "paused")
        assert page.evaluate("document.querySelector('#left').hasAttribute('src')") is False
        page.keyboard.press("Enter")
        phase(page, "asking")
        page.keyboard.press("r")
        phase(page, "playing")
        phase(page, "asking")
        for _ in QUESTIONS:
            page.keyboard.press("2")
        assert page.evaluate("document.activeElement.id") == "next"
        page.keyboard.press("Enter")
        phase(page, "playing")
    [answered] = answers_in(path).by_trial.values()
    assert answered.plays == 2
    assert set(answered.answers.values()) == {"tie"}
    with serving(outs, path, time.monotonic, checks=0.0) as server, opened(browser, server) as page:
        join(page, "ann")
        assert page.inner_text("#progress") == "Pair 2 of 3"


@pytest.mark.slow
def test_both_play_in_step(browser: Any, tmp_path: Path, make_run: Any) -> None:
    names = (("miga", 10), ("fifo", 90))
    outs = [make_run(tmp_path / name, shade, ["a cat"], num_frames=33) for name, shade in names]
    with (
        serving(outs, tmp_path / "answers.jsonl", time.monotonic, checks=0.0) as server,
        opened(browser, server) as page,
    ):
        join(page, "ann")
        page.evaluate(
            """() => {
                const [left, right] = document.querySelectorAll('video')
                window.apart = []
                setTimeout(() => { left.playbackRate = 1.3 }, 300)  // one machine's decoder is never so even
                const note = () => {
                    if (document.body.dataset.phase === 'playing' && left.currentTime > 0 && !right.ended)
                        window.apart.push(Math.abs(left.currentTime - right.currentTime))
                    requestAnimationFrame(note)
                }
                note()
            }"""
        )
        phase(page, "asking")
        apart = page.evaluate("window.apart")
        assert len(apart) > 10
        apart.sort()
        # two frames; left alone, they would be more than six apart
        assert apart[int(0.95 * len(apart))] < 2 / 8
        played = page.evaluate(
            """[...document.querySelectorAll('video')].map(video => [video.played.length, video.played.start(0),
                video.played.end(0) - video.duration])"""
        )
        assert [(parts, start, round(rest, 1)) for parts, start, rest in played] == [(1, 0, 0)] * 2


@pytest.mark.slow
def test_with_the_mouse_and_two_people(browser: Any, outs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with serving(outs, path, time.monotonic, checks=0.0, repeats=0.0) as server, opened(browser, server) as page:
        for name in ("ann", "bob"):
            page.fill("#name", name)
            page.click("text=Begin")
            for number in range(2):
                page.wait_for_function("n => document.querySelector('#progress').textContent === `Pair ${n} of 2`",
                                       arg=number + 1)  # fmt: skip
                phase(page, "asking")
                for row in range(len(QUESTIONS)):
                    page.click(f"fieldset >> nth={row} >> text=Right")
                page.click("#next")
            phase(page, "done")
            page.click("text=Somebody else")
    found = answers_in(path)
    assert [person.person for person in found.people] == ["ann", "bob"]
    assert len(found.by_trial) == 4
    lefts = {name: {trial: found.by_trial[name, trial].left for trial in range(2)} for name in ("ann", "bob")}
    for name in lefts:
        assert sorted(lefts[name].values()) == ["fifo", "miga"]


@pytest.mark.slow
def test_a_video_that_cannot_be_played(browser: Any, outs: list[str], tmp_path: Path) -> None:
    for video in (tmp_path / "fifo").glob("video/*/*.mp4"):
        video.write_bytes(b"no video")
    path = tmp_path / "answers.jsonl"
    with serving(outs, path, time.monotonic, checks=0.0, repeats=0.0) as server, opened(browser, server) as page:
        page.keyboard.type("ann")
        page.keyboard.press("Enter")
        for _ in range(2):
            page.click("#unplayable")
        phase(page, "done")
    assert [answered.answers for answered in answers_in(path).by_trial.values()] == [{}, {}]
