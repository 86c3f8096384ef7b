"""Stage 2 as a stream inside every profile that has one: bit for bit the passes over the whole video, whatever its
length, and in memory that does not grow with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miga.base_clip import advance_base_clip, start_base_clip
from miga.config import SamplerConfig
from miga.generate import Sampler, VideoState
from miga.methods.miga.two_stage import TwoStageState
from miga.methods.released.released import ReleasedState
from miga.methods.unified.unified_only import UnifiedOnlyState
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.windows import plan_pass
from tests.miga.closed_form import (
    PROFILES,
    VIDEOCRAFTER2,
    MixingDenoiser,
    make_sampler,
    profile_config,
    sample,
    sample_with_state,
)

SHORT = {"num_steps": 8, "window": 4, "zigzag_width": 2, "handoff_level": 3, "num_reflection_guidance_latents": 2}
LENGTHS = [1, 2, 3, 4, 5, 6, 8, 9, 12, 13, 24, 37]
"""Up to three queues of `(8 - 3 + 1) * 2` latents."""
STREAMED = [name for name, profile in PROFILES.items() if profile.settings["method"] in ("miga", "unified")]


def small(profile: str, **settings: Any) -> SamplerConfig:
    own = PROFILES[profile].settings
    return profile_config(profile, **{name: value for name, value in SHORT.items() if name not in own} | settings)


def new_sampler(config: SamplerConfig, num_latents: int | None) -> Sampler:
    return make_sampler(MixingDenoiser(config), config, num_latents, prompts=PromptTrack([0.5, -1.0, 0.2], 3))


def handed_over(sampler: Sampler, num_latents: int) -> FrameQueue:
    """What Stage 1 gives Stage 2 (Alg. 5), all of it, or the noise of Alg. 8."""
    config, stepper = sampler.config, sampler.stepper
    if config.method == "unified":
        return stepper.noise_queue(0, num_latents, config.num_steps, "push")
    clip = start_base_clip(config, stepper)
    for _ in range(config.num_steps):
        clip = advance_base_clip(clip, config, stepper)
    queue, trace, popped = sampler.method.zigzag.start(clip.x_FCHW), ReflectionTrace(), None
    while popped is None or len(popped) < num_latents:
        group, queue, trace = sampler.method.zigzag.advance(queue, trace)
        popped = group if popped is None or group is None else popped.append(group)
    return popped[:num_latents]


def alive(state: VideoState) -> int:
    """Latents held by Stage 2."""
    method = state.method
    return method.unified.num_alive if isinstance(method, TwoStageState | ReleasedState | UnifiedOnlyState) else 0


CASES = [(name, False) for name in STREAMED] + [(name, True) for name in ("swift", "no-guidance", "stage-2-only")]


@pytest.mark.parametrize(("profile", "lead"), CASES)
@pytest.mark.sampled(18)
def test_equals_passes_over_the_whole_video(profile: str, lead: bool) -> None:
    config = small(profile, position_0_context=lead)
    longest = handed_over(new_sampler(config, LENGTHS[-1]), LENGTHS[-1])
    for num_latents in LENGTHS:
        sampler = new_sampler(config, num_latents)
        queue = handed_over(sampler, num_latents) if getattr(config, "drain", False) else longest[:num_latents]
        while int(queue.level_F[0]) > 0:
            plan = plan_pass(num_latents, config.window, config.stride, lead=config.lead)
            queue = sampler.stepper.pass_over(queue, plan)
        video, state = sample_with_state(new_sampler(config, num_latents))
        assert torch.equal(video, queue.x_FCHW)
        assert alive(state) == 0, "nothing is handed over that the video has no use for"


ENDLESS: list[tuple[str, dict[str, Any], int]] = [
    ("swift", {}, 2),
    ("paper", {"reflection_threshold": 10.0}, 2),
    ("no-zigzag-no-guidance-no-reflection", {"position_0_context": True}, 2),
    ("stage-2-only", {}, 8),
    ("stage-2-only", {"stride": 1, "position_0_context": True}, 8),
    ("released", {"judged_group": 1}, 6),
    ("released", {"judged_group": 1, "handoff_level": 2, **VIDEOCRAFTER2}, 3),
]


@pytest.mark.parametrize(("profile", "settings", "num_passes"), ENDLESS)
@pytest.mark.sampled(9)
def test_an_endless_video_holds_a_bounded_number_of_latents(
    profile: str, settings: dict[str, Any], num_passes: int
) -> None:
    """At most `P * (f0 - 1)`, however far it has come."""
    config = small(profile, windows_per_batch=100, **settings)
    sampler = make_sampler(MixingDenoiser(config), config, None)
    state, most = sampler.start(), 0
    while state.num_finished < 240:
        state, _ = sampler.advance(state)
        most = max(most, alive(state))
    assert 0 < most <= num_passes * (config.window - 1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("profile", STREAMED)
def test_an_endless_video_begins_like_one_with_an_end(profile: str) -> None:
    """As far as no window has seen the end: it reaches a window back per pass of Stage 2, and where the queue drains,
    whatever had not left Stage 1 by then."""
    config = small(profile)
    num_passes = config.num_steps if config.method == "unified" else config.handoff_level - 1
    reach = num_passes * (config.window - 1) + 1 + (config.queue_length if getattr(config, "drain", False) else 0)
    endless: list[torch.Tensor] = []
    for state, finished in new_sampler(config, None).run():
        endless += [] if finished is None else [finished]
        if state.num_finished >= 15:
            break
    whole = sample(new_sampler(config, 15 + reach))
    assert torch.equal(torch.cat(endless)[:15], whole[:15])
