"""Latents to frames as they come: Wan's causal VAE, one latent at a time, in memory that does not grow.

Legend: F latents, C channels, H, W latent cells; frames are `[frames, height, width, 3]`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TypeAlias

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

from miga.backbones.turns import Turn

FeatureCache: TypeAlias = list[torch.Tensor | str | None]
"""What the decoder's causal convolutions keep of the latents before."""


def decode_one(
    vae: AutoencoderKLWan, z_BC1HW: torch.Tensor, cache: FeatureCache | None
) -> tuple[torch.Tensor, FeatureCache]:
    """The frames of one latent behind those before it, not clamped to [-1, 1] as `AutoencoderKLWan.decode` does.

    Args:
        vae: holds no state of it.
        z_BC1HW: one latent of every video, as the VAE has it (not normalised).
        cache: what the call for the latent before returned, written over here; None for a video's first latent.

    Returns:
        Frames `[B, 3, frames, height, width]` and the cache for the next latent.
    """
    is_first = cache is None
    if cache is None:
        cache = [None] * sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    pixels = vae.decoder(vae.post_quant_conv(z_BC1HW), feat_cache=cache, feat_idx=[0], first_chunk=is_first)
    if vae.config.patch_size is not None:
        pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
    return pixels, cache


@torch.no_grad()
def encode_frames(vae: AutoencoderKLWan, frames_FCHW: torch.Tensor) -> torch.Tensor:
    """Normalised latents `[F, C, H, W]`, float32, of frames of -1 ... 1: the posterior's mean, as pipelines take it."""
    video = frames_FCHW.transpose(0, 1)[None].to(vae.device, vae.dtype)
    latents_BCFHW = vae.encode(video).latent_dist.mode().float()
    mean, std = (
        torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return ((latents_BCFHW - mean) * (1.0 / std))[0].transpose(0, 1)


class WanFrameDecoder:
    """See `miga.backbones.base.FrameDecoder`. Holds its own cache of features, so several may share a VAE.

    Args:
        vae: in float32, or in less where memory asks for it.
        turn: what the decoding of a latent has to wait for.
    """

    def __init__(self, vae: AutoencoderKLWan, turn: Turn = nullcontext) -> None:
        self.vae = vae
        self.turn = turn
        self._features: FeatureCache | None = None  # None: no latent decoded yet
        self._mean, self._std = (
            torch.tensor(values, device=vae.device, dtype=vae.dtype).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames uint8 on the CPU, rounded as diffusers does for images."""
        frames = [(self._decode_next(x_CHW) * 255.0).round().to(torch.uint8).cpu() for x_CHW in x_FCHW]
        return torch.cat(frames) if frames else self._no_frames(x_FCHW).to(torch.uint8)

    def decode_float(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames float32 in [0, 1] on the CPU."""
        frames = [self._decode_next(x_CHW).cpu() for x_CHW in x_FCHW]
        return torch.cat(frames) if frames else self._no_frames(x_FCHW)

    def _no_frames(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        cell = self.vae.config.scale_factor_spatial
        return torch.zeros(0, x_FCHW.shape[2] * cell, x_FCHW.shape[3] * cell, 3)

    def decode_pixels(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames float32 `[F, 3, H, W]` in [-1, 1] on the VAE's device, as the VAE gives them."""
        return torch.cat([self._pixels_next(x_CHW)[0].transpose(0, 1) for x_CHW in x_FCHW])

    def _decode_next(self, x_CHW: torch.Tensor) -> torch.Tensor:
        pixels = self._pixels_next(x_CHW)
        return (pixels[0].permute(1, 2, 3, 0) * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def _pixels_next(self, x_CHW: torch.Tensor) -> torch.Tensor:
        z = x_CHW[None, :, None].to(self.vae.device, self.vae.dtype)
        z = z / (1.0 / self._std) + self._mean  # the pipeline's rounding
        with self.turn():
            pixels, self._features = decode_one(self.vae, z, self._features)
        return pixels.float().clamp(-1.0, 1.0)
