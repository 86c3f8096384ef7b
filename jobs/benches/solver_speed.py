"""What a solver's step costs at the size of Wan2.1's queue, and what drawing noise of that size costs.

Steps are timed in processor time on one thread, drawing by the wall: it runs on several threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch

from miga.noise import NamedNoise
from miga.schedule import flow_unipc_schedule
from miga.solvers import SOLVERS, Solver, make_solver

NUM_STEPS: Final = 54
LOWEST_LEVEL: Final = 10
ZIGZAG_WIDTH: Final = 7
LATENT_SHAPE: Final = (16, 60, 104)
NUM_REPEATS: Final = 5
NUM_DRAWS: Final = 50
"""Draws of one group; the fastest of them has met the cores free."""


def bench_solver_speed() -> dict[str, list[dict[str, Any]]]:
    """Milliseconds per latent and pass over the full queue: 315 latents of 16 x 60 x 104, levels 10 to 54."""
    level_F = torch.arange(LOWEST_LEVEL, NUM_STEPS + 1).repeat_interleave(ZIGZAG_WIDTH)
    noise = NamedNoise(0, LATENT_SHAPE)
    draw_s = _fastest(lambda: noise("step@54", range(ZIGZAG_WIDTH)), time.perf_counter, NUM_DRAWS) / ZIGZAG_WIDTH
    noise_FCHW = noise("base", range(len(level_F)))
    rows: list[dict[str, Any]] = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in SOLVERS:
        for eta in (0.0, 1.0) if name == "ddim" else (0.0,):
            solver = make_solver(name, flow_unipc_schedule(NUM_STEPS, flow_shift=5.0), eta)
            rows.append(
                {
                    "solver": f"{name}, eta {eta:g}" if name == "ddim" else name,
                    "step, ms a latent": 1e3 * _step_s(solver, level_F, noise_FCHW) / len(level_F),
                    "noise, ms a latent": 1e3 * draw_s if solver.is_stochastic else 0.0,
                }
            )
    torch.set_num_threads(num_threads)
    size = " x ".join(map(str, LATENT_SHAPE))
    return {f"A pass over {len(level_F)} latents of {size}, the fastest of {NUM_REPEATS} (noise: of {NUM_DRAWS})": rows}


@torch.inference_mode()
def _step_s(solver: Solver, level_F: torch.Tensor, noise_FCHW: torch.Tensor) -> float:
    """Processor seconds of a pass in which every latent has a full history."""
    x, history = noise_FCHW.clone(), solver.fresh_history(noise_FCHW)
    clean = noise_FCHW * 0.5
    for _ in range(2):
        x, history = solver.step(x, level_F, clean, history, noise_FCHW)
        level_F = level_F - 1
    return _fastest(lambda: solver.step(x, level_F, clean, history, noise_FCHW), time.process_time, NUM_REPEATS)


def _fastest(run: Callable[[], object], clock: Callable[[], float], num_repeats: int) -> float:
    times = []
    for _ in range(num_repeats):
        started_s = clock()
        run()
        times.append(clock() - started_s)
    return min(times)
