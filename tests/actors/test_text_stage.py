"""Text encoding as a stage: every distinct prompt once, ahead of need, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from actors import text_encoder
from actors.text_encoder import NUM_KEPT, TextEncoderWorker, TextStage
from miga.errors import BadRowError, MigaError, ModelError


class FakeEncoder:
    """Stands in for the actor: counts what it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls: list[tuple[list[str], Any]] = []

    @property
    def encode_all(self) -> FakeEncoder:
        return self

    def options(self, num_returns: int) -> FakeEncoder:
        self.num_returns = num_returns
        return self

    def remote(self, prompts: list[str]) -> list[Any]:
        assert self.num_returns == len(prompts) + 1
        self.asked += prompts
        return [*(f"embedding of {prompt}" for prompt in prompts), len(self.asked)]


class Answers:
    """Stands in for the inbox."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Future[Any]], None]] = []

    def when_ready(self, reference: Any, action: Callable[[Future[Any]], None]) -> None:
        self.waiting.append(action)

    def give(self, value: Any = None, error: BaseException | None = None) -> None:
        """Answers the oldest call."""
        future: Future[Any] = Future()
        if error is None:
            future.set_result(value or {})
        else:
            future.set_exception(error)
        self.waiting.pop(0)(future)


def make(prompts: list[str] | None = None) -> tuple[FakeEncoder, Answers, TextStage]:
    encoder, answers = FakeEncoder(), Answers()
    return encoder, answers, TextStage(encoder, answers.when_ready, prompts or ())


def test_a_prompt_that_comes_again_is_not_encoded_again() -> None:
    encoder, _, stage = make()
    stage.prepare(["", "a cat", "", "a dog"])
    assert stage.embeddings(["", "a cat"]) == ["embedding of ", "embedding of a cat"]
    assert stage.embeddings(["a cat", "a bird"]) == ["embedding of a cat", "embedding of a bird"]
    assert encoder.asked == ["", "a cat", "a dog", "a bird"]
    assert stage.num_encoded == 4


def test_a_row_waits_for_all_of_its_prompts_and_no_others() -> None:
    _, answers, stage = make()
    begun: list[str] = []
    stage.prepare(["", "a cat"])
    stage.when_encoded(["", "a cat"], partial(begun.append, "cat"))
    stage.when_encoded(["", "a dog"], partial(begun.append, "dog"))
    assert begun == []
    answers.give()
    assert begun == ["cat"]
    answers.give()
    assert begun == ["cat", "dog"]
    stage.when_encoded(["a dog", "a cat"], partial(begun.append, "both"))
    assert begun == ["cat", "dog", "both"]


def test_only_so_many_are_kept_and_those_in_use_longest() -> None:
    encoder, answers, stage = make()
    for number in range(NUM_KEPT + 10):
        stage.embeddings(["the negative prompt, in every row", f"prompt {number}"])
        answers.give()
    assert encoder.asked.count("the negative prompt, in every row") == 1
    stage.embeddings(["prompt 0"])
    assert encoder.asked.count("prompt 0") == 2


def test_a_bad_prompt_is_the_fault_of_its_row_alone() -> None:
    _, answers, stage = make()
    begun: list[str] = []
    stage.when_encoded(["", "bad"], partial(begun.append, "bad"))
    stage.when_encoded(["", "good"], partial(begun.append, "good"))
    answers.give({1: BadRowError("too long")})
    answers.give()
    assert begun == ["bad", "good"]
    with pytest.raises(BadRowError, match="too long"):
        stage.embeddings(["", "bad"])
    assert stage.embeddings(["", "good"]) == ["embedding of ", "embedding of good"]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (RayTaskError("encode_all", "traceback", ModelError("no such folder")), "no such folder"),
        (RayTaskError("encode_all", "traceback", MemoryError("none left")), "none left"),
    ],
)
def test_an_encoder_that_is_of_no_use_ends_the_run(error: Exception, named: str) -> None:
    _, answers, stage = make()
    stage.prepare(["a cat"])
    with pytest.raises(MigaError, match=named):
        answers.give(error=error)


def test_few_prompts_are_encoded_together_and_the_encoder_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    store: list[Any] = []
    killed: list[Any] = []
    monkeypatch.setattr(text_encoder.ray, "get", lambda reference: f"value of {reference}")
    monkeypatch.setattr(text_encoder.ray, "put", lambda value: store.append(value) or f"copy of {value}")
    monkeypatch.setattr(text_encoder.ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    encoder, answers, stage = make(["a cat", "bad", ""])
    assert encoder.asked == [], "a run that is complete asks for nothing"
    stage.prepare([""])
    assert sorted(encoder.asked) == ["", "a cat", "bad"]
    assert killed == []
    answers.give({2: BadRowError("too long")})
    assert killed == [(encoder, True)]
    assert len(store) == 2
    assert stage.embeddings(["a cat", ""]) == ["copy of value of embedding of a cat", "copy of value of embedding of "]
    with pytest.raises(BadRowError, match="too long"):
        stage.embeddings(["bad"])
    assert len(encoder.asked) == 3
    with pytest.raises(AssertionError, match="a bird"):
        stage.prepare(["a bird"])


def test_the_worker_names_bad_prompts_by_their_position() -> None:
    worker = TextEncoderWorker("simulated:wan", None, 1)
    *embeddings, errors = worker.encode_all(["a cat", "x" * 5000, ""])
    assert [embedding is None for embedding in embeddings] == [False, True, False]
    assert list(errors) == [1]
    assert "5000 bytes" in str(errors[1])
    assert (embeddings[0][0] == worker.encode("a cat")[0]).all()
