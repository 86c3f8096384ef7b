"""Windows and candidates may be computed anywhere, in any order and grouping: the same video."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from miga.config import SamplerConfig
from miga.denoise_pass import WindowCall, run_in_batches
from miga.generate import Sampler
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import CandidateTask
from tests.miga.closed_form import (
    PROFILES,
    VIDEOCRAFTER2,
    MixingDenoiser,
    in_order,
    make_sampler,
    profile_config,
    sample_with_state,
)

NUM_LATENTS = 9
CASES: list[tuple[str, dict[str, Any]]] = [
    *((profile, {}) for profile in PROFILES),
    *((profile, {"solver": "ddim", "eta": 1.0}) for profile in ("paper", "scalingnoise", "stage-2-only")),
    ("released", VIDEOCRAFTER2 | {"eta": 1.0}),
    ("paper", {"drain": True, "position_0_context": True}),
]
Grow = Callable[[CandidateTask], FrameQueue]


def new_sampler(config: SamplerConfig, **others: Any) -> Sampler:
    prompts = PromptTrack([0.5, -1.0, 0.2], 3)
    return make_sampler(MixingDenoiser(config), config, NUM_LATENTS, prompts=prompts, **others)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("profile", "settings"), CASES)
def test_windows_and_candidates_in_any_order(profile: str, settings: dict[str, Any]) -> None:
    config = profile_config(profile, **settings)
    expected, expected_state = sample_with_state(new_sampler(config))
    chance, sizes, num_grown = random.Random(1), [], []

    def shuffled(count: int) -> list[int]:
        return chance.sample(range(count), count)

    def grow_all(tasks: Sequence[CandidateTask], grow: Grow) -> list[FrameQueue]:
        grown = {number: grow(tasks[number]) for number in shuffled(len(tasks))}
        num_grown.append(len(grown))
        return [grown[number] for number in range(len(tasks))]

    run_windows = in_order(MixingDenoiser(config), shuffled, sizes)
    found, state = sample_with_state(new_sampler(config, run_windows=run_windows, grow_all=grow_all))
    assert torch.equal(found, expected)
    assert state.trace == expected_state.trace
    assert sum(state.trace.searched) == len(num_grown)
    assert max(sizes) >= 2, "the windows of a pass are handed over together"


@pytest.mark.sampled(6)
@pytest.mark.parametrize("windows_per_batch", [2, 100])
@pytest.mark.parametrize(("profile", "settings"), CASES)
def test_in_batches(profile: str, settings: dict[str, Any], windows_per_batch: int) -> None:
    """The same to rounding. Searches are left out: rounding may decide between two candidates."""
    config = profile_config(profile, **{"self_reflection": False} | settings, windows_per_batch=windows_per_batch)
    one_by_one = profile_config(profile, **{"self_reflection": False} | settings)
    batches: list[int] = []
    denoiser = MixingDenoiser(config)

    def counted(x: torch.Tensor, level: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        batches.append(len(x))
        return denoiser(x, level, conditions)

    run_windows = run_in_batches(counted, config.windows_per_batch)  # type: ignore[arg-type]
    found, _ = sample_with_state(new_sampler(config, run_windows=run_windows))
    expected, _ = sample_with_state(new_sampler(one_by_one))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 1 < max(batches) <= windows_per_batch


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_by_many_threads(profile: str) -> None:
    """Windows and candidates both, the candidates' windows among them: whoever is free takes the next."""
    config = profile_config(profile, num_candidates=4)
    expected, expected_state = sample_with_state(new_sampler(config))
    with ThreadPoolExecutor(4) as windows, ThreadPoolExecutor(4) as candidates:

        def run_windows(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
            return list(windows.map(lambda call: run_in_batches(MixingDenoiser(config))([call])[0], calls))

        def grow_all(tasks: Sequence[CandidateTask], grow: Grow) -> list[FrameQueue]:
            return list(candidates.map(grow, tasks))

        found, state = sample_with_state(new_sampler(config, run_windows=run_windows, grow_all=grow_all))
    assert torch.equal(found, expected)
    assert state.trace == expected_state.trace
    assert sum(state.trace.searched) > 0


def run_here(config: SamplerConfig, calls: Sequence[WindowCall]) -> list[torch.Tensor]:
    """What the worker does, of its own import of everything."""
    return run_in_batches(MixingDenoiser(config))(calls)


@pytest.mark.slow
def test_in_another_process() -> None:
    config = profile_config("paper")
    expected, expected_state = sample_with_state(new_sampler(config))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:

        def run_windows(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
            outputs = [torch.empty(0)] * len(calls)
            there = worker.submit(run_here, config, calls[::2])
            outputs[1::2] = run_here(config, calls[1::2])
            outputs[::2] = there.result()
            return outputs

        found, state = sample_with_state(new_sampler(config, run_windows=run_windows))
    assert torch.equal(found, expected)
    assert state.trace == expected_state.trace
