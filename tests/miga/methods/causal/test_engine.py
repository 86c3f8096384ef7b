"""What holds for every preset: memory, resume, batches, plans, and attention itself against a plain reimplementation.

Legend: B videos, F latents, T tokens of a latent, N tokens, H heads, D channels, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from miga.backbones.registry import load_backbone
from miga.backbones.wan.causal import network
from miga.backbones.wan.causal.cache import cache_bytes
from miga.backbones.wan.causal.network import CausalWan
from miga.backbones.wan.causal.rope import axis_channels, frequencies
from miga.backbones.wan.random_model import plain_twin
from miga.cached_call import CachedCall
from miga.checkpoint import load_checkpoints, load_state, save_checkpoint, save_state
from miga.cost import count_calls
from miga.errors import CheckpointError
from miga.generate import Sampler, VideoState
from miga.methods.causal.course import Steps
from miga.methods.causal.noise import AntiphaseNoise
from miga.methods.causal.positions import jittered, modulated
from miga.methods.causal.settings import PROFILES, CausalSettings
from miga.methods.causal.together import make_together
from miga.noise import NamedNoise
from miga.plan import plan_video
from miga.prompts import PromptTrack
from miga.video import VideoRun
from miga.virtual_time import make_virtual_video, useful_slots
from tests.miga.methods.causal.recorded import SHAPE, Spy, settings, spied, tiny_transformer

LENGTH = 27
"""Latents; past every preset's window, and nine blocks."""


def prompts(count: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randn(5, 24, generator=generator) for _ in range(count)]
    return [(text, text) for text in texts]


def sampler_of(
    config: CausalSettings, num_latents: int | None = LENGTH, seed: int = 0, prompt_track: PromptTrack | None = None
) -> tuple[Sampler, Spy]:
    spy = spied(config)
    noise = NamedNoise(seed, SHAPE)
    return Sampler(spy, config, prompt_track or PromptTrack(prompts(), 1), noise, num_latents), spy


def made(sampler: Sampler, state: VideoState | None = None) -> torch.Tensor:
    return torch.cat([latents for _, latents in sampler.run(state) if latents is not None])


# ---- attention ----


class PlainAttention:
    """diffusers' own transformer over a whole video, with a mask: every block sees clean latents before it, and itself.

    The sequence is the clean latents of earlier blocks, at time step 0, and the block: what a cache stands for, without
    one. Masked so that clean latents of a block see none of later ones.
    """

    def __init__(self) -> None:
        self.transformer = plain_twin(tiny_transformer())

    def velocity(self, clean_FCHW: torch.Tensor, noisy_FCHW: torch.Tensor, timestep: float, text: torch.Tensor) -> Any:
        block, total = len(noisy_FCHW), len(clean_FCHW) + len(noisy_FCHW)
        x = torch.cat([clean_FCHW, noisy_FCHW]).transpose(0, 1)[None]
        times = torch.tensor([0.0] * len(clean_FCHW) + [timestep] * block)
        tokens = SHAPE[1] // 2 * (SHAPE[2] // 2)
        group_N = (torch.arange(total) // block).repeat_interleave(tokens)
        mask = group_N[:, None] >= group_N[None, :]
        text = functional.pad(text, (0, 0, 0, 8 - len(text)))[None]
        attention = functional.scaled_dot_product_attention

        def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **others: Any) -> torch.Tensor:
            is_self = query.shape[-2] == key.shape[-2]
            return attention(query, key, value, **{**others, "attn_mask": mask if is_self else None})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(functional, "scaled_dot_product_attention", masked)
            out = self.transformer(x, times.repeat_interleave(tokens)[None], text, return_dict=False)[0]
        return out[0].transpose(0, 1)[-block:]


