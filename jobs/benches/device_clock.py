"""What a call costs on a device: seconds, floating-point operations, memory; and what the device reaches at best."""

from __future__ import annotations

import ctypes
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Call: TypeAlias = Callable[[], object]

MATMUL_SIZES: Final = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048)}
"""Sides of the square matrices whose product the device's rate is taken from; the fastest counts."""
FEWEST_REPEATS: Final = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of the same call, over and over.

    Attributes:
        median_s: the median.
        low_s, high_s: the fastest and the slowest.
        num: how many.
    """

    median_s: float
    low_s: float
    high_s: float
    num: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of at least one."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def __str__(self) -> str:
        return f"{self.median_s:.4g} [{self.low_s:.4g}, {self.high_s:.4g}] of {self.num}"


def time_calls(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    num_repeats: int,
    most_s: float = math.inf,
    is_warm: bool = False,
) -> dict[str, Timing]:
    """Times calls against each other: one after the other, in turn, so that a warmer card slows them all alike.

    Args:
        calls: what to run.
        device: waited for before and after each.
        num_repeats: timings of each.
        most_s: no further round is begun after so many seconds, but `FEWEST_REPEATS` are made.
        is_warm: whether all of them have run before; else each is run once before anything is timed.
    """
    if not is_warm:
        for call in calls.values():
            seconds_of(call, device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    started_s = time.monotonic()
    for number in range(num_repeats):
        if number >= FEWEST_REPEATS and time.monotonic() - started_s > most_s:
            break
        for name in list(calls)[:: -1 if number % 2 else 1]:  # there and back: a drift falls on all alike
            seconds[name].append(seconds_of(calls[name], device))
    return {name: Timing.of(times) for name, times in seconds.items()}


def seconds_of(call: Call, device: torch.device) -> float:
    """Seconds of one call: on a GPU between two events on its stream, which wait for all that was asked of it.

    Of a CPU's single thread they are the processor's: another busy program beside this one does not change them.
    """
    if device.type != "cuda" and torch.get_num_threads() > 1:
        return wall_seconds(call)
    if device.type != "cuda":
        started_s = time.process_time()
        call()
        return time.process_time() - started_s
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    started.record()
    call()
    ended.record()
    torch.cuda.synchronize(device)
    return float(started.elapsed_time(ended)) / 1e3


def wall_seconds(call: Call) -> float:
    """Seconds of one call that waits for its results itself."""
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def count_flops(call: Call) -> int:
    """Floating-point operations of a call's matrix products, convolutions and attention, as torch counts them."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        call()
    return int(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


_CPU_ATTENTION: Final = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""The one kernel of attention that torch's counter does not know."""


def matmul_rates(device: torch.device, dtype: torch.dtype, num_repeats: int = 5) -> dict[int, float]:
    """FLOP/s of square matrix products of random numbers, by their side."""
    rates = {}
    for side in MATMUL_SIZES["cuda" if device.type == "cuda" else "cpu"]:
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        num_products = max(1, round(16384**3 / side**3)) if device.type == "cuda" else 1

        def products(left: Any = left, right: Any = right, out: Any = out, count: int = num_products) -> None:
            for _ in range(count):
                torch.mm(left, right, out=out)

        timing = time_calls({"products": products}, device, num_repeats=num_repeats)["products"]
        rates[side] = 2.0 * side**3 * num_products / timing.median_s
    return rates


@dataclass(frozen=True)
class PeakMemory:
    """Bytes while a call runs.

    Attributes:
        before_bytes: held before it: weights and inputs.
        beside_bytes: the most held beside those.
    """

    before_bytes: int
    beside_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.before_bytes + self.beside_bytes


def peak_memory(call: Call, device: torch.device) -> PeakMemory | None:
    """Memory of a call: of torch's tensors on a GPU; resident memory of the process elsewhere, where Linux tells it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return PeakMemory(before, torch.cuda.max_memory_allocated(device) - before)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # free space of the heap is resident, and would be taken again unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
        before, _ = process_memory_bytes()
        call()
        return PeakMemory(before, max(0, process_memory_bytes()[1] - before))
    except OSError:
        return None


def process_memory_bytes() -> tuple[int, int]:
    """Resident now and at most, of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak
