"""Stochastic solvers: what every profile draws has exactly the mean and spread that the theory of its steps gives.

For independent Gaussian data each step is linear in the latent and in fresh noise, so that mean and variance of a
latent are known at every level. They are followed here with the formulas of the literature, for each latent from where
it entered the queue.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from miga.config import SamplerConfig
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from tests.miga.closed_form import (
    FEW_STEPS,
    PROFILES,
    VIDEOCRAFTER2,
    GaussianDenoiser,
    make_sampler,
    profile_config,
    sample,
)

MEAN = 0.5
NUM_LATENTS = 20
SHAPE = (4, 16, 16)
SOLVERS: dict[str, dict[str, Any]] = {
    "ddim": {"solver": "ddim", "eta": 1.0},
    "renoise": {"solver": "renoise", "timesteps": FEW_STEPS, "num_steps": len(FEW_STEPS), "handoff_level": 2},
}


def settings_of(profile: str, solver: str) -> dict[str, Any]:
    settings = dict(SOLVERS[solver])
    if getattr(profile_config(profile), "handoff_level", 1) == 1:
        settings.pop("handoff_level", None)
    if profile == "released" and solver == "renoise":
        settings["judged_group"] = 1  # the whole of its short initialisation
    return settings


class Moments:
    """Mean and variance of a latent's cells, level by level."""

    def __init__(self, config: SamplerConfig, denoiser: GaussianDenoiser) -> None:
        self.config, self.std = config, denoiser.std
        self.alpha, self.sigma = denoiser.schedule.alpha.tolist(), denoiser.schedule.sigma.tolist()

    def at_the_end(self, latent: int) -> tuple[float, float]:
        config = self.config
        mean, variance = self.first_time(latent)
        if config.method != "released":
            return mean, variance
        level = config.handoff_level + (config.released_branch == "videocrafter2")
        return self.taken_down(*self.noised(mean, variance, level), level)

    def first_time(self, latent: int) -> tuple[float, float]:
        config = self.config
        mean, variance = self.taken_down(0.0, 1.0, config.num_steps)  # from pure noise, as the base clip
        if config.method == "unified":
            return mean, variance
        if config.method in ("fifo", "scalingnoise"):
            level = config.num_steps - config.window + latent + 1
        else:
            level = config.num_steps - config.num_base_groups + latent // config.zigzag_width
        if latent < config.window:
            return self.taken_down(*self.noised(mean, variance, level), level)
        if config.method == "released":
            num_copies = config.num_steps - config.num_base_groups - config.handoff_level - 1  # of initialisation
            if config.released_branch == "wan" or latent < config.window + num_copies * config.zigzag_width:
                return self.taken_down(*self.noised(mean, variance, config.num_steps), config.num_steps)
        return mean, variance

    def noised(self, mean: float, variance: float, level: int) -> tuple[float, float]:
        return self.alpha[level] * mean, self.alpha[level] ** 2 * variance + self.sigma[level] ** 2

    def taken_down(self, mean: float, variance: float, level: int) -> tuple[float, float]:
        for now in range(level, 0, -1):
            of_x, of_clean, fresh = self.step(now)
            alpha, sigma = self.alpha[now], self.sigma[now]
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)  # clean = MEAN + gain * (x - alpha * MEAN)
            factor = of_x + of_clean * gain
            mean = factor * mean + of_clean * (1.0 - gain * alpha) * MEAN
            variance = factor**2 * variance + fresh
        return mean, variance

    def step(self, level: int) -> tuple[float, float, float]:
        """Weights of the latent and of its prediction, variance of the noise."""
        if self.config.solver == "renoise":
            return 0.0, self.alpha[level - 1], self.sigma[level - 1] ** 2
        a, a_next = self.alpha[level] ** 2, self.alpha[level - 1] ** 2  # DDPM's posterior (Ho et al. 2020, Eq. 7)
        beta = 1.0 - a / a_next
        of_x = (a / a_next) ** 0.5 * (1.0 - a_next) / (1.0 - a)
        return of_x, a_next**0.5 * beta / (1.0 - a), (1.0 - a_next) / (1.0 - a) * beta


CASES = [
    *((profile, solver, {}) for profile in PROFILES for solver in SOLVERS),
    ("released", "ddim", VIDEOCRAFTER2 | {"self_reflection": False}),
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("profile", "solver", "settings"), CASES)
def test_mean_and_spread(profile: str, solver: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)  # scores that do not depend on the latents: searches then leave the distribution alone
    monkeypatch.setattr("miga.consistency.consistency_score", lambda *_, **__: chance.random())
    config = profile_config(profile, windows_per_batch=1000, **settings_of(profile, solver) | settings)
    denoiser = GaussianDenoiser(config)
    noise = NamedNoise(3, SHAPE)
    video = sample(make_sampler(denoiser, config, NUM_LATENTS, prompts=PromptTrack([MEAN]), noise=noise))
    moments = Moments(config, denoiser)
    expected = [moments.at_the_end(latent) for latent in range(NUM_LATENTS)]
    standard = torch.stack(
        [(x_CHW - mean) / variance**0.5 for x_CHW, (mean, variance) in zip(video, expected, strict=True)]
    ).double()
    num_cells = standard.numel()
    assert abs(float(standard.mean())) < 4 / num_cells**0.5
    assert abs(float(standard.std()) - 1.0) < 4 / (2 * num_cells) ** 0.5
    for latents in (standard[:6], standard[6:]):
        assert abs(float(latents.std()) - 1.0) < 4 / (2 * latents.numel()) ** 0.5
    products = (standard[:-1] * standard[1:]).mean((1, 2, 3))
    assert float(products.abs().max()) < 4.5 / standard[0].numel() ** 0.5, "no two latents share noise"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("profile", ["swift", "fifo", "stage-2-only"])
def test_many_ancestral_steps_give_the_data(profile: str) -> None:
    """DDIM with eta 1 keeps all of the data's spread as steps are added (`renoise`, with this network, half of it)."""
    found = []
    for num_steps in (24, 96):
        config = profile_config(profile, num_steps=num_steps, windows_per_batch=1000, solver="ddim", eta=1.0)
        denoiser = GaussianDenoiser(config)
        noise = NamedNoise(3, SHAPE)
        video = sample(make_sampler(denoiser, config, NUM_LATENTS, prompts=PromptTrack([MEAN]), noise=noise))
        alpha, sigma = float(denoiser.schedule.alpha[0]), float(denoiser.schedule.sigma[0])
        spread = (alpha**2 * denoiser.std**2 + sigma**2) ** 0.5
        found.append((abs(float(video.mean()) - alpha * MEAN), abs(float(video.std()) / spread - 1.0)))
    assert found[1][1] < found[0][1] / 2.5
    assert found[1][0] < 0.02
    assert found[1][1] < 0.05


@pytest.mark.sampled(4)
@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "scalingnoise"])
def test_no_noise_is_drawn_for_two_things(profile: str) -> None:
    """Every name is asked for once: entering, renoising, each step, each candidate's steps. (Beams of `scalingnoise`
    that share a latent share its noise.)"""
    config = profile_config(profile, windows_per_batch=1000, solver="ddim", eta=1.0)
    named, asked = NamedNoise(0, (1, 1, 2)), []

    def noise(purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        asked.extend((purpose, latent, candidate) for latent in latents)
        return named(purpose, latents, candidate)

    sample(make_sampler(GaussianDenoiser(config), config, NUM_LATENTS, prompts=PromptTrack([MEAN]), noise=noise))
    assert len(asked) == len(set(asked)) > NUM_LATENTS * config.num_steps
