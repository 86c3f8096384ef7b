"""Runs of the same prompts by different systems, with real videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.config import RunConfig, override
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RUN_FILE, RunRecord, fingerprint, video_path
from pipeline.rows import ManifestRow, canonical_json, video_key
from pipeline.storage.open import open_storage

FPS, NUM_FRAMES, SIDE = 8, 5, 64

MakeRun = Callable[..., str]


def video_data(folder: Path, shade: int, num_frames: int = NUM_FRAMES, side: int = SIDE) -> bytes:
    """An MP4 whose frames are grey, of shade + 2 n."""
    path = folder / f"{shade}-{num_frames}-{side}.mp4"
    if not path.exists():
        options = {"codec": "libx264", "pix_fmt_out": "yuv420p", "output_params": ["-crf", "4"]}
        writer = imageio_ffmpeg.write_frames(str(path), (side, side), fps=FPS, **options)
        writer.send(None)
        for step in range(num_frames):
            writer.send(np.full((side, side, 3), shade + 2 * step, np.uint8).tobytes())
        writer.close()
    return path.read_bytes()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run. The rows of `failed` have no video; `scores` are a row's final consistency."""
    (tmp_path / "videos").mkdir()

    def make(
        out: str | Path,
        shade: int,
        prompts: list[str | list[str]],
        *,
        seeds: list[int] | None = None,
        failed: tuple[int, ...] = (),
        num_frames: int = NUM_FRAMES,
        scores: Callable[[int], tuple[float, ...]] = lambda row: (),
        **changes: Any,
    ) -> str:
        storage = open_storage(str(out))
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        config = override(RunConfig(), num_frames=num_frames)
        record = RunRecord(
            config=config.to_dict(), model="m", model_revision="rev", profile="paper", sampler={"num_steps": 8},
            prompts=fingerprint(str(file)), version="0.1.0", created_at="2024-02-29T12:00:00+00:00",
        )  # fmt: skip
        storage.write_bytes(RUN_FILE, record.to_json().encode())
        manifest = Manifest(storage, config.run.prompts_per_shard)
        data = video_data(tmp_path / "videos", shade, num_frames)
        for index, prompt in enumerate(prompts):
            texts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
            seed = seeds[index] if seeds else index
            key = video_key(texts, None, seed, num_frames, record.sampler, "rev")
            path = video_path(0, index, key, 1, 1)
            row = ManifestRow.from_values(
                {
                    "key": key, "id": str(index), "row": index, "shard": 0, "status": "ok", "prompts": texts,
                    "seed": seed, "num_frames": num_frames, "profile": "paper", "model": "m", "model_revision": "rev",
                    "config": canonical_json(record.sampler), "config_hash": record.config_hash, "attempt": 1,
                    "created_at": "2024-02-29T12:00:00+00:00", "version": "0.1.0", "uri": storage.uri(path),
                    "bytes": len(data), "fps": float(FPS), "height": SIDE, "width": SIDE,
                    "duration_s": num_frames / FPS, "final_consistency": scores(index),
                }
            )  # fmt: skip
            row = replace(row, **changes)
            if index in failed:
                row = replace(row, status="failed", uri=None, error_type="NonFiniteError", error="NaN")
            else:
                storage.write_bytes(path, data)
            assert manifest.record(row)
        manifest.seal(0)
        return str(out)

    return make
