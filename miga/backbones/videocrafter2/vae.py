"""Latents to frames: an image VAE, one latent and one frame at a time, so in constant memory.

Legend: F latents, C channels, H, W latent cells; frames are `[frames, height, width, 3]`.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from diffusers import AutoencoderKL

from miga.backbones.turns import Turn


class VideoCrafter2FrameDecoder:
    """See `miga.backbones.base.FrameDecoder`. Every latent is one frame, whatever came before it.

    Args:
        vae: in float32, or in less where memory asks for it; its `scaling_factor` is what the UNet's latents were
            multiplied by.
        turn: what the decoding of a latent has to wait for.
    """

    def __init__(self, vae: AutoencoderKL, turn: Turn = nullcontext) -> None:
        self.vae = vae
        self.turn = turn

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames uint8 on the CPU, rounded as diffusers does for images."""
        if not len(x_FCHW):
            cell = 2 ** (len(self.vae.config.block_out_channels) - 1)
            return torch.zeros(0, x_FCHW.shape[2] * cell, x_FCHW.shape[3] * cell, 3, dtype=torch.uint8)
        return torch.stack([self._decode(x_CHW) for x_CHW in x_FCHW])

    @torch.no_grad()
    def _decode(self, x_CHW: torch.Tensor) -> torch.Tensor:
        z = x_CHW[None].to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        with self.turn():
            decoded = self.vae.decode(z, return_dict=False)[0]
        pixels = decoded[0].permute(1, 2, 0).float()
        return ((pixels * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu()
