"""What the sampler's tests stand on: small configs, networks whose exact answer is known, noise that carries labels.

Legend: B windows, F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from miga.config import SamplerConfig
from miga.denoise_pass import RunWindows, WindowCall
from miga.generate import Sampler, VideoState
from miga.methods import methods
from miga.noise import NamedNoise, NoiseSource
from miga.profiles import field_names, profiles
from miga.prompts import PromptTrack
from miga.reflection import GrowAll
from miga.schedule import NoiseSchedule, schedule_for

PROFILES = {
    name: each
    for name, each in profiles().items()
    if not (methods()[each.settings["method"]].needs_cache or methods()[each.settings["method"]].needs_picture)
    and not methods()[each.settings["method"]].settings.one_window
}
"""Those that begin with nothing but noise, go through a video by windows, and that any network will do for:
`methods/causal/`, `methods/test_chain.py` and `methods/test_extended.py` test the others."""
SHAPE = (4, 2, 3)
SHIFT = 5.0
SMALL: dict[str, dict[str, Any]] = {
    "released": {"released_branch": "wan", "self_reflection": True, "judged_group": 2},
    "scalingnoise": {"num_beams": 2, "num_candidates": 2},
}
VIDEOCRAFTER2 = {"released_branch": "videocrafter2", "solver": "ddim"}
"""The other branch of `released`, which needs a schedule whose lowest two levels are the same."""
FEW_STEPS = (1000, 900, 780, 650, 500, 350, 200, 90)
"""Time steps of a distilled model, enough of them for every profile's queue."""


def make_config(**settings: Any) -> Any:
    """A small config of the whole method, self-reflection off; what another method does not read is left out."""
    small: dict[str, Any] = {
        "profile": "test",
        "method": "miga",
        "num_steps": 12,
        "window": 6,
        "zigzag_width": 2,
        "handoff_level": 4,
        "num_guidance_latents": 2,
        "guidance_scale": 1.0,
        "flow_shift": SHIFT,
        "self_reflection": False,
        "reflection_threshold": 0.01,
        "num_eval_latents": 2,
        "num_reference_latents": 2,
        "num_reflection_guidance_latents": 4,
        "num_candidates": 2,
        "judged_group": 3,
        "guidance_low_level": 1,
        "solver": "unipc",
        "eta": 0.0,
        "timesteps": (),
        "drain": False,
        "position_0_context": False,
        "windows_per_batch": 1,
        "lookahead": True,
        "num_beams": 2,
        "released_branch": "",
    }
    small |= settings
    small.setdefault("stride", small["window"] // 2)
    small.setdefault("unified_stride", small["stride"])
    small.setdefault("guidance_high_level", small["num_steps"])
    method = small["method"]
    return methods()[method].settings(**{name: small[name] for name in field_names(method) if name in small})


def make_fifo_config(**settings: Any) -> Any:
    """A small config of FIFO-Diffusion."""
    return make_config(
        **{"method": "fifo", "zigzag_width": 1, "handoff_level": 1, "num_guidance_latents": 0} | settings
    )


def profile_config(profile: str, **settings: Any) -> Any:
    """A small config of a named profile; a profile with self-reflection searches at every evaluation."""
    own = PROFILES[profile].settings | SMALL.get(profile, {})
    return make_config(**{"profile": profile, "reflection_threshold": -10.0, **own, **settings})


def make_schedule(config: SamplerConfig) -> NoiseSchedule:
    """The schedule that fits the solver."""
    return schedule_for(config)


class GaussianDenoiser:
    """The exact posterior mean where clean latents are Gaussian: mean = the condition, a number; standard deviation
    `std`; correlation `correlation ** |i - j|` between latents i and j of a window (0: none, context does not matter).
    """

    def __init__(self, config: SamplerConfig, std: float = 0.7, correlation: float = 0.0) -> None:
        self.window = config.window
        self.schedule = make_schedule(config)
        self.std = std
        self.correlation = correlation

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        assert x_BFCHW.shape[1] <= self.window
        if self.correlation == 0.0:
            return self._each_alone(x_BFCHW, level_BF, conditions)
        return torch.stack(
            [self._one(x, level, mean) for x, level, mean in zip(x_BFCHW, level_BF, conditions, strict=True)]
        )

    def _each_alone(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        alpha, sigma = (table[level_BF][..., None, None, None] for table in (self.schedule.alpha, self.schedule.sigma))
        mean = torch.tensor(conditions, dtype=torch.float64)[:, None, None, None, None]
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return (mean + gain * (x_BFCHW.double() - alpha * mean)).to(x_BFCHW.dtype)

    def _one(self, x_FCHW: torch.Tensor, level_F: torch.Tensor, mean: float) -> torch.Tensor:
        alpha, sigma = self.schedule.alpha[level_F], self.schedule.sigma[level_F]
        position = torch.arange(len(level_F))
        distance = (position[:, None] - position).abs()
        covariance = self.std**2 * torch.tensor(self.correlation, dtype=torch.float64) ** distance
        observed = alpha[:, None] * covariance * alpha + torch.diag(sigma**2)
        gain = torch.linalg.solve(observed, alpha[:, None] * covariance).T  # [F, F]
        surprise = x_FCHW.double().flatten(1) - alpha[:, None] * mean
        return (mean + gain @ surprise).view(x_FCHW.shape).to(x_FCHW.dtype)


class MixingDenoiser:
    """Cheap, no data's answer; every latent it predicts depends on all that the window shows, where they stand, their
    levels and the condition. For comparing two ways to the same video."""

    def __init__(self, config: SamplerConfig) -> None:
        self.window = config.window
        self.schedule = make_schedule(config)
        position = torch.arange(config.window, dtype=torch.float32)
        near = torch.exp(-(position[:, None] - position).abs() / 3)
        self.mixing_FF = 0.5 * torch.eye(config.window) + 0.15 * near * torch.cos(position)

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        num = x_BFCHW.shape[1]
        assert num <= self.window
        mixed = (self.mixing_FF[:num, :num] @ x_BFCHW.flatten(2)).view(x_BFCHW.shape)
        shift = 0.02 * level_BF + torch.tensor(conditions)[:, None]
        return mixed + shift[..., None, None, None]


class LabelledNoise:
    """Noise whose channels 0, 1, 2 are constants: the latent's index (0 for those before the video), 1, the candidate.

    Together with `LabelDenoiser` every latent then carries, at any level: channel 0 its index, channel 1 the noise
    scale it really stands at, channel 2 the candidate it was grown for.
    """

    def __init__(self, seed: int = 0) -> None:
        self.named = NamedNoise(seed, SHAPE)
        self.asked: list[tuple[str, int, int]] = []

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        self.asked += [(purpose, latent, candidate) for latent in latents]
        noise = self.named(purpose, latents, candidate)
        noise[:, 0] = torch.tensor([max(0, latent) for latent in latents], dtype=torch.float32)[:, None, None]
        noise[:, 1] = 1.0
        noise[:, 2] = float(candidate)
        return noise


@dataclass(frozen=True, order=True)
class Call:
    """One call of the network as its input showed it."""

    latents: tuple[int, ...]
    levels: tuple[int, ...]
    candidates: tuple[int, ...]
    condition: Any


@dataclass
class LabelDenoiser:
    """Reads the labels of `LabelledNoise` off its input, checks that the noise in it is that of its level, records."""

    config: SamplerConfig
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.window = self.config.window
        self.schedule = make_schedule(self.config)

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any]) -> torch.Tensor:
        for x_FCHW, level_F, condition in zip(x_BFCHW, level_BF, conditions, strict=True):
            labels = x_FCHW[:, :3].mean((2, 3))
            self.check_noise(labels[:, 1].double(), level_F)
            latents, candidates = (tuple(labels[:, channel].round().int().tolist()) for channel in (0, 2))
            self.calls.append(Call(latents, tuple(level_F.tolist()), candidates, condition))
        clean = 0.5 * x_BFCHW + 0.1 * x_BFCHW.mean(1, keepdim=True)
        clean[:, :, 0] = x_BFCHW[:, :, 0].round()
        clean[:, :, 1] = 0.0
        clean[:, :, 2] = x_BFCHW[:, :, 2].round()
        return clean

    def check_noise(self, noise_F: torch.Tensor, level_F: torch.Tensor) -> None:
        """Level 0 is FIFO's context: clean, or at the start as noisy as level 1."""
        sigma = self.schedule.sigma
        is_right = (noise_F - sigma[level_F]).abs() < 1e-5
        is_right |= (level_F == 0) & ((noise_F - sigma[1]).abs() < 1e-5)
        assert is_right.all(), f"noise {noise_F.tolist()} is not that of levels {level_F.tolist()}"


