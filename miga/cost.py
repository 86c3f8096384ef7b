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
        return _count_fifo(config, num_latents)
    if config.method == "released":
        return _count_released(config, num_latents)
    stage2 = _windows(num_latents, config.window, config.window - config.lead, config.unified_stride)
    if config.method == "unified":
        return CallCount(0, 0, config.num_steps * stage2)
    capacity = config.window - max(config.num_guidance_latents, config.lead)
    lengths, judged = _stage1_lengths(config, num_latents)
    return CallCount(
        base_clip=config.num_steps,
        stage1=sum(_windows(length, config.window, capacity, config.stride) for length in lengths),
        stage2=(config.handoff_level - 1) * stage2,
        per_search=_search_calls(config) if config.self_reflection else 0,
        num_evaluations=sum(_is_evaluated(config, length) for length in judged) if config.self_reflection else 0,
    )


def _count_fifo(config: SamplerConfig, num_latents: int) -> CallCount:
    per_pass = -(-config.num_steps // config.stride)
    if not config.lookahead:
        per_pass = _windows(config.num_steps, config.window, config.window, config.stride)
    num_passes = num_latents + config.num_steps - config.window
    if config.num_beams:
        return CallCount(config.num_steps, per_pass + _beam_search_calls(config, per_pass, num_passes - 1), 0)
    return CallCount(config.num_steps, num_passes * per_pass, 0)


def _beam_search_calls(config: SamplerConfig, per_pass: int, num_searches: int) -> int:
    """Calls of the passes with a search: windows that see the tail once per candidate, the others once per beam."""
    half = config.window - config.window // 2
    common = -(-(config.num_steps - half) // config.stride)
    num_from_one_beam = min(1, num_searches)  # the first search starts from the base clip's only beam
    num_common = num_from_one_beam + config.num_beams * (num_searches - num_from_one_beam)
    return num_common * common + num_searches * config.num_beams * config.num_candidates * (per_pass - common)


def _count_released(config: SamplerConfig, num_latents: int) -> CallCount:
    """Source: decisions/0009."""
    window, stride, width = config.window, config.stride, config.zigzag_width
    held, is_wan = config.num_reflection_guidance_latents, config.released_branch == "wan"
    capacity = window - config.num_guidance_latents
    num_asked = -(-num_latents // width)
    num_popped = num_asked + (config.num_base_groups if is_wan else 0)
    initial, stage1 = _released_lengths(config, num_asked, num_popped)
    offsets = [*range(config.handoff_level - (not is_wan)), *range(config.handoff_level)]
    searched = [held + pushes * width for pushes in range(1, config.judged_group + 1)]
    per_search = config.num_candidates * sum(_windows(length, window, window, stride) for length in searched)
    first_judged = max(window, held) + config.judged_group * width
    return CallCount(
        base_clip=config.num_steps,
        stage1=sum(_windows(length, window, capacity, stride) for length in initial)
        + sum(_windows(length, window, capacity, stride, number % stride) for number, length in enumerate(stage1)),
        stage2=sum(_windows(num_popped * width, window, window, stride, offset % stride) for offset in offsets),
        per_search=per_search if config.self_reflection else 0,
        num_evaluations=sum(length >= first_judged for length in initial) if config.self_reflection else 0,
    )


def _released_lengths(config: SamplerConfig, num_asked: int, num_popped: int) -> tuple[list[int], list[int]]:
    """Lengths of the queue pass by pass, in initialisation and in Stage 1."""
    width, num_base = config.zigzag_width, config.num_base_groups
    most = config.num_steps - num_base - config.handoff_level - 2
    num_initial = min(num_asked, most)
    is_full = num_asked > most  # initialisation ends with a push, and Stage 1 pushes after every pass
    num_before = 1 + most - num_initial  # passes of Stage 1 before the first that a group is popped after
    initial = [(num_base + number) * width for number in range(1, num_initial + 1)]
    stage1 = [
        (num_base + num_initial + is_full * (1 + number) - max(0, number - num_before)) * width
        for number in range(num_before + num_popped)
    ]
    return initial, stage1


def _stage1_lengths(config: SamplerConfig, num_latents: int) -> tuple[list[int], list[int]]:
    """Lengths of Stage 1's queue pass by pass, and those of them that a push came before."""
    width, num_early = config.zigzag_width, config.num_early_groups
    num_initial = max(0, config.num_steps - config.num_base_groups - config.handoff_level)
    num_passes = num_initial + max(0, -(-num_latents // width) - num_early)
    num_pushed = num_passes
    if config.drain:
        num_pushed = min(num_passes, -(-max(0, num_latents + width - config.window) // width))
    length = config.window - width * num_early
    lengths = [
        length + width * (min(number + 1, num_pushed) - max(0, number - num_initial)) for number in range(num_passes)
    ]
    return lengths, lengths[:num_pushed]


def _is_evaluated(config: SamplerConfig, num_latents: int) -> bool:
    """Whether a queue of that length is long enough for self-reflection to judge it."""
    return num_latents - config.judged_group * config.zigzag_width >= config.num_reflection_guidance_latents


def _windows(num_latents: int, window: int, capacity: int, stride: int, offset: int = 0) -> int:
    """Windows of a pass: `miga.windows.plan_pass` in closed form.

    The border offset is taken as 0 where less than `capacity` would be left behind it.
    """
    if num_latents <= window:
        return 1
    if num_latents - offset < capacity:
        offset = 0
    return -(-(num_latents - capacity - offset) // stride) + 1 + (offset > 0)


def _search_calls(config: SamplerConfig) -> int:
    """Calls of one search: per candidate, a pass for every push but the last, over the windows that keep samples."""
    held = config.num_reflection_guidance_latents
    capacity = config.window - max(config.num_guidance_latents, config.lead)
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
