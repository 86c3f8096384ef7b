"""Which measures there are, what each needs to know of a video's frames, and its scores from that.

What is noted of frames (`FEATURES`) is made by observers while the video streams, and kept; a measure reads what was
kept. So a measure that needs nothing new needs no video.

Legend: F frames, D numbers noted of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final, Protocol

import numpy as np
import torch
from pydantic import ConfigDict, Field

from miga.evaluation import preprocessing
from miga.evaluation.clips import Consistency, clip_spans, fused
from miga.evaluation.drift import (
    DistanceCurve,
    EndFeatures,
    StartEnd,
    normalised_drift_error,
    start_end,
    video_drift_error,
)
from miga.evaluation.formulas import (
    STATIC_SHARE,
    Array,
    ConsistencyMeter,
    Floats,
    TooShortError,
    aesthetic_scores,
    consistency,
    is_moving,
    is_static,
    likeness,
    mean_of,
    moving_pairs,
    smoothness_starts,
    thinning_interval,
)
from miga.evaluation.networks import amt, raft
from miga.evaluation.observers import (
    DifferenceObserver,
    EndsMotionObserver,
    FrameObserver,
    InterpolationObserver,
    MotionObserver,
    Observer,
    embedding,
    interpolation,
    optical_flow,
)

MOST_CORRELATION_BYTES: Final = 2 * 2**30
"""Of the correlations of all pairs of places that AMT or RAFT look at in a batch."""
PORTION: Final = 256
"""Features read at a time."""
MOST_STILL_OF_A_PROMPT: Final = 5
"""Videos, or clips, of a prompt that VBench keeps behind its static filter."""


@dataclass(frozen=True)
class VideoForm:
    """What a video is, whatever it shows."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    num_frames: Annotated[int, Field(ge=0)]
    fps: float
    height: Annotated[int, Field(ge=0)]
    width: Annotated[int, Field(ge=0)]

    @cached_property
    def clips(self) -> list[tuple[int, int]]:
        """VBench-Long's clips; the whole video where a frame rate makes none."""
        if int(self.fps) < 1:
            return [(0, self.num_frames)]
        return clip_spans(self.num_frames, self.fps)

    @cached_property
    def triples(self) -> list[int]:
        """First frames of the triples of motion smoothness: of the whole video, and of each clip."""
        spans = [(0, self.num_frames), *self.clips]
        return sorted({start for span in spans for start in smoothness_starts(*span)})

    @cached_property
    def pairs(self) -> list[int]:
        """First frames of the pairs of dynamic degree: of the whole video, and of each clip."""
        spans = [(0, self.num_frames), *self.clips]
        return sorted({first for span in spans for first, _ in moving_pairs(*span, self.fps)})

    @cached_property
    def stretches(self) -> list[tuple[int, int]]:
        """What the static filter asks of: each clip of two frames and more, and then the whole video."""
        spans = dict.fromkeys([*self.clips, (0, self.num_frames)])
        return [span for span in spans if span[1] - span[0] > 1]


class Features(Protocol):
    """What was noted of a video's frames."""

    def rows(self, feature: str, start: int, stop: int) -> Array:
        """Numbers `[F, D]` of frames `start` to `stop`, of a feature that is noted of every frame."""
        ...

    def scalars(self, feature: str) -> Mapping[int, float]:
        """Position → number, of a feature of one number."""
        ...


@dataclass(frozen=True)
class Score:
    """A measure of a video.

    Attributes:
        value: of the whole video, as VBench has it.
        clips: of VBench-Long's clips.
        clip_to_clip: of their first frames, where that branch was looked at.
        long: VBench-Long's: the mean over clips, one with `clip_to_clip` where that is known.
        ends: of what it says of frames.
        drift_error: video drift error over clips.
        drift_error_normalised: the same over the sum of its weights.
        curve: distance in frames → mean cosine.
        why_none: why `value` is no number, where that is no fault of a network.
    """

    value: float
    clips: tuple[float, ...] = ()
    clip_to_clip: float | None = None
    long: float = math.nan
    ends: StartEnd | None = None
    drift_error: float = math.nan
    drift_error_normalised: float = math.nan
    curve: Mapping[int, float] = field(default_factory=dict)
    why_none: str = ""


