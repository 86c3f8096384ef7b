"""How many calls of the network a video takes, and how many forwards, counted without making it.

A call is one window; where classifier-free guidance acts the network runs twice in it. The base clip counts; searches
of self-reflection depend on the video and are given per search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from miga import guided_calls
from miga.config import SamplerConfig


@dataclass(frozen=True)
class CallCount:
    """Network calls of one video, by what they are for.

    Attributes:
        base_clip, stage1, stage2: calls that every such video takes.
        per_search: calls of one search of self-reflection.
        num_evaluations: evaluations of self-reflection; each but the first may start a search.
        num_guided: calls, all but searches, in which the network runs twice.
        guided_per_search: the same of one search.
    """

    base_clip: int
    stage1: int
    stage2: int
    per_search: int = 0
    num_evaluations: int = 0
    num_guided: int = 0
    guided_per_search: int = 0

    @property
    def forwards(self) -> int:
        """Forwards of the network, all but those of searches."""
        return self.total + self.num_guided

    @property
    def most_forwards(self) -> int:
        """All, if every evaluation that may start a search does."""
        return self.most + self.num_guided + self.guided_per_search * max(0, self.num_evaluations - 1)

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
    count = _count(config, num_latents)
    if config.guidance_scale == 1.0:
        return count
    if guided_calls.guides_all(config):  # every window steps a latent of some level
        return replace(count, num_guided=count.total, guided_per_search=count.per_search)
    per_search = config.num_candidates * guided_calls.in_search(config) if count.per_search else 0
    return replace(count, num_guided=_num_guided(config, num_latents), guided_per_search=per_search)


def _count(config: SamplerConfig, num_latents: int) -> CallCount:
    if config.method == "fifo":
        return _count_fifo(config, num_latents)
    if config.method == "released":
        return _count_released(config, num_latents)
    stage2 = _stage2_windows(config, num_latents)
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


def _num_guided(config: SamplerConfig, num_latents: int) -> int:
    """Calls, all but searches, that guidance acts on."""
    base_clip = guided_calls.num_guided_levels(config, config.num_steps)
    if config.method == "fifo":
        return base_clip + _guided_fifo(config, num_latents)
    if config.method == "released":
        return base_clip + _guided_released(config, num_latents)
    stage2 = _stage2_windows(config, num_latents)
    if config.method == "unified":
        return base_clip * stage2
    lengths, pushed = _stage1_lengths(config, num_latents)
    tails = [config.num_steps - max(0, number + 1 - len(pushed)) for number in range(len(lengths))]
    stage1 = guided_calls.in_queue(config, zip(lengths, tails, strict=True))
    return base_clip + stage1 + stage2 * guided_calls.num_guided_levels(config, config.handoff_level - 1)


def _stage2_windows(config: SamplerConfig, num_latents: int) -> int:
    """Windows of a pass of Stage 2."""
    return _windows(num_latents, config.window, config.window - config.lead, config.unified_stride)


def _count_fifo(config: SamplerConfig, num_latents: int) -> CallCount:
    per_pass = -(-config.num_steps // config.stride)
    if not config.lookahead:
        per_pass = _windows(config.num_steps, config.window, config.window, config.stride)
    return CallCount(config.num_steps, _fifo_calls(config, num_latents, per_pass, _common_windows(config)), 0)


def _guided_fifo(config: SamplerConfig, num_latents: int) -> int:
    is_guided = guided_calls.in_diagonal(config)
    return _fifo_calls(config, num_latents, sum(is_guided), sum(is_guided[: _common_windows(config)]))


def _fifo_calls(config: SamplerConfig, num_latents: int, per_pass: int, common: int) -> int:
    """Calls of all passes, so many in a pass over one queue, `common` of which do not see its tail.

    In a search, windows that see the tail run once per candidate, the others once per beam.
    """
    num_passes = num_latents + config.num_steps - config.window
    if not config.num_beams:
        return num_passes * per_pass
    num_searches = num_passes - 1
    num_from_one_beam = min(1, num_searches)  # the first search starts from the base clip's only beam
    num_common = num_from_one_beam + config.num_beams * (num_searches - num_from_one_beam)
    grown = num_searches * config.num_beams * config.num_candidates
    return per_pass + num_common * common + grown * (per_pass - common)


def _common_windows(config: SamplerConfig) -> int:
    """Windows of a pass that do not see the queue's tail."""
    half = config.window - config.window // 2
    return -(-(config.num_steps - half) // config.stride)


def _count_released(config: SamplerConfig, num_latents: int) -> CallCount:
    """Source: decisions/0009."""
    window, stride, width = config.window, config.stride, config.zigzag_width
    held, capacity = config.num_reflection_guidance_latents, window - config.num_guidance_latents
    num_groups = config.num_groups_asked(num_latents)
    initial, stage1 = _released_lengths(config, num_groups)
    offsets = _released_offsets(config)
    searched = [held + pushes * width for pushes in range(1, config.judged_group + 1)]
    per_search = config.num_candidates * sum(_windows(length, window, window, stride) for length in searched)
    first_judged = max(window, held) + config.judged_group * width
    return CallCount(
        base_clip=config.num_steps,
        stage1=sum(_windows(length, window, capacity, stride) for length in initial)
        + sum(_windows(length, window, capacity, stride, number % stride) for number, length in enumerate(stage1)),
        stage2=sum(_windows(num_groups * width, window, window, stride, offset % stride) for offset in offsets),
        per_search=per_search if config.self_reflection else 0,
        num_evaluations=sum(length >= first_judged for length in initial) if config.self_reflection else 0,
    )


def _released_offsets(config: SamplerConfig) -> list[int]:
    """Border offsets of the passes of Stage 2 and of the second denoising, before their remainder by the stride."""
    num_once = config.handoff_level - (config.released_branch != "wan")
    return [*range(num_once), *range(config.handoff_level)]


def _guided_released(config: SamplerConfig, num_latents: int) -> int:
    is_wan, width = config.released_branch == "wan", config.zigzag_width
    num_groups = config.num_groups_asked(num_latents)
    initial, stage1 = _released_lengths(config, num_groups)
    found = guided_calls.in_released(config, initial, stage1, is_full=num_groups > len(initial))
    once = config.handoff_level - (not is_wan)  # passes down to the clean level, then as many as levels once more
    levels = [*range(config.handoff_level, 0, -1)][:once]
    levels += range(config.handoff_level + (not is_wan), not is_wan, -1)
    for level, offset in zip(levels, _released_offsets(config), strict=True):
        if guided_calls.is_guided(config, [level]):
            found += _windows(num_groups * width, config.window, config.window, config.stride, offset % config.stride)
    return found


def _released_lengths(config: SamplerConfig, num_groups: int) -> tuple[list[int], list[int]]:
    """Lengths of the queue pass by pass, in initialisation and in Stage 1, for so many groups to leave it."""
    width, num_base, most = config.zigzag_width, config.num_base_groups, config.num_initial_passes
    num_initial = min(num_groups, most)
    is_full = num_groups > most  # initialisation ends with a push, and Stage 1 pushes after every pass
    num_before = 1 + most - num_initial  # passes of Stage 1 before the first that a group is popped after
    initial = [(num_base + number) * width for number in range(1, num_initial + 1)]
    stage1 = [
        (num_base + num_initial + is_full * (1 + number) - max(0, number - num_before)) * width
        for number in range(num_before + num_groups)
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
