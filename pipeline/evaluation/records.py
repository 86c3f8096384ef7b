"""What an evaluation has found, row by row, and where it keeps that.

    OUT/evaluation/rows/00000017.json                          a row: its results, or why there are none
    OUT/evaluation/features/dino-5793…/<sha256>.safetensors    what was noted of a video's frames, by which weights
    OUT/evaluation/results.parquet                             a row a video and measure
    OUT/evaluation/lease/…                                     who writes here

A result says what it was made of: the version, the weights, the video's content. One that was made of the same is not
made again, and a further measure costs only itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field

from miga.errors import BadVideoError, OutputError
from miga.evaluation.measures import VideoForm
from miga.outside_data import OutsideDataError, parse_json_object, validated
from pipeline.evaluation.scores import Result
from pipeline.evaluation.videos import Video
from pipeline.storage.base import Storage

FORMAT: Final = 1
_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class _StoredRow:
    """A row as JSON has it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: int
    row: Count
    id: str
    path: str
    prompts: tuple[str, ...]
    seed: int | None
    sha256: str
    form: VideoForm | None
    results: dict[str, Result]
    note: str = ""
    error_type: str = ""
    error: str = ""
    attempt: Count = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EvaluatedRow:
    """A video's results.

    Attributes:
        video: which.
        sha256: of its file.
        form: of the video; None if it could not be read.
        results: measure → what came of it.
        note: what is to be said of the video, such as that its frame rate varies.
        error_type: class of the error of a video that could not be evaluated at all; else empty.
        error: that error.
        attempt: number of the attempt that settled it.
        seconds: that it took.
    """

    video: Video
    sha256: str = ""
    form: VideoForm | None = None
    results: Mapping[str, Result] = field(default_factory=dict)
    note: str = ""
    error_type: str = ""
    error: str = ""
    attempt: int = 0
    seconds: float = 0.0

    def to_json(self) -> bytes:
        """For `from_json`."""
        video = self.video
        values = {
            "format": FORMAT,
            "row": video.row,
            "id": video.id,
            "path": video.path,
            "prompts": video.prompts,
            "seed": video.seed,
            "sha256": self.sha256,
            "form": None if self.form is None else asdict(self.form),
            "results": {name: result.to_values() for name, result in self.results.items()},
            "note": self.note,
            "error_type": self.error_type,
            "error": self.error,
            "attempt": self.attempt,
            "seconds": self.seconds,
        }
        return json.dumps(values, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> EvaluatedRow:
        """What `to_json` made.

        Raises:
            OutsideDataError: if it is not that.
        """
        stored = validated(_StoredRow, parse_json_object(data))
        if stored.format != FORMAT:
            raise OutsideDataError(f"it is of format {stored.format}; this version reads {FORMAT}")
        return cls(
            video=Video(row=stored.row, id=stored.id, path=stored.path, prompts=stored.prompts, seed=stored.seed),
            sha256=stored.sha256,
            form=stored.form,
            results=stored.results,
            note=stored.note,
            error_type=stored.error_type,
            error=stored.error,
            attempt=stored.attempt,
            seconds=stored.seconds,
        )


def row_path(row: int) -> str:
    """Where a row's results are, below the evaluation's folder."""
    return f"rows/{row:08d}.json"


def feature_path(feature: str, weights_sha256: str, video_sha256: str) -> str:
    """Where what was noted of a video is, below the evaluation's folder."""
    return f"features/{feature}-{weights_sha256[:16] or 'pixels'}/{video_sha256}.safetensors"


def read_row(storage: Storage, row: int) -> EvaluatedRow | None:
    """A row's results so far; None if there are none, or they cannot be read.

    Args:
        storage: of the evaluation.
        row: which.
    """
    try:
        return EvaluatedRow.from_json(storage.read_bytes(row_path(row), 1 << 26))
    except (FileNotFoundError, OutsideDataError):  # a broken one is made anew
        return None


def read_rows(storage: Storage) -> Iterator[EvaluatedRow]:
    """All rows' results, in order.

    Args:
        storage: of the evaluation.

    Raises:
        OutputError: if a file is broken.
    """
    for path in storage.list("rows"):
        try:
            yield EvaluatedRow.from_json(storage.read_bytes(path, 1 << 26))
        except OutsideDataError as error:
            raise OutputError(
                f"{storage.uri(path)} cannot be used: {error}", "delete it: `miga evaluate` makes it anew"
            ) from error


def merged(earlier: EvaluatedRow | None, now: EvaluatedRow) -> EvaluatedRow:
    """The results of now, and those of before that are of the same video and were not made anew.

    Of a video that cannot be read nothing is kept; where only the attempt failed, such as for want of memory, all is.
    """
    if earlier is None or earlier.sha256 != now.sha256 or now.error_type == BadVideoError.__name__:
        return now
    results = {**earlier.results, **now.results}
    return replace(now, results=results, form=now.form or earlier.form, note=now.note or earlier.note)
