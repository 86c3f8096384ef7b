"""`judge`: real HTTP requests to a study of runs in folders and in object storage."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.judging.make import begin, plan_study
from pipeline.evaluation.broken_copy import write_broken_copy
from pipeline.evaluation.judge_server import JudgeServer, JudgeSession
from pipeline.evaluation.judging import QUESTIONS, read_answers, trials_of
from pipeline.evaluation.line_log import LineLog, read_lines
from pipeline.evaluation.pairs import open_systems
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.loopback import HOST
from pipeline.video import read_form, read_frames
from tests.pace import paced

PROMPTS = ["a cat", "a dog", "a hen", "a cow"]
ALL_LEFT = dict.fromkeys(QUESTIONS, "left")


class Clock:
    """A clock that the test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(
    outs: list[str], path: Path, clock: Callable[[], float] | None = None, **options: Any
) -> Iterator[JudgeServer]:
    systems = open_systems(outs)
    options = {"seed": 1, "per_person": None, "checks": 0.08, "repeats": 0.05} | options
    study = plan_study(systems, say=lambda text: None, **options)
    with LineLog(path) as log:
        answers = begin(log, study, lambda text: None)
        session = JudgeSession(study, {system.name: system for system in systems}, log, answers, clock or Clock())
        server = JudgeServer(session)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            session.close()


class Browser:
    """A browser that takes part."""

    def __init__(self, server: JudgeServer) -> None:
        self.server, self.port, self.cookie = server, server.server_address[1], ""
        status, headers, _ = self.ask("GET", server.invitation.partition(str(self.port))[2])
        assert (status, headers["Location"]) == (303, "/")
        self.cookie = headers["Set-Cookie"].partition(";")[0]

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        about: dict[str, str | None] = {"Cookie": self.cookie, "Host": f"{HOST}:{self.port}"}
        if body is not None:
            about |= {"Origin": f"http://{HOST}:{self.port}", "Content-Type": "application/json"}
            about["Content-Length"] = str(len(body))
        about |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=paced(30))
        connection.putrequest(method, path, skip_host=True)
        for name, value in about.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.headers, data

    def post(self, path: str, values: Any, **headers: str | None) -> tuple[int, dict[str, Any]]:
        status, about, data = self.ask("POST", path, json.dumps(values).encode(), **headers)
        return status, json.loads(data) if about["Content-Type"] == "application/json" else {"error": data.decode()}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def outs(request: pytest.FixtureRequest, tmp_path: Path, make_run: Any) -> list[str]:
    place = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_root")
    return [make_run(f"{place}/{name}", shade, PROMPTS) for name, shade in (("miga", 10), ("fifo", 90))]


@pytest.fixture
def local_outs(tmp_path: Path, make_run: Any) -> list[str]:
    return [make_run(tmp_path / name, shade, PROMPTS) for name, shade in (("miga", 10), ("fifo", 90))]


def shade_of(data: bytes, folder: Path) -> int:
    """Of the first frame of a video."""
    (folder / "seen.mp4").write_bytes(data)
    return round(float(next(iter(read_frames(folder / "seen.mp4"))).mean()))


