"""The calls of a video, counted without making it, are those it makes."""

from __future__ import annotations

from typing import Any

import pytest

from miga.config import SamplerConfig
from miga.cost import count_calls
from tests.miga.closed_form import GaussianDenoiser, make_config, make_fifo_config, make_sampler

WAN = {"num_steps": 54, "zigzag_width": 7, "window": 21, "handoff_level": 10, "num_guidance_latents": 4}
VIDEOCRAFTER2 = {"num_steps": 64, "zigzag_width": 4, "window": 16, "handoff_level": 10, "num_guidance_latents": 6}


@pytest.mark.parametrize(
    ("settings", "num_latents", "expected"), [(WAN, 41, 946), (WAN, 251, 2065), (VIDEOCRAFTER2, 128, 1845)]
)
def test_published_settings(settings: dict[str, Any], num_latents: int, expected: int) -> None:
    assert count_calls(make_config(**settings), num_latents).total == expected


CONFIGS = [
    make_config(),
    make_config(num_guidance_latents=0),
    make_config(stride=1, num_guidance_latents=5),
    make_config(stride=6, num_guidance_latents=0),
    make_config(zigzag_width=1, num_steps=9, handoff_level=1),
    make_config(zigzag_width=6, num_steps=5, handoff_level=4),
    make_config(window=5, zigzag_width=5, num_steps=4, handoff_level=2),
    make_config(window=7, zigzag_width=7, num_steps=6, handoff_level=2, stride=2, num_guidance_latents=4),
    make_fifo_config(),
    make_fifo_config(num_steps=6),
    make_fifo_config(num_steps=11, window=5, stride=1),
    make_fifo_config(num_steps=13, window=7, stride=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("num_latents", [1, 2, 6, 7, 11, 20])
def test_equals_the_calls_made(config: SamplerConfig, num_latents: int) -> None:
    sampler = make_sampler(GaussianDenoiser(config), config, num_latents)
    for _ in sampler.run():
        pass
    counted = count_calls(config, num_latents)
    assert sampler.num_calls == counted.total
    assert counted.per_search == 0


REFLECTING = [
    {},
    {"num_guidance_latents": 0},
    {"judged_group": 1, "num_candidates": 4},
    {"judged_group": 6},
    {"judged_group": 5, "num_reflection_guidance_latents": 7, "num_candidates": 1},
    {"zigzag_width": 3, "num_reflection_guidance_latents": 9, "num_guidance_latents": 3},
    {"zigzag_width": 1, "judged_group": 4, "num_steps": 14, "stride": 1},
    {"num_reflection_guidance_latents": 12, "judged_group": 3, "stride": 2},
]


@pytest.mark.parametrize("settings", REFLECTING)
def test_equals_the_calls_made_searches_included(settings: dict[str, Any]) -> None:
    config = make_config(self_reflection=True, reflection_threshold=-10.0, **settings)  # a search at every evaluation
    sampler = make_sampler(GaussianDenoiser(config), config, 9)
    *_, (state, _) = sampler.run()
    num_searches = sum(state.trace.searched)
    counted = count_calls(config, 9)
    assert num_searches == len(state.trace.scores) - 1 > 0
    assert (counted.per_search == 0) == (config.judged_group == 1), "without a pass there is no call"
    assert sampler.num_calls == counted.total + num_searches * counted.per_search


def test_by_part() -> None:
    counted = count_calls(make_config(**WAN), 41)
    assert (counted.base_clip, counted.per_search) == (54, 0)
    assert counted.stage2 == 9 * 3
    assert counted.stage1 == 946 - 54 - 27
