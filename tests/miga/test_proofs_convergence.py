"""Every profile solves the ODE that it says it solves: against the exact flow of Gaussian data.

Where clean latents are independent and Gaussian, the probability flow takes a latent so that its distance from the
mean, in standard deviations of its level, never changes:

    (x' - alpha' * mean) / s' = (x - alpha * mean) / s,    s = sqrt(alpha^2 * std^2 + sigma^2).

So from the noise that a latent entered with follows what it should end as, whatever queue it went through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from miga.config import SamplerConfig
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.schedule import NoiseSchedule
from miga.solvers import make_solver
from tests.miga.closed_form import (
    PROFILES,
    SHAPE,
    VIDEOCRAFTER2,
    GaussianDenoiser,
    make_sampler,
    make_schedule,
    profile_config,
    reflects,
    sample,
)

NUM_LATENTS = 14
MEAN = 0.5
SOLVERS: dict[str, dict[str, Any]] = {
    "unipc": {"solver": "unipc", "flow_shift": 1.0},
    "euler": {"solver": "euler", "flow_shift": 1.0},
    "ddim": {"solver": "ddim", "eta": 0.0},
}
ORDERS = {"unipc": (2.0, 2.4), "euler": (0.95, 1.1), "ddim": (0.85, 1.1)}
"""Lowest and highest. UniPC's own order is 2; its corrector adds a little. Its last step, to a latent without noise, is
of order 1, but from a level whose noise falls with the number of steps."""


class EnteringNoise:
    """Noise in double precision that remembers what latents entered with."""

    def __init__(self) -> None:
        self.named = NamedNoise(0, SHAPE)
        self.entered: dict[tuple[str, int], list[torch.Tensor]] = {}

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        noise_FCHW = self.named(purpose, latents, candidate).double()
        for latent, noise_CHW in zip(latents, noise_FCHW, strict=True):
            self.entered.setdefault((purpose.partition("@")[0], latent), []).append(noise_CHW)
        return noise_FCHW


class ExactFlow:
    def __init__(self, schedule: NoiseSchedule, std: float) -> None:
        self.schedule = schedule
        self.scale = (schedule.alpha**2 * std**2 + schedule.sigma**2).sqrt()

    def __call__(self, x: torch.Tensor, level: int) -> torch.Tensor:
        alpha, scale = self.schedule.alpha, self.scale
        return alpha[0] * MEAN + scale[0] * (x - alpha[level] * MEAN) / scale[level]

    def answers(self, config: SamplerConfig, noise: EnteringNoise, latent: int) -> list[torch.Tensor]:
        """What the latent should be: one answer, but for each noise that a search had for its place another."""
        entered = [x for purpose in ("push", "search") for x in noise.entered.get((purpose, latent), [])]
        if config.method == "unified":
            return [self(x, config.num_steps) for x in entered]
        answers = [self(x, config.num_steps) for x in entered]
        if config.method == "released":
            last = self(noise.entered["base", config.window - 1][0], config.num_steps)
            answers += [self(self.noised(last, x, config.num_steps), config.num_steps) for x in entered]
        if latent < config.window:
            if config.method in ("fifo", "scalingnoise"):
                level = config.num_steps - config.window + latent + 1
            else:
                level = config.num_steps - config.num_base_groups + latent // config.zigzag_width
            clean = self(noise.entered["base", latent][0], config.num_steps)
            answers.append(self(self.noised(clean, noise.entered["renoise", latent][0], level), level))
        if config.method == "released":  # noised again and denoised once more
            fresh = noise.entered["second/renoise", latent][0]
            level = config.handoff_level + (config.released_branch == "videocrafter2")
            answers = [self(self.noised(clean, fresh, level), level) for clean in answers]
        return answers

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, level: int) -> torch.Tensor:
        return self.schedule.alpha[level] * clean + self.schedule.sigma[level] * noise


def errors(profile: str, num_steps: int, settings: dict[str, Any]) -> torch.Tensor:
    """Root mean square error of every latent."""
    config = profile_config(profile, num_steps=num_steps, windows_per_batch=1000, **settings)
    denoiser, noise = GaussianDenoiser(config), EnteringNoise()
    video = sample(make_sampler(denoiser, config, NUM_LATENTS, prompts=PromptTrack([MEAN]), noise=noise))
    assert video.dtype == torch.float64
    exact = ExactFlow(denoiser.schedule, denoiser.std)
    found = []
    for latent, x_CHW in enumerate(video):
        answers = exact.answers(config, noise, latent)
        assert len(answers) == 1 or config.method == "scalingnoise" or reflects(config) or config.method == "released"
        found.append(min(float((x_CHW - answer).square().mean().sqrt()) for answer in answers))
    return torch.tensor(found)


CASES = [
    *((profile, "unipc", {}) for profile in PROFILES),
    *(
        (profile, solver, {})
        for profile in ("paper", "swift", "released", "fifo", "scalingnoise", "stage-2-only")
        for solver in ("euler", "ddim")
    ),
    ("released", "ddim", VIDEOCRAFTER2),
]


@pytest.mark.parametrize(("profile", "solver", "settings"), CASES)
@pytest.mark.sampled(24)
def test_the_error_falls_at_the_solvers_order(profile: str, solver: str, settings: dict[str, Any]) -> None:
    found = [errors(profile, num_steps, SOLVERS[solver] | settings) for num_steps in (16, 32, 64)]
    coarse, middle, fine = (float(error.square().mean().sqrt()) for error in found)
    low, high = ORDERS[solver]
    assert low <= math.log2(coarse / fine) / 2 <= high
    assert low - 0.25 <= math.log2(middle / fine) <= high + 0.25
    assert found[-1].max() < {"unipc": 1e-3, "euler": 3e-2, "ddim": 4e-2}[solver], "no latent is left behind"


SEARCH_FREE = [name for name in PROFILES if not (name == "scalingnoise" or reflects(profile_config(name)))]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("profile", SEARCH_FREE)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_latent_takes_every_step_once(profile: str, solver: str) -> None:
    """What was pushed as noise ends where `T` steps of the solver take it alone, to rounding: no level is left out or
    taken twice, no history lost, in whatever queue, stage or drain it was."""
    config = profile_config(profile, windows_per_batch=1000, **SOLVERS[solver])
    denoiser, noise = GaussianDenoiser(config), EnteringNoise()
    video = sample(make_sampler(denoiser, config, NUM_LATENTS, prompts=PromptTrack([MEAN]), noise=noise))
    first = 0 if profile == "stage-2-only" else config.window
    steps = make_solver(config.solver, make_schedule(config), config.eta)
    x = torch.stack([noise.entered["push", latent][0] for latent in range(first, NUM_LATENTS)])
    history = steps.fresh_history(x)
    for level in range(config.num_steps, 0, -1):
        level_F = torch.full((len(x),), level)
        x, history = steps.step(x, level_F, denoiser(x[:, None], level_F[:, None], [MEAN] * len(x))[:, 0], history)
    torch.testing.assert_close(video[first:], x, rtol=0, atol=1e-12)
