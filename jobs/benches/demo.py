"""One whole run on a local Ray, as `make demo` does it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.shared.examples import DEMO_PROMPTS
from miga.errors import MigaError
from pipeline.records.manifest import Manifest
from pipeline.storage.open import open_storage


def bench_demo(prompts_file: str | None, config: str, settings: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """A row per video, then one for the run, whose memory is that of all its processes together.

    Args:
        prompts_file: None: those of the demo.
        config: as `--config` takes it.
        settings: as `--set` takes them.

    Raises:
        MigaError: if the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        command = [sys.executable, "-m", "jobs.cli", "generate", prompts_file or str(DEMO_PROMPTS), folder]
        command += ["--config", config, *(word for text in settings for word in ("--set", text))]
        started_s = time.monotonic()
        run = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL)
        peak_bytes = 0
        try:
            while run.poll() is None:
                peak_bytes = max(peak_bytes, tree_memory_bytes(run.pid))
                time.sleep(0.2)
        finally:  # interrupted: the run must not go on alone
            run.terminate()
            run.wait()
        wall_s = time.monotonic() - started_s
        if run.returncode:
            raise MigaError(f"the run ended with status {run.returncode}", f"run it by hand: {' '.join(command)}")
        made = list(Manifest(open_storage(folder), 1000).read_rows())
    rows: list[dict[str, Any]] = [
        {
            "video": row.id,
            "frames": row.num_frames,
            "calls": row.network_calls,
            "searches": row.num_searches,
            "denoise, s": row.denoise_s,
            "decode, s": row.decode_s,
            "encode, s": row.encode_video_s,
            "s": sum(part or 0.0 for part in (row.denoise_s, row.decode_s, row.encode_video_s, row.upload_s)),
            "peak MiB": (row.peak_memory_bytes or 0) / 2**20,
        }
        for row in made
    ]
    whole = {
        "video": "whole run",
        "frames": sum(row.num_frames or 0 for row in made),
        "calls": sum(row.network_calls or 0 for row in made),
        "searches": sum(row.num_searches for row in made),
        "s": wall_s,
        "peak MiB": peak_bytes / 2**20,
    }
    return {f"{prompts_file or DEMO_PROMPTS.name} under {config}": [*rows, whole]}


def tree_memory_bytes(pid: int) -> int:
    """Memory of a process and all it has started, shared pages counted once (Linux: proportional set size)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    total, todo = 0, [pid]
    while todo:
        current = todo.pop()
        todo += children.get(current, [])
        with contextlib.suppress(OSError, ValueError):
            fields = (Path("/proc") / str(current) / "smaps_rollup").read_text().split()
            total += int(fields[fields.index("Pss:") + 1]) * 1024
    return total
