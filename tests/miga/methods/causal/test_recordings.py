"""The presets against what the systems' own programs made of the same weights, noise and prompts.

Legend: F latents, N tokens, H heads, D channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from miga.backbones.wan.causal.cache import KvCache
from miga.backbones.wan.causal.rope import turned
from miga.cached_call import CachedCall
from miga.methods.causal import course as course_module
from miga.methods.causal.course import Causal, Steps
from miga.methods.causal.slots import SlotTable, Window
from tests.miga.methods.causal.recorded import DATA, Played, play, settings

MOST = 1e-5
WRONG = 1e-2

RECORDINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "self_forcing_21": ("self-forcing", {}, {}),
    "self_forcing_local6": ("self-forcing", {"cache_latents": 6}, {}),
    "self_forcing_framewise_i2v": ("self-forcing", {"block": 1}, {"num_given": 1}),
    "longlive_switch17": ("longlive", {}, {"switches": [17]}),
    "longlive_switch6_early": ("longlive", {}, {"switches": [6]}),
    "longlive_relative_rope": ("longlive-infinity", {}, {}),
    "infinity_rope_single": ("infinity-rope", {}, {}),
    "infinity_rope_flush_cut": ("infinity-rope", {}, {"switches": [9, 18], "actions": {2: "flush-cut"}}),
    "reward_forcing_window9_sink3": ("reward-forcing", {}, {}),
    "rolling_forcing_36": ("rolling-forcing", {}, {}),
}
CALLS = {"self_forcing_21": 35, "longlive_switch17": 46, "rolling_forcing_36": 32, "self_forcing_framewise_i2v": 31}
"""Network calls that the programs took."""


def played(name: str, **changes: Any) -> Played:
    profile, settings_of, how = RECORDINGS[name]
    return play(name, settings(profile, **{**settings_of, **changes}), **how)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", RECORDINGS)
def test_what_came_out_then_comes_out_here(name: str) -> None:
    found = played(name)
    assert found.error <= MOST
    assert len(found.spy.predicted) == CALLS.get(name, len(found.spy.predicted))


WRONG_ON_PURPOSE: dict[str, tuple[str, dict[str, Any]]] = {
    "no window": ("self_forcing_local6", {"cache_latents": 21}),
    "the sink under the new prompt": ("longlive_switch17", {"recache_sink": True}),
    "no re-cache": ("longlive_switch17", {"on_switch": "text"}),
    "no sink": ("longlive_switch17", {"sink_latents": 0}),
    "absolute positions": ("longlive_relative_rope", {"positions": "absolute"}),
    "another shift": ("self_forcing_21", {"flow_shift": 8.0}),
    "other heads' bases": ("self_forcing_21", {"rope_jitter": 0.8}),
    "half of the sink forgotten": ("reward_forcing_window9_sink3", {"ema_alpha": 0.5}),
    "a narrow view": ("rolling_forcing_36", {"attention_latents": 18}),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("how", WRONG_ON_PURPOSE)
def test_what_is_done_otherwise_misses(how: str) -> None:
    name, changes = WRONG_ON_PURPOSE[how]
    assert played(name, **changes).error > WRONG


def test_a_cut_that_is_no_cut_misses_and_so_does_the_old_prompt() -> None:
    name = "infinity_rope_flush_cut"
    assert play(name, settings("infinity-rope"), switches=[9, 18]).error > WRONG
    assert play(name, settings("infinity-rope")).error > WRONG


@pytest.mark.slow
def test_a_flush_of_a_full_window_of_six_is_what_the_window_does_anyway() -> None:
    """Latent 0 and the last two are all that it keeps for the next block of three."""
    name, how = "infinity_rope_flush_cut", {"switches": [9], "actions": {1: "text"}}
    without = play(name, settings("infinity-rope"), **how).output
    assert torch.equal(without, play(name, settings("infinity-rope"), switches=[9]).output)


@pytest.mark.slow
def test_time_steps_rounded_to_whole_numbers_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(timesteps: Sequence[int], flow_shift: float) -> Steps:
        steps = warped(timesteps, flow_shift)
        return Steps(tuple(float(int(each)) for each in steps.timesteps), steps.sigmas)

    warped = Steps.of
    monkeypatch.setattr(Steps, "of", rounded)
    assert played("self_forcing_21").error > WRONG


def test_an_ema_of_999_differs_from_none_by_little() -> None:
    """So little that only the recordings themselves tell."""
    error = played("reward_forcing_window9_sink3", eviction="window").error
    assert 1e-3 < error < 1e-2


def test_step_lists_are_the_programs_own() -> None:
    recorded: Mapping[str, Any] = json.loads((DATA / "schedules.json").read_text())
    for each in recorded.values():
        if each["warped"]:
            steps = Steps.of(each["list"], each["shift"])
            assert list(reversed(steps.timesteps[1:])) == each["timesteps"]
            assert list(reversed(steps.sigmas[1:])) == each["sigmas"]
        else:
            steps = Steps.as_given(each["list"], each["shift"])
            assert list(reversed(steps.timesteps[1:])) == each["timesteps"]
            assert list(reversed(steps.sigmas[1:])) == each["sigmas"]


# ---- what the caches hold ----

SNAPSHOTS = {
    "self_forcing_local6": ("after_clean_8", "absolute"),
    "longlive_relative_rope": ("after_clean_8", None),
    "reward_forcing_window9_sink3": ("after_clean_8", None),
    "infinity_rope_single": ("after_clean_7", "first"),
    "infinity_rope_flush_cut": ("after_clean_9", "first"),
}
"""Recordings with a snapshot of layer 1 at their end, and which of its keys were kept with positions there."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_cache_holds_what_theirs_held(name: str) -> None:
    snapshot, roped = SNAPSHOTS[name]
    found = played(name)
    table, cache = found.course.memory.table, found.spy.cache
    compare(found.arrays, f"{snapshot}_layer1", table, cache, roped)


