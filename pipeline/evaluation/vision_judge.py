"""What a judge of videos is: something that answers a question about a few frames in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from miga.errors import MigaError, Scope

ORDER: str = "Answer with yes or no only."
"""Put behind every question."""
SYSTEM: str = "You are a helpful assistant."


class JudgeFailedError(MigaError):
    """A question was not answered; others may be."""

    scope: ClassVar[Scope] = "row"


class JudgeRefusedError(MigaError):
    """No question will be answered: the judge is not there, or does not let us in."""


class VisionJudge(Protocol):
    """Answers questions about frames; its answers are drawn at random, so each call is another sample.

    Attributes:
        name: of the judge, noted with its answers: others are not mixed with them.
        at_once: calls that it takes at the same time.
    """

    name: str
    at_once: int

    def ask(self, frames: Sequence[bytes], question: str, sample: int) -> str:
        """The answer in words.

        Args:
            frames: JPEGs, in the order in which they are in the video.
            question: to be answered by yes or no.
            sample: number of the sample, for judges that draw by a seed.

        Raises:
            JudgeFailedError: if there is none, whatever was tried.
            JudgeRefusedError: if there will be none to any question.
        """
        ...
