"""Text encoding as a stage: every distinct prompt once, in bounded memory."""

from __future__ import annotations

from typing import Any

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
