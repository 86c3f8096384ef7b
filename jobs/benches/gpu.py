"""Everything on a card: the published models at full size with random weights, within a time, as one Markdown section.

Parts are run in the order of their importance. One that would take longer than what is left is dropped, and the section
says so. It is written anew after every part, so that what was measured is there whatever happens.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from jobs.benches.backbone import NUM_OVERLAPPED, PARTS, BackboneBench, Rows, Tables, device_name, dtype_name, rate_rows
from jobs.benches.device_clock import FEWEST_REPEATS, matmul_rates
from jobs.benches.frame_cost import calls_per_latent
from jobs.benches.network_calls import NUM_FORWARDS, UNIFORM
from jobs.shared.options import write_out
from jobs.shared.table import format_table
from miga import __version__
from miga.backbones.base import BackboneSpec
from miga.backbones.memory_plan import plan_memory
from miga.backbones.random_model import FULL_SIZE, Reduction
from miga.backbones.registry import planned_footprint, planned_spec, random_model
from miga.backbones.weight_files import first_line
from miga.cost import count_calls
from miga.errors import ModelError, OutputError, UsageError
from miga.profiles import resolve_config

GROUPS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("wan-1.3b", ("calls", "decode", "frames", "dce", "overlap")),
    ("videocrafter2", ("calls", "decode", "frames", "dce", "overlap")),
    ("wan-1.3b", ("attention",)),
    ("videocrafter2", ("whole-video",)),
    ("wan-14b", ("calls", "decode", "frames")),
    ("wan-1.3b", ("compile",)),
    ("videocrafter2", ("attention", "compile")),
    ("wan-1.3b", ("whole-video",)),
)
"""Models and their parts, the most important first. A model is made anew for each group."""

TARGETS: Final[dict[str, tuple[str, float, bool]]] = {
    "of matmul": ("operations of a window call to the matrix products' rate", 0.50, True),
    "per latent, time": ("a time step per latent: extra time", 0.01, False),
    "per latent, memory": ("a time step per latent: extra memory", 0.01, False),
    "guidance": ("MIGA with long-range guidance to MIGA without, searches apart", 1.08, False),
    "not hidden": ("of the wall time, decoding and encoding not hidden", 0.02, False),
}
"""What is aimed at on an H200: what it is, the figure, and whether more is better."""

EXPECTED_SHARE: Final = 0.35
"""Of the rate of matrix products, before a model has been timed."""
MARGIN: Final = 1.25
"""On what a part is expected to take."""
MOST_TABLE_S: Final = 90.0
NUM_CALL_FORWARDS: Final = 12
NUM_TRIED_BACKENDS: Final = 10
FIXED_S: Final = {"calls": 10.0, "decode": 30.0, "frames": 1.0, "dce": 1.0, "overlap": 20.0, "compile": 120.0}
"""Beside the network's forwards: making the model, compiling, encoding on the CPU."""


