"""The quality gate: which videos are good enough, the tries of a row that were not, and which of them is kept.

A row whose video lies beyond `[quality]` is tried again under another seed. What is known of each try that was not good
enough is a file beside the row's checkpoints, in which the whole row of the manifest stands as it would have been:

    checkpoint/00000/00000017-5793…/try-00.json

It is written, once, before the next try begins. So a run that goes on knows which tries there were, and which seed is
the next; when the row is settled, the manifest's row says all of it (`quality`), and the files go with the checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from miga.outside_data import OutsideDataError, parse_json_object
from pipeline.config import QualityConfig
from pipeline.records.run_folder import path_in_out
from pipeline.rows import SEED_LIMIT, ManifestRow

TRY_NAME: Final = re.compile(r"try-(\d{2,3})\.json", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the gate says of one video.

    Attributes:
        beyond: metric → by how much it lies beyond its limit, as a share of the limit.
        words: the same in words.
        unknown: metrics that are asked for and that the video has no score of; it is not judged by them.
    """

    beyond: Mapping[str, float]
    words: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether it lies beyond no limit."""
        return not self.beyond


@dataclass(frozen=True, kw_only=True)
class Try:
    """One try at a row.

    Attributes:
        number: from 0.
        seed: that it was made with.
        row: of the manifest, as it would be if this try were kept; None: no video came of it.
        scores: by metric.
        error: why there is no video.
    """

    number: int
    seed: int
    row: ManifestRow | None
    scores: Mapping[str, float]
    error: str = ""

    def to_json(self) -> bytes:
        """For `from_json`."""
        assert self.row is not None
        values = {"number": self.number, "scores": dict(self.scores), "row": self.row.to_record().decode()}
        return json.dumps(values, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Try:
        """A try that `to_json` wrote.

        Raises:
            OutsideDataError: if it is none.
        """
        values = parse_json_object(data)
        number, scores, row = (values.get(name) for name in ("number", "scores", "row"))
        if type(number) is not int or not isinstance(scores, dict) or not isinstance(row, str):
            raise OutsideDataError("it is not the record of a try")
        if not all(isinstance(score, int | float) for score in scores.values()):
            raise OutsideDataError("a score is no number")
        made = ManifestRow.from_json(row)
        if made.seed is None or made.status != "ok":
            raise OutsideDataError("its row was not made")
        return cls(
            number=number, seed=made.seed, row=made, scores={name: float(value) for name, value in scores.items()}
        )


def try_name(number: int) -> str:
    """The name of a try's file in the row's folder of checkpoints."""
    return f"try-{number:02d}.json"


def try_seed(seed: int, number: int) -> int:
    """The seed of a row's try: its own at first, then others that follow from it."""
    if number == 0:
        return seed
    digest = hashlib.sha256(f"try {number} of seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % SEED_LIMIT


def seeds_of(seed: int, quality: QualityConfig) -> list[int]:
    """The seeds that a row's video may have been made with."""
    return [try_seed(seed, number) for number in range(1 + (quality.retries if quality.is_asked else 0))]


def judge(scores: Mapping[str, float], quality: QualityConfig) -> Judged:
    """Holds scores against the limits; one that is no number is unknown."""
    beyond: dict[str, float] = {}
    words: list[str] = []
    unknown: dict[str, None] = {}
    for limits, sign, word in ((quality.least, 1.0, "less than"), (quality.most, -1.0, "more than")):
        for name, limit in limits.items():
            score = scores.get(name, math.nan)
            if math.isnan(score):
                unknown[name] = None
            elif (short := sign * (limit - score)) > 0:
                beyond[name] = beyond.get(name, 0.0) + short / (abs(limit) or 1.0)
                words.append(f"{name} {score:.4g} is {word} {limit:g}")
    return Judged(beyond=beyond, words=tuple(words), unknown=tuple(unknown))


def kept_row(tries: Sequence[Try], quality: QualityConfig) -> ManifestRow:
    """The row that is recorded: of the tries with a video the best, with `quality` saying all of them.

    The best is beyond the fewest limits; of those the least far in all, as shares of the limits; of those the first.

    Args:
        tries: in order, at least one of them with a video.
        quality: the gate.
    """
    made = [each for each in tries if each.row is not None]
    best = min(made, key=lambda each: _badness(each, quality))
    judged = judge(best.scores, quality)
    values = {
        "good": judged.is_good,
        "kept": best.number,
        "why": _why(best, judged, tries, quality),
        "tries": [_values(each, quality) for each in tries],
    }
    assert best.row is not None
    return replace(best.row, quality=json.dumps(values, ensure_ascii=False, allow_nan=False))


def _badness(each: Try, quality: QualityConfig) -> tuple[int, float, int]:
    beyond = judge(each.scores, quality).beyond
    return len(beyond), math.fsum(beyond.values()), each.number


def _why(best: Try, judged: Judged, tries: Sequence[Try], quality: QualityConfig) -> str:
    unknown = f"; not judged by {', '.join(judged.unknown)}, which it has no score of" if judged.unknown else ""
    if judged.is_good:
        first = "" if len(tries) == 1 else f" after {len(tries) - 1} that were not"
        return f"it is within all limits{first}{unknown}"
    if len(tries) == 1 and not quality.retries:
        return f"it is marked, and not made again: {'; '.join(judged.words)}{unknown}"
    return f"the best of {len(tries)} tries, none of them within all limits: {'; '.join(judged.words)}{unknown}"


def _values(each: Try, quality: QualityConfig) -> dict[str, Any]:
    if each.row is None:
        return {"number": each.number, "seed": each.seed, "error": each.error}
    judged = judge(each.scores, quality)
    return {
        "number": each.number,
        "seed": each.seed,
        "key": each.row.key,
        "attempt": each.row.attempt,
        "video": path_in_out(each.row.uri) if each.row.uri else None,
        "sha256": each.row.sha256,
        "scores": {name: score for name, score in each.scores.items() if math.isfinite(score)},
        "beyond": list(judged.words),
        "unknown": list(judged.unknown),
    }


def tried_keys(row: ManifestRow) -> list[str]:
    """Keys of all videos that were made of a settled row, the kept one's included."""
    try:
        tries = parse_json_object(row.quality)["tries"] if row.quality else []
        keys = [each.get("key") for each in tries if isinstance(each, dict)]
    except (OutsideDataError, KeyError, TypeError):
        keys = []
    return [row.key, *(key for key in keys if isinstance(key, str))]


def is_marked(row: ManifestRow) -> bool:
    """Whether a row's video lies beyond the limits of its run."""
    try:
        return bool(row.quality) and parse_json_object(row.quality or "").get("good") is False
    except OutsideDataError:
        return False


def sorted_tries(tries: Iterable[Try]) -> list[Try]:
    """In order, without gaps: those behind a number that is not there do not count."""
    by_number = {each.number: each for each in tries}
    found: list[Try] = []
    while len(found) in by_number:
        found.append(by_number[len(found)])
    return found
