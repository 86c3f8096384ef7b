"""The ledger alone, timed: rows a second of its decisions, and what its memory grows by."""

from __future__ import annotations

import gc
import resource
import time
from itertools import islice
from pathlib import Path
from typing import Any

from miga.errors import UsageError
from pipeline.rows import PromptRow
from pipeline.scheduling.ledger import Assign, Decision, Ledger


def bench_ledger(num_rows: int, num_workers: int) -> list[dict[str, Any]]:
    """Rows a second of processor time that the ledger takes when videos take none, and what its memory grows by.

    Args:
        num_rows: rows, each read, assigned, made and stored.
        num_workers: workers that are making videos at any time.

    Raises:
        UsageError: if there are fewer rows than twice the workers.
    """
    if num_workers < 1 or num_rows < 2 * num_workers:
        raise UsageError(
            f"--ledger-rows {num_rows} with {num_workers} workers", "there must be at least two rows a worker"
        )
    before_bytes, started_s = _resident_bytes(), time.process_time()
    num_events = play_ledger(num_rows, num_workers)
    seconds = time.process_time() - started_s
    return [
        {
            "rows": num_rows,
            "workers": num_workers,
            "rows/s": f"{num_rows / seconds:,.0f}",
            "events/s": f"{num_events / seconds:,.0f}",
            "growth, MiB": f"{(_resident_bytes() - before_bytes) / 2**20:.1f}",
            "peak, MiB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f}",
        }
    ]


def play_ledger(num_rows: int, num_workers: int) -> int:
    """Has a ledger hand out rows whose videos are done at once; returns the number of events."""
    ledger = Ledger(prompts_per_shard=1000, lookahead=2, parallelism_of=lambda row: 20)
    todo: list[Decision] = []
    for number in range(num_workers):
        todo += ledger.worker_ready(f"worker-{number}", 0.0, node="node")
    rows = iter(range(num_rows + 1))  # the last stands for the end of the file
    num_events, now_s = num_workers, 0.0
    making: list[Assign] = []
    while not ledger.is_complete:
        now_s += 0.001
        wanted = sum(getattr(decision, "count", 0) for decision in todo)
        making += [decision for decision in todo if isinstance(decision, Assign)]
        todo = []
        for index in islice(rows, wanted):
            todo += ledger.rows_exhausted(now_s) if index == num_rows else ledger.row_read(_row_of(index), now_s)
            num_events += 1
        for made in making if not wanted else []:
            attempt = (made.row.index, made.attempt, made.worker)
            todo += ledger.progress(*attempt, now_s, share=0.5)
            todo += ledger.made(*attempt, now_s)
            todo += ledger.finished(*attempt, now_s)
            num_events += 3
        making = making if wanted else []
    return num_events


def _row_of(index: int) -> PromptRow:
    return PromptRow(index=index, id=str(index), prompts=("a",), negative_prompt=None, seed=index, num_frames=161)


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
