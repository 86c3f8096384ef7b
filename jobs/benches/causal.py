"""What causal presets cost on a published model with random weights: frames a second, share of the card's rate, memory.

Every preset makes blocks until its cache is full, then a few more, which are timed: the network, all of a block, and
decoding. What it draws is noise; shapes, dtypes and kernels are those of a converted checkpoint.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

import torch

from jobs.benches.backbone import Tables, device_name, dtype_name, known_device, rate_rows
from jobs.benches.device_clock import matmul_rates, seconds_of
from jobs.profiles.choice import parse_profile
from miga.backbones.random_model import RandomModel, Reduction
from miga.backbones.registry import planned_spec, random_model
from miga.errors import UsageError
from miga.generate import Sampler
from miga.methods.causal.settings import CausalSettings
from miga.noise import NamedNoise
from miga.prompts import PromptTrack

FEWEST_TIMED: Final = 2


class TimedDenoiser:
    """A `CachedDenoiser` that keeps what its calls took.

    Attributes:
        seconds: of the network so far.
        cache: the one that was opened last.
    """

    def __init__(self, denoiser: Any, device: torch.device) -> None:
        self._denoiser, self._device = denoiser, device
        self.window, self.schedule = denoiser.window, denoiser.schedule
        self.seconds = 0.0
        self.cache: Any = None

    def __call__(self, *args: Any) -> torch.Tensor:
        """See `Denoiser`."""
        return self._denoiser(*args)

    def open_cache(self, *args: Any, **kwargs: Any) -> Any:
        """See `CachedDenoiser`."""
        self.cache = self._denoiser.open_cache(*args, **kwargs)
        return self.cache

    def call_cached(self, *args: Any) -> torch.Tensor:
        """See `CachedDenoiser`."""
        out: list[torch.Tensor] = []
        self.seconds += seconds_of(lambda: out.append(self._denoiser.call_cached(*args)), self._device)
        return out[0]


def bench_causal(options: argparse.Namespace) -> Tables:
    """A row a preset, headed with what was measured, where, and how much smaller.

    Raises:
        UsageError: if an option does not fit, or a profile is no causal one.
    """
    device = known_device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    reduction = Reduction(scale=options.scale, layers=options.layers, channels=options.channels)
    spec = planned_spec(options.model, reduction)
    configs = {text: parse_profile(text, spec) for text in options.profiles}
    for text, config in configs.items():
        if not isinstance(config, CausalSettings):
            raise UsageError(f"--profiles {text} is no causal one", "take self-forcing, longlive, ...")
    if options.blocks < FEWEST_TIMED:
        raise UsageError(f"--blocks {options.blocks} is too few", f"take at least {FEWEST_TIMED}")
    rates = matmul_rates(device, dtype, options.repeats)
    model = random_model(options.model, device=device, dtype=dtype, reduction=reduction, with_vae=not options.no_decode)
    if options.compile:
        model.backbone.compile()
    rows = [
        measured(model, config, max(rates.values()), options.blocks, decodes=not options.no_decode)
        for config in configs.values()
        if isinstance(config, CausalSettings)
    ]
    where = f"{model.label}, {dtype_name(dtype)} on {device_name(device)}"
    return {
        f"matrix products in {dtype_name(dtype)} on {device_name(device)}": rate_rows(rates),
        f"{where}: causal presets, caches full": rows,
    }


@torch.inference_mode()
def measured(
    model: RandomModel, config: CausalSettings, rate: float, num_blocks: int, *, decodes: bool
) -> dict[str, Any]:
    """A preset's figures.

    Args:
        model: with random weights.
        config: of the preset.
        rate: FLOP/s of matrix products there.
        num_blocks: that are timed once the cache is full.
        decodes: whether latents are decoded too, after the blocks.
    """
    backbone, spec = model.backbone, model.spec
    device = backbone.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    denoiser = TimedDenoiser(backbone.denoiser(config), device)
    track = PromptTrack([backbone.condition(*model.embeddings())])
    sampler = Sampler(denoiser, config, track, NamedNoise(0, spec.latent_shape, device), None)
    state, made, network_s, block_s, latents = sampler.start(), 0, [], [], []
    num_filling = math.ceil(config.cache_latents / config.block) + (config.num_steps if config.rolling else 0)
    for number in range(num_filling + num_blocks):
        before_s, found = denoiser.seconds, []
        took_s = seconds_of(lambda state=state, found=found: found.append(sampler.advance(state)), device)
        state, finished = found[0]
        if number >= num_filling and finished is not None:
            network_s.append(denoiser.seconds - before_s)
            block_s.append(took_s)
            latents.append(finished)
            made += len(finished)
    frames = config.block * spec.frames_per_latent
    flops = block_flops(config, spec)
    whole_s, net_s = statistics.median(block_s), statistics.median(network_s)
    decode_s = _decode_seconds(backbone, latents[:FEWEST_TIMED], device) if decodes else None
    row = {
        "profile": config.profile,
        "s a block": whole_s,
        "frames a block": frames,
        "frames/s": frames / whole_s,
        "TFLOP a block": flops / 1e12,
        "of matmul": f"{flops / net_s / rate:.1%}",
        "outside the network": f"{1 - sum(network_s) / sum(block_s):.2%}",
        "first of them to last": f"{_trend(block_s):+.1%}",
        "cache, GB": denoiser.cache.nbytes / 1e9,
    }
    if decode_s is not None:
        row |= {"decode, s": decode_s, "frames/s, decode in turn": frames / (whole_s + decode_s)}
    if device.type == "cuda":
        row["peak, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


def block_flops(config: CausalSettings, spec: Any) -> float:
    """Operations of one block of a long video."""
    far = 100 * config.block + (config.first_block or 0)
    (shown, seen), (before, seen_before) = config.work(far), config.work(far - config.block)
    linear = (1 - spec.attention_share) * (shown - before) / spec.window
    return float(spec.forward_flops * (linear + spec.attention_share * (seen - seen_before) / spec.window**2))


def _trend(seconds: Sequence[float]) -> float:
    """The last tenth of the blocks beside the first."""
    few = max(1, len(seconds) // 10)
    return statistics.median(seconds[-few:]) / statistics.median(seconds[:few]) - 1.0


def _decode_seconds(backbone: Any, blocks: Sequence[torch.Tensor], device: torch.device) -> float:
    """Of a block behind others, decoded as it streams."""
    decoder = backbone.frame_decoder()
    return [seconds_of(lambda block=block: decoder.decode(block), device) for block in blocks][-1]
