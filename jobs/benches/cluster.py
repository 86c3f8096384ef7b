"""How busy a cluster is kept, measured on simulated GPUs: real actors, real storage, calls that sleep.

Times are scaled: a call takes `call_s` where a GPU takes 1.4 s, and all else (decoding, loading) is scaled with it, but
what the coordinator, Ray and Python themselves take is not. So the figures are those of a cluster whose overhead is so
many times as large as a real one's.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from actors.driver.metrics import RunMetrics
from actors.driver.progress import ProgressBoard
from jobs.profiles.choice import split_profile
from jobs.run.make import make_ledger, make_rows, run_parts
from jobs.run.plan import make_plan, run_record
from jobs.shared.options import num_latents_of
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_spec
from miga.errors import MigaError, UsageError
from miga.profiles import resolve_config
from miga.sharing import Share
from miga.virtual_time import make_virtual_video
from pipeline.config import RunConfig, WorkersConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import open_run
from pipeline.rows import ManifestRow
from pipeline.storage.open import open_storage

REAL_CALL_S: Final = 1.4
"""A guided window of Wan2.1 1.3B on the card that the figures stand for."""
REAL_DECODE_S: Final = 0.05
CALL_S: Final = 0.05
REFLECTION_CALL_S: Final = 0.1
"""Of the part where figures of a few percent are compared."""
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
        share: what idle actors take of others' videos.
        cells: rows, and columns, of a latent; None: the simulated model's own.

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
        share: Share = "windows",
        cells: int | None = None,
    ) -> None:
        from actors.runtime import ray_session

        scale = call_s / REAL_CALL_S
        name, overrides = split_profile(profile)
        config = RunConfig(
            model=f"simulated:wan?call_s={call_s:g}&decode_s={REAL_DECODE_S * scale:g}"
            + ("" if cells is None else f"&cells={cells}"),
            profile=name,
            sampler=dict(overrides),
            workers=WorkersConfig(num_actors=num_gpus, share=share),
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


def bench_busy(num_gpus: int, num_videos: int, call_s: float, profile: str, cells: int) -> list[dict[str, Any]]:
    """Many videos of mixed length, searches included."""
    chosen = random.Random(0)
    rows = [{"prompt": f"scene {number}", "num_frames": chosen.choice(LENGTHS)} for number in range(num_videos)]
    run = ClusterRun(rows, profile, num_gpus, call_s, cells=cells)
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


def bench_reflection(
    cases: Sequence[tuple[int, Share]], num_frames: int, call_s: float, profile: str, cells: int
) -> list[dict[str, Any]]:
    """One video with self-reflection against the same without it, on GPUs so many, whose idle ones take this or that.

    Beside each wall time stands that of the same video in virtual time, where calls alone take time: as many searches,
    evenly spread.

    Args:
        cases: GPUs and what idle ones take; the first is what the last column compares with.
        num_frames: length of the video.
        call_s: of a call.
        profile: as for the other benchmarks.
        cells: rows, and columns, of a latent: how often there is a search depends on them.

    Raises:
        UsageError: if the model makes no video of that length.
    """
    spec = load_spec(f"simulated:wan?cells={cells}")
    num_latents = _num_latents(spec, num_frames)
    row = {"prompt": "a red circle", "num_frames": num_frames, "seed": 0}
    name, overrides = split_profile(profile)
    table: list[dict[str, Any]] = []
    for num_gpus, share in cases:
        without: tuple[float, float] | None = None
        for is_on in (False, True):
            settings = {**overrides, "self_reflection": is_on}
            text = ",".join(f"{key}={str(value).lower()}" for key, value in settings.items())
            run = ClusterRun([row], f"{name}:{text}", num_gpus, call_s, share, cells)
            made = run.rows[0]
            virtual_s = make_virtual_video(
                resolve_config(name, spec, settings),
                num_latents,
                num_gpus,
                forward_s=call_s / 2,
                search_share=(made.num_searches + 0.5) / made.num_evaluations if made.num_searches else 0.0,
                share=share,
            ).seconds
            without = without or (run.wall_s, virtual_s)
            table.append(
                {
                    "GPUs": num_gpus,
                    "idle ones take": share,
                    "self-reflection": is_on,
                    "calls": made.network_calls,
                    "by helpers": f"{(made.helper_calls or 0) / run.num_calls:.0%}",
                    "evaluations": made.num_evaluations,
                    "searches": made.num_searches,
                    "wall, s": run.wall_s,
                    "times without": run.wall_s / without[0],
                    "virtual time, s": virtual_s,
                    "times without, virtual": virtual_s / without[1],
                    "times without, one GPU": run.wall_s / (table[0]["wall, s"] if table else run.wall_s),
                }
            )
    return table


def bench_cluster(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The tables that were asked for."""
    from jobs.benches.coordinator_speed import bench_memory_of_rows, bench_rows_per_second

    if options.call_s is not None and not 0 < options.call_s < math.inf:
        raise UsageError(f"--call-s {options.call_s:g} must be more than 0, and finite", "give seconds, such as 0.1")
    gpus, call_s = options.gpus, options.call_s or CALL_S
    scale = _scale(call_s)
    reflection_call_s = options.call_s or REFLECTION_CALL_S
    makers: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
        "busy": (
            f"Videos of {LENGTHS[0]} to {LENGTHS[-1]} frames of {options.cells} x {options.cells} cells, "
            f"profile paper; {scale}",
            lambda: bench_busy(gpus, options.videos, call_s, "paper", options.cells),
        ),
        "one-video": (
            f"One video of {options.frames} frames on one GPU and on {gpus}; {scale}",
            lambda: bench_one_video((1, gpus), options.frames, call_s, options.profiles),
        ),
        "reflection": (
            f"One video of {options.reflection_frames} frames of {options.cells} x {options.cells} cells with "
            f"self-reflection and without; {_scale(reflection_call_s)}",
            lambda: bench_reflection(
                ((1, "nothing"), (4, "windows"), (4, "candidates")),
                options.reflection_frames,
                reflection_call_s,
                "paper",
                options.cells,
            ),
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


def _num_latents(spec: BackboneSpec, num_frames: int) -> int:
    return num_latents_of(spec, num_frames, "--reflection-frames", "choose a length that the model makes")


def _scale(call_s: float) -> str:
    return f"{REAL_CALL_S / call_s:.0f} times as fast as a GPU of {REAL_CALL_S} s a call"
