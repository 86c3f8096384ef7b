"""Methods that put a whole video into one window: their identities, their noise and frequencies as recorded.

The attention that stands in for a network's own is tested beside the networks.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from miga.base_clip import advance_base_clip, base_clip_stepper, start_base_clip
from miga.config import SamplerConfig
from miga.cost import count_calls, most_latents_held
from miga.errors import ConfigError
from miga.extended import ExtendedState
from miga.generate import VideoState
from miga.methods.riflex.frequency import LoweredFrequency, component_of, lowered
from miga.noise import NamedNoise
from miga.noise_arrangement import MeanSharedNoise, ShuffledNoise, base_latents
from miga.plan import plan_video
from miga.prompts import PromptTrack
from miga.schedule import NoiseSchedule, ddim_signal_scale
from tests.miga.closed_form import SHAPE, MixingDenoiser, make_config, make_sampler, make_schedule, sample

FIXTURES = Path(__file__).parents[2] / "fixtures"
RECORDED = load_file(FIXTURES / "extended_methods.safetensors")
RECORD = json.loads((FIXTURES / "extended_methods.json").read_text())
METHODS = ("direct", "freenoise", "freelong", "freepca", "riflex")
WINDOW = 6


class AnyLength(MixingDenoiser):
    """A network that takes any number of latents, and whatever a method gives it beside: it does nothing with that."""

    def __init__(self, config: SamplerConfig, schedule: NoiseSchedule | None = None) -> None:
        super().__init__(replace(config, window=64))
        self.schedule = schedule or self.schedule
        self.frame_attention, self.time_rotation = config.frame_attention, config.time_rotation


def small_config(method: str, **settings: Any) -> Any:
    own = {"stride": 2} if method.startswith("free") else {}
    own |= {"repetition_latents": 9} if method == "riflex" else {}
    return make_config(**{"method": method, "profile": method, "num_steps": 5, "window": WINDOW, **own, **settings})


class ReadNoise:
    """A NoiseSource that hands out recorded frames."""

    def __init__(self, frames_FCHW: torch.Tensor) -> None:
        self.frames_FCHW = frames_FCHW

    def __call__(self, purpose: str, latents: Any, candidate: int = 0) -> torch.Tensor:
        return self.frames_FCHW[list(latents)]


# ---- the noise a video begins with ----


@pytest.mark.parametrize("num_frames", [64, 128, 512])
def test_freenoise_copies_the_frames_that_its_program_copies(num_frames: int) -> None:
    name = "noise.source_frames" + ("" if num_frames == 64 else f"_{num_frames}")
    sources = RECORDED[name].tolist()
    found = base_latents(num_frames, 16, sources)
    assert found[:16] == list(range(16))
    assert all(base // 4 == (frame // 4) % 4 for frame, base in enumerate(found))
    if num_frames == 64:
        assert found == RECORDED["noise.base_frame_of"].tolist()
    with pytest.raises(ValueError, match=f"of a video of {num_frames + 1}"):
        base_latents(num_frames + 1, 16, sources)


@pytest.mark.parametrize("method", ["freenoise", "freelong"])
def test_shuffled_noise_is_the_recorded_one_bit_for_bit(method: str) -> None:
    sources = RECORDED["noise.source_frames"].tolist()
    noise = ShuffledNoise(ReadNoise(RECORDED["freenoise.base"]), 16, 4, sources)
    assert torch.equal(noise("base", range(64)), RECORDED[f"{method}.initial"])
    assert torch.equal(noise("base", [40, 3, 17]), RECORDED[f"{method}.initial"][[40, 3, 17]])
    assert torch.equal(noise("step@3", range(64)), RECORDED["freenoise.base"]), "steps are left alone"
    assert not torch.equal(RECORDED["freenoise.base"], RECORDED["freenoise.initial"])


def test_noise_with_a_common_mean_is_the_recorded_one() -> None:
    noise = MeanSharedNoise(ReadNoise(RECORDED["freepca.base"]), 16)
    wanted = RECORDED["freepca.initial"]
    assert (noise("base", range(64)) - wanted).abs().max() < 1e-6
    assert (RECORDED["freepca.base"] - wanted).abs().max() > 0.1
    assert torch.equal(noise("base/step@3", range(64)), RECORDED["freepca.base"])


@pytest.mark.parametrize("make", [lambda noise: ShuffledNoise(noise, 6, 2), lambda noise: MeanSharedNoise(noise, 6)])
def test_a_latents_noise_is_the_same_in_a_video_of_any_length_and_under_any_seed_another(make: Any) -> None:
    whole = make(NamedNoise(1, SHAPE))("base", range(40))
    for few in ([39], [7, 6], range(11), [0]):
        assert torch.equal(make(NamedNoise(1, SHAPE))("base", list(few)), whole[list(few)])
    assert torch.equal(whole[:6], NamedNoise(1, SHAPE)("base", range(6)))
    assert not torch.equal(make(NamedNoise(2, SHAPE))("base", range(40)), whole)
    assert abs(float(whole.std()) - 1.0) < 0.15, "as large as noise, the cut last window too"


def test_the_seed_decides_the_order_and_every_stride_has_its_own() -> None:
    orders = set()
    for seed in range(3):
        noise = ShuffledNoise(NamedNoise(seed, SHAPE), 16, 4)
        base = noise("base", range(16))
        found = [next(b for b in range(16) if torch.equal(frame, base[b])) for frame in noise("base", range(96))]
        assert all(sorted(found[i : i + 4]) == [*range(i % 16, i % 16 + 4)] for i in range(0, 96, 4))
        orders.add(tuple(found))
    assert len(orders) == 3
    assert len({tuple(b % 4 for b in found[i : i + 4]) for i in range(16, 96, 4)}) > 5


# ---- the course ----


@pytest.mark.parametrize("solver", ["unipc", "ddim"])
def test_direct_of_a_clips_length_is_the_base_clip_bit_for_bit(solver: str) -> None:
    config = small_config("direct", solver=solver, eta=1.0 if solver == "ddim" else 0.0)
    schedule = make_schedule(config)
    if solver == "ddim":
        schedule = replace(schedule, base_clip_scale=ddim_signal_scale(schedule))
    sampler = make_sampler(AnyLength(config, schedule), config, WINDOW)
    video = sample(sampler)
    stepper = base_clip_stepper(sampler.stepper, config.eta)
    clip = start_base_clip(config, stepper)
    for _ in range(config.num_steps):
        clip = advance_base_clip(clip, config, stepper)
    assert torch.equal(video, clip.x_FCHW)
    longer = sample(make_sampler(AnyLength(config, schedule), config, WINDOW + 1))
    assert not torch.equal(longer[:WINDOW], video)


@pytest.mark.parametrize("method", METHODS)
def test_one_call_a_step_over_all_latents_and_all_leave_at_the_end(method: str) -> None:
    config = small_config(method)
    sampler = make_sampler(AnyLength(config), config, 13)
    steps = list(sampler.run())
    assert [None if finished is None else len(finished) for _, finished in steps] == [None] * 4 + [13]
    assert sampler.num_calls == count_calls(config, 13).total == count_calls(config, 10**6).total == config.num_steps
    assert most_latents_held(config, 13) == 13
    assert not any(sampler.is_open(state) for state, _ in steps), "no longer video is ever in the same state"
    planned = [window for advance in plan_video(config, 13) for each in advance.passes for window in each.windows]
    assert [(window.start, window.stop, window.keep_start, window.keep_stop) for window in planned] == [
        (0, 13, 0, 13)
    ] * 5


@pytest.mark.parametrize(("method", "solver"), [*((m, "unipc") for m in METHODS), ("freelong", "ddim")])
def test_resumed_after_any_step_it_is_the_same_video(method: str, solver: str) -> None:
    config = small_config(method, solver=solver, eta=float(solver == "ddim"))
    whole = sample(make_sampler(AnyLength(config), config, 11))
    states = [make_sampler(AnyLength(config), config, 11).start()]
    states += [state for state, _ in make_sampler(AnyLength(config), config, 11).run()][:-1]
    for state in states:
        again = make_sampler(AnyLength(config), config, 11)
        assert isinstance(state.method, ExtendedState)
        kept = VideoState(method=replace(state.method, queue=state.method.queue.compact()))
        assert torch.equal(torch.cat([done for _, done in again.run(kept) if done is not None]), whole)


def test_methods_differ_in_their_noise_alone_where_the_network_does_nothing() -> None:
    videos = {
        method: sample(make_sampler(AnyLength(small_config(method)), small_config(method), 15)) for method in METHODS
    }
    assert torch.equal(videos["direct"], videos["riflex"])
    assert torch.equal(videos["freenoise"], videos["freelong"])
    assert not torch.equal(videos["direct"], videos["freenoise"])
    assert not torch.equal(videos["direct"], videos["freepca"])


# ---- what cannot be ----


@pytest.mark.parametrize("method", METHODS)
def test_there_is_no_video_without_end(method: str) -> None:
    config = small_config(method)
    for refused in (
        lambda: make_sampler(AnyLength(config), config, None),
        lambda: most_latents_held(config),
        lambda: config.latents_per_call(None),
    ):
        with pytest.raises(ConfigError, match="makes no video without end") as caught:
            refused()
        assert "num_frames" in caught.value.hint


@pytest.mark.parametrize("method", ["direct", "freelong", "freepca", "riflex"])
def test_several_prompts_are_refused_where_a_window_takes_one(method: str) -> None:
    config = small_config(method)
    with pytest.raises(ConfigError, match="under one prompt, and there are 2"):
        make_sampler(AnyLength(config), config, 9, prompts=PromptTrack([0.1, 0.2]))


def test_a_network_that_takes_no_strategy_is_refused() -> None:
    for method, what in (("freenoise", "attention"), ("riflex", "rotary frequencies")):
        config = small_config(method)
        plain = AnyLength(small_config("direct"))
        with pytest.raises(ConfigError, match=what):
            make_sampler(plain, config, 9)


# ---- RIFLEx ----

WAN_K = 1.0 / 10_000.0 ** (torch.arange(0, 44, 2, dtype=torch.float64) / 44)


def test_riflex_lowers_the_recorded_frequency() -> None:
    assert (WAN_K - RECORDED["riflex.wan.freqs"]).abs().max() < 1e-7
    names = [name for name in RECORDED if name.startswith("riflex.wan.freqs_k")]
    assert len(names) == 20
    for name in names:
        component, length = (int(part) for part in name.removeprefix("riflex.wan.freqs_k").split("_L"))
        found = lowered(WAN_K, component, length)
        assert (found - RECORDED[name]).abs().max() < 1e-7
        assert int((found != WAN_K).sum()) == 1
    other = 1.0 / 256.0 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    assert (lowered(other, 4, 66) - RECORDED["riflex.hunyuan.freqs_k4_L66"]).abs().max() < 1e-7


def test_the_component_is_the_one_that_the_authors_choose() -> None:
    for repetition, (component, _) in RECORD["identify_k"]["wan b=10000 d=44"].items():
        assert component_of(WAN_K, int(repetition)) == component
    hunyuan, cogvideox = (
        1.0 / base ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16) for base in (256.0, 10_000.0)
    )
    assert component_of(hunyuan, 48) == 4
    assert component_of(cogvideox, 20) == 2
    assert component_of(hunyuan, 33 * 3 // 2) == 4, "one and a half of their clips leads to the same"
    assert component_of(cogvideox, 13 * 3 // 2) == 2
    assert component_of(WAN_K, 21 * 3 // 2) == 5, "not the community's 6"


def test_riflex_acts_only_beyond_the_period_of_its_component() -> None:
    rotation = LoweredFrequency(0, 31)  # k = 5, whose period is 33.5 latents
    for length in (1, 21, 34):
        assert rotation(WAN_K, length) is WAN_K
    for component, first in ((4, 23), (5, 35), (6, 52)):
        rotation = LoweredFrequency(component, 31)
        assert rotation(WAN_K, first - 1) is WAN_K
        longer = rotation(WAN_K, first)
        assert float(longer[component - 1]) == pytest.approx(0.9 * 2 * math.pi / first)
        assert float(longer[component - 1]) < float(WAN_K[component - 1]), "lower, never higher"
    with pytest.raises(ValueError, match="has 22 components"):
        LoweredFrequency(23, 31)(WAN_K, 100)
