"""Latents to frames as they come: Wan's causal VAE, one latent at a time, in memory that does not grow.

Legend: F latents, C channels, H, W latent cells; frames are `[frames, height, width, 3]`.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify


class WanFrameDecoder:
    """See `miga.backbones.base.FrameDecoder`. Holds its own cache of features, so several may share a VAE.

    Args:
        vae: in float32.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self._features: list[torch.Tensor | str | None] | None = None  # None: no latent decoded yet
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

    @torch.no_grad()
    def _decode_next(self, x_CHW: torch.Tensor) -> torch.Tensor:
        z = x_CHW[None, :, None].to(self.vae.device, self.vae.dtype)
        z = self.vae.post_quant_conv(z / (1.0 / self._std) + self._mean)  # the pipeline's rounding
        if first := self._features is None:
            num_convs = sum(isinstance(module, WanCausalConv3d) for module in self.vae.decoder.modules())
            self._features = [None] * num_convs
        pixels = self.vae.decoder(z, feat_cache=self._features, feat_idx=[0], first_chunk=first)
        if self.vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self.vae.config.patch_size)
        pixels = pixels.clamp(-1.0, 1.0)
        return (pixels[0].permute(1, 2, 3, 0) * 0.5 + 0.5).clamp(0.0, 1.0)
