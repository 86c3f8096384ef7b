"""The scores of one video: its frames are decoded once, whatever is measured, and only if something new is to be noted.

Legend: F frames, H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import torch
from pydantic import ConfigDict

from miga.errors import BadVideoError
from miga.evaluation.drift import start_end
from miga.evaluation.formulas import TooShortError
from miga.evaluation.measures import FEATURES, Measure, Score, VideoForm
from miga.evaluation.observers import Observer
from miga.evaluation.preprocessing import Frames
from pipeline.evaluation.features import FeatureFile, FeatureWriter, FileFeatures
from pipeline.video import read_frames

VERSION: Final = 1
"""Raised whenever features or scores of the same video would come out otherwise."""
PORTION: Final = 16
"""Frames decoded at a time."""


class Meter(Protocol):
    """A reader of frames that keeps no features, such as the sprite world's."""

    def add(self, frames_FHWC: Frames) -> None:
        """Takes the next frames."""
        ...

    def values(self) -> Mapping[str, float]:
        """Scores by name, once all frames have come."""
        ...


@dataclass(frozen=True)
class Result:
    """What came of one measure of one video.

    Attributes:
        value: as VBench has it, of the whole video; None if there is none, for `error`'s reason.
        made_of: which version and weights; equal ones need not be made again.
        long: as VBench-Long has it: the mean over clips, one with `clip_to_clip` where that was looked at.
        clips: of each of VBench-Long's clips.
        clip_to_clip: of their first frames.
        start: mean over the first 15 % of frames.
        end: mean over the last 15 %.
        drift_error: video drift error over clips.
        drift_error_normalised: the same over the sum of its weights.
        curve: distance in frames → mean cosine; 0 stands for the cosine of the two ends.
        error: why there is no value.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    value: float | None
    made_of: str
    long: float | None = None
    clips: tuple[float | None, ...] = ()
    clip_to_clip: float | None = None
    start: float | None = None
    end: float | None = None
    drift_error: float | None = None
    drift_error_normalised: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of(cls, score: Score, made_of: str) -> Result:
        """A score as a plain value; what is no number is None."""
        return cls(
            value=_finite(score.value),
            made_of=made_of,
            long=_finite(score.long),
            clips=tuple(_finite(clip) for clip in score.clips),
            clip_to_clip=_finite(score.clip_to_clip),
            start=None if score.ends is None else _finite(score.ends.start),
            end=None if score.ends is None else _finite(score.ends.end),
            drift_error=_finite(score.drift_error),
            drift_error_normalised=_finite(score.drift_error_normalised),
            curve={distance: value for distance, value in score.curve.items() if math.isfinite(value)},
            error=""
            if math.isfinite(score.value)
            else score.why_none or "its score is no number: the network returned none",
        )

    @classmethod
    def failed(cls, error: str, made_of: str) -> Result:
        """No score, and why."""
        return cls(value=None, made_of=made_of, error=error)

    @classmethod
    def single(cls, value: float, made_of: str, per_frame: Sequence[float] = ()) -> Result:
        """One number, and what it says of frames, if anything."""
        ends = start_end(per_frame)
        return cls(
            value=_finite(value),
            made_of=made_of,
            start=None if ends is None else _finite(ends.start),
            end=None if ends is None else _finite(ends.end),
            error="" if math.isfinite(value) else "there is nothing in this video that it could be said of",
        )

    def to_values(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **asdict(self),
            "clips": list(self.clips),
            "curve": {str(key): item for key, item in self.curve.items()},
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True, kw_only=True)
class Looking:
    """With what a video is looked at.

    Attributes:
        networks: name of weights → what they make; a feature's network, or a measure's head.
        device: where networks are.
        batch: frames, pairs or triples that go through a network at once.
        step: called whenever it has come a little further.
    """

    networks: Callable[[str], Any]
    device: torch.device
    batch: int = 1
    step: Callable[[], None] = lambda: None


def score_video(
    path: Path,
    form: VideoForm,
    measures: Iterable[Measure],
    looking: Looking,
    *,
    kept: Mapping[str, Path],
    scratch: Path,
    made_of: Callable[[Measure], str],
    meters: Mapping[str, Meter] | None = None,
) -> tuple[dict[str, Result], dict[str, Path]]:
    """The scores of a video, and the files of what was newly noted of its frames.

    Args:
        path: of the video.
        form: of it.
        measures: that are wanted.
        looking: with what.
        kept: feature → file of what was noted before.
        scratch: an empty folder for new ones.
        made_of: what a measure's result depends on, as one name.
        meters: name → reader of all frames; its scores are called "name.score".

    Raises:
        BadVideoError: if the video cannot be read, or has another form than it should.
    """
    results: dict[str, Result] = {}
    possible: list[Measure] = []
    for measure in measures:
        if reason := measure.why_not(form):
            results[measure.name] = Result.failed(reason, made_of(measure))
        else:
            possible.append(measure)
    wanted = dict.fromkeys(name for measure in possible for name in measure.features)
    missing = [name for name in wanted if name not in kept]
    fresh: dict[str, Path] = {}
    meters = meters or {}
    if missing or meters:
        observers = {
            name: FEATURES[name].observer(
                form,
                looking.networks(network) if (network := FEATURES[name].network) else None,
                looking.device,
                looking.batch,
            )
            for name in missing
        }
        fresh = _observe(path, form, observers, meters.values(), scratch, looking.step)
    with contextlib.ExitStack() as stack:
        files: dict[str, FeatureFile] = {}
        for name in wanted:
            files[name] = FeatureFile(fresh.get(name) or kept[name])
            stack.callback(files[name].close)
        features = FileFeatures(files)
        for measure in possible:
            results[measure.name] = _scored(measure, form, features, looking, made_of(measure))
    return results, fresh


def _scored(measure: Measure, form: VideoForm, features: FileFeatures, looking: Looking, made_of: str) -> Result:
    heads = {name: looking.networks(name) for name in measure.weights}
    try:
        return Result.of(measure.score(form, features, heads), made_of)
    except TooShortError as error:
        return Result.failed(str(error), made_of)


def _observe(
    path: Path,
    form: VideoForm,
    observers: Mapping[str, Observer],
    meters: Iterable[Meter],
    scratch: Path,
    step: Callable[[], None],
) -> dict[str, Path]:
    """Has everybody look at the video, portion by portion; the files of what was noted."""
    fresh = {name: scratch / f"{name}.safetensors" for name in observers}
    with contextlib.ExitStack() as stack:
        writers = {name: FeatureWriter(fresh[name]) for name in observers}
        for writer in writers.values():
            stack.callback(writer.discard)
        seen = 0
        for frames_FHWC in portions_of(path):
            if frames_FHWC.shape[1:3] != (form.height, form.width):
                found = f"{frames_FHWC.shape[2]}x{frames_FHWC.shape[1]}"
                raise BadVideoError(f"{path.name} has frames of {found}, and {form.width}x{form.height} were expected")
            seen += len(frames_FHWC)
            step()
            for name, observer in observers.items():
                for noted in observer.add(frames_FHWC):
                    writers[name].add(noted)
                    step()
            for meter in meters:
                meter.add(frames_FHWC)
        if seen != form.num_frames:
            raise BadVideoError(
                f"{path.name} holds {seen} frames that decode, and {form.num_frames} were expected",
                "the file is cut off or damaged: make or copy it again",
            )
        for name, observer in observers.items():
            for noted in observer.finish():
                writers[name].add(noted)
                step()
            writers[name].close()
    return fresh


def portions_of(path: Path, size: int = PORTION) -> Iterator[Frames]:
    """The frames of a video, `[F, H, W, 3]` at a time.

    Raises:
        BadVideoError: if it is no video.
    """
    frames = read_frames(path)
    try:
        while portion := list(itertools.islice(frames, size)):
            yield np.stack(portion)
    except (OSError, RuntimeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadVideoError(f"{path.name} cannot be read: {first[:200]}", "make or copy it again") from error
    finally:
        frames.close()  # type: ignore[attr-defined]  # a generator
