"""How busy a cluster is kept, measured on simulated GPUs: real actors, real storage, calls that sleep.

Times are scaled: a call takes `call_s` where a GPU takes 1.4 s, and all else (decoding, loading) is scaled with it, but
what the coordinator, Ray and Python themselves take is not. So the figures are those of a cluster whose overhead is so
many times as large as a real one's.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from actors.metrics import RunMetrics
from actors.progress import ProgressBoard
from jobs.bench.profile_choice import split_profile
from jobs.generate import make_ledger, make_plan, make_rows, run_parts, run_record
from miga.errors import MigaError
from pipeline.config import RunConfig, WorkersConfig
from pipeline.manifest import Manifest
from pipeline.rows import ManifestRow
from pipeline.run_folder import open_run
from pipeline.storage import open_storage

REAL_CALL_S: Final = 1.4
"""A guided window of Wan2.1 1.3B on the card that the figures stand for."""
REAL_DECODE_S: Final = 0.05
LENGTHS: Final = (41, 81, 121, 161)
"""Frames of the videos of mixed length."""


class BusyTimes(RunMetrics):
    """Keeps what the workers say of their GPUs, with the time, instead of telling Prometheus alone."""

    def __init__(self, profile: str, model: str, num_rows: int | None) -> None:
        super().__init__(profile, model, num_rows)
        self.series: dict[str, list[tuple[float, float]]] = {}

    def gpu(self, worker: str, node: str, num_calls: float, busy_s: float) -> None:
        """See `RunMetrics.gpu`."""
        super().gpu(worker, node, num_calls, busy_s)
        self.series.setdefault(worker, []).append((time.monotonic(), busy_s))

    def busy_s(self, from_s: float, to_s: float) -> float:
        """Seconds that all GPUs together were busy between two moments."""
        return sum(_at(series, to_s) - _at(series, from_s) for series in self.series.values())


def _at(series: Sequence[tuple[float, float]], when_s: float) -> float:
    """A figure between two moments it was told at."""
    before = max((point for point in series if point[0] <= when_s), default=series[0])
    after = min((point for point in series if point[0] >= when_s), default=series[-1])
    if after[0] <= before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (when_s - before[0]) / (after[0] - before[0])


class StartTimes(ProgressBoard):
    """Remembers when videos were begun and rows recorded; shows nothing."""

    def __init__(self, num_rows: int | None) -> None:
        super().__init__(num_rows, quiet=True)
        self.begun_s: list[float] = []
        self.done_s: list[float] = []

    def video_started(self, *arguments: Any) -> None:
        """See `ProgressBoard`."""
        self.begun_s.append(time.monotonic())
        super().video_started(*arguments)

    def row_done(self, *arguments: Any) -> None:
        """See `ProgressBoard`."""
        self.done_s.append(time.monotonic())
        super().row_done(*arguments)


class ClusterRun:
    """A run on so many simulated GPUs of this machine, and what was seen of it.

    Args:
        rows: what the prompt file holds.
        profile: as for the other benchmarks, overrides behind a colon.
        num_gpus: actors.
        call_s: of a call.
        share_windows: whether idle actors help.

    Attributes:
        rows: of the manifest.
        wall_s: from the first video's begin to the last one's record.

    Raises:
        MigaError: if a row failed.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        profile: str,
        num_gpus: int,
        call_s: float,
        share_windows: bool = True,
    ) -> None:
        from actors.runtime import ray_session

        scale = call_s / REAL_CALL_S
        name, overrides = split_profile(profile)
        config = RunConfig(
            model=f"simulated:wan?call_s={call_s:g}&decode_s={REAL_DECODE_S * scale:g}",
            profile=name,
            sampler=dict(overrides),
            workers=WorkersConfig(num_actors=num_gpus, share_windows=share_windows),
        )
        self.num_gpus = num_gpus
        with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
            prompts = Path(folder) / "prompts.jsonl"
            prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
            plan = make_plan(str(prompts), f"{folder}/out", config)
            storage = open_storage(plan.out)
            record, _ = open_run(storage, run_record(plan))
            manifest, ledger = Manifest(storage, config.run.prompts_per_shard), make_ledger(plan)
            self.board = StartTimes(plan.num_rows)
            with ray_session(config.workers, has_simulated_gpus=True) as slots:
                self.busy = BusyTimes(record.profile, record.model, plan.num_rows)
                parts = run_parts(plan, record, storage, manifest, ledger, 1, slots)
                make_rows(plan, parts, None, self.board, self.busy, threading.Event())
            self.rows: list[ManifestRow] = list(manifest.read_rows())
        if failed := [row for row in self.rows if row.status != "ok"]:
            raise MigaError(f"row {failed[0].row} failed: {failed[0].error}")
        self.wall_s = self.board.done_s[-1] - self.board.begun_s[0]

    def busy_share(self, until_tail: bool) -> float:
        """Share of the GPUs' time that they were busy, from the first video on: to the end, or to the last begin."""
        begin_s, end_s = self.board.begun_s[0], self.board.begun_s[-1] if until_tail else self.board.done_s[-1]
        return self.busy.busy_s(begin_s, end_s) / (self.num_gpus * (end_s - begin_s))

    @property
    def num_calls(self) -> int:
        """Network calls of all videos."""
        return sum(row.network_calls or 0 for row in self.rows)


