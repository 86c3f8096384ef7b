"""What a network call costs before anything has been measured: floating-point operations over a rate."""

from __future__ import annotations

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from pipeline.estimate import CostModel

GPU_FLOPS = 400e12
"""Achieved rate assumed of a GPU: about half of what an H100 does in dense bfloat16 matrix products."""
CPU_FLOPS = 100e9
"""Achieved rate assumed of a CPU core in float32: what the embedded model reached on one (docs/benchmarks.md)."""
BITS_PER_PIXEL = 0.1
"""Size of H.264 video at constant quality: footage of ordinary motion takes about this."""
LARGE = 1e12
"""Operations a forward from which on a model is taken to run on GPUs."""


def cost_model(spec: BackboneSpec, sampler: SamplerConfig, num_workers: int) -> CostModel:
    """The cost of a model's calls, by the size of its network alone."""
    num_forwards = 1 if sampler.guidance_scale == 1 else 2
    is_large = spec.forward_flops > LARGE
    rate, where = (GPU_FLOPS, "a GPU at 400 TFLOP/s") if is_large else (CPU_FLOPS, "a CPU core at 100 GFLOP/s")
    return CostModel(
        seconds_per_call=num_forwards * spec.forward_flops / rate,
        bytes_per_second=spec.height * spec.width * spec.fps * BITS_PER_PIXEL / 8,
        fps=spec.fps,
        num_workers=num_workers,
        time_basis=f"{num_forwards} x {spec.forward_flops / 1e9:.4g} GFLOP a call, {where}; not measured",
        size_basis=f"{BITS_PER_PIXEL} bit a pixel; not measured",
    )