@pytest.mark.slow
def test_a_video_is_that_of_full_attention_with_a_mask() -> None:
    """Within one window nothing is evicted: the cache is only a way to compute less.

    The reference is diffusers' own forward over the whole sequence, whose sinusoids are float32: 4e-5 a pass.
    """
    config, text = settings("self-forcing"), prompts()[0][0]
    found = made(sampler_of(config, 9)[0])
    plain, noise, steps = PlainAttention(), NamedNoise(0, SHAPE), Steps.of(config.timesteps, 5.0)
    clean = torch.zeros(0, *SHAPE)
    for first in (0, 3, 6):
        latents = range(first, first + 3)
        x = noise("push", latents)
        for level in (4, 3, 2, 1):
            velocity = plain.velocity(clean, x, steps.timesteps[level], text)
            x0 = x - steps.sigmas[level] * velocity
            following = steps.sigmas[level - 1]
            x = (1 - following) * x0 + following * noise(f"step@{level}", latents) if following else x0
        clean = torch.cat([clean, x])
    torch.testing.assert_close(found, clean, atol=2e-3, rtol=0)
    assert (found - clean).abs().max() < 1e-2 * clean.std()


def plain_rope(x_NHD: torch.Tensor, time: Sequence[float], rows: int, columns: int) -> torch.Tensor:
    """Complex numbers, token by token."""
    channels = axis_channels(x_NHD.shape[-1])
    out, token = [], 0
    for place in time:
        for row in range(rows):
            for column in range(columns):
                angle = torch.cat(
                    [at * frequencies(each) for at, each in zip((place, row, column), channels, strict=True)]
                )
                pairs = torch.view_as_complex(x_NHD[token].double().unflatten(-1, (-1, 2)).contiguous())
                turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
                out.append(turned)
                token += 1
    return torch.stack(out)


def test_positions_are_wans_own_and_go_on_behind_the_table() -> None:
    causal = CausalWan(tiny_transformer())
    rope = causal.open_cache(1, SHAPE[1:]).rope
    x = torch.randn(2 * 12, 2, 32, generator=torch.Generator().manual_seed(0))
    for places in ((0.0, 1.0), (1023.0, 1024.0), (123_456.0, 5.5)):
        from miga.backbones.wan.causal.rope import turned

        found = turned(x[None], rope.turns(0, torch.tensor(places, dtype=torch.float64)))[0]
        torch.testing.assert_close(found, plain_rope(x, places, 4, 3).float(), atol=1e-6, rtol=0)


def test_only_distances_count() -> None:
    """Places of a whole call moved by as much give the same: why relative positions have no end."""
    causal, outs = CausalWan(tiny_transformer()), []
    x = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    for first in (0.0, 5000.0):
        cache = causal.open_cache(6, SHAPE[1:])
        for start, slots in ((0, ()), (3, (0, 1, 2))):
            own = tuple(first + start + place for place in range(3))
            call = CachedCall(
                cache, (0.0,) * 3, (0.0,) * 3, own, slots, tuple(first + slot for slot in slots),
                writes=tuple(range(start, start + 3)),
            )  # fmt: skip
            out = causal(x, call, [prompts()[0][0]], 8)
        outs.append(out)
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=0)


# ---- memory ----


@pytest.mark.sampled(5)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_cache_takes_what_the_formula_says_from_first_to_last(profile: str) -> None:
    config = settings(profile)
    sampler, spy = sampler_of(config, 3 * LENGTH)
    sizes, addresses = set(), set()
    for _ in sampler.run():
        sizes.add(spy.cache.nbytes)
        addresses.add(tuple(tensor.data_ptr() for tensor in (*spy.cache.keys, *spy.cache.values)))
    assert sizes == {cache_bytes(config.cache_latents, 2, 12, 64, 4)}
    assert sizes == {config.cache_latents * 2 * 2 * 12 * 64 * 4}
    assert len(addresses) == 1


