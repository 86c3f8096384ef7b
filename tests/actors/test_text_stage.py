"""Text encoding as a stage: every distinct prompt once, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayTaskError

from actors import text_encoder
from actors.text_encoder import NUM_KEPT, TextStage


class FakeEncoder:
    """Stands in for the actor: counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def encode(self) -> FakeEncoder:
        return self

    def options(self, num_returns: int) -> FakeEncoder:
        assert num_returns == 2
        return self

    def remote(self, prompt: str) -> list[Any]:
        self.asked.append(prompt)
        return [f"embedding of {prompt}", "seconds"]


def test_a_prompt_that_comes_again_is_not_encoded_again() -> None:
    encoder = FakeEncoder()
    stage = TextStage(encoder)
    references = [stage.embedding(prompt) for prompt in ("", "a cat", "", "a dog", "a cat")]
    assert encoder.asked == ["", "a cat", "a dog"]
    assert references[1] == references[4] == ("embedding of a cat", "seconds")
    assert stage.num_encoded == 3


def test_only_so_many_are_kept_and_those_in_use_longest() -> None:
    encoder = FakeEncoder()
    stage = TextStage(encoder)
    for number in range(NUM_KEPT + 10):
        stage.embedding("the negative prompt, in every row")
        stage.embedding(f"prompt {number}")
    assert encoder.asked.count("the negative prompt, in every row") == 1
    stage.embedding("prompt 0")
    assert encoder.asked.count("prompt 0") == 2


def test_few_prompts_are_encoded_together_and_the_encoder_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, store, killed = FakeEncoder(), [], []
    done = False

    def wait(references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return (references, []) if done else (references[:-1], references[-1:])

    monkeypatch.setattr(text_encoder.ray, "wait", wait)
    monkeypatch.setattr(text_encoder.ray, "get", lambda reference: f"value of {reference}")
    monkeypatch.setattr(text_encoder.ray, "put", lambda value: store.append(value) or f"copy of {value}")
    monkeypatch.setattr(text_encoder.ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    stage = TextStage(encoder, ["a cat", "a dog", ""])
    assert encoder.asked == [], "a run that is complete asks for nothing"
    assert stage.embedding("a dog") == ("embedding of a dog", "seconds")
    assert sorted(encoder.asked) == ["", "a cat", "a dog"]
    assert killed == []
    done = True
    assert stage.embedding("a cat")[0] == "copy of value of embedding of a cat"
    assert killed == [(encoder, True)]
    assert len(store) == 6  # an embedding and its seconds, of each
    stage.embedding("")
    assert len(killed) == 1
    assert len(encoder.asked) == 3
    with pytest.raises(AssertionError, match="a bird"):
        stage.embedding("a bird")


def test_the_error_of_a_bad_prompt_outlives_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, killed = FakeEncoder(), []

    def get(reference: str) -> str:
        if "bad" in reference:
            raise RayTaskError("encode", "traceback", ValueError("too long"))
        return reference

    monkeypatch.setattr(text_encoder.ray, "wait", lambda references, num_returns, timeout: (references, []))
    monkeypatch.setattr(text_encoder.ray, "get", get)
    monkeypatch.setattr(text_encoder.ray, "put", lambda value: f"copy of {value}")
    monkeypatch.setattr(text_encoder.ray, "kill", lambda actor, no_restart: killed.append(actor))
    stage = TextStage(encoder, ["bad", "good"])
    assert stage.embedding("bad")[0] == "embedding of bad"
    assert stage.embedding("good")[0] == "copy of embedding of good"
    assert killed == [encoder]
