"""What a network call costs before anything has been measured: floating-point operations over a rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.cost import count_calls
from pipeline.estimate import CostModel, estimate_run

GPU_FLOPS = 400e12
"""Achieved rate assumed of a GPU: about half of what an H100 does in dense bfloat16 matrix products."""
CPU_FLOPS = 100e9
"""Achieved rate assumed of a CPU core in float32: what the embedded model reached on one (docs/benchmarks.md)."""
BITS_PER_PIXEL = 0.1
"""Size of H.264 video at constant quality: footage of ordinary motion takes about this."""
LARGE = 1e12
"""Operations a forward from which on a model is taken to run on GPUs."""


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