@pytest.mark.slow
def test_a_stream_goes_on_behind_the_table_of_1024() -> None:
    """Absolute and relative positions; both finite, and of the same kind as before."""
    for profile in ("longlive", "longlive-infinity"):
        config = settings(profile, block=20, cache_latents=41, sink_latents=1, timesteps=[1000, 500])
        sampler, _ = sampler_of(config, None)
        latents, state = [], sampler.start()
        for _ in range(60):
            state, finished = sampler.advance(state)
            latents.append(finished)
        video = torch.cat(latents)
        assert len(video) == 1200
        assert torch.isfinite(video).all()
        assert 0.5 < float(video[1040:].std() / video[100:260].std()) < 2.0


# ---- plans ----


@pytest.mark.sampled(9)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("num_latents", [3, 9, LENGTH, 96])
def test_calls_are_counted_exactly(profile: str, num_latents: int) -> None:
    config = settings(profile)
    sampler, spy = sampler_of(config, num_latents)
    made(sampler)
    assert count_calls(config, num_latents).total == sampler.num_calls == len(spy.predicted)
    planned = [each for advance in plan_video(config, num_latents) for each in advance.passes]
    assert len(planned) == sampler.num_calls
    assert [len(each.levels) for each in planned] == [out.shape[1] for out in spy.predicted]
    shown = sum(out.shape[1] for out in spy.predicted)
    assert config.work(num_latents) == (shown, sum(spy.seen))


def test_a_long_video_is_counted_by_multiplying() -> None:
    config = settings("longlive")
    assert count_calls(config, 30_000).total == 5 * 10_000


@pytest.mark.sampled(3)
@pytest.mark.parametrize("num_prompts", [1, 2, 3, 5])
def test_calls_of_changing_prompts_are_counted_exactly(num_prompts: int) -> None:
    config = settings("longlive")
    spread = PromptTrack.spread(prompts(num_prompts), LENGTH)
    sampler, _ = sampler_of(config, LENGTH, prompt_track=spread)
    made(sampler)
    assert sampler.num_calls == count_calls(config, LENGTH).total + config.num_switch_calls(LENGTH, num_prompts)
    assert settings("infinity-rope").num_switch_calls(LENGTH, num_prompts) == 0


def test_prompts_begin_with_the_first_block_from_their_latents_on() -> None:
    """Latents 4 and 9 of blocks of three: blocks 6 and 9; what is made is made under those."""
    config, texts = settings("longlive"), prompts(3)
    sampler, _ = sampler_of(config, LENGTH, prompt_track=PromptTrack(texts, starts=(0, 4, 9)))
    ours = made(sampler)
    moved, _ = sampler_of(config, LENGTH, prompt_track=PromptTrack(texts, starts=(0, 6, 9)))
    assert torch.equal(ours, made(moved))
    alone, _ = sampler_of(config, LENGTH, prompt_track=PromptTrack(texts[:1]))
    assert [float((ours[k] - each).abs().max()) > 0.0 for k, each in enumerate(made(alone)[:9])] == [
        k >= 6 for k in range(9)
    ]
    assert sampler.num_calls == count_calls(config, LENGTH).total + 2
    assert config.num_switch_calls(LENGTH, 3, (0, 4, 9)) == 2


