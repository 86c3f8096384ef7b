"""The calls of a video, counted without making it, are those it makes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.profiles import resolve_config
from miga.reflection import ReflectionTrace
from tests.miga.closed_form import (
    PROFILES,
    VIDEOCRAFTER2,
    MixingDenoiser,
    make_config,
    make_fifo_config,
    make_sampler,
    profile_config,
    reflects,
)

SPECS = {
    "wan": BackboneSpec("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "0", 21, 16, 60, 104, 480, 832, 16),
    "videocrafter2": BackboneSpec(
        "videocrafter2", "VideoCrafter2", "0", 16, 4, 40, 64, 320, 512, 10, frames_per_latent=1, frames_first_latent=1
    ),
}
DRAINING_ALONE = {"drain": True, "self_reflection": False}
WITHOUT_SEARCHES: list[tuple[str, str, dict[str, Any], int, int]] = [
    ("wan", "paper", {}, 161, 946),
    ("wan", "paper", DRAINING_ALONE, 161, 298),
    ("wan", "swift", {}, 161, 255),
    ("wan", "paper", {}, 1001, 2065),
    ("wan", "paper", DRAINING_ALONE, 1001, 1414),
    ("wan", "swift", {}, 1001, 1056),
    ("videocrafter2", "paper", {}, 128, 1845),
    ("videocrafter2", "paper", DRAINING_ALONE, 128, 1125),
    ("videocrafter2", "swift", {}, 128, 1125),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("family", "profile", "overrides", "num_frames", "expected"), WITHOUT_SEARCHES)
def test_published_settings(
    family: str, profile: str, overrides: dict[str, Any], num_frames: int, expected: int
) -> None:
    """A pass over the full queue of Wan takes `ceil((315 - 17) / 10) + 1 = 31` windows."""
    spec = SPECS[family]
    config = resolve_config(profile, spec, overrides)
    assert count_calls(config, spec.num_latents(num_frames)).total == expected


def test_published_settings_by_part() -> None:
    """Wan, 161 frames: 54 for the base clip; 41 passes fill the queue, 6 groups leave it; 9 passes of 3 windows."""
    paper = count_calls(resolve_config("paper", SPECS["wan"]), 41)
    assert (paper.base_clip, paper.stage1, paper.stage2) == (54, 946 - 54 - 27, 27)
    lengths = [21 + 7 * pushed for pushed in range(1, 42)] + [315] * 6
    assert paper.stage1 == sum(math.ceil((length - 17) / 10) + 1 for length in lengths)
    swift = count_calls(resolve_config("swift", SPECS["wan"]), 41)
    lengths = [28, 35, 42, *[49] * 39, 42, 35, 28, 21, 14]
    assert swift.stage1 == sum(math.ceil((length - 17) / 14) + 1 if length > 21 else 1 for length in lengths)
    assert (swift.base_clip, swift.stage2, swift.per_search) == (54, 27, 0)


CONFIGS = [
    make_config(),
    make_config(num_guidance_latents=0),
    make_config(stride=1, num_guidance_latents=5),
    make_config(stride=6, num_guidance_latents=0),
    make_config(zigzag_width=1, num_steps=9, handoff_level=1),
    make_config(zigzag_width=6, num_steps=5, handoff_level=4),
    make_config(window=5, zigzag_width=5, num_steps=4, handoff_level=2),
    make_config(window=7, zigzag_width=7, num_steps=6, handoff_level=2, stride=2, num_guidance_latents=4),
    make_config(position_0_context=True, num_guidance_latents=0),
    make_config(position_0_context=True, num_guidance_latents=1, stride=5),
    make_config(position_0_context=True, stride=1),
    make_config(drain=True),
    make_config(drain=True, position_0_context=True, stride=2),
    make_config(drain=True, zigzag_width=1, num_steps=9, handoff_level=1),
    make_config(drain=True, zigzag_width=6, num_steps=5, handoff_level=4),
    make_config(drain=True, window=7, zigzag_width=7, num_steps=6, handoff_level=2, stride=2, num_guidance_latents=4),
    make_config(method="unified"),
    make_config(method="unified", position_0_context=True, stride=5),
    make_config(method="unified", num_steps=1, window=2, stride=1),
    make_fifo_config(lookahead=False, num_steps=11, window=5, stride=4),
    make_fifo_config(),
    make_fifo_config(num_steps=6),
    make_fifo_config(num_steps=11, window=5, stride=1),
    make_fifo_config(num_steps=13, window=7, stride=4),
]


@pytest.mark.sampled(9)
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_equals_the_calls_made(config: SamplerConfig) -> None:
    for num_latents in (1, 2, 6, 7, 11, 20, 41):
        num_calls, _ = calls_made(config, num_latents)
        counted = count_calls(config, num_latents)
        assert num_calls == counted.total
        assert counted.per_search == 0


def calls_made(config: SamplerConfig, num_latents: int) -> tuple[int, ReflectionTrace]:
    sampler = make_sampler(MixingDenoiser(config), config, num_latents)
    *_, (state, _) = sampler.run()
    return sampler.num_calls, state.trace


SEARCHES = [
    (profile, searched)
    for profile in PROFILES
    for searched in (("all", "some", "none") if reflects(profile_config(profile)) else ("all",))
]


@pytest.mark.parametrize(("profile", "searched"), SEARCHES)
@pytest.mark.sampled(30)
def test_of_every_profile_searches_included(profile: str, searched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one latent to three full queues; of the evaluations all but the first, some or none start a search."""
    threshold = {"all": -10.0, "some": 0.0, "none": 10.0}[searched]
    config = profile_config(profile, reflection_threshold=threshold)
    chance = random.Random(0)
    monkeypatch.setattr("miga.consistency.consistency_score", lambda *_, **__: chance.random())
    num_searched = 0
    for num_latents in (1, 2, 3, 7, 18, 19, 37, 54):
        num_calls, trace = calls_made(config, num_latents)
        counted = count_calls(config, num_latents)
        num_searches = sum(trace.searched)
        assert num_calls == counted.total + num_searches * counted.per_search
        assert counted.num_evaluations == len(trace.scores)
        if searched == "all":
            assert num_calls == counted.most
        num_searched += num_searches
    assert (num_searched > 0) == (reflects(config) and searched != "none")