def bench_busy(num_gpus: int, num_videos: int, call_s: float, profile: str) -> list[dict[str, Any]]:
    """Many videos of mixed length, searches included."""
    chosen = random.Random(0)
    rows = [{"prompt": f"scene {number}", "num_frames": chosen.choice(LENGTHS)} for number in range(num_videos)]
    run = ClusterRun(rows, profile, num_gpus, call_s)
    return [
        {
            "GPUs": num_gpus,
            "videos": num_videos,
            "calls": run.num_calls,
            "searches": sum(row.num_searches for row in run.rows),
            "wall, s": run.wall_s,
            "busy until the tail": f"{run.busy_share(until_tail=True):.1%}",
            "busy in all": f"{run.busy_share(until_tail=False):.1%}",
        }
    ]


def bench_one_video(
    sizes: Sequence[int], num_frames: int, call_s: float, profiles: Sequence[str]
) -> list[dict[str, Any]]:
    """One long video on clusters of several sizes, against the first of them."""
    table = []
    for profile in profiles:
        first_s = 0.0
        for num_gpus in sizes:
            run = ClusterRun([{"prompt": "a red circle", "num_frames": num_frames}], profile, num_gpus, call_s)
            first_s = first_s or run.wall_s
            helped = sum(row.helper_calls or 0 for row in run.rows)
            table.append(
                {
                    "profile": profile,
                    "frames": num_frames,
                    "GPUs": num_gpus,
                    "calls": run.num_calls,
                    "by helpers": f"{helped / run.num_calls:.0%}",
                    "wall, s": run.wall_s,
                    "times as fast": first_s / run.wall_s,
                    "busy": f"{run.busy_share(until_tail=False):.1%}",
                }
            )
    return table


def bench_reflection(sizes: Sequence[int], num_frames: int, call_s: float, profile: str) -> list[dict[str, Any]]:
    """One video with self-reflection against the same without it, on each number of GPUs."""
    row = {"prompt": "a red circle", "num_frames": num_frames}
    table = []
    without_s: dict[int, float] = {}
    name, overrides = split_profile(profile)
    settings = ",".join(f"{key}={value}" for key, value in overrides.items())
    for is_on in (False, True):
        for num_gpus in sizes:
            switch = f"self_reflection={str(is_on).lower()}"
            run = ClusterRun([row], f"{name}:{settings + ',' if settings else ''}{switch}", num_gpus, call_s)
            without_s.setdefault(num_gpus, run.wall_s)
            made = run.rows[0]
            table.append(
                {
                    "GPUs": num_gpus,
                    "self-reflection": is_on,
                    "calls": made.network_calls,
                    "evaluations": made.num_evaluations,
                    "searches": made.num_searches,
                    "wall, s": run.wall_s,
                    "times without, as many GPUs": run.wall_s / without_s[num_gpus],
                    "times without, one GPU": run.wall_s / without_s[sizes[0]],
                }
            )
    return table


def bench_cluster(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The tables that were asked for."""
    from jobs.bench.coordinator_speed import bench_memory_of_rows, bench_rows_per_second

    gpus, call_s = options.gpus, options.call_s
    scale = f"{REAL_CALL_S / call_s:.0f} times as fast as a GPU of {REAL_CALL_S} s a call"
    makers: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
        "busy": (
            f"Videos of {LENGTHS[0]} to {LENGTHS[-1]} frames, profile paper; {scale}",
            lambda: bench_busy(gpus, options.videos, call_s, "paper"),
        ),
        "one-video": (
            f"One video of {options.frames} frames on one GPU and on {gpus}; {scale}",
            lambda: bench_one_video((1, gpus), options.frames, call_s, options.profiles),
        ),
        "reflection": (
            f"One video of {LENGTHS[-1]} frames with self-reflection and without; {scale}",
            lambda: bench_reflection((1, 4), LENGTHS[-1], call_s, "paper"),
        ),
        "rows": (
            "Rows a second where videos take no time",
            lambda: bench_rows_per_second(options.rows, min(gpus, 4)),
        ),
        "memory": (
            "Memory of the coordinator as rows go by, workers and storage stubbed",
            lambda: bench_memory_of_rows(options.memory_rows, gpus),
        ),
    }
    return {makers[part][0]: makers[part][1]() for part in options.parts}