def test_operations_are_those_of_the_shapes() -> None:
    """The figures that were worked out by hand for Wan 1.3B at 480x832: TFLOP a block of 12 frames."""
    from miga.backbones.registry import load_spec

    spec = load_spec("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    wanted = {"infinity-rope": 101, "reward-forcing": 121, "longlive": 141, "self-forcing": 202, "rolling-forcing": 242}
    for profile, tflop in wanted.items():
        config = settings(profile)
        (shown, seen), (before, seen_before) = config.work(300), config.work(297)
        per_block = (1 - spec.attention_share) * (shown - before) / 21
        per_block += spec.attention_share * (seen - seen_before) / 21**2
        if profile == "rolling-forcing":  # its ends are shorter windows: two videos differ by a full one
            assert shown - before == 15 + 3
        assert spec.forward_flops * per_block / 1e12 == pytest.approx(tflop, rel=0.03)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("profile", ["longlive", "rolling-forcing"])
def test_helpers_take_nothing_of_it(profile: str) -> None:
    config = settings(profile)
    assert useful_slots(config, LENGTH, "windows") == 1
    alone, crowded = (make_virtual_video(config, LENGTH, slots) for slots in (1, 8))
    assert alone.num_calls == crowded.num_calls == count_calls(config, LENGTH).total
    assert alone.seconds == crowded.seconds


# ---- resume, batches ----


@pytest.mark.sampled(15)
@pytest.mark.parametrize("profile", [*PROFILES, "switching"])
def test_a_video_killed_at_any_block_goes_on_to_the_same_latents(profile: str, tmp_path: Path) -> None:
    config = settings("longlive" if profile == "switching" else profile)
    spread = PromptTrack.spread(prompts(3), LENGTH) if profile == "switching" else None
    whole = made(sampler_of(config, prompt_track=spread)[0])
    sampler, _ = sampler_of(config, prompt_track=spread)
    state, done, number = sampler.start(), torch.zeros(0, *SHAPE), 0
    while not sampler.is_done(state):
        state, finished = sampler.advance(state)
        done = done if finished is None else torch.cat([done, finished])
        number += 1
        if number % 3 and number < 12:
            continue
        save_state(state, tmp_path / "state", config=config, num_latents=LENGTH, seed=0)
        again, spy = sampler_of(config, prompt_track=spread)
        loaded = load_state(tmp_path / "state", config=config, num_latents=LENGTH, seed=0)
        again.restore(done)
        num_replayed = len(spy.predicted)
        assert num_replayed <= 2 * math.ceil(len(done) / 3) + 2
        rest = made(again, loaded) if len(done) < LENGTH else torch.zeros(0, *SHAPE)
        assert torch.equal(torch.cat([done, rest]), whole)
    assert torch.equal(done, whole)


def test_replaying_takes_one_call_in_five() -> None:
    config = settings("longlive")
    latents = made(sampler_of(config)[0])
    again, spy = sampler_of(config)
    again.restore(latents)
    assert len(spy.predicted) * 5 == count_calls(config, LENGTH).total


def test_a_state_whose_cache_is_not_there_is_refused() -> None:
    config = settings("longlive")
    sampler, _ = sampler_of(config)
    state, _ = sampler.advance(sampler.start())
    with pytest.raises(CheckpointError, match="cache behind 3 latents is not there"):
        sampler_of(config)[0].advance(state)


@pytest.mark.sampled(14)
@pytest.mark.parametrize("profile", PROFILES)
def test_several_videos_in_step_are_each_alone(profile: str) -> None:
    config, texts = settings(profile), prompts(3)
    tracks = [PromptTrack([text], 1) for text in texts]
    noises = [NamedNoise(seed, SHAPE) for seed in (0, 1, 2)]
    together = torch.cat(list(make_together(spied(config), config, tracks, noises, LENGTH)), dim=1)
    for number, (prompt_track, noise) in enumerate(zip(tracks, noises, strict=True)):
        alone = made(Sampler(spied(config), config, prompt_track, noise, LENGTH))
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=0)


# ---- noise and frequencies ----


def test_antiphase_noise_is_standard_normal_and_leans_against_its_neighbour() -> None:
    noise = AntiphaseNoise(NamedNoise(0, (4, 40, 40)), -0.7, 0)
    drawn = noise("push", range(40)).flatten(1)
    assert drawn.std() == pytest.approx(1.0, abs=0.01)
    neighbours = (drawn[1:] * drawn[:-1]).mean()
    assert neighbours == pytest.approx(-0.7, abs=0.01)
    assert (drawn[2:] * drawn[:-2]).mean() == pytest.approx(0.49, abs=0.01)
    again = AntiphaseNoise(NamedNoise(0, (4, 40, 40)), -0.7, 0)
    assert torch.equal(again("push", [30, 31]), noise("push", [30, 31]))
    assert torch.equal(noise("step@3", [5]), NamedNoise(0, (4, 40, 40))("step@3", [5]))


