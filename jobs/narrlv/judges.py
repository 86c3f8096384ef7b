"""Judges as commands name them: the address of an endpoint, or a model."""

from __future__ import annotations

from collections.abc import Sequence

from miga.errors import UsageError
from pipeline.evaluation.http_judge import HttpJudge, Sampling
from pipeline.evaluation.vision_judge import VisionJudge


def _is_address(judge: str) -> bool:
    return judge.startswith(("http://", "https://"))


def judge_name(judge: str | None, model: str | None) -> str:
    """What a judge is called in the file of its answers.

    Raises:
        UsageError: if it is an endpoint, and its model is not named.
    """
    if judge is None:
        return ""
    if not _is_address(judge):
        return judge
    if not model:
        raise UsageError("--judge is an endpoint, and its model is not named", "say which: --judge-model NAME")
    return HttpJudge(url=judge, model=model).name


def open_judge(
    judge: str,
    model: str | None,
    *,
    key: str,
    at_once: int,
    per_minute: float | None,
    timeout_s: float,
    tries: int,
    repetition_penalty: float,
) -> VisionJudge:
    """A judge that may be asked.

    Args:
        judge: address of an endpoint, or folder or hub name of a model.
        model: of the endpoint.
        key: of the endpoint.
        at_once: calls at the same time, of an endpoint.
        per_minute: calls that are begun in a minute, of an endpoint.
        timeout_s: of a call, of an endpoint.
        tries: calls for one answer, of an endpoint.
        repetition_penalty: of the sampling.

    Raises:
        UsageError: if the address is none.
        ModelError: if the model cannot be loaded.
    """
    sampling = Sampling(repetition_penalty=repetition_penalty)
    if not _is_address(judge):
        from miga.backbones.vision_language import VisionLanguageModel
        from pipeline.evaluation.model_judge import ModelJudge

        return ModelJudge(VisionLanguageModel(judge), sampling)
    assert model
    return HttpJudge(
        url=judge,
        model=model,
        key=key,
        sampling=sampling,
        timeout_s=timeout_s,
        tries=tries,
        per_minute=per_minute,
        at_once=at_once,
    )


class _Nobody:
    """A judge for when nothing is left to ask."""

    name = ""
    at_once = 1

    def ask(self, frames: Sequence[bytes], question: str, sample: int) -> str:
        raise AssertionError("nothing is left to ask")


def no_judge() -> VisionJudge:
    """A judge for when nothing is left to ask."""
    return _Nobody()