@dataclass(frozen=True)
class Feature:
    """What is noted of frames.

    Attributes:
        name: of it.
        network: by which (a name of `miga.evaluation.weights`); None: none.
        observer: makes an observer of a video of some form by the network, on a device, in batches.
        least_side: pixels of a side that the network needs.
    """

    name: str
    network: str | None
    observer: Callable[[VideoForm, Any, torch.device, int], Observer]
    least_side: int = 1


@dataclass(frozen=True)
class Measure:
    """A measure.

    Attributes:
        name: VBench's.
        features: that it needs.
        score: from those; the last argument holds other weights that it needs, by name.
        weights: names of those.
        least_frames: of a video.
        about: in a line.
        most_of_a_prompt: clips, or videos, of one prompt that count in a data set's figures; None: all.
    """

    name: str
    features: tuple[str, ...]
    score: Callable[[VideoForm, Features, Mapping[str, Any]], Score]
    about: str
    weights: tuple[str, ...] = ()
    least_frames: int = 1
    most_of_a_prompt: int | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """All weights that it needs, those of its features first."""
        of_features = [network for name in self.features if (network := FEATURES[name].network) is not None]
        return (*dict.fromkeys(of_features), *self.weights)

    def why_not(self, form: VideoForm) -> str | None:
        """Why a video of that form has no such score; None if it has one."""
        if form.num_frames < self.least_frames:
            return f"{self.name} needs {self.least_frames} frames, and the video has {form.num_frames}"
        for name in self.features:
            least = FEATURES[name].least_side
            if min(form.height, form.width) < least:
                return (
                    f"{self.name} needs sides of {least} pixels at least for its network ({FEATURES[name].network}), "
                    f"and the video is {form.width}x{form.height}"
                )
        return None


def _of_frames(prepare: Callable[..., torch.Tensor]) -> Callable[[VideoForm, Any, torch.device, int], Observer]:
    return lambda form, network, device, batch: FrameObserver(embedding(network, prepare, device), batch)


