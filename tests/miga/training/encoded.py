"""Encoded clips of random numbers, for trainings of the tiny model."""

from __future__ import annotations

from pathlib import Path

import torch

from miga.training.encoded import EncodedClip, EncodedClips, clip_file, write_clip, write_index
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM

WINDOW, HEIGHT, WIDTH = 3, 4, 4


def write_random_clips(
    folder: Path, count: int = 4, *, seed: int = 0, names: tuple[str, ...] = ("film-5",)
) -> EncodedClips:
    """Clips whose condition holds what they are, so that there is something to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        clean = torch.randn(NUM_CHANNELS, 1, HEIGHT, WIDTH, generator=generator).expand(-1, WINDOW, -1, -1)
        mask = torch.zeros(4, WINDOW, HEIGHT, WIDTH)
        mask[:, 0] = 1.0
        text = torch.randn(5, TEXT_DIM, generator=generator)
        conditions = {name: torch.cat([mask, clean]) for name in names if name != "none"}
        write_clip(clip_file(folder, number), EncodedClip(clean, conditions, text, notes={"caption": "a red ball"}))
    write_index(folder, {"numbers": list(range(count))})
    return EncodedClips(folder)
