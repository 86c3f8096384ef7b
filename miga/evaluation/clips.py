"""VBench-Long: the clips of a long video, and how scores within clips and between them become one.

The clips are scored from the video's own frames. VBench-Long encodes each anew first, which moves temporal flickering
by about 0.0004.

Source: VBench-Long's program (Apache-2.0); its mapping tables are `vbench_long.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Final, Literal

import numpy as np

Consistency = Literal["subject_consistency", "background_consistency"]

CLIP_SECONDS: Final = 2
IN_CLIP_WEIGHT: Final = 0.5


def clip_spans(num_frames: int, fps: float, seconds: int = CLIP_SECONDS) -> list[tuple[int, int]]:
    """Clips as (start, stop) in frames.

    Where frames are left over, one more clip of the last frames overlaps the one before; a video that is shorter than
    a clip is one clip. The frame rate is cut to a whole number.

    Raises:
        ValueError: if a clip would have no frames.
    """
    length = int(fps) * seconds
    if num_frames < 1 or length < 1:
        raise ValueError(f"{num_frames} frames at {fps:g} a second make no clips of {seconds} s")
    if num_frames < length:
        return [(0, num_frames)]
    spans = [(start, start + length) for start in range(0, num_frames - length + 1, length)]
    if spans[-1][1] < num_frames:
        spans.append((num_frames - length, num_frames))
    return spans


def mapped(dimension: Consistency, clip_to_clip: float) -> float:
    """A clip-to-clip score on the scale of in-clip ones: linear between the table's entries, 0 to 0 and 1 to 1."""
    table = _tables()[dimension]
    return float(np.interp(clip_to_clip, np.linspace(0.0, 1.0, len(table)), table))


def fused(dimension: Consistency, in_clip: float, clip_to_clip: float | None) -> float:
    """The two branches' mean; the in-clip score alone where there is no other, as of one clip."""
    other = 0.0 if clip_to_clip is None else mapped(dimension, clip_to_clip)
    if other == 0.0:
        return in_clip
    return IN_CLIP_WEIGHT * in_clip + (1 - IN_CLIP_WEIGHT) * other


def mean_over_clips(clips_of_videos: Iterable[Sequence[float]]) -> float:
    """VBench-Long's figure of a data set: every clip counts alike, so videos of more clips weigh more."""
    every = [value for clips in clips_of_videos for value in clips]
    return float(np.mean(every)) if every else float("nan")


def mean_over_videos(clips_of_videos: Iterable[Sequence[float]]) -> float:
    """The mean over videos of each one's mean over clips: every video counts alike."""
    every = [float(np.mean(clips)) for clips in clips_of_videos if len(clips)]
    return float(np.mean(every)) if every else float("nan")


@cache
def _tables() -> dict[str, list[float]]:
    text = files("miga.evaluation").joinpath("vbench_long.json").read_text(encoding="utf-8")
    found: dict[str, list[float]] = json.loads(text)
    return found
