"""How far a run is, read from its OUT alone, while it runs or after."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.storage.open import open_storage


def status(out: str) -> dict[str, Any]:
    """Counts and totals of the rows settled so far, a shard in memory at a time.

    Raises:
        OutputError: if there is no run in `out`.
    """
    storage = open_storage(out)
    record = read_run(storage)
    manifest = Manifest(storage, record.settings.run.prompts_per_shard)
    states: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for row in manifest.read_rows():
        states[row.status] += 1
        if row.status == "failed":
            errors[row.error_type or "unknown"] += 1
            continue
        for name in ("num_frames", "bytes", "network_calls", "num_searches", "num_corrections"):
            sums[name] += getattr(row, name) or 0
        sums["denoise_s"] += row.denoise_s or 0
        sums["video_s"] += row.duration_s or 0
    return {
        "out": storage.root,
        "model": record.model,
        "profile": record.profile,
        "prompts": record.prompts.path,
        "ok": states["ok"],
        "failed": states["failed"],
        "failed_by_reason": dict(errors),
        "sealed_shards": len(manifest.sealed_shards()),
        "frames": sums["num_frames"],
        "video_seconds": float(sums["video_s"]),
        "bytes": sums["bytes"],
        "network_calls": sums["network_calls"],
        "denoise_hours": sums["denoise_s"] / 3600,
        "searches": sums["num_searches"],
        "corrections": sums["num_corrections"],
    }
