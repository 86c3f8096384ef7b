"""Which prompt stands where, and that every call of the network used it."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miga.prompts import PromptTrack
from tests.miga.closed_form import LabelDenoiser, LabelledNoise, make_config, make_fifo_config, make_sampler, sample
from tests.miga.reference import Reference


def test_equation_a3() -> None:
    track = PromptTrack("abc", latents_per_prompt=4)
    assert "".join(track.at(latent) for latent in range(-3, 14)) == "aaaaaaabbbbcccccc"


def test_one_prompt_rules_all() -> None:
    track = PromptTrack(["a"], latents_per_prompt=1)
    assert {track.index(latent) for latent in range(-5, 100)} == {0}


def turns(num_prompts: int, num_latents: int) -> list[int]:
    track = PromptTrack.spread(list(range(num_prompts)), num_latents)
    return [track.at(latent) for latent in range(num_latents)]


@given(num_prompts=st.integers(1, 400), num_latents=st.integers(1, 2000))
@example(num_prompts=10, num_latents=17)
@example(num_prompts=22, num_latents=41)
@example(num_prompts=3, num_latents=40)
def test_shares_are_even_to_a_latent(num_prompts: int, num_latents: int) -> None:
    """In order, none left out; of more prompts than latents each latent has its own."""
    held = turns(num_prompts, num_latents)
    assert held == sorted(held)
    counts = [held.count(prompt) for prompt in range(min(num_prompts, num_latents))]
    assert sum(counts) == num_latents
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 1


@given(num_prompts=st.integers(1, 40), share=st.integers(1, 60))
def test_a_whole_share_is_equation_a3(num_prompts: int, share: int) -> None:
    num_latents = num_prompts * share
    track = PromptTrack(list(range(num_prompts)), share)
    assert turns(num_prompts, num_latents) == [track.at(latent) for latent in range(num_latents)]


@given(num_latents=st.integers(2, 3000))
def test_of_two_prompts_the_first_has_the_odd_latent(num_latents: int) -> None:
    assert turns(2, num_latents).count(0) == math.ceil(num_latents / 2)


def test_the_last_prompt_holds_for_all_that_follow() -> None:
    track = PromptTrack.spread("abc", 40)
    assert {track.at(latent) for latent in range(40, 100)} == {"c"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("num_guidance", [0, 2])
def test_every_call_of_every_stage_stands_under_its_prompt(num_guidance: int) -> None:
    """Base clip, initialisation, Stage 1, candidates and Stage 2, against the method written out."""
    config = make_config(num_guidance_latents=num_guidance, self_reflection=True, reflection_threshold=-10.0)
    ours, reference = LabelDenoiser(config), LabelDenoiser(config)
    prompts = ["a", "b", "c"]
    sample(make_sampler(ours, config, 13, prompts=PromptTrack(prompts, 4), noise=LabelledNoise()))
    Reference(reference, config, LabelledNoise(), prompts, 4, 13).paper()
    assert sorted(ours.calls) == sorted(reference.calls)
    assert {call.condition for call in ours.calls} == set(prompts)
    searches = [call for call in ours.calls if any(call.candidates)]
    assert {call.condition for call in searches} == {"a", "b", "c"}
    stage2 = [call for call in ours.calls if set(call.levels) <= set(range(1, config.handoff_level))]
    stage2 = [call for call in stage2 if len(set(call.levels)) == 1 and call.latents[-1] >= config.window]
    assert stage2
    for call in stage2:
        assert call.condition == prompts[min(call.latents[0] // 4, 2)]


def test_fifo_gives_warm_up_copies_the_first_prompt() -> None:
    config = make_fifo_config()
    ours, reference = LabelDenoiser(config), LabelDenoiser(config)
    sample(make_sampler(ours, config, 9, prompts=PromptTrack("abc", 4), noise=LabelledNoise()))
    Reference(reference, config, LabelledNoise(), "abc", 4, 9).fifo()
    assert ours.calls == reference.calls