def test_a_recache_leaves_what_theirs_left(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    recache = Causal._recache

    def watched(self: Causal, memory: Any, first: int) -> None:
        recache(self, memory, first)
        arrays = self.stepper.noise.arrays  # type: ignore[attr-defined]
        compare(arrays, "after_recache_at_18_layer1", memory.table, memory.cache, "absolute")
        compared.append(first)

    monkeypatch.setattr(course_module.Causal, "_recache", watched)
    played("longlive_switch17")
    assert compared == [18]


def compare(arrays: Mapping[str, torch.Tensor], name: str, table: SlotTable, cache: KvCache, roped: str | None) -> None:
    """Keys and values of layer 1, in the order in which they are read."""
    key, value, _ = cache.read(1, table.slots)
    if roped == "absolute":
        key = turned(key, cache.rope.turns(1, torch.tensor(table.latents, dtype=torch.float64)))
    elif roped == "first":
        zero = torch.tensor([float(latent if latent == 0 else 0) for latent in table.latents], dtype=torch.float64)
        first = turned(key, cache.rope.turns(1, zero))[:, : cache.tokens]
        key = torch.cat([first, key[:, cache.tokens :]], dim=1)
    assert key.shape == arrays[f"{name}_k"].shape
    torch.testing.assert_close(key, arrays[f"{name}_k"], atol=MOST, rtol=0)
    torch.testing.assert_close(value, arrays[f"{name}_v"], atol=MOST, rtol=0)


def test_policies_can_be_passed_in() -> None:
    """A recording whose window comes from outside of the settings."""

    class Watched(Window):
        def make_room(self, table: SlotTable, count: int, blend: Any) -> None:
            seen.append((len(table), count))
            return super().make_room(table, count, blend)

    seen: list[tuple[int, int]] = []
    found = play("self_forcing_local6", settings("self-forcing", cache_latents=6), policy=Watched(6, 0))
    assert found.error <= MOST
    assert seen == [(0, 3), (3, 3), *[(6, 3)] * 6]


def test_a_call_says_something_of_every_latent() -> None:
    with pytest.raises(AssertionError):
        CachedCall(None, (0.0,), (0.0,), (0.0,), writes=())
