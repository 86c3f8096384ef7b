"""What a queue that runs empty changes: nothing for latents that no window saw the missing ones beside.

The claim is checked with sets alone. Two queues are followed pass by pass, one of them drained; a latent is *touched*
once the window that keeps it differs between the two, or shows a touched latent. Latents that are never touched must be
the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miga.config import SamplerConfig
from tests.miga.closed_form import GaussianDenoiser, make_config, make_sampler, profile_config, sample

SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_guidance_latents": 0},
    {"num_guidance_latents": 0, "position_0_context": True, "stride": 2},
    {"zigzag_width": 1, "num_steps": 10},
    {"zigzag_width": 3, "num_steps": 8, "handoff_level": 2, "stride": 1, "num_guidance_latents": 4},
    {"zigzag_width": 6, "num_steps": 7, "handoff_level": 5},
    {"handoff_level": 1, "num_steps": 8},
    {"handoff_level": 7, "num_steps": 10},
]


def video(config: SamplerConfig, num_latents: int) -> torch.Tensor:
    return sample(make_sampler(GaussianDenoiser(config, correlation=0.9), config, num_latents))


def shown(config: SamplerConfig, first: int, length: int, num_guidance: int) -> dict[int, tuple[int, ...]]:
    """For every latent of a queue, what the window that keeps it shows, counted in the video."""
    window, stride, wide = config.window, config.stride, config.zigzag_width
    if length <= window:
        return {first + i: tuple(range(first, first + length)) for i in range(length)}
    last = length - window + max(num_guidance, config.lead)
    found = {}
    for position in range(length):
        start = min(position // stride * stride, last) if position < last else last
        before: list[int] = []
        if num_guidance and start >= num_guidance * wide:
            before = [start - max(1, wide // 2) - back * wide for back in range(num_guidance)]
        elif num_guidance and start >= num_guidance:
            before = [start - (back + 1) * (start // num_guidance) for back in range(num_guidance)]
        elif start:
            before = [start - 1] * config.lead
        seen = [*before, *range(start, min(length, start + window - len(before)))]
        found[first + position] = tuple(sorted(first + i for i in seen))
    return found


def untouched(config: SamplerConfig, num_latents: int) -> set[int]:
    """Latents of the video that draining cannot have changed."""
    wide, touched = config.zigzag_width, set[int]()
    full = drained = config.window  # where the two queues end
    head, level = 0, config.num_steps - config.num_base_groups
    while head < num_latents:
        is_popped = level == config.handoff_level
        full += wide
        drained += wide if drained < num_latents + wide else 0
        windows = [shown(config, head, end - head, config.num_guidance_latents) for end in (full, drained)]
        touched |= {latent for latent, seen in windows[1].items() if windows[0][latent] != seen or touched & {*seen}}
        level, head = (level, head + wide) if is_popped else (level - 1, head)
    plan = shown(config, 0, num_latents, 0)
    for _ in range(config.handoff_level - 1):
        touched |= {latent for latent, seen in plan.items() if touched & {*seen}}
    return set(range(num_latents)) - touched


@pytest.mark.sampled(8)
@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_latents_that_saw_no_missing_one_are_the_same(settings: dict[str, Any]) -> None:
    full, drained = make_config(**settings), make_config(**settings, drain=True)
    counts = []
    for num_latents in (1, 7, 30, 61):
        paper, swift = video(full, num_latents), video(drained, num_latents)
        same = [bool(torch.equal(one, other)) for one, other in zip(paper, swift, strict=True)]
        expected = untouched(full, num_latents)
        counts.append(len(expected))
        assert {latent for latent in range(num_latents) if same[latent]} >= expected
        if expected < set(range(num_latents)):
            first = min(set(range(num_latents)) - expected)
            assert not all(same[first:]), "the others are not all the same"
    assert counts[-1] > 0


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("num_latents", [47, 64])
@pytest.mark.sampled(9)
def test_the_beginning_of_a_long_video_is_the_same(settings: dict[str, Any], num_latents: int) -> None:
    """In plain numbers: what had left the full queue when pushing stopped, less what Stage 2 reaches back."""
    full, drained = make_config(**settings), make_config(**settings, drain=True)
    wide = full.zigzag_width
    num_pushed = -(-num_latents // wide) * wide + wide  # where the drained queue ends
    left = num_pushed - full.queue_length + wide
    same = min(num_latents, left - (full.handoff_level - 1) * (full.window - 1))
    assert same > 0
    paper, swift = video(full, num_latents), video(drained, num_latents)
    assert torch.equal(paper[:same], swift[:same])
    assert set(range(same)) <= untouched(full, num_latents)


@pytest.mark.parametrize("self_reflection", [False, True])
def test_a_video_without_end_never_drains(self_reflection: bool) -> None:
    videos = []
    for drain in (False, True):
        config = make_config(drain=drain, self_reflection=self_reflection, reflection_threshold=-10.0)
        sampler = make_sampler(GaussianDenoiser(config, correlation=0.9), config, None)
        parts: list[torch.Tensor] = []
        for state, finished in sampler.run():
            parts += [] if finished is None else [finished]
            if state.num_finished >= 30:
                break
        videos.append((torch.cat(parts), sampler.num_calls, state.trace))
    assert torch.equal(videos[0][0], videos[1][0])
    assert videos[0][1:] == videos[1][1:]


def test_a_queue_with_nothing_to_save_is_the_same() -> None:
    """A base clip of one group one step above where it leaves: the last push is needed to the end."""
    settings = {"zigzag_width": 6, "num_steps": 5, "handoff_level": 4}
    for num_latents in (1, 6, 7, 20):
        full, drained = make_config(**settings), make_config(**settings, drain=True)
        assert torch.equal(video(full, num_latents), video(drained, num_latents))


def test_swift_is_paper_drained_without_searches() -> None:
    swift, paper = profile_config("swift"), profile_config("paper", drain=True, self_reflection=False)
    assert torch.equal(video(swift, 11), video(paper, 11))


def test_a_drained_queue_is_not_judged() -> None:
    """Evaluations of the drained video are the first ones of the full one, same scores."""
    traces = []
    for drain in (False, True):
        config = profile_config("paper", drain=drain, reflection_threshold=10.0)
        *_, (state, _) = make_sampler(GaussianDenoiser(config, correlation=0.9), config, 21).run()
        traces.append(state.trace)
    full, drained = traces
    num_judged = len(drained.scores)
    assert 3 <= num_judged < len(full.scores)
    assert drained.scores == full.scores[:num_judged]
    assert drained.latents == full.latents[:num_judged]
