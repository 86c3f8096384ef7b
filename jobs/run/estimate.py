"""What a run costs before anything of it has been measured: calls, seconds, bytes, and where a model goes on a GPU.

Seconds of a call are its floating-point operations over a rate.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from jobs.run.plan import Plan
from miga.backbones.base import BackboneSpec
from miga.backbones.memory_plan import MemoryPlan, card_bytes, plan_memory
from miga.backbones.registry import require_footprint
from miga.config import SamplerConfig
from miga.cost import count_calls
from pipeline.rows import BadRow
from pipeline.scheduling.estimate import CostModel, estimate_run

GPU_FLOPS = 400e12
"""Achieved rate assumed of a GPU: about half of what an H100 does in dense bfloat16 matrix products."""
CPU_FLOPS = 100e9
"""Achieved rate assumed of a CPU core in float32: what the embedded model reached on one (docs/benchmarks.md)."""
BITS_PER_PIXEL = 0.1
"""Size of H.264 video at constant quality: footage of ordinary motion takes about this."""
READ_AHEAD = 1000
"""Rows whose prompts are judged together."""
LARGE = 1e12
"""Operations a forward from which on a model is taken to run on GPUs."""


def dry_run(plan: Plan, num_workers: int, card_gb: float | None = None) -> dict[str, Any]:
    """What the run would cost; nothing is written, no weights are loaded.

    Args:
        plan: the run.
        num_workers: backbone actors.
        card_gb: memory of a GPU as it is sold; with it, what goes where on it.

    Raises:
        ModelError: if the model does not fit that card, saying what would.
    """
    lengths: Counter[int] = Counter()
    bad_rows = 0
    for row in plan.rows(read_ahead=READ_AHEAD):
        if isinstance(row, BadRow):
            bad_rows += 1
        else:
            lengths[row.num_frames] += 1

    costs = estimate(plan.spec, plan.sampler, lengths, num_workers, bad_rows)
    about = {"model": plan.spec.name, "size": f"{plan.spec.height}x{plan.spec.width}", "profile": plan.sampler.profile}
    return {**about, **costs, **({} if card_gb is None else {"memory": memory_on(plan, card_gb).to_dict()})}


def memory_on(plan: Plan, card_gb: float) -> MemoryPlan:
    """Where the run's model would go on a card that is sold with so many GB.

    Raises:
        ModelError: if it does not fit, saying what would.
    """
    config = plan.config
    return plan_memory(
        require_footprint(config.model, config.revision),
        plan.spec,
        plan.sampler,
        card_bytes(card_gb),
        torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype),
        getattr(torch, config.text_dtype),
        text_on_card=config.workers.text_gpus > 0,
    )


def estimate(
    spec: BackboneSpec,
    sampler: SamplerConfig,
    videos_by_num_frames: Mapping[int, int],
    num_workers: int,
    bad_rows: int = 0,
) -> dict[str, Any]:
    """What `estimate_run` says of videos of a model, so many of each length."""

    def calls_of(num_frames: int) -> tuple[int, int]:
        count = count_calls(sampler, spec.num_latents(num_frames))
        return count.total, count.most

    def forwards_of(num_frames: int) -> tuple[int, int]:
        count = count_calls(sampler, spec.num_latents(num_frames))
        return count.forwards, count.most_forwards

    cost = cost_model(spec, sampler, num_workers)
    return estimate_run(videos_by_num_frames, calls_of, cost, forwards_of=forwards_of, bad_rows=bad_rows)


def cost_model(spec: BackboneSpec, sampler: SamplerConfig, num_workers: int) -> CostModel:
    """The cost of a model's calls, by the size of its network alone; of a shorter window by its share of a whole one.

    A call is one with guidance, where there is any: `CallCount.forwards` says how many calls go without.
    """
    num_forwards = 1 if sampler.guidance_scale == 1 else 2
    flops = spec.forward_flops * sampler.window / spec.window
    is_large = spec.forward_flops > LARGE
    rate, where = (GPU_FLOPS, "a GPU at 400 TFLOP/s") if is_large else (CPU_FLOPS, "a CPU core at 100 GFLOP/s")
    return CostModel(
        seconds_per_call=num_forwards * flops / rate,
        forwards_per_call=num_forwards,
        bytes_per_second=spec.height * spec.width * spec.fps * BITS_PER_PIXEL / 8,
        fps=spec.fps,
        num_workers=num_workers,
        time_basis=f"{num_forwards} x {flops / 1e9:.4g} GFLOP, {where}; not measured",
        size_basis=f"{BITS_PER_PIXEL} bit a pixel; not measured",
    )


@functools.cache
def expected_calls(config: SamplerConfig, num_latents: int) -> float:
    """Network calls of a video, where every second evaluation that may start a search does."""
    count = count_calls(config, num_latents)
    return (count.total + count.most) / 2
