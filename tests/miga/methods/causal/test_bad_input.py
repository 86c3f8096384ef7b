"""What cannot be is refused before any work, with what can; what may go wrong is said."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import main
from miga.backbones.registry import check_schedule, load_spec
from miga.cached_call import CachedCall
from miga.errors import ConfigError
from miga.generate import Sampler
from miga.methods.causal.settings import PROFILES
from miga.noise import NamedNoise
from miga.profiles import default_num_frames, resolve_config, warn_of_concerns, why_no_length
from miga.prompts import PromptTrack
from tests.miga.closed_form import GaussianDenoiser
from tests.miga.methods.causal.recorded import SHAPE, SPEC, settings, spied

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "window below sink and block": ("longlive", {"cache_latents": 5}, "at least 6: a window must hold its sink"),
    "guidance": ("longlive", {"guidance_scale": 5.0}, "distilled to need none"),
    "another solver": ("longlive", {"solver": "euler"}, "noised afresh"),
    "an ema of another size than a block": ("reward-forcing", {"sink_latents": 1}, "block = 3"),
    "no room to compress into": ("deep-forcing", {"compressed_latents": 14}, "15 to cache_latents"),
    "a cut in absolute positions": ("longlive", {"on_switch": "flush-cut"}, "relative positions"),
    "rolling and relative": ("rolling-forcing", {"positions": "relative"}, "'absolute' where blocks roll"),
    "a rolling window that sees too little": ("rolling-forcing", {"attention_latents": 17}, "at least 18"),
    "a correlation of one": ("flex-like", {"antiphase": -1.0}, "between -1 and 1"),
    "steps that rise": ("longlive", {"first_timesteps": [250, 500]}, "falling whole numbers"),
    "two ways of frequencies": ("lol", {"rope_scale": 2.0}, "in one way"),
}


@pytest.mark.parametrize("what", WRONG)
def test_settings_that_cannot_be_are_refused(what: str) -> None:
    profile, changes, why = WRONG[what]
    with pytest.raises(ConfigError, match=why):
        settings(profile, **changes)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_preset_has_settings_for_wan_and_for_sprites(profile: str) -> None:
    for spec in (SPEC, load_spec(WAN), load_spec("sprites")):
        config = resolve_config(profile, spec)
        assert config.guidance_scale == 1.0
        assert config.flow_shift == 5.0
        length = default_num_frames(config, spec)
        assert why_no_length(config, spec, length) is None
        assert spec.default_num_frames - length < 4 * config.block


def test_lengths_that_blocks_do_not_divide_are_refused_with_the_nearest() -> None:
    spec = load_spec(WAN)
    reason = why_no_length(resolve_config("longlive", spec), spec, 161)
    assert reason == (
        "num_frames 161 cannot be made: 41 latents are no whole number of the blocks of profile 'longlive'; "
        "the nearest is 153 or 165"
    )
    assert why_no_length(resolve_config("longlive", spec), spec, 153) is None
    assert why_no_length(resolve_config("longlive", spec, {"first_block": 1}), spec, 4 * 39 + 1) is None
    with pytest.raises(ConfigError, match=r"take 39 or 42 latents"):
        Sampler(spied(settings("longlive")), settings("longlive"), PromptTrack([0]), NamedNoise(0, SHAPE), 41)


def test_a_row_of_such_a_length_is_named_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "a ring", "num_frames": 161}\n{"prompt": ["a ring", "a disc"]}\n'
    )
    command = ["generate", str(tmp_path / "prompts.jsonl"), str(tmp_path / "out"), "--profile", "longlive"]
    assert main([*command, "--model", "sprites", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["bad"]] == [0]
    assert "the nearest is 153 or 165" in found["bad"][0]["error"]
    assert found["network_calls"] == 5 * 15 + 1  # of 45 latents, and the re-cache of one change


def test_models_without_a_cache_are_refused() -> None:
    vc2 = "VideoCrafter/VideoCrafter2"
    with pytest.raises(ConfigError, match="keeps keys and values"):
        check_schedule(vc2, settings("longlive"))
    config = settings("longlive")
    denoiser = GaussianDenoiser(config)
    with pytest.raises(ConfigError, match="keeps keys and values"):
        Sampler(denoiser, config, PromptTrack([0.0]), NamedNoise(0, SHAPE), 9)


def test_time_steps_that_are_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be floats"):
        CachedCall(None, (937,), (0.5,), (0.0,), writes=(-1,))


def test_given_latents_must_be_of_the_videos_size_and_whole_blocks() -> None:
    def sampler(profile: str, **changes: Any) -> Sampler:
        config = settings(profile, **changes)
        return Sampler(spied(config), config, PromptTrack([0]), NamedNoise(0, SHAPE), 9)

    with pytest.raises(ValueError, match=r"it must be \[F, 4, 8, 6\]"):
        sampler("longlive").start(torch.zeros(3, 4, 8, 8))
    with pytest.raises(ConfigError, match="cannot begin with 1 given latents"):
        sampler("longlive").start(torch.zeros(1, *SHAPE))
    with pytest.raises(ConfigError, match="rolling blocks begin with noise"):
        sampler("rolling-forcing").start(torch.zeros(3, *SHAPE))
    assert sampler("longlive").start(torch.zeros(3, *SHAPE)).num_finished == 0


def test_a_sink_that_may_collapse_is_said_with_the_number() -> None:
    with pytest.warns(UserWarning, match="from latent 132 on"):
        warn_of_concerns(settings("longlive"), SPEC, 133)
    with pytest.warns(UserWarning, match="sink collapse"):
        warn_of_concerns(settings("longlive"), SPEC, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_concerns(settings("longlive"), SPEC, 132)
        for profile in ("longlive-infinity", "lol", "rolling-forcing", "self-forcing", "infinity-rope"):
            warn_of_concerns(settings(profile), SPEC, None)


def test_another_size_than_that_of_training_is_said() -> None:
    larger = replace(SPEC, height=128, latent_height=16)
    with pytest.warns(UserWarning, match="distilled at one size"):
        warn_of_concerns(settings("longlive"), larger, 9, SPEC)


def test_frames_of_presets_are_asked_for_in_a_plan(tmp_path: Path) -> None:
    command = ["plan", "--profile", "longlive", "--profile", "rolling-forcing", "--model", "sprites"]
    assert main([*command, "--out", str(tmp_path / "plan.html")]) == 0
    assert "rolling-forcing" in (tmp_path / "plan.html").read_text()
