"""One step of error-recycling fine-tuning: what is injected, what is learnt from it, what is stored. All pure.

The model is shown inputs that hold errors it made before, and learns to predict the velocity that takes a share of
them away. What is left to chance comes from a `Chance`, in the order of upstream's program, so that a recorded run can
be followed number by number.

Source: Stable Video Infinity, closed-loop error recycling (error injection, bidirectional curation, error replay).

Legend: B clips, C channels, F latents, H, W cells; s is sigma, v the velocity e - x0 of noise e and clean latents x0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from miga.errors import ConfigError
from miga.schedule import shifted
from miga.training.error_bank import Banks, Chance

MASK_CHANNELS = 4
"""Of a condition, those before its latents: never changed."""


@dataclass(frozen=True, kw_only=True)
class RecyclingSettings:
    """How often errors are injected and stored; the defaults are those published for SVI-Film.

    Attributes:
        p_noise, p_condition, p_latent: probability that noise, condition and latents each get an error.
        p_clean: probability that a step's input gets none at all.
        p_store_clean: probability that the error of such a step is stored.
        num_condition_latents: latents of the condition that its error covers, from the first on.
        scale: what every injected error is multiplied by (upstream: 1).
        spread: m: an error is scaled by a factor from 1 - m to 1 + m.

    Raises:
        ConfigError: if a value is out of range.
    """

    p_noise: float = 0.01
    p_condition: float = 0.9
    p_latent: float = 0.9
    p_clean: float = 0.5
    p_store_clean: float = 0.1
    num_condition_latents: int = 3
    scale: float = 1.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        for name in ("p_noise", "p_condition", "p_latent", "p_clean", "p_store_clean", "spread"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is out of range", "it must be 0 to 1")
        if not 0.0 <= self.scale < float("inf"):
            raise ConfigError(f"scale = {self.scale!r} is out of range", "it must be 0 or more")
        if self.num_condition_latents < 1:
            raise ConfigError(
                f"num_condition_latents = {self.num_condition_latents!r} is out of range", "it must be 1 or more"
            )


@dataclass(frozen=True)
class Injected:
    """Errors of one step; None where there is none.

    Attributes:
        noise: added to the noise, over all latents.
        condition: added to the condition's first latents, already cut to them.
        latent: added to the clean latents.
        is_clean: whether the step was drawn to have none.
    """

    noise: torch.Tensor | None = None
    condition: torch.Tensor | None = None
    latent: torch.Tensor | None = None
    is_clean: bool = False


@dataclass(frozen=True)
class Example:
    """What the network is shown, and what it is to predict.

    Attributes:
        x_BCFHW: noisy latents.
        y_BCFHW: condition; None if there is none.
        target_BCFHW: the velocity to learn.
    """

    x_BCFHW: torch.Tensor
    y_BCFHW: torch.Tensor | None
    target_BCFHW: torch.Tensor


def draw_errors(
    banks: Banks, timestep: float, num_latents: int, settings: RecyclingSettings, chance: Chance
) -> Injected:
    """Draws what is injected into one step.

    Four numbers decide (noise, condition, latent, clean); of each error that is injected, in that order, one says which
    stored sample and one its scale; of the condition's one more says where in time it begins. An error of noise or
    latents is of the time step's own grid; the condition's is of any.

    Args:
        banks: what was stored so far; an empty one means no error.
        timestep: of the step, 0 ... 1000.
        num_latents: F.
        settings: how often.
        chance: the numbers.
    """
    draws = [chance.random() for _ in range(4)]
    limits = (settings.p_noise, settings.p_condition, settings.p_latent, settings.p_clean)
    has_noise, has_condition, has_latent, is_clean = (draw < p for draw, p in zip(draws, limits, strict=True))
    if is_clean:
        return Injected(is_clean=True)
    grid = banks.grid_of(timestep)

    def factor() -> float:
        return settings.scale * chance.uniform(1.0 - settings.spread, 1.0 + settings.spread)

    injected = Injected()
    if has_noise and (samples := banks.noise.samples(grid)):
        error = banks.noise_error(samples[chance.choice(len(samples))])
        injected = replace(injected, noise=factor() * error)
    if has_condition and (samples := banks.clean.all_samples()):
        error, count = banks.clean_error(samples[chance.choice(len(samples))]), settings.num_condition_latents
        scale = factor()
        count = min(count, num_latents)
        first = chance.first_latent(num_latents - count + 1)
        injected = replace(injected, condition=scale * error[..., first : first + count, :, :])
    if has_latent and (samples := banks.clean.samples(grid)):
        error = banks.clean_error(samples[chance.choice(len(samples))])
        injected = replace(injected, latent=factor() * error)
    return injected


def inject(
    clean_BCFHW: torch.Tensor,
    noise_BCFHW: torch.Tensor,
    y_BCFHW: torch.Tensor | None,
    sigma: float | torch.Tensor,
    injected: Injected,
) -> Example:
    """The example of one step: x_t = (1 - s) (x0 + E) + s (e + E'), condition and target.

    Args:
        clean_BCFHW: x0.
        noise_BCFHW: e.
        y_BCFHW: mask channels and latents of the condition; None for a model without.
        sigma: s.
        injected: the errors.
    """
    noise, shown = noise_BCFHW, clean_BCFHW
    if injected.noise is not None:
        noise = noise + injected.noise.to(noise)
    if injected.latent is not None:
        shown = shown + injected.latent.to(shown)
    if injected.condition is not None and y_BCFHW is not None:
        y_BCFHW = y_BCFHW.clone()
        error = injected.condition.to(y_BCFHW)
        y_BCFHW[:, MASK_CHANNELS:, : error.shape[-3]] += error
    return Example((1.0 - sigma) * shown + sigma * noise, y_BCFHW, target(clean_BCFHW, noise))


def target(clean_BCFHW: torch.Tensor, noise_BCFHW: torch.Tensor) -> torch.Tensor:
    """The velocity to learn, e' - x0: from the noise with its error to the clean latents without theirs.

    One step along it does not land on x0: it takes the share s of the latents' error away (x_t - s v = x0 + (1-s) E).
    """
    return noise_BCFHW - clean_BCFHW


def exact_target(x_BCFHW: torch.Tensor, clean_BCFHW: torch.Tensor, sigma: float, least_sigma: float) -> torch.Tensor:
    """The velocity that lands on x0 in one step, (x_t - x0) / s: another reading, for an ablation."""
    return (x_BCFHW - clean_BCFHW) / max(sigma, least_sigma)


def residual(prediction_BCFHW: torch.Tensor, target_BCFHW: torch.Tensor) -> torch.Tensor:
    """What the forward pass erred by, r = v^ - v: of the clean latents that is an error -s r, of the noise (1-s) r."""
    return prediction_BCFHW.detach() - target_BCFHW


def is_stored(injected: Injected, settings: RecyclingSettings, chance: Chance) -> bool:
    """Whether a step's residual goes to the bank: always, but of an input without errors only now and then."""
    return not injected.is_clean or chance.random() < settings.p_store_clean


def weighted_loss(prediction_BCFHW: torch.Tensor, target_BCFHW: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """Mean squared error in float32, every clip times the weight of its time step."""
    squares = (prediction_BCFHW.float() - target_BCFHW.float()).square().flatten(1).mean(1)
    return (squares * weight_B.to(squares)).mean()


def training_schedule(num_timesteps: int = 1000, shift: float = 5.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sigmas, time steps and weights that training draws from, each `[num_timesteps]`, the noisiest first.

    s = shift u / (1 + (shift - 1) u) of u = 1, ..., 1/N. The weight is a bell around t = 500: 0 at the first, mean 1.
    """
    u = torch.linspace(1.0, 0.0, num_timesteps + 1)[:-1]
    sigma = shifted(u, shift)
    timestep = num_timesteps * sigma
    bell = torch.exp(-2.0 * ((timestep - num_timesteps / 2) / num_timesteps) ** 2)
    bell = bell - bell.min()
    return sigma, timestep, bell * (num_timesteps / bell.sum())