def pairs_at_once(form: VideoForm, batch: int) -> int:
    """Pairs that go through AMT or RAFT at once: as many as their correlations leave room for, one at least."""
    places = (form.height // 8) * (form.width // 8)
    return max(1, min(batch, MOST_CORRELATION_BYTES // max(1, 4 * places**2)))


FEATURES: Final[Mapping[str, Feature]] = {
    feature.name: feature
    for feature in (
        Feature("difference", None, lambda form, network, device, batch: DifferenceObserver()),
        Feature("dino", "dino", _of_frames(preprocessing.dino)),
        Feature("clip_b32", "clip-b32", _of_frames(preprocessing.clip)),
        Feature("clip_l14", "clip-l14", _of_frames(preprocessing.clip)),
        Feature("imaging", "musiq", _of_frames(preprocessing.imaging)),
        Feature(
            "interpolation",
            "amt",
            lambda form, network, device, batch: InterpolationObserver(
                interpolation(network, device), form.triples, pairs_at_once(form, batch)
            ),
            amt.LEAST_SIDE,
        ),
        Feature(
            "motion",
            "raft",
            lambda form, network, device, batch: MotionObserver(
                optical_flow(network, device), form.pairs, thinning_interval(form.fps), pairs_at_once(form, batch)
            ),
            raft.LEAST_SIDE,
        ),
        Feature(
            "adjacent_motion",
            "raft",
            lambda form, network, device, batch: MotionObserver(
                optical_flow(network, device),
                range(form.num_frames - 1),
                interval=1,
                batch=pairs_at_once(form, batch),
                share=STATIC_SHARE,
            ),
            raft.LEAST_SIDE,
        ),
        Feature(
            "ends_motion",
            "raft",
            lambda form, network, device, batch: EndsMotionObserver(
                optical_flow(network, device), form.stretches, pairs_at_once(form, batch), STATIC_SHARE
            ),
            raft.LEAST_SIDE,
        ),
        Feature(
            "dinov2",
            "dinov2",
            lambda form, network, device, batch: FrameObserver(
                embedding(network, preprocessing.dinov2, device), batch, only={start for start, _ in form.clips}
            ),
        ),
    )
}


def _portions(features: Features, name: str, start: int, stop: int) -> Iterator[Array]:
    for first in range(start, stop, PORTION):
        yield features.rows(name, first, min(first + PORTION, stop))


def _consistency(features: Features, name: str, start: int, stop: int) -> Floats:
    meter = ConsistencyMeter()
    return np.concatenate([meter.add(part) for part in _portions(features, name, start, stop)])


def _scored(
    value: float, per_frame: Sequence[float] | Array, clips: Sequence[float], curve: Mapping[int, float] | None = None
) -> Score:
    known = [clip for clip in clips if math.isfinite(clip)]
    return Score(
        value=value,
        clips=tuple(clips),
        long=float(np.mean(known)) if known else math.nan,
        ends=start_end(per_frame),
        drift_error=video_drift_error(known) if known else math.nan,
        drift_error_normalised=normalised_drift_error(known) if known else math.nan,
        curve=curve or {},
    )


def _or_nan(score: Callable[[], float]) -> float:
    """A clip of one frame, which is one of a video of one frame a clip, has no score; the others count."""
    try:
        return score()
    except TooShortError:
        return math.nan


def _consistent(name: str) -> Callable[[VideoForm, Features, Mapping[str, Any]], Score]:
    def score(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
        per_frame = _consistency(features, name, 0, form.num_frames)
        clips = [_or_nan(lambda span=span: mean_of(_consistency(features, name, *span), "")) for span in form.clips]  # type: ignore[misc]
        curve, ends = DistanceCurve(), EndFeatures(form.num_frames)
        for part in _portions(features, name, 0, form.num_frames):
            curve.add(part)
            ends.add(part)
        curve_and_ends = {**curve.values, 0: ends.cosine}
        return _scored(mean_of(per_frame, "consistency needs two frames"), per_frame, clips, curve_and_ends)

    return score


def _consistent_long(
    dimension: Consistency, name: str, between: str
) -> Callable[[VideoForm, Features, Mapping[str, Any]], Score]:
    within = _consistent(name)

    def score(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
        found = within(form, features, weights)
        starts = [start for start, _ in form.clips]
        first_frames = np.stack([features.rows(between, start, start + 1)[0] for start in starts])
        clip_to_clip = consistency(first_frames) if len(starts) > 1 else None
        long = fused(dimension, found.long, clip_to_clip)
        return Score(long, found.clips, clip_to_clip, long, found.ends, found.drift_error, found.drift_error_normalised)

    return score


def _in_spans(per_frame: Mapping[int, float], indices: Sequence[int]) -> Floats:
    return np.array([per_frame[index] for index in indices])


def _flickering(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
    found = features.scalars("difference")
    values = _in_spans(found, range(form.num_frames - 1))
    clips = [_or_nan(lambda a=a, b=b: likeness(values[a : b - 1], "")) for a, b in form.clips]  # type: ignore[misc]
    return _scored(likeness(values, "temporal flickering needs two frames"), 1 - values / 255, clips)


def _flickering_where_still(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
    between, ends = features.scalars("adjacent_motion"), features.scalars("ends_motion")

    def is_still(span: tuple[int, int]) -> bool:
        number = 2 * form.stretches.index(span)
        motions = [*_in_spans(between, range(span[0], span[1] - 1)), ends[number], ends[number + 1]]
        return is_static(motions, span[1] - span[0], form.height, form.width)

    every = _flickering(form, features, weights)
    clips = [
        value if math.isfinite(value) and is_still(span) else math.nan
        for value, span in zip(every.clips, form.clips, strict=True)
    ]
    known = [clip for clip in clips if math.isfinite(clip)]
    long = float(np.mean(known)) if known else math.nan
    if is_still((0, form.num_frames)):
        return Score(every.value, tuple(clips), long=long, ends=every.ends)
    return Score(math.nan, tuple(clips), long=long, why_none="it moves: VBench's static filter leaves it out")


def _smooth(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
    found = features.scalars("interpolation")

    def of(start: int, stop: int) -> Floats:
        return _in_spans(found, smoothness_starts(start, stop))

    values = of(0, form.num_frames)
    clips = [_or_nan(lambda span=span: likeness(of(*span), "")) for span in form.clips]  # type: ignore[misc]
    return _scored(likeness(values, "motion smoothness needs three frames"), 1 - values / 255, clips)


def _dynamic(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
    found, interval = features.scalars("motion"), thinning_interval(form.fps)

    def of(start: int, stop: int) -> Floats:
        return _in_spans(found, [first for first, _ in moving_pairs(start, stop, form.fps)])

    def moves(start: int, stop: int) -> float:
        return float(is_moving(of(start, stop), len(range(start, stop, interval)), form.height, form.width))

    clips = [moves(*span) for span in form.clips]
    return Score(
        value=moves(0, form.num_frames),
        clips=tuple(clips),
        long=float(np.mean(clips)),
        ends=start_end(of(0, form.num_frames)),
    )


def _per_frame(
    name: str, read: Callable[[VideoForm, Features, Mapping[str, Any]], Floats]
) -> Callable[[VideoForm, Features, Mapping[str, Any]], Score]:
    def score(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Score:
        values = read(form, features, weights)
        clips = [mean_of(values[start:stop], "") for start, stop in form.clips]
        return _scored(mean_of(values, f"{name} needs a frame"), values, clips)

    return score


def _aesthetic(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Floats:
    head = weights["aesthetic-head"]
    weight, bias = head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()
    parts = _portions(features, "clip_l14", 0, form.num_frames)
    return np.concatenate([aesthetic_scores(part, weight, bias) for part in parts])


def _imaging(form: VideoForm, features: Features, weights: Mapping[str, Any]) -> Floats:
    found = features.scalars("imaging")
    return _in_spans(found, range(form.num_frames))


MEASURES: Final[Mapping[str, Measure]] = {
    measure.name: measure
    for measure in (
        Measure(
            "subject_consistency",
            ("dino",),
            _consistent("dino"),
            "how alike frames stay to the first one and the one before, by DINO (S.C.)",
            least_frames=2,
        ),
        Measure(
            "background_consistency",
            ("clip_b32",),
            _consistent("clip_b32"),
            "the same by CLIP (B.C.)",
            least_frames=2,
        ),
        Measure(
            "temporal_flickering",
            ("difference",),
            _flickering,
            "how little adjacent frames differ, pixel by pixel (T.F.); needs no weights",
            least_frames=2,
        ),
        Measure(
            "temporal_flickering_static",
            ("difference", "adjacent_motion", "ends_motion"),
            _flickering_where_still,
            "T.F. of what stands still alone, by VBench's static filter on RAFT",
            least_frames=2,
            most_of_a_prompt=MOST_STILL_OF_A_PROMPT,
        ),
        Measure(
            "motion_smoothness",
            ("interpolation",),
            _smooth,
            "how well dropped frames are drawn anew from their neighbours, by AMT-S (M.S.)",
            least_frames=3,
        ),
        Measure(
            "dynamic_degree",
            ("motion",),
            _dynamic,
            "whether it moves, by RAFT",
        ),
        Measure(
            "aesthetic_quality",
            ("clip_l14",),
            _per_frame("aesthetic_quality", _aesthetic),
            "LAION's aesthetic head on CLIP",
            weights=("aesthetic-head",),
        ),
        Measure(
            "imaging_quality",
            ("imaging",),
            _per_frame("imaging_quality", _imaging),
            "distortions of frames, 0 to 100, by MUSIQ",
        ),
        Measure(
            "subject_consistency_long",
            ("dino", "dinov2"),
            _consistent_long("subject_consistency", "dino", "dinov2"),
            "VBench-Long's S.C.: within clips by DINO, between them by DINOv2",
            least_frames=2,
        ),
    )
}

NOT_HERE: Final[Mapping[str, tuple[str, str]]] = {
    "background_consistency_long": (
        "its branch between clips needs DreamSim's ensemble (dreamsim_ensemble_checkpoint.zip: DINO, CLIP and OpenCLIP "
        "ViT-B/16 with LoRA layers), whose tensors' names and shapes are not known here, so no file could be checked",
        "background_consistency has VBench-Long's branch within clips (column `long`), which is all that VBench-Long "
        "prints without --dev_flag",
    ),
}
"""Measures of VBench-Long that cannot be had here: name → why, and what there is instead."""