def test_antiphase_noise_that_restarts_forgets_at_every_block() -> None:
    noise = AntiphaseNoise(NamedNoise(0, (4, 40, 40)), -0.7, 3)
    drawn = noise("push", range(60)).flatten(1)
    correlation = (drawn[1:] * drawn[:-1]).mean(1)
    assert correlation[2::3].mean() == pytest.approx(0.0, abs=0.01)
    assert correlation[0::3].mean() == pytest.approx(-0.7, abs=0.01)
    assert torch.equal(drawn[3], NamedNoise(0, (4, 40, 40))("push", [3]).flatten())


def test_jitter_gives_every_head_a_base_of_its_own() -> None:
    own = frequencies(44)
    found = jittered(0.8)(3, 12, own)
    assert found.shape == (3, 12, 22)
    assert torch.equal(found, jittered(0.8)(3, 12, own))
    base = found[..., 1] ** -22.0
    assert len(base.unique()) == 36
    assert 0.2 * 1e4 <= base.min() < base.max() <= 1.8 * 1e4
    torch.testing.assert_close(found[..., 0], torch.ones(3, 12, dtype=torch.float64))


def test_slow_frequencies_are_slowed_and_fast_ones_kept() -> None:
    own = frequencies(44)
    found, turns = modulated(0.3, 3.0, 4.0)(1, 1, own), 21 * own / (2 * math.pi)
    assert torch.equal(found[turns > 3.0], own[turns > 3.0])
    torch.testing.assert_close(found[turns < 0.3], own[turns < 0.3] / 4.0)
    assert bool((found.diff() < 0).all())


# ---- compression ----


def test_what_is_looked_at_most_stays_in_its_order() -> None:
    """Against scores worked out token by token."""
    from miga.cached_call import Compression

    causal = CausalWan(tiny_transformer())
    cache = causal.open_cache(5, SHAPE[1:])
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, 60, 2, 32, generator=generator) for _ in range(2))
    cache.write(0, key, value, range(5))
    query, past = (torch.randn(1, 36, 2, 32, generator=generator) for _ in range(2))
    cache.keep_queries(0, past)
    cache.compress(0, query, Compression((1, 2, 3), (1,), 1))
    queries = torch.cat([past[0, 24:], query[0]])
    scores = [sum(float((one * key[0, token]).sum()) for one in queries) for token in range(12, 48)]
    best = sorted(np.argsort(scores)[-12:] + 12)
    kept_key, kept_value, cell = cache.read(0, [1])
    assert torch.equal(kept_key[0], key[0, best])
    assert torch.equal(kept_value[0], value[0, best])
    assert cell is not None
    assert cell[0].tolist() == [token % 12 for token in best]
    assert torch.equal(cache.read(0, [0])[0], key[:, :12])


# ---- the whole way, on the embedded model ----


@pytest.fixture(scope="module")
def sprites() -> Any:
    return load_backbone("sprites", device="cpu")


def frames_of(run: VideoRun) -> np.ndarray:
    with run:
        return np.concatenate([step.frames for step in run.steps() if step.frames is not None])


@pytest.mark.slow
def test_frames_of_a_resumed_video_are_those_of_an_undisturbed_one(sprites: Any, tmp_path: Path) -> None:
    from miga.profiles import resolve_config

    config = resolve_config("infinity-rope", sprites.spec, {"timesteps": [1000, 500]})
    embedding, negative = sprites.encode_prompts(["a red circle", ""])
    how = (sprites, config, [embedding], negative, 9, 0)
    whole = frames_of(VideoRun(*how))
    with VideoRun(*how) as run:
        steps = run.steps()
        for _ in range(2):
            next(steps)
        save_checkpoint(run.checkpoint(), tmp_path / "part", config=config, seed=0)
    resume = load_checkpoints([tmp_path / "part"], config=config, num_latents=9, seed=0)
    assert 0 < resume.num_latents_done < 9
    assert np.array_equal(frames_of(VideoRun(*how, resume=resume)), whole)


