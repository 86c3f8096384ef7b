"""Noise levels: what signal scale, noise scale and time step each level stands for.

Level `r` is the number of denoise steps still to take: step `i` of a sampler of `T` steps takes level `T - i` to
`T - i - 1`. A latent at level `r` is `alpha_r * clean + sigma_r * noise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NoiseSchedule:
    """Tables over levels `0 ... T` (index = level), all of length `T + 1`, on the CPU.

    Attributes:
        alpha: signal scale, float64; 1 at level 0.
        sigma: noise scale, float64; the level 0 entry is what the last step ends at.
        timestep: what the network is told, int64 or float32 (never bfloat16: 993 would become 992); level 0 holds the
            schedule's lowest, which clean context latents are given.
    """

    alpha: torch.Tensor
    sigma: torch.Tensor
    timestep: torch.Tensor

    @property
    def num_steps(self) -> int:
        """`T`."""
        return len(self.sigma) - 1

    def at(self, table: torch.Tensor, level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`table[level]` shaped to multiply latents `[..., C, H, W]` of `like`'s dtype and device."""
        return table[level.cpu()].to(like.device, like.dtype)[..., None, None, None]

    def add_noise(self, clean_FCHW: torch.Tensor, noise_FCHW: torch.Tensor, level_F: torch.Tensor) -> torch.Tensor:
        """Clean latents brought to their levels. Source: MIGA Eq. A1."""
        alpha, sigma = self.at(self.alpha, level_F, clean_FCHW), self.at(self.sigma, level_F, clean_FCHW)
        return alpha * clean_FCHW + sigma * noise_FCHW


def flow_unipc_schedule(num_steps: int, flow_shift: float, num_train_timesteps: int = 1000) -> NoiseSchedule:
    """The schedule of diffusers' `UniPCMultistepScheduler(use_flow_sigmas=True)`, as Wan's pipeline uses it.

    Equal to it bit for bit, which is why the noise scales are rounded to float32: the signal scale of pure noise is
    1e-6, and rounds to 1.01e-6. The time steps are truncated before that rounding.
    """
    slope = (1.0 / num_train_timesteps - 1.0) / num_steps
    sigma = 1.0 + slope * torch.arange(num_steps, dtype=torch.float64)
    sigma = flow_shift * sigma / (1.0 + (flow_shift - 1.0) * sigma)
    sigma[0] -= 1e-6  # keeps the signal scale above 0: solvers take its logarithm
    timestep = (sigma * num_train_timesteps).to(torch.int64)
    sigma = torch.cat([sigma, sigma.new_zeros(1)]).float().double()
    timestep = torch.cat([timestep, timestep[-1:]])
    return NoiseSchedule(alpha=1.0 - sigma.flip(0), sigma=sigma.flip(0), timestep=timestep.flip(0))