def make_sampler(
    denoiser: Any,
    config: SamplerConfig,
    num_latents: int | None,
    *,
    prompts: PromptTrack | None = None,
    noise: NoiseSource | None = None,
    run_windows: RunWindows | None = None,
    grow_all: GrowAll | None = None,
) -> Sampler:
    return Sampler(
        denoiser,
        config,
        prompts or PromptTrack([0.5]),
        noise or NamedNoise(0, SHAPE),
        num_latents,
        run_windows,
        grow_all,
    )


def sample(sampler: Sampler) -> torch.Tensor:
    """The whole video."""
    return sample_with_state(sampler)[0]


def sample_with_state(sampler: Sampler) -> tuple[torch.Tensor, VideoState]:
    """The whole video, and the state it ends in."""
    steps = list(sampler.run())
    return torch.cat([finished for _, finished in steps if finished is not None]), steps[-1][0]


def in_order(
    denoiser: Any, order: Callable[[int], Sequence[int]], log: list[int] | None = None
) -> Callable[[Sequence[WindowCall]], list[torch.Tensor]]:
    """A `RunWindows` that computes the calls in another order."""

    def run(calls: Sequence[WindowCall]) -> list[torch.Tensor]:
        outputs: dict[int, torch.Tensor] = {}
        for number in order(len(calls)):
            call = calls[number]
            outputs[number] = denoiser(call.x_FCHW[None], call.level_F[None], [call.condition])[0]
        if log is not None:
            log.append(len(calls))
        return [outputs[number] for number in range(len(calls))]

    return run


def reflects(config: SamplerConfig) -> bool:
    """Whether a config judges the tail of its queue."""
    return bool(getattr(config, "self_reflection", False))
