"""Stopped at any pass, saved, loaded and gone on with by another sampler: the same video, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from miga.checkpoint import load_state, save_state
from miga.config import SamplerConfig
from miga.generate import Sampler, VideoState
from miga.prompts import PromptTrack
from tests.miga.closed_form import FEW_STEPS, PROFILES, VIDEOCRAFTER2, MixingDenoiser, make_sampler, profile_config

NUM_LATENTS = 9
STOCHASTIC: dict[str, dict[str, Any]] = {
    "ddim": {"solver": "ddim", "eta": 1.0},
    "renoise": {"solver": "renoise", "timesteps": FEW_STEPS, "num_steps": len(FEW_STEPS), "handoff_level": 2},
}
CASES = [
    *((profile, {}) for profile in PROFILES),
    *((profile, STOCHASTIC["ddim"]) for profile in ("swift", "paper", "fifo", "stage-2-only")),
    *((profile, STOCHASTIC["renoise"]) for profile in ("swift", "paper")),
    ("scalingnoise", STOCHASTIC["ddim"]),
    ("released", VIDEOCRAFTER2 | {"eta": 1.0}),
    ("paper", {"drain": True, "position_0_context": True, "windows_per_batch": 3}),
]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for the disk: `test_checkpoint.py` has what that is for."""
    monkeypatch.setattr("miga.checkpoint.os.fsync", lambda _: None)


def new_sampler(config: SamplerConfig, num_latents: int | None = NUM_LATENTS) -> Sampler:
    """As another process would make it."""
    return make_sampler(MixingDenoiser(config), config, num_latents, prompts=PromptTrack([0.5, -1.0, 0.2], 3))


def ids(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(str(value) for value in case[1].values() if isinstance(value, str))])


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.sampled(18)
def test_at_every_pass(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    profile, settings = case
    config = profile_config(profile, **settings)
    straight = [(new_sampler(config).start(), None), *new_sampler(config).run()]
    state, num_calls = new_sampler(config).start(), 0
    for number in range(1, len(straight)):
        state = through_a_file(state, tmp_path / "state", config, NUM_LATENTS)
        sampler = new_sampler(config)
        state, finished = sampler.advance(state)
        num_calls += sampler.num_calls
        expected_state, expected = straight[number]
        assert (finished is None) == (expected is None)
        assert finished is None or expected is None or torch.equal(finished, expected)
        assert state.trace == expected_state.trace
        assert state.num_finished == expected_state.num_finished
    assert sampler.is_done(state)
    whole = new_sampler(config)
    for _ in whole.run():
        pass
    assert num_calls == whole.num_calls, "no call is made twice, none left out"


@pytest.mark.parametrize("stopped_after", [0, 5, 12, 15])
def test_once(stopped_after: int, tmp_path: Path) -> None:
    """Stopped within the base clip, behind it, in Stage 1's initialisation and while Stage 2 holds latents."""
    config = profile_config("paper")
    steps = list(new_sampler(config).run())
    sampler = new_sampler(config)
    state = sampler.start()
    for _ in range(stopped_after):
        state, _ = sampler.advance(state)
    state = through_a_file(state, tmp_path / "state", config, NUM_LATENTS)
    rest = list(new_sampler(config).run(state))
    assert len(rest) == len(steps) - stopped_after
    for (found, finished), (expected, video) in zip(rest, steps[stopped_after:], strict=True):
        assert found.trace == expected.trace
        assert (finished is None) == (video is None)
        assert finished is None or video is None or torch.equal(finished, video)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("profile", ["swift", "paper", "released", "fifo", "scalingnoise", "stage-2-only"])
def test_a_video_without_end(profile: str, tmp_path: Path) -> None:
    config = profile_config(profile)
    straight, resumed = new_sampler(config, None), new_sampler(config, None)
    expected_state, state, num_compared = straight.start(), resumed.start(), 0
    for _ in range(45):
        expected_state, expected = straight.advance(expected_state)
        state = through_a_file(state, tmp_path / "state", config, None)
        state, finished = resumed.advance(state)
        if expected is not None:
            assert finished is not None
            assert torch.equal(finished, expected)
            num_compared += len(finished)
    assert num_compared > 20
    assert state.trace == expected_state.trace


def through_a_file(state: VideoState, file: Path, config: SamplerConfig, num_latents: int | None) -> VideoState:
    save_state(state, file, config=config, num_latents=num_latents, seed=0)
    return load_state(file, config=config, num_latents=num_latents, seed=0)
