"""How many calls of a video classifier-free guidance acts on, counted without making it: those take a second forward.

Guidance acts on latents of some levels alone (`guidance_low_level` to `guidance_high_level`), and a call without any
such latent takes one forward. Here every window of a pass is looked at, at the levels that its latents then have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from miga.config import SamplerConfig
from miga.windows import Window, plan_lookahead, plan_pass

Levels = Callable[[int], int]
"""The level of the latent at a position of the queue."""


def is_guided(config: SamplerConfig, levels: Iterable[int]) -> bool:
    """Whether a call that shows latents of these levels takes a second forward."""
    return any(config.guidance_low_level <= level <= config.guidance_high_level for level in levels)


def num_guided_levels(config: SamplerConfig, highest: int, lowest: int = 1) -> int:
    """How many of the levels `lowest ... highest` guidance acts on."""
    return max(0, min(highest, config.guidance_high_level) - max(lowest, config.guidance_low_level) + 1)


def guides_all(config: SamplerConfig) -> bool:
    """Whether guidance acts on every level, and so on every call."""
    return config.guidance_low_level == 1 and config.guidance_high_level == config.num_steps


def zigzag_levels(num_latents: int, tail_level: int, width: int) -> Levels:
    """Of a queue of whole groups, one level apart, the tail's given."""
    return lambda position: tail_level - (num_latents - 1) // width + position // width


def in_snapshot(config: SamplerConfig, plan: Sequence[Window], levels: Levels) -> int:
    """Guided calls of a pass all of whose windows see the levels from before it."""
    return sum(is_guided(config, map(levels, window.positions)) for window in plan)


def in_place(config: SamplerConfig, plan: Sequence[Window], levels: Levels) -> int:
    """Guided calls of a pass whose windows see what those before them have written."""
    found, num_stepped = 0, 0
    for window in plan:
        stepped = num_stepped  # latents that are a level further down already
        found += is_guided(config, (levels(position) - (position < stepped) for position in window.positions))
        num_stepped = window.keep_stop
    return found


def in_queue(config: SamplerConfig, passes: Iterable[tuple[int, int]]) -> int:
    """Guided calls of MIGA's Stage 1.

    Args:
        config: the settings.
        passes: length of the queue and level of its tail, pass by pass.
    """
    found, width = 0, config.zigzag_width
    for (length, tail), count in Counter(passes).items():
        plan = plan_pass(length, config.window, config.stride, config.num_guidance_latents, width, lead=config.lead)
        found += count * in_snapshot(config, plan, zigzag_levels(length, tail, width))
    return found


def in_diagonal(config: SamplerConfig) -> list[bool]:
    """Whether each window of a pass of FIFO-Diffusion is guided; with lookahead, behind clean context."""
    num_context = config.window // 2 if config.lookahead else 0
    if config.lookahead:
        plan = plan_lookahead(num_context, config.num_steps, config.window, config.stride)
    else:
        plan = plan_pass(config.num_steps, config.window, config.stride)
    return [is_guided(config, (max(0, position - num_context + 1) for position in window.positions)) for window in plan]


def in_search(config: SamplerConfig) -> int:
    """Guided calls of growing one candidate of self-reflection."""
    held, width, is_released = config.num_reflection_guidance_latents, config.zigzag_width, config.method == "released"
    judged_level = config.num_steps - config.judged_group + (not is_released)  # of the first judged group
    found = 0
    for pushes in range(1, config.judged_group + is_released):
        length = held + pushes * width

        def levels(position: int, tail: int = pushes) -> int:
            if position < held:  # fixed, in the groups before the judged one
                return judged_level - -(-(held - position) // width)
            return config.num_steps - tail + 1 + (position - held) // width

        if is_released:
            offset = (length - config.window) % config.stride
            plan = plan_pass(length, config.window, config.stride, offset=offset)
        else:
            guidance = config.num_guidance_latents
            plan = plan_pass(length, config.window, config.stride, guidance, width, lead=config.lead)
            plan = [window for window in plan if window.keep_stop > held]
        found += in_snapshot(config, plan, levels)
    return found


def in_released(config: SamplerConfig, initial: Sequence[int], stage1: Sequence[int], *, is_full: bool) -> int:
    """Guided calls of the released method's initialisation and Stage 1.

    Args:
        config: the settings.
        initial: length of the queue pass by pass of initialisation.
        stage1: the same of Stage 1.
        is_full: whether groups are pushed in Stage 1 too; else its tail sinks a level with every pass.
    """
    num_guidance, stride, width = config.num_guidance_latents, config.stride, config.zigzag_width
    capacity, found = config.window - num_guidance, 0
    passes = [(length, (length - capacity) % stride, config.num_steps, in_place) for length in initial]
    run = in_snapshot if config.released_branch == "wan" else in_place
    for number, length in enumerate(stage1):
        offset = number % stride if length - number % stride >= capacity else 0
        passes.append((length, offset, config.num_steps - (0 if is_full else 1 + number), run))
    for (length, offset, tail, count), times in Counter(passes).items():
        plan = plan_pass(length, config.window, stride, num_guidance, width, offset)
        found += times * count(config, plan, zigzag_levels(length, tail, width))
    return found
