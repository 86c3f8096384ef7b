"""An obviously broken copy of a video, for checks: who watches prefers the whole one in every question.

Legend: F frames, H, W, C = 3 (RGB); frames are uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.evaluation.local_video import local_video
from pipeline.storage.base import Storage
from pipeline.video import Frames, read_form, read_frames, write_video

_HOLD_S: Final = 0.25
"""Frames stand still for so long, and then leave out as many: motion jerks."""
_FLICKER: Final = 70
_NOISE: Final = 50
_BLOCK: Final = 8


def write_broken_copy(storage: Storage, path: str, copy: Path, *, seed: int) -> None:
    """Writes a copy of the same size, rate and length whose colours are noisy, flicker, and whose motion jerks.

    Args:
        storage: of the run.
        path: of the video in it.
        copy: where the copy goes.
        seed: of the noise.

    Raises:
        OutputError: if the video cannot be read.
        WorkerError: if the copy cannot be written.
    """
    with local_video(storage, path) as file:
        fps, _, _ = read_form(file)
        frames = _broken(read_frames(file), max(2, round(_HOLD_S * fps)), np.random.default_rng(seed))
        write_video(frames, copy, fps=fps)


def _broken(frames: Iterator[Frames], hold: int, generator: np.random.Generator) -> Iterator[Frames]:
    held_HWC: Frames | None = None
    for number, frame_HWC in enumerate(frames):
        if held_HWC is None or number % hold == 0:
            held_HWC = frame_HWC
        height, width, _ = frame_HWC.shape
        blocks = generator.normal(0, _NOISE, (-(-height // _BLOCK), -(-width // _BLOCK), 3))
        noise_HWC = blocks.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width]
        shift = _FLICKER * (1 if number % 2 else -1)
        yield np.clip(held_HWC + noise_HWC + shift, 0, 255).astype(np.uint8)[None]
