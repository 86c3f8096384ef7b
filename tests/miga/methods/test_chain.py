"""Chains of clips as a method: plan, lengths, checkpoints at any pass, streams without end, pictures."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.wan.backbone import WanBackbone
from miga.checkpoint import load_checkpoints, save_checkpoint
from miga.cost import count_calls, most_latents_held
from miga.denoise_pass import WindowCall, run_call
from miga.errors import BadRowError, ConfigError
from miga.generate import rules_of_pictures
from miga.image_condition import Pictures
from miga.profiles import profiles, resolve_config
from miga.video import VideoRun
from miga.virtual_time import make_virtual_video
from tests.tiny_wan import NUM_CHANNELS, TEXT_DIM, build_transformer, build_vae

CHAINS = [name for name, profile in profiles().items() if profile.settings["method"] == "chain"]
WINDOW, NUM_STEPS, SEED = 6, 3, 5
SPEC = BackboneSpec(
    family="wan", name="tiny", revision="1", window=WINDOW, latent_channels=NUM_CHANNELS, latent_height=4,
    latent_width=6, height=32, width=48, fps=8, default_num_frames=41, noise_schedule="flow", image_input="channels",
    needs_image=True, takes_last_image=True,
)  # fmt: skip
FRAMES = 4 * WINDOW - 3


@pytest.fixture(scope="module")
def backbone() -> WanBackbone:
    network = build_transformer(in_channels=2 * NUM_CHANNELS + 4)
    return WanBackbone(SPEC, torch.device("cpu"), network=network, vae=build_vae())


def config_of(profile: str, **settings: Any) -> Any:
    return resolve_config(profile, SPEC, {"num_steps": NUM_STEPS, **settings})


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def make_run(backbone: WanBackbone, config: Any, num_clips: int | None, num_prompts: int = 1, **more: Any) -> VideoRun:
    texts = torch.randn(num_prompts + 1, 5, TEXT_DIM, generator=torch.Generator().manual_seed(1))
    num_latents = None if num_clips is None else num_clips * WINDOW
    more.setdefault("pictures", Pictures(backbone, picture()))
    return VideoRun(backbone, config, list(texts[1:]), texts[0], num_latents, SEED, **more)


def frames_of(run: VideoRun) -> np.ndarray:
    return np.concatenate([step.frames for step in run.steps() if step.frames is not None])


@pytest.mark.slow
@pytest.mark.parametrize("profile", CHAINS)
def test_lengths_and_calls_are_as_planned(backbone: WanBackbone, profile: str) -> None:
    config = config_of(profile)
    spec = SPEC.of_clips(config.clips)
    for num_clips in (1, 2):
        run = make_run(backbone, config, num_clips)
        frames = frames_of(run)
        assert (
            len(frames)
            == spec.num_frames(num_clips * WINDOW)
            == FRAMES + (num_clips - 1) * (FRAMES - config.num_overlap)
        )
        assert spec.num_latents(len(frames)) == num_clips * WINDOW
        count = count_calls(config, num_clips * WINDOW)
        assert run.num_calls == count.total == num_clips * NUM_STEPS
        assert count.forwards == 2 * count.total
    assert most_latents_held(config) <= 2 * WINDOW
    assert count_calls(config, 1000 * WINDOW).total == 1000 * NUM_STEPS
    assert spec.num_latents(spec.default_num_frames) % WINDOW == 0


def test_the_length_that_a_chain_can_make_is_said() -> None:
    spec = SPEC.of_clips(config_of("svi-film").clips)
    with pytest.raises(ValueError, match=r"a chain of clips makes 21 \+ 16k frames; the nearest is 37 or 53"):
        spec.num_latents(41)
    with pytest.raises(ValueError, match=r"the nearest is 21$"):
        spec.num_latents(20)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("profile", ["svi-film", "svi-2-pro"])
def test_killed_at_any_pass_it_goes_on_bit_for_bit(backbone: WanBackbone, profile: str, tmp_path: Path) -> None:
    config = config_of(profile)
    whole = frames_of(make_run(backbone, config, 2, 2))
    for num_passes in (1, NUM_STEPS, NUM_STEPS + 1):  # in a clip, at its end, in the next one
        run, files = make_run(backbone, config, 2, 2), []
        for number in range(num_passes):
            run._advance()
            if number % 2 or number == num_passes - 1:
                files.append(tmp_path / f"{num_passes}-{number}")
                save_checkpoint(run.checkpoint(), files[-1], config=config, seed=SEED)
        run.close()
        checkpoint = load_checkpoints(files, config=config, num_latents=2 * WINDOW, seed=SEED, num_prompts=2)
        assert np.array_equal(frames_of(make_run(backbone, config, 2, 2, resume=checkpoint)), whole)


@pytest.mark.slow
def test_a_stream_has_no_end_and_begins_as_a_chain_does(backbone: WanBackbone) -> None:
    config = config_of("svi-shot")
    steps = make_run(backbone, config, None, has_checkpoints=False).steps()
    streamed = (step.frames for step in steps if step.frames is not None and len(step.frames))
    chain = frames_of(make_run(backbone, config, 2))
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < 2 * (FRAMES - 1):
        parts.append(next(streamed))
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert np.array_equal(np.concatenate(parts), chain[: 2 * (FRAMES - 1)])


def test_clips_have_noise_and_prompts_of_their_own(backbone: WanBackbone) -> None:
    config = config_of("svi-2-pro")
    of_one, of_two = (frames_of(make_run(backbone, config, 2, count)) for count in (1, 2))
    assert np.array_equal(of_one[:FRAMES], of_two[:FRAMES])
    assert not np.array_equal(of_one[FRAMES:], of_two[FRAMES:])


@pytest.mark.slow
def test_a_clip_begins_with_the_frames_handed_over(backbone: WanBackbone) -> None:
    """The second clip's condition is made of the first one's last frames, and of nothing else of it."""
    config = config_of("chain", num_motion_frames=2)
    states = [state for state, _ in itertools.islice(make_run(backbone, config, 2).sampler.run(), NUM_STEPS + 1)]
    shown = states[NUM_STEPS - 1].method.y_FCHW
    first = make_run(backbone, config, 1)
    latents = next(finished for _, finished in first.sampler.run() if finished is not None)
    last = backbone.decode_frames(latents)[-2:]
    grey = torch.zeros(FRAMES - 2, 3, 32, 48)
    assert torch.allclose(shown[:, 4:], backbone.encode_frames(torch.cat([last, grey])), atol=1e-5)
    assert shown[:, :4].sum() == 4 * 24


@pytest.mark.parametrize("num_clips", [1, 2])
def test_a_last_picture_ends_the_last_clip(backbone: WanBackbone, num_clips: int) -> None:
    config = config_of("chain")
    run = make_run(backbone, config, num_clips, pictures=Pictures(backbone, picture(), picture(1)))
    masks = [run.sampler.start().method.y_FCHW[:, :4, 0, 0]]
    masks += [state.method.y_FCHW[:, :4, 0, 0] for state, finished in run.sampler.run() if finished is not None]
    for number, mask in enumerate(masks[:num_clips]):
        ends = torch.zeros(WINDOW, 4)
        ends[0] = 1.0
        ends[-1, -1] = float(number == num_clips - 1)
        assert torch.equal(mask, ends)


@pytest.mark.slow
def test_branches_that_run_elsewhere_change_nothing(backbone: WanBackbone) -> None:
    config = config_of("svi-shot")

    class Elsewhere:
        num_slots = num_general_slots = 2

        def submit(self, call: WindowCall, priority: int, *, is_candidate: bool) -> Future[torch.Tensor]:
            done: Future[torch.Tensor] = Future()
            with torch.inference_mode():
                done.set_result(run_call(backbone.denoiser(config), call))
            return done

    assert np.array_equal(
        frames_of(make_run(backbone, config, 2, executor=Elsewhere())), frames_of(make_run(backbone, config, 2))
    )


def test_what_does_not_go_together_is_refused(backbone: WanBackbone) -> None:
    config = config_of("svi-film")
    with pytest.raises(BadRowError, match="begins with a picture"):
        make_run(backbone, config, 1, pictures=None)
    with pytest.raises(ConfigError, match="makes chains of an image-to-video model's clips"):
        rules_of_pictures(replace(SPEC, image_input=""), config)
    with pytest.raises(ConfigError, match="never shown a window") as caught:
        rules_of_pictures(SPEC, resolve_config("stage-2-only", SPEC, {"num_steps": 20}))
    assert "svi-shot" in caught.value.hint
    with pytest.raises(BadRowError, match="hands latents over"):
        make_run(backbone, config_of("svi-2-pro"), 1, pictures=Pictures(backbone, picture(), picture(1)))
    with pytest.raises(ConfigError, match=r"num_motion_latents = 2 is out of range"):
        config_of("svi-film", num_motion_latents=2)
    with pytest.raises(ConfigError, match=r"num_motion_latents = 0 is out of range"):
        config_of("svi-film", num_motion_frames=0)


def test_a_chain_is_made_in_virtual_time() -> None:
    """What estimates and the number of helpers follow from knows no pictures."""
    made = make_virtual_video(config_of("svi-shot"), 2 * WINDOW, 2, forward_s=1.0)
    assert made.num_calls == 2 * NUM_STEPS
    assert made.seconds == pytest.approx(2 * NUM_STEPS)  # both branches of a guided call at once, one call at a time


def test_causal_presets_take_pictures_of_a_block_alone_and_one_network() -> None:
    """Before any work: they keep keys and values of one network, and a picture is a block of one latent."""
    spec = replace(SPEC, image_input="first_latent", sampler={})
    config = resolve_config("self-forcing", spec)
    rules = rules_of_pictures(spec, config)
    assert "set first_block = 1" in rules.why_no_first
    assert not rules.is_needed
    with pytest.raises(ConfigError, match="keys and values of one network"):
        rules_of_pictures(replace(spec, expert_boundary=0.9), config)