REFLECTING = [
    {},
    {"num_guidance_latents": 0},
    {"judged_group": 1, "num_candidates": 4},
    {"judged_group": 6},
    {"judged_group": 5, "num_reflection_guidance_latents": 7, "num_candidates": 1},
    {"zigzag_width": 3, "num_reflection_guidance_latents": 9, "num_guidance_latents": 3},
    {"zigzag_width": 1, "judged_group": 4, "num_steps": 14, "stride": 1},
    {"num_reflection_guidance_latents": 12, "judged_group": 3, "stride": 2},
    {"position_0_context": True, "num_guidance_latents": 0, "judged_group": 5},
    {"position_0_context": True, "stride": 1, "judged_group": 6},
    {"drain": True},
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("settings", REFLECTING)
def test_equals_the_calls_made_searches_included(settings: dict[str, Any]) -> None:
    config = make_config(self_reflection=True, reflection_threshold=-10.0, **settings)  # a search at every evaluation
    num_calls, trace = calls_made(config, 9)
    num_searches = sum(trace.searched)
    counted = count_calls(config, 9)
    assert num_searches == len(trace.scores) - 1 > 0
    assert (counted.per_search == 0) == (config.judged_group == 1), "without a pass there is no call"
    assert num_calls == counted.total + num_searches * counted.per_search


class RecordingDenoiser(MixingDenoiser):
    """Keeps the levels of every call."""

    def __init__(self, config: SamplerConfig) -> None:
        super().__init__(config)
        self.levels: list[list[int]] = []

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        self.levels.append(level_BF.flatten().tolist())
        return super().__call__(x_BFCHW, level_BF, conditions)

    def num_forwards(self, config: SamplerConfig) -> int:
        """As the backbones make them: two in a call that shows a latent of a guided level."""
        guided = range(config.guidance_low_level, config.guidance_high_level + 1) if config.guidance_scale != 1 else ()
        return sum(1 + any(level in guided for level in levels) for levels in self.levels)


RANGES = [(1, 12), (4, 12), (1, 5), (6, 8), (12, 12), (1, 1), (3, 3)]
"""Of guided levels: all, Stage 1's alone, the low ones, in the middle, pure noise, the last step, Stage 2's first."""
GUIDED = [
    {},
    {"drain": True},
    {"drain": True, "position_0_context": True, "stride": 2},
    {"zigzag_width": 6, "handoff_level": 8},
    {"zigzag_width": 1, "num_guidance_latents": 0},
    {"method": "unified"},
    {"method": "unified", "position_0_context": True, "stride": 5},
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("settings", GUIDED)
def test_forwards_are_those_made(settings: dict[str, Any]) -> None:
    check_forwards([make_config(**settings, **guidance(*levels)) for levels in RANGES])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.sampled(16)
def test_forwards_of_every_profile(profile: str) -> None:
    for family in ({}, VIDEOCRAFTER2) if profile == "released" else ({},):
        ranges = [(1, 12), (3, 12), (1, 4), (6, 7)]
        check_forwards([profile_config(profile, **family, **guidance(*levels)) for levels in ranges])


def guidance(low: int, high: int) -> dict[str, Any]:
    return {"guidance_scale": 3.0, "guidance_low_level": low, "guidance_high_level": high}


def check_forwards(configs: Sequence[SamplerConfig]) -> None:
    """Of configs that differ in the guided levels alone: the calls are the same, so one run shows them all."""
    for num_latents in (1, 6, 11, 20, 37):
        denoiser = RecordingDenoiser(configs[0])
        sampler = make_sampler(denoiser, configs[0], num_latents)
        *_, (state, _) = sampler.run()
        num_searches = sum(state.trace.searched)
        for config in configs:
            counted = count_calls(config, num_latents)
            in_searches = num_searches * (counted.per_search + counted.guided_per_search)
            assert denoiser.num_forwards(config) == counted.forwards + in_searches
            assert sampler.num_calls == counted.total + num_searches * counted.per_search
            if num_searches and num_searches == counted.num_evaluations - 1:
                assert denoiser.num_forwards(config) == counted.most_forwards


def test_without_guidance_a_call_is_a_forward() -> None:
    config = make_config(guidance_scale=1.0, guidance_low_level=4)
    counted = count_calls(config, 20)
    assert (counted.forwards, counted.most_forwards) == (counted.total, counted.most)
    check_forwards([config])


def test_forwards_of_the_published_settings() -> None:
    """`swift` guides Stage 1 and the base clip's 45 steps above level 9; its other 36 calls take one forward."""
    counted = count_calls(resolve_config("swift", SPECS["wan"]), 41)
    assert (counted.total, counted.stage2) == (255, 27)
    assert counted.forwards == 2 * 255 - 27 - 9
    paper = count_calls(resolve_config("paper", SPECS["wan"]), 41)
    assert (paper.forwards, paper.most_forwards) == (2 * paper.total, 2 * paper.most)
