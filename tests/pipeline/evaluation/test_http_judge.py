"""A judge behind HTTP that fails in every way a service does."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import pytest

from miga.errors import UsageError
from pipeline.evaluation.http_judge import HttpJudge, Sampling
from pipeline.evaluation.vision_judge import JudgeFailedError, JudgeRefusedError
from tests.pipeline.evaluation.faulty_judge import Endpoint, endpoint, question_of


class Sleeps(list[float]):
    """A sleep that only notes how long."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def judge(server: Endpoint, **changes: Any) -> HttpJudge:
    return HttpJudge(url=server.url, model="vlm", **({"sleep": Sleeps(), "timeout_s": 30.0} | changes))


def test_what_is_asked() -> None:
    with endpoint(lambda server, body: "Yes.") as server:
        found = judge(server, key="secret").ask([b"one", b"two"], "Is it day?", 3)
        assert found == "Yes."
        [body], [headers] = server.requests, server.headers
    assert body["path"] == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("vlm", 0.7, 0.8, 32)
    assert (body["repetition_penalty"], body["seed"]) == (1.05, 3)
    assert question_of(body) == "Is it day?"
    images = [part["image_url"]["url"] for part in body["messages"][1]["content"][:-1]]
    assert [base64.b64decode(image.removeprefix("data:image/jpeg;base64,")) for image in images] == [b"one", b"two"]


def test_what_services_do_not_know_is_left_out() -> None:
    with endpoint(lambda server, body: "No") as server:
        judge(server, sampling=Sampling(repetition_penalty=1.0)).ask([], "Is it?", 0)
        assert "repetition_penalty" not in server.requests[0]
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("fault", [429, 500, 503, "half", "torn", "garbage", "empty", "hang up"])
def test_what_may_pass_is_tried_again(fault: Any) -> None:
    with endpoint(lambda server, body: fault if len(server.requests) < 3 else "Yes") as server:
        sleeps = Sleeps()
        assert judge(server, sleep=sleeps).ask([b"x"], "Is it?", 0) == "Yes"
        assert len(server.requests) == 3
        assert 0.8 <= sleeps[0] <= 1.2
        assert 1.6 <= sleeps[1] <= 2.4


@pytest.mark.parametrize(
    ("fault", "said"),
    [(429, "HTTP 429: .*not now"), (500, "HTTP 500"), ("half", "IncompleteRead"), ("torn", "cannot be read"),
     ("garbage", "<html>502"), ("hang up", "no whole answer"), ("empty", "cannot be read")],
)  # fmt: skip
def test_what_does_not_pass_is_a_fault_of_that_question(fault: Any, said: str) -> None:
    with endpoint(lambda server, body: fault) as server:
        with pytest.raises(JudgeFailedError, match=re.compile(f"{said}.*\\(3 tries\\)", re.DOTALL)):
            judge(server, tries=3).ask([b"x"], "Is it?", 0)
        assert len(server.requests) == 3


def test_silence_has_an_end() -> None:
    with endpoint(lambda server, body: "silent") as server, pytest.raises(JudgeFailedError, match="timed out"):
        judge(server, tries=1, timeout_s=0.2).ask([b"x"], "Is it?", 0)


@pytest.mark.parametrize(("status", "kind"), [(401, JudgeRefusedError), (403, JudgeRefusedError),
                                              (404, JudgeRefusedError), (400, JudgeFailedError)])  # fmt: skip
def test_what_cannot_pass_is_not_tried_again(status: int, kind: type[Exception]) -> None:
    with endpoint(lambda server, body: status) as server:
        with pytest.raises(kind, match=str(status)):
            judge(server).ask([b"x"], "Is it?", 0)
        assert len(server.requests) == 1


def test_redirections_are_not_followed_with_the_key() -> None:
    with endpoint(lambda server, body: "Yes") as other, endpoint(lambda s, b: (307, {"Location": other.url})) as server:
        with pytest.raises(JudgeRefusedError, match="307"):
            judge(server, key="secret").ask([b"x"], "Is it?", 0)
        assert other.requests == []


@pytest.mark.parametrize(
    ("wait", "low", "high"), [("7", 5.6, 8.4), ("0", 0.8, 1.2), ("99999", 96, 144), ("soon", 0.8, 1.2)]
)
def test_retry_after_is_heeded(wait: str, low: float, high: float) -> None:
    behave = lambda server, body: (429, {"Retry-After": wait}) if len(server.requests) < 2 else "No"  # noqa: E731
    with endpoint(behave) as server:
        sleeps = Sleeps()
        assert judge(server, sleep=sleeps).ask([b"x"], "Is it?", 0) == "No"
        assert low <= sleeps[0] <= high


def test_calls_are_spread_over_the_minute() -> None:
    with endpoint(lambda server, body: "Yes") as server:
        sleeps, now = Sleeps(), [100.0]
        asked = judge(server, per_minute=30.0, clock=lambda: now[0], sleep=sleeps)
        for _ in range(4):
            asked.ask([b"x"], "Is it?", 0)
        assert sleeps == pytest.approx([2.0, 4.0, 6.0])
        now[0] += 100.0
        asked.ask([b"x"], "Is it?", 0)
        assert len(sleeps) == 3


def test_a_connection_is_kept_and_made_anew() -> None:
    with endpoint(lambda server, body: "hang up" if len(server.requests) == 2 else "Yes") as server:
        asked = judge(server)
        for _ in range(4):
            assert asked.ask([b"x"], "Is it?", 0) == "Yes"
        assert len(server.requests) == 5


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x/v1", "http://", "http://user:pass@x/v1", "http://x:99999/v1", "http://x/v1?key=1"],
)
def test_no_endpoint(url: str) -> None:
    with pytest.raises(UsageError):
        HttpJudge(url=url, model="vlm")


def test_nothing_listens() -> None:
    started_s = time.monotonic()
    with pytest.raises(JudgeFailedError, match="ConnectionRefusedError"):
        HttpJudge(url="http://127.0.0.1:9/v1", model="vlm", tries=2, sleep=Sleeps()).ask([], "Is it?", 0)
    assert time.monotonic() - started_s < 60


def test_the_key_is_in_no_text() -> None:
    asked = HttpJudge(url="http://x/v1", model="vlm", key="secret")
    assert "secret" not in f"{asked!r} {asked.name}"
