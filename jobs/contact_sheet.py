"""A picture of a run: one line a video, frames evenly spaced: `python -m jobs.contact_sheet OUT sheet.png`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.storage.open import open_storage
from pipeline.video import read_frames

GAP = 2


def main(arguments: list[str] | None = None) -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(prog="python -m jobs.contact_sheet", description=__doc__)
    parser.add_argument("out", help="a local run")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--scale", type=int, default=1, help="pixels a pixel")
    options = parser.parse_args(arguments)
    storage = open_storage(options.out)
    record = read_run(storage)
    manifest = Manifest(storage, record.settings.run.prompts_per_shard)
    lines = [
        contact_line(list(read_frames(row.uri)), options.columns)
        for row in manifest.read_rows()
        if row.status == "ok" and row.uri
    ]
    picture = Image.fromarray(np.concatenate(lines))
    picture = picture.resize((picture.width * options.scale, picture.height * options.scale), Image.Resampling.NEAREST)
    picture.save(options.picture, optimize=True)
    print(f"{options.picture}: {len(lines)} videos, {options.columns} frames each")
    return 0


def contact_line(frames: Sequence[np.ndarray], num_columns: int) -> np.ndarray:
    """`num_columns` frames, first and last among them, side by side with a white gap: `[H, W, 3]`."""
    picked = [frames[int(index)] for index in np.linspace(0, len(frames) - 1, num_columns).round()]
    padded = [np.pad(frame, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for frame in picked]
    return np.concatenate(padded, axis=1)


if __name__ == "__main__":
    raise SystemExit(main())
