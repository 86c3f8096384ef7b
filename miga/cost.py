"""How many calls of the network a video takes, counted without making it.

A call is one window; with classifier-free guidance the network runs twice in it. The base clip counts; searches of
self-reflection depend on the video and are given per search.
"""

from __future__ import annotations

from dataclasses import dataclass

from miga.config import SamplerConfig


@dataclass(frozen=True)
class CallCount:
    """Network calls of one video, by what they are for.

    Attributes:
        base_clip, stage1, stage2: calls that every such video takes.
        per_search: calls of one search of self-reflection.
        num_evaluations: evaluations of self-reflection; each but the first may start a search.
    """

    base_clip: int
    stage1: int
    stage2: int
    per_search: int = 0
    num_evaluations: int = 0

    @property
    def total(self) -> int:
        """All but searches."""
        return self.base_clip + self.stage1 + self.stage2

    @property
    def most(self) -> int:
        """All, if every evaluation that may start a search does."""
        return self.total + self.per_search * max(0, self.num_evaluations - 1)


def count_calls(config: SamplerConfig, num_latents: int) -> CallCount:
    """The calls that `Sampler` makes for a video of `num_latents`, exactly, but for searches."""
    if config.method == "fifo":
        per_pass = -(-config.num_steps // config.stride)
        num_passes = num_latents + config.num_steps - config.window
        return CallCount(config.num_steps, num_passes * per_pass, 0)
    width, window = config.zigzag_width, config.window
    capacity = window - config.num_guidance_latents
    num_initial = config.num_steps - config.num_base_groups - config.handoff_level
    lengths = [window + width * (number + 1) for number in range(num_initial)]
    lengths += [config.queue_length] * -(-num_latents // width)
    return CallCount(
        base_clip=config.num_steps,
        stage1=sum(_windows(length, window, capacity, config.stride) for length in lengths),
        stage2=(config.handoff_level - 1) * _windows(num_latents, window, window, config.stride),
        per_search=_search_calls(config) if config.self_reflection else 0,
        num_evaluations=sum(_is_evaluated(config, length) for length in lengths) if config.self_reflection else 0,
    )


def _is_evaluated(config: SamplerConfig, num_latents: int) -> bool:
    """Whether a queue of that length is long enough for self-reflection to judge it."""
    return num_latents - config.judged_group * config.zigzag_width >= config.num_reflection_guidance_latents


def _windows(num_latents: int, window: int, capacity: int, stride: int) -> int:
    """Windows of a pass: `miga.windows.plan_pass` in closed form."""
    if num_latents <= window:
        return 1
    return -(-(num_latents - capacity) // stride) + 1


def _search_calls(config: SamplerConfig) -> int:
    """Calls of one search: per candidate, a pass for every push but the last, over the windows that keep samples."""
    held = config.num_reflection_guidance_latents
    capacity = config.window - config.num_guidance_latents
    calls = 0
    for pushes in range(1, config.judged_group):
        length = held + pushes * config.zigzag_width
        if length <= config.window:
            calls += 1
            continue
        last = length - capacity
        borders = [*range(0, last, config.stride), last, length]
        calls += sum(stop > held for stop in borders[1:])
    return calls * config.num_candidates
