"""Which prompt stands where, and that every call of the network used it."""

from __future__ import annotations

import pytest

from miga.prompts import PromptTrack
from tests.miga.closed_form import LabelDenoiser, LabelledNoise, make_config, make_fifo_config, make_sampler, sample
from tests.miga.reference import Reference


def test_equation_a3() -> None:
    track = PromptTrack("abc", latents_per_prompt=4)
    assert "".join(track.at(latent) for latent in range(-3, 14)) == "aaaaaaabbbbcccccc"


def test_one_prompt_rules_all() -> None:
    track = PromptTrack(["a"], latents_per_prompt=1)
    assert {track.index(latent) for latent in range(-5, 100)} == {0}


@pytest.mark.parametrize("num_prompts", range(1, 8))
@pytest.mark.parametrize("num_latents", [1, 2, 5, 6, 7, 12, 13, 41, 251])
def test_an_even_share_leaves_no_prompt_out(num_latents: int, num_prompts: int) -> None:
    track = PromptTrack.spread(list(range(num_prompts)), num_latents)
    turns = [track.at(latent) for latent in range(num_latents)]
    assert turns == sorted(turns)
    assert set(turns) == set(range(min(num_prompts, num_latents)))
    if num_latents % num_prompts == 0:
        assert {turns.count(prompt) for prompt in set(turns)} == {num_latents // num_prompts}


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
