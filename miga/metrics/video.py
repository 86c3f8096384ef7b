"""The scores of a video, frame by frame as it is decoded: S.C., B.C., M.S., T.F., O.S., and how far it drifts.

Source: MIGA section 4.1, Table 1. The paper scores with VBench-Long, which cuts a video into short clips, scores each
and compares the clips; here VBench's own formulas run over the whole video: every frame is held against the first.

Legend: F frames, H height, W width, C = 3 (RGB), D entries of a feature; frames are uint8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from miga.metrics.features import FeatureExtractor, Floats, Frames, SimilarityMeter
from miga.metrics.pixels import FlickerMeter, Frame, SmoothnessMeter

CHUNK = 32
"""Frames that go to the features at a time."""


@dataclass(frozen=True)
class VideoScores:
    """Each in [0, 1], higher is better; NaN where a video is too short for it.

    Attributes:
        subject_consistency: S.C.
        background_consistency: B.C.
        motion_smoothness: M.S.
        temporal_flicker: T.F.; 1 is no flicker.
    """

    subject_consistency: float
    background_consistency: float
    motion_smoothness: float
    temporal_flicker: float

    @property
    def overall(self) -> float:
        """O.S.: the mean of the four."""
        return float(np.mean(list(asdict(self).values())))


class VideoMeter:
    """Scores one stretch of frames."""

    def __init__(self) -> None:
        self._subject, self._background = SimilarityMeter(), SimilarityMeter()
        self._smoothness, self._flicker = SmoothnessMeter(), FlickerMeter()

    def add(self, frame_HWC: Frame, subject_D: Floats, background_D: Floats) -> None:
        """Takes the next frame and its features."""
        self._subject.add(subject_D)
        self._background.add(background_D)
        self._smoothness.add(frame_HWC)
        self._flicker.add(frame_HWC)

    @property
    def scores(self) -> VideoScores:
        """Of the frames so far."""
        return VideoScores(self._subject.score, self._background.score, self._smoothness.score, self._flicker.score)


class LongVideoMeter:
    """Scores a video as a whole, and its last clip length against its first.

    Args:
        extractor: what consistency is judged by.
        num_frames: of the video.
        clip_frames: frames of the model's own clip.
    """

    def __init__(self, extractor: FeatureExtractor, num_frames: int, clip_frames: int) -> None:
        self._extractor = extractor
        self._num_frames = num_frames
        self._stretches = {"whole": range(num_frames)}
        if clip_frames < num_frames:
            self._stretches |= {"first": range(clip_frames), "last": range(num_frames - clip_frames, num_frames)}
        self._meters = {name: VideoMeter() for name in self._stretches}
        self._seen = 0

    def add(self, frames_FHWC: Frames) -> None:
        """Takes the next frames."""
        features = self._extractor(frames_FHWC)
        for frame_HWC, subject_D, background_D in zip(frames_FHWC, *features, strict=True):
            for name, stretch in self._stretches.items():
                if self._seen in stretch:
                    self._meters[name].add(frame_HWC, subject_D, background_D)
            self._seen += 1

    def values(self) -> dict[str, float]:
        """The scores by name, `overall`, and `drift`: O.S. of the last clip length less that of the first.

        The two stretches overlap where the video is shorter than two clips; there is no drift (NaN) within one.

        Raises:
            ValueError: if more or fewer frames came than there are in the video.
        """
        if self._seen != self._num_frames:
            raise ValueError(f"{self._seen} frames came of a video of {self._num_frames}")
        whole = self._meters["whole"].scores
        drift = float("nan")
        if "last" in self._meters:
            drift = self._meters["last"].scores.overall - self._meters["first"].scores.overall
        return {**asdict(whole), "overall": whole.overall, "drift": drift}


def chunks_of(frames: Iterable[Frame], size: int = CHUNK) -> Iterator[Frames]:
    """Single frames `[H, W, C]` as arrays `[F, H, W, C]` of at most `size` frames."""
    waiting: list[Frame] = []
    for frame_HWC in frames:
        waiting.append(frame_HWC)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
