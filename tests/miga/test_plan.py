"""The plan of a video is what the sampler does, call by call; and what repeats itself is multiplied rightly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from miga.config import SamplerConfig
from miga.cost import count_calls, most_latents_held
from miga.denoise_pass import WindowCall, run_in_batches
from miga.plan import PlannedAdvance, Planner, num_alive, plan_video
from miga.profiles import resolve_config
from tests.miga.closed_form import (
    PROFILES,
    VIDEOCRAFTER2,
    MixingDenoiser,
    make_config,
    make_sampler,
    profile_config,
    reflects,
)
from tests.miga.test_cost import SPECS

CASES: list[tuple[str, dict[str, Any]]] = [
    *((profile, {}) for profile in PROFILES),
    ("released", VIDEOCRAFTER2),
    ("paper", {"drain": True, "position_0_context": True, "stride": 2}),
    ("stage-2-only", {"position_0_context": True, "stride": 4}),
]
UNSEARCHED = {"reflection_threshold": 100.0}


def calls_of(planned: PlannedAdvance) -> list[tuple[int, ...]]:
    """Levels that each call of an advance shows."""
    return [
        tuple(each.levels[position] for position in window.positions)
        for each in planned.passes
        for window in each.windows
    ]


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("profile", "settings"), CASES)
def test_call_by_call(profile: str, settings: dict[str, Any]) -> None:
    """Advance by advance: the levels that every window shows, in order, and the latents that leave."""
    config = profile_config(profile, **UNSEARCHED | settings)
    denoiser = MixingDenoiser(config)
    shown: list[tuple[int, ...]] = []

    def record(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        shown.extend(tuple(call.level_F.tolist()) for call in calls)
        return run_in_batches(denoiser)(calls)

    for num_latents in (1, 6, 11, 25):
        sampler = make_sampler(denoiser, config, num_latents, run_windows=record)
        state, judged = sampler.start(), []
        for planned in plan_video(config, num_latents):
            shown.clear()
            before = state.num_finished
            state, _ = sampler.advance(state)
            assert calls_of(planned) == shown
            assert list(planned.finished) == list(range(before, state.num_finished))
            judged += [evaluation.judged[0] for evaluation in planned.evaluations]
        assert sampler.is_done(state)
        assert tuple(judged) == state.trace.latents


@pytest.mark.sampled(3)
@pytest.mark.parametrize("profile", [name for name in PROFILES if reflects(profile_config(name))])
def test_searches_call_by_call(profile: str) -> None:
    """Every candidate shows what the plan of one says, after the evaluation that starts the search."""
    config = profile_config(profile, reflection_threshold=-1000.0)
    denoiser = MixingDenoiser(config)
    shown: Counter[tuple[int, ...]] = Counter()

    def record(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        shown.update(tuple(call.level_F.tolist()) for call in calls)
        return run_in_batches(denoiser)(calls)

    sampler = make_sampler(denoiser, config, 20, run_windows=record)
    state, num_searches = sampler.start(), 0
    for planned in plan_video(config, 20):
        shown.clear()
        may_search = bool(state.trace.scores)
        state, _ = sampler.advance(state)
        expected = Counter(calls_of(planned))
        for evaluation in planned.evaluations if may_search else ():
            num_searches += 1
            grown = PlannedAdvance(evaluation.search, (), range(0))
            expected.update(calls_of(grown) * evaluation.num_candidates)
        assert shown == expected
    assert num_searches == sum(state.trace.searched) > 0


def counted_straight(config: SamplerConfig, num_latents: int) -> tuple[Counter[str], int, int]:
    """Calls by part, guided ones and evaluations, by following the whole plan."""
    by_part: Counter[str] = Counter()
    num_guided = num_evaluations = 0
    guided = range(config.guidance_low_level, config.guidance_high_level + 1)
    for planned in plan_video(config, num_latents):
        for each in planned.passes:
            by_part[each.part] += len(each.windows)
        num_guided += sum(any(level in guided for level in levels) for levels in calls_of(planned))
        num_evaluations += len(planned.evaluations)
    return by_part, num_guided, num_evaluations


@pytest.mark.sampled(16)
@pytest.mark.parametrize(("profile", "settings"), CASES)
def test_multiplied_is_as_good_as_followed(profile: str, settings: dict[str, Any]) -> None:
    """Asked for in any order, some of them far beyond the period."""
    config = profile_config(profile, guidance_scale=3.0, guidance_low_level=3, guidance_high_level=7, **settings)
    chance = random.Random(profile)
    for num_latents in [*chance.sample(range(1, 60), 6), chance.randrange(150, 250), chance.randrange(300, 400)]:
        counted = count_calls(config, num_latents)
        expected = counted_straight(config, num_latents)
        assert (Counter(counted.by_part), counted.num_guided, counted.num_evaluations) == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize(
    "profile", ["swift", "paper", "released", "fifo", "fifo-literal", "scalingnoise", "stage-2-only"]
)
def test_a_long_video_is_not_followed(profile: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are ten thousand lengths, in any order."""
    advanced = 0
    advance = Planner.advance

    def counting(self: Planner, state: Any) -> Any:
        nonlocal advanced
        advanced += 1
        return advance(self, state)

    monkeypatch.setattr(Planner, "advance", counting)
    config = resolve_config(profile, SPECS[family], {"guidance_scale": 3.5})  # counted by no other test
    assert count_calls(config, 2**31 - 3).total > 2**31 - 3 > 10**5 * advanced
    lengths = list(range(1, 10_001))
    random.Random(0).shuffle(lengths)
    totals = {length: count_calls(config, length).total for length in lengths}
    assert advanced < 25_000, "a few seconds at most"
    assert sorted(totals.values()) == [totals[length] for length in range(1, 10_001)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("profile", ["swift", "paper", "released", "fifo", "scalingnoise", "stage-2-only"])
def test_no_state_holds_more_than_is_planned_for(profile: str) -> None:
    config = profile_config(profile, **UNSEARCHED)
    most = most_latents_held(config)
    for num_latents in (5, 40, 90):
        sampler = make_sampler(MixingDenoiser(config), config, num_latents)
        assert max(num_alive(state) for state, _ in sampler.run()) <= most
    assert most <= 200


def test_a_full_queue_and_all_that_waits_behind_it() -> None:
    """Of Wan at the published settings: 45 levels of 7, and at most 20 latents before each of Stage 2's 9 passes."""
    assert most_latents_held(resolve_config("paper", SPECS["wan"])) == 45 * 7 + 9 * 20


def test_the_plan_of_a_first_window() -> None:
    config = make_config(num_steps=6, handoff_level=2)
    first, *_ = plan_video(config, 4)
    (planned,) = first.passes
    assert (planned.part, planned.first, planned.levels) == ("base clip", 0, (6,) * 6)
    assert [window.positions for window in planned.windows] == [[0, 1, 2, 3, 4, 5]]