@pytest.mark.sampled(2)
def test_a_whole_study(outs: list[str], tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "answers.jsonl"
    with serving(outs, path, clock) as server:
        trials = trials_of(server.session.study, 0)
        browser = Browser(server)
        status, shown = browser.post("/join", {"person": " ann "})
        seen_names = set()
        for trial in trials:
            assert status == 200
            assert (shown["person"], shown["trial"], shown["total"]) == ("ann", trial.number, len(trials))
            assert (shown["width"], shown["height"], shown["fps"]) == (64, 64, 8.0)
            for side in ("left", "right"):
                code, about, data = browser.ask("GET", shown[side])
                assert (code, about["Content-Type"]) == (200, "video/mp4")
                if trial.broken != side:
                    wanted = {"miga": 10, "fifo": 90}[getattr(trial, side)]
                    assert abs(shade_of(data, tmp_path) - wanted) <= 2
                told = f"{shown[side]} {about}".lower()
                assert "miga/" not in told
                assert "fifo" not in told
                seen_names.add(shown[side])
            clock.now += 1
            status, shown = browser.post(
                "/answer", {"person": "ann", "trial": trial.number, "answers": ALL_LEFT, "plays": 2}
            )
        assert shown["trial"] is None
        assert len(seen_names) == 2 * len(trials)
        assert b"fifo" not in browser.ask("GET", "/")[2].lower()
    found = read_answers(read_lines(path), str(path))
    assert [found.by_trial["ann", trial.number].left for trial in trials] == [trial.left for trial in trials]
    assert {answered.plays for answered in found.by_trial.values()} == {2}


@pytest.mark.slow
def test_it_goes_on_where_it_was_left(local_outs: list[str], tmp_path: Path) -> None:
    path, clock = tmp_path / "answers.jsonl", Clock()
    for number in range(3):
        with serving(local_outs, path, clock) as server:
            browser = Browser(server)
            for name in ("ann", "bob"):
                shown = browser.post("/join", {"person": name})[1]
                assert (shown["trial"], shown["done"]) == (number, number)
                clock.now += 1
                body = {"person": name, "trial": number, "answers": ALL_LEFT, "plays": 1}
                assert browser.post("/answer", body)[1]["trial"] == number + 1
    found = read_answers(read_lines(path), str(path))
    assert [person.number for person in found.people] == [0, 1]
    assert len(found.by_trial) == 6


def test_answers_count_after_a_whole_view(local_outs: list[str], tmp_path: Path) -> None:
    path, clock = tmp_path / "answers.jsonl", Clock()
    with serving(local_outs, path, clock) as server:
        browser = Browser(server)
        assert browser.post("/answer", {"person": "ann", "trial": 0, "answers": ALL_LEFT, "plays": 1})[0] == 409
        browser.post("/join", {"person": "ann"})
        body = {"person": "ann", "trial": 0, "answers": ALL_LEFT, "plays": 1}
        clock.now += 0.4  # the videos take 0.625 s
        assert browser.post("/answer", body) == (409, {"error": "Watch both videos to their end first."})
        clock.now += 0.3
        assert browser.post("/answer", body | {"plays": 0})[0] == 409
        assert browser.post("/answer", body | {"trial": 1})[0] == 409
        assert browser.post("/answer", body)[0] == 200
    assert len(read_answers(read_lines(path), "f").by_trial) == 1


def test_double_answers_are_recognised(local_outs: list[str], tmp_path: Path) -> None:
    path, clock = tmp_path / "answers.jsonl", Clock()
    with serving(local_outs, path, clock) as server:
        browser = Browser(server)
        browser.post("/join", {"person": "ann"})
        clock.now += 1
        body = {"person": "ann", "trial": 0, "answers": ALL_LEFT, "plays": 1}
        assert browser.post("/answer", body)[1]["trial"] == 1
        assert browser.post("/answer", body)[1]["trial"] == 1  # the answer was lost on its way, and is sent again
        other = body | {"answers": dict.fromkeys(QUESTIONS, "right")}
        assert browser.post("/answer", other)[0] == 409
    lines = [line.values for line in read_lines(path).found]
    assert [line["answers"] for line in lines if line["line"] == "answer"] == [ALL_LEFT]


def test_a_pair_that_cannot_be_played(local_outs: list[str], tmp_path: Path) -> None:
    with serving(local_outs, tmp_path / "answers.jsonl") as server:
        browser = Browser(server)
        browser.post("/join", {"person": "ann"})
        status, shown = browser.post("/answer", {"person": "ann", "trial": 0, "answers": {}, "plays": 0})
        assert (status, shown["trial"]) == (200, 1)


def test_only_one_browser_for_each_address(local_outs: list[str], tmp_path: Path) -> None:
    with serving(local_outs, tmp_path / "answers.jsonl") as server:
        first = server.invitation
        browser, query = Browser(server), first.partition("/?")[2]
        assert server.invitation != first
        assert browser.ask("GET", f"/?{query}")[0] == 403
        second = Browser(server)
        for each in (browser, second):
            assert each.ask("GET", "/")[0] == 200
        for cookie in ("", f"miga-judge-{browser.port}=x", "a=b;;=", f"miga-judge-{browser.port}="):
            browser.cookie = cookie
            assert browser.ask("GET", "/")[0] == 403
            assert browser.post("/join", {"person": "ann"})[0] == 403
        assert browser.ask("GET", "/?token=%FF%FE")[0] == 403


OTHER_SITES: list[tuple[dict[str, Any], int]] = [
    ({"Host": "evil.example"}, 403),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": None}, 403),
    ({"Origin": "null"}, 403),
    ({"Content_Type": "text/plain"}, 415),
    ({"Content_Length": "9999999"}, 413),
    ({"Content_Length": "-1"}, 411),
    ({"Content_Length": None}, 411),
]


def test_what_other_sites_would_send(local_outs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with serving(local_outs, path) as server:
        browser = Browser(server)
        for headers, status in OTHER_SITES:
            assert browser.post("/join", {"person": "ann"}, **headers)[0] == status, headers
    assert len(read_lines(path).found) == 1


NO_REQUESTS: list[tuple[str, Any, int]] = [
    ("/join", {"person": ""}, 400), ("/join", {"person": "x" * 81}, 400), ("/join", {"person": 3}, 400),
    ("/join", {"person": "a\nb"}, 400), ("/join", [], 400), ("/next", {"person": "nobody"}, 409), ("/no", {}, 404),
    ("/answer", {"person": "ann", "trial": 0, "answers": {"Beauty": "left"}, "plays": 1}, 400),
    ("/answer", {"person": "ann", "trial": 0, "answers": dict.fromkeys(QUESTIONS, "up"), "plays": 1}, 400),
    ("/answer", {"person": "ann", "trial": True, "answers": ALL_LEFT, "plays": 1}, 400),
    ("/answer", {"person": "ann", "trial": 0, "answers": {key: [] for key in QUESTIONS}, "plays": 1}, 400),
    ("/answer", {"person": "ann", "trial": 0, "answers": ALL_LEFT}, 400),
]  # fmt: skip


def test_what_is_no_request(local_outs: list[str], tmp_path: Path) -> None:
    with serving(local_outs, tmp_path / "answers.jsonl") as server:
        browser = Browser(server)
        browser.post("/join", {"person": "ann"})
        for path, values, status in NO_REQUESTS:
            assert browser.post(path, values)[0] == status, (path, values)
            assert browser.ask("POST", path, b'{"person": "an')[0] in (400, 404), path


def test_nothing_else_is_served(local_outs: list[str], tmp_path: Path) -> None:
    nowhere = (
        "/video/00000/x.mp4",
        "/video/..%2F..%2Frun.json",
        "/run.json",
        "/video/" + "a" * 16 + ".mp4",
        "/judge.js",
    )
    with serving(local_outs, tmp_path / "answers.jsonl") as server:
        browser = Browser(server)
        browser.post("/join", {"person": "ann"})
        for path in nowhere:
            assert browser.ask("GET", path)[0] == 404, path


def test_a_video_is_gone_once_the_next_is_shown(local_outs: list[str], tmp_path: Path) -> None:
    with serving(local_outs, tmp_path / "answers.jsonl") as server:
        browser = Browser(server)
        first = browser.post("/join", {"person": "ann"})[1]
        second = browser.post("/next", {"person": "ann"})[1]
        assert [browser.ask("GET", shown["left"])[0] for shown in (first, second)] == [404, 200]
        status, about, data = browser.ask("GET", second["left"], Range="bytes=0-3")
        assert (status, len(data)) == (206, 4)
        assert about["Content-Range"].startswith("bytes 0-3/")


def test_a_video_that_is_missing_is_said(local_outs: list[str], tmp_path: Path) -> None:
    with serving(local_outs, tmp_path / "answers.jsonl") as server:
        broken = next(t for t in trials_of(server.session.study, 0) if t.kind == "broken")
        for video in Path(local_outs[0]).parent.glob("*/video/*/*.mp4"):
            video.unlink()
        browser = Browser(server)
        shown = browser.post("/join", {"person": "ann"})[1]
        while shown.get("trial") is not None and shown["trial"] < broken.number:
            assert browser.ask("GET", shown["left"])[0] == 404
            shown = browser.post("/answer", {"person": "ann", "trial": shown["trial"], "answers": {}, "plays": 0})[1]
        assert "is not there" in shown["error"]


def test_the_broken_copy_is_broken_and_of_the_same_form(local_outs: list[str], tmp_path: Path) -> None:
    [system, _] = open_systems(local_outs)
    path = system.video_path((("a cat",), 0))
    write_broken_copy(system.storage, path, tmp_path / "copy.mp4", seed=0)
    assert isinstance(system.storage, LocalStorage)
    whole = Path(system.storage.uri(path))
    assert read_form(tmp_path / "copy.mp4") == read_form(whole)
    seen, copy = (np.stack(list(read_frames(file))).astype(float) for file in (whole, tmp_path / "copy.mp4"))
    assert seen.shape == copy.shape
    assert np.abs(np.diff(copy, axis=0)).mean() > 20 * np.abs(np.diff(seen, axis=0)).mean()


def test_other_answers_are_not_gone_on_with(local_outs: list[str], tmp_path: Path) -> None:
    from miga.errors import UsageError

    path = tmp_path / "answers.jsonl"
    with serving(local_outs, path):
        pass
    for options in ({"seed": 2}, {"per_person": 2}, {"checks": 0.0}):
        with pytest.raises(UsageError, match=f"{next(iter(options))} differ"), serving(local_outs, path, **options):
            pass
    with pytest.raises(UsageError, match="systems, items differ"), serving(local_outs[::-1], path):
        pass