@pytest.mark.slow
def test_one_video_does_not_depend_on_others_of_the_same_network(sprites: Any) -> None:
    """Caches belong to videos: two that take turns are each as if alone."""
    from miga.profiles import resolve_config

    config = resolve_config("longlive", sprites.spec, {"timesteps": [1000, 500]})
    embedding, negative = sprites.encode_prompts(["a red circle", ""])
    condition, noise = (
        sprites.condition(embedding, negative),
        [NamedNoise(seed, sprites.spec.latent_shape) for seed in (0, 1)],
    )
    samplers = [Sampler(sprites.denoiser(config), config, PromptTrack([condition]), each, 6) for each in noise]
    states = [sampler.start() for sampler in samplers]
    parts: list[list[torch.Tensor]] = [[], []]
    for number in (0, 1, 1, 0):
        states[number], finished = samplers[number].advance(states[number])
        parts[number].append(finished)
    for number, each in enumerate(noise):
        alone = Sampler(sprites.denoiser(config), config, PromptTrack([condition]), each, 6)
        assert torch.equal(torch.cat(parts[number]), made(alone))


def test_other_profiles_are_not_touched_by_a_cache(sprites: Any) -> None:
    """The module is the same before and after: no hook or processor of ours stays on it."""
    before = {name: type(module) for name, module in sprites.network.named_modules()}
    processors = {
        name: type(module.processor) for name, module in sprites.network.named_modules() if hasattr(module, "processor")
    }
    causal = CausalWan(sprites.network)
    cache = causal.open_cache(3, (8, 8))
    call = CachedCall(cache, (0.0,) * 3, (0.0,) * 3, (0.0, 1.0, 2.0), writes=(0, 1, 2))
    causal(torch.randn(1, 3, *sprites.spec.latent_shape), call, [sprites.encode_prompts(["a ring"])[0]], 512)
    assert before == {name: type(module) for name, module in sprites.network.named_modules()}
    now = {
        name: type(module.processor) for name, module in sprites.network.named_modules() if hasattr(module, "processor")
    }
    assert now == processors


def test_a_blocks_parts_compile_whole_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under dynamo without code generation: one graph, no break."""
    parts = network.compiled_parts
    monkeypatch.setattr(network, "compiled_parts", lambda: parts("eager"))
    x = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    outs = []
    for compiled in (False, True):
        causal = CausalWan(tiny_transformer(), compiled=compiled)
        call = CachedCall(causal.open_cache(3, SHAPE[1:]), (500.0,) * 3, (0.5,) * 3, (0.0, 1.0, 2.0), writes=(0, 1, 2))
        outs.append(causal(x, call, [prompts()[0][0]], 8))
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "values",
    [
        {"context_noise": (100, 100.0)},
        {"eviction": ("ema", "ema"), "ema_alpha": (1, 1.0)},
        {"rope_scale": (4, 4.0)},
        {"antiphase": (0, 0.0), "flow_shift": (5, 5.0)},
    ],
    ids=lambda values: "-".join(values),
)
def test_a_number_may_be_written_without_its_point(values: dict[str, tuple[Any, Any]]) -> None:
    """`context_noise = 100` in TOML is a whole number."""
    whole, real = ({name: pair[which] for name, pair in values.items()} for which in (0, 1))
    preset = "reward-forcing" if "eviction" in values else "longlive-infinity"
    torch.testing.assert_close(
        made(sampler_of(settings(preset, **whole))[0]), made(sampler_of(settings(preset, **real))[0]), rtol=0, atol=0
    )
