"""A run's OUT without a run: prompts, run.json, videos, sidecars and sealed shards, made by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.config import RunConfig, VideoConfig, override
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RUN_FILE, RunRecord, fingerprint, shard_of, video_path
from pipeline.rows import ManifestRow, canonical_json, video_key
from pipeline.storage.base import Storage
from pipeline.video import write_video

PER_SHARD = 3
NUM_FRAMES = 5
SAMPLER = {"num_steps": 8}


@cache
def video_bytes(shade: int = 0) -> bytes:
    """A real MP4 of `NUM_FRAMES` frames."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        frames = np.full((NUM_FRAMES, 16, 16, 3), shade, np.uint8)
        made = write_video([frames], Path(folder) / "v.mp4", fps=8, settings=VideoConfig(), num_frames=NUM_FRAMES)
        return Path(made.path).read_bytes()


@dataclass
class MadeRun:
    """The run, and what is needed to change it."""

    storage: Storage
    prompts: Path
    record: RunRecord
    manifest: Manifest

    def row(self, index: int, status: str = "ok", epoch: int = 1, attempt: int = 1) -> ManifestRow:
        """The row of the prompt file, made or given up."""
        asked = json.loads(self.prompts.read_text().splitlines()[index])
        key = video_key((asked["prompt"],), None, index, NUM_FRAMES, self.record.sampler, "rev")
        shard = shard_of(index, PER_SHARD)
        made = {}
        if status == "ok":
            data = video_bytes(index % 4)
            path = video_path(shard, index, key, epoch, attempt)
            made = {
                "uri": self.storage.uri(path),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "fps": 8.0,
                "height": 16,
                "width": 16,
                "duration_s": NUM_FRAMES / 8,
                "final_consistency": (0.5 + index / 100, 0.7 + index / 100),
            }
        return ManifestRow(
            key=key,
            id=asked.get("id", str(index)),
            row=index,
            shard=shard,
            status=status,  # type: ignore[arg-type]
            prompts=(asked["prompt"],),
            seed=index,
            num_frames=NUM_FRAMES,
            profile="paper",
            model="m",
            model_revision="rev",
            config=canonical_json(self.record.sampler),
            config_hash=self.record.config_hash,
            attempt=attempt,
            error_type=None if status == "ok" else "NonFiniteError",
            error=None if status == "ok" else "NaN",
            created_at=datetime(2024, 2, 29, 12, tzinfo=UTC),
            version="0.1.0",
            **made,  # type: ignore[arg-type]
        )

    def video(self, index: int, epoch: int = 1, attempt: int = 1) -> str:
        """Where the video of an attempt lies."""
        key = self.row(index).key
        return video_path(shard_of(index, PER_SHARD), index, key, epoch, attempt)

    def settle(self, index: int, status: str = "ok", epoch: int = 1, attempt: int = 1) -> None:
        """Puts the row's video and sidecar in place."""
        if status == "ok":
            self.storage.write_bytes(self.video(index, epoch, attempt), video_bytes(index % 4))
        assert self.manifest.record(self.row(index, status, epoch, attempt))


def make_run(
    storage: Storage,
    folder: Path,
    num_rows: int = 8,
    *,
    failed: Collection[int] = (),
    unsettled: Collection[int] = (),
    limit: int | None = None,
) -> MadeRun:
    """A run of `num_rows` prompts in shards of `PER_SHARD`; shards whose rows are all settled are sealed."""
    prompts = folder / "prompts.jsonl"
    lines = [{"prompt": f"a cat \U0001f408 number {index}", "id": f"id-{index}"} for index in range(num_rows)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = override(RunConfig(), num_frames=NUM_FRAMES, limit=limit, run={"prompts_per_shard": PER_SHARD})
    record = RunRecord(
        config=config.to_dict(),
        model="m",
        model_revision="rev",
        profile="paper",
        sampler=SAMPLER,
        prompts=fingerprint(str(prompts)),
        version="0.1.0",
        created_at="2024-02-29T12:00:00+00:00",
    )
    storage.write_bytes(RUN_FILE, record.to_json().encode())
    run = MadeRun(storage, prompts, record, Manifest(storage, PER_SHARD))
    num_rows = min(num_rows, limit or num_rows)
    for index in range(num_rows):
        if index not in unsettled:
            run.settle(index, "failed" if index in failed else "ok")
    for shard in range(-(-num_rows // PER_SHARD)):
        if not set(range(shard * PER_SHARD, min(num_rows, (shard + 1) * PER_SHARD))) & set(unsettled):
            run.manifest.seal(shard)
    return run