def bench_gpu(options: argparse.Namespace) -> Tables:
    """The whole suite.

    Raises:
        UsageError: if there is no CUDA GPU, or the budget cannot be.
        OutputError: if `--out` cannot be written.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            f"miga bench gpu measures CUDA GPUs, and there is none at hand: {_why_no_gpu()}",
            "`miga bench backbone` runs on any machine: `miga bench backbone --device cpu --scale 0.25 --layers 2`",
        )
    if not 0.0 < options.budget_min < math.inf:
        raise UsageError(f"--budget-min {options.budget_min:g} cannot be", "it must be a number of minutes above 0")
    suite = Suite(
        torch.device("cuda", torch.cuda.current_device()),
        getattr(torch, options.dtype),
        budget_s=60.0 * options.budget_min,
        num_repeats=options.repeats,
        out=Path(options.out) if options.out else None,
    )
    return suite.run([group for group in GROUPS if group[0] in options.models])


@dataclass
class Suite:
    """Parts of models on one device, within a time.

    Attributes:
        device, dtype: where the networks run, and in what.
        budget_s: seconds for all of it.
        num_repeats: timings of each call.
        out: the file of the section; None for none.
        reduction: of all models; anything but full size is for trying this out.
        num_frames: length of videos; by default each model's.
        clock: seconds.
        tables: what has been measured.
        dropped: what has not, and why.
    """

    device: torch.device
    dtype: torch.dtype
    budget_s: float
    num_repeats: int = 5
    out: Path | None = None
    reduction: Reduction = FULL_SIZE
    num_frames: int | None = None
    clock: Callable[[], float] = time.monotonic
    tables: Tables = field(default_factory=dict)
    dropped: Rows = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started_s = self.clock()
        self._forward_s: dict[str, float] = {}
        self._targets: Rows = []
        self._rate = math.nan
        self._machine = machine_rows(self.device, self.dtype)
        self._write()  # a file that cannot be written is found before twenty minutes have passed

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return self.budget_s - (self.clock() - self._started_s)

    def run(self, groups: Sequence[tuple[str, Sequence[str]]]) -> Tables:
        """Runs what there is time for; the tables, those of targets, machine and dropped parts included."""
        rates = matmul_rates(self.device, self.dtype)
        self._rate = max(rates.values())
        self.tables[f"matrix products in {dtype_name(self.dtype)}"] = rate_rows(rates)
        for name, parts in groups:
            self._run_group(name, parts)
        self._write()
        return self._all()

    def _run_group(self, name: str, parts: Sequence[str]) -> None:
        wanted = [part for part in parts if self._has_time(name, part)]
        if not wanted or not self._fits(name, wanted):
            return
        bench = None
        try:
            bench = BackboneBench(
                random_model(name, device=self.device, dtype=self.dtype, reduction=self.reduction),
                self._rate,
                num_repeats=self.num_repeats,
                most_s=min(MOST_TABLE_S, max(1.0, self.left_s / 4)),
                num_frames=self.num_frames,
            )
            for part in wanted:
                self._run_part(name, part, bench)
        except OutputError:
            raise
        except Exception as error:  # one model that fails must not take the others' figures with it
            self.dropped.append({"model": name, "part": "the model", "why": f"failed: {_named(error)}"})
        if bench is not None:
            self._targets += target_rows(bench.model.label, bench.facts)
        del bench
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_part(self, name: str, part: str, bench: BackboneBench) -> None:
        if not self._has_time(name, part):
            return
        title, measure = PARTS[part]
        try:
            self.tables[f"{bench.model.label}: {title}"] = measure(bench)
        except Exception as error:  # on a card nobody has seen, anything may fail; the rest is still wanted
            self.dropped.append({"model": name, "part": part, "why": f"failed: {_named(error)}"})
        if UNIFORM in bench.timings:
            self._forward_s[name] = bench.timings[UNIFORM].median_s
        self._write()

    def _has_time(self, name: str, part: str) -> bool:
        needed_s = self.expected_s(name, part)
        if needed_s <= self.left_s:
            return True
        why = f"dropped: about {needed_s / 60:.1f} min, and {max(0.0, self.left_s) / 60:.1f} min of the budget are left"
        self.dropped.append({"model": name, "part": part, "why": why})
        return False

    def expected_s(self, name: str, part: str) -> float:
        """Seconds that a part is going to take, about."""
        spec = planned_spec(name, self.reduction)
        forward_s = self._forward_s.get(name, spec.forward_flops / (EXPECTED_SHARE * self._rate))
        return MARGIN * (FIXED_S.get(part, 15.0) + forward_s * self._num_forwards(spec, part))

    def _num_forwards(self, spec: BackboneSpec, part: str) -> float:
        config = resolve_config("swift", spec)
        if part == "calls":  # counted, looked at for memory, and timed
            return NUM_CALL_FORWARDS * (2 + self.num_repeats)
        if part == "overlap":
            return 2 * (2 * FEWEST_REPEATS * NUM_OVERLAPPED * calls_per_latent(config) + 1)
        if part == "attention":
            return NUM_TRIED_BACKENDS * (1 + self.num_repeats)
        if part == "whole-video":
            num_frames = spec.default_num_frames if self.num_frames is None else self.num_frames
            return 2 * count_calls(config, spec.num_latents(num_frames)).forwards
        return 2 * sum(NUM_FORWARDS.values()) * self.num_repeats if part == "compile" else 0

    def _fits(self, name: str, parts: Sequence[str]) -> bool:
        """Whether the card holds a model as it is published."""
        if self.device.type != "cuda":
            return True
        spec, card = planned_spec(name, self.reduction), torch.cuda.mem_get_info(self.device)[0]
        try:
            plan = plan_memory(
                planned_footprint(name, self.reduction), spec, resolve_config("paper", spec), card, self.dtype
            )
            why = f"it fits here with less precision only: {plan.reason}" if plan.fp8 else ""
        except ModelError as error:
            why = f"{error.message}; {error.hint}"
        if why:
            self.dropped += [{"model": name, "part": part, "why": f"dropped: {why}"} for part in parts]
        return not why

    def _all(self) -> Tables:
        heads = {"targets, on an H200": self._targets, "machine": self._machine}
        tails = {"not measured": self.dropped} if self.dropped else {}
        return heads | self.tables | tails

    def _write(self) -> None:
        if self.out is None:
            return
        write_out(self.out, markdown_section(device_name(self.device), self._all()))


def markdown_section(machine: str, tables: Tables) -> str:
    """One section with a table under each heading."""
    parts = [f"## GPU: `miga bench gpu` on {machine}"]
    parts += [f"### {title[0].upper()}{title[1:]}\n\n{format_table(rows)}" for title, rows in tables.items()]
    return "\n\n".join(parts) + "\n"


def target_rows(label: str, facts: dict[str, float]) -> Rows:
    """What is aimed at beside what was measured, as far as it was."""
    rows: Rows = []
    for name, value in facts.items():
        what, target, more_is_better = TARGETS[name]
        shown = (lambda number: f"{number:.3f} times") if name == "guidance" else (lambda number: f"{number:.1%}")
        is_met = value >= target if more_is_better else value <= target
        sign = "at least" if more_is_better else "at most"
        rows.append(
            {
                "model": label,
                "what": what,
                "measured": shown(value),
                "target": f"{sign} {shown(target)}",
                "met": "yes" if is_met else "no",
            }
        )
    return rows


def machine_rows(device: torch.device, dtype: torch.dtype) -> Rows:
    """What the figures were measured on, when, with what, and by which command."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "dtype of the network": dtype_name(dtype),
        "machine": f"{platform.node()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["miga", *sys.argv[1:]]),
        "miga": __version__,
        "Python": platform.python_version(),
    }
    facts |= {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["memory"] = (
            f"{properties.total_memory / 2**30:.1f} GiB, {properties.multi_processor_count} multiprocessors"
        )
        facts["driver"] = _driver_version()
        facts["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    return [{"what": what, "is": value} for what, value in facts.items()]


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        found = []
    return found[0] if found else "unknown: nvidia-smi does not answer"


def _why_no_gpu() -> str:
    return "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no card"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
