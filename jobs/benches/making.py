"""What benches of videos share: the lines that a file lacks are made by several processes, one thread each."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from jobs.benches.line_file import LineFile
from miga.allocator import keep_heap_steady
from miga.config import SamplerConfig
from miga.errors import MigaError, UsageError
from pipeline.terminal import say

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Job = TypeVar("Job", bound="DataclassInstance")
Job_contra = TypeVar("Job_contra", contravariant=True)


class Maker(Protocol[Job_contra]):
    """Makes videos of one bench, one after the other."""

    def make(self, job: Job_contra) -> dict[str, Any]:
        """What a line says of the video beside its key."""
        ...


def settings_digest(config: SamplerConfig) -> str:
    """By what a line knows its settings: as files note them, so a setting that came later leaves older lines valid."""
    return hashlib.sha256(json.dumps(config.noted(), sort_keys=True).encode()).hexdigest()[:12]


def figure(value: float) -> float | None:
    """A number as lines have it: six digits, and nothing where there is none (JSON knows no NaN)."""
    return None if math.isnan(value) else round(value, 6)


def made_lines(
    new_maker: Callable[[], Maker[Job]],
    jobs: Sequence[Job],
    key_names: Sequence[str],
    options: argparse.Namespace,
    what: str = "videos",
) -> list[dict[str, Any]]:
    """A line for each job that is made, in the order of the jobs; those that the file lacks are made first.

    Args:
        new_maker: what loads the model, in every process that has something to make; it can be pickled.
        jobs: all of them; `str` of one says which it is.
        key_names: fields that tell one job from another.
        options: `out`, the file, or None for one that is dropped; `read_only`: none is made; `processes` that make
            them, at most, or None for one per core.
        what: is made, in messages.

    Raises:
        UsageError: if the file holds none of them.
        MigaError: if a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="miga-bench-") as folder:
        path = Path(options.out or Path(folder) / "lines.jsonl")
        lines = LineFile(path, key_names)
        made = lines.read()
        num_missing = sum(lines.key(asdict(job)) not in made for job in jobs)
        if num_missing and not options.read_only:
            _make_all(new_maker, lines, jobs, min(num_missing, options.processes or os.cpu_count() or 1), what)
        made = lines.read()
    rows = [made[key] for key in (lines.key(asdict(job)) for job in jobs) if key in made]
    if not rows:
        raise UsageError(f"{path} holds none of these {what}", "leave out --read-only to make them")
    return rows


def _make_all(
    new_maker: Callable[[], Maker[Job]], lines: LineFile, jobs: Sequence[Job], num_processes: int, what: str
) -> None:
    """Makes what the file lacks in so many processes, each of which is given all jobs and takes what is free.

    Raises:
        MigaError: if one of them fails.
    """
    arguments = (new_maker, lines.path, lines.key_names, jobs)
    if num_processes == 1:
        _make_missing(*arguments)
        return
    start = multiprocessing.get_context("spawn").Process
    workers = [start(target=_make_missing, args=arguments) for _ in range(num_processes)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        raise MigaError(
            f"{len(failed)} of {num_processes} processes that make {what} ended with status {failed}",
            "what they have finished is kept; the same command goes on from there",
        )


def _make_missing(
    new_maker: Callable[[], Maker[Job]], path: Path, key_names: Sequence[str], jobs: Sequence[Job]
) -> None:
    """Makes, on one thread, what the file lacks and nobody else is making."""
    torch.set_num_threads(1)
    keep_heap_steady()
    lines = LineFile(path, key_names)
    maker: Maker[Job] | None = None
    for number, job in enumerate(jobs, start=1):
        if lines.key(asdict(job)) in lines.read():
            continue
        maker = maker or new_maker()
        if lines.make(asdict(job), lambda job=job, maker=maker: maker.make(job)):  # type: ignore[misc]
            say(f"{number}/{len(jobs)}: {job}")
