"""Trains the sprite world's video VAE: `AutoencoderKLWan`, causal, 1 + 4k frames to 1 + k latents, 8x smaller.

Four traps, and what is done about them:
- `AutoencoderKLWan.decode` clamps to [-1, 1], so a saturated colour gives no gradient: the loss is taken on the
  unclamped output of the decoder (`decode_unclamped`).
- At the default initialisation the encoder passes almost nothing of its input: the residual variant of the class
  (`is_residual`, as in Wan2.2's VAE) carries averages past every block, and the outermost convolutions start scaled up.
- The ground fills most of a frame and is learnt first, the subject not at all: its pixels weigh more in the loss, and
  those of a second object.
- The causal caches must be seen filled: clips of several lengths are mixed, up to longer than any window of the model.
  It starts on short clips, not on single frames: what the shortcuts carry of a first frame is half as large per
  temporal halving as of later ones, so weights learnt on single frames throw clips off (24 dB fell to 14).

Legend: `x_BCFHW` B clips, C channels, F frames or latents, H, W pixels or latent cells; pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from miga.backbones.sprites.details import COMPANION_RADIUS, Details, render_detailed
from miga.backbones.sprites.training import Schedule, autocast, step_rng, train
from miga.backbones.sprites.world import RADIUS, Placement, Scene, all_scenes, coverage, positions
from miga.backbones.wan.vae import decode_one

Z_DIM: Final = 8
VAE_CONFIG: Final[dict[str, Any]] = {
    "base_dim": 12,
    "decoder_base_dim": 16,
    "z_dim": Z_DIM,
    "dim_mult": [1, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.0] * Z_DIM,
    "latents_std": [1.0] * Z_DIM,
}
INITIAL_GAIN: Final = 2.5
"""Scale of the outermost convolutions at the start."""
PAST_GAIN: Final = 0.3
"""Scale, at the start, of the parts of a convolution that look at past frames."""
SUBJECT_WEIGHT: Final = 8.0
"""Extra weight in the loss of a pixel that is not ground, or next to one that is not: shapes differ at their edges."""
LEARNING_RATE: Final = 1.5e-3
EDGE: Final = 3
"""How many pixels "next to" reaches."""
SHORT_STEPS: Final = 700
"""Steps on clips of nine frames before longer ones are mixed in."""
CLIPS: Final = ((4, 9), (16, 1), (2, 21), (1, 45), (1, 77))
"""(clips in a batch, frames of each)."""
CLIP_SHARES: Final = (0.45, 0.1, 0.25, 0.15, 0.05)
"""How often each entry of `CLIPS` is drawn."""
KL_WEIGHT: Final = 3e-4
LATENT_NOISE: Final = 0.1
"""Noise on the latent, in units of its own spread: the decoder learns to forgive what a sampler leaves."""


def training_scenes() -> list[Scene]:
    """The scenes that training may show."""
    return [scene for scene in all_scenes() if not scene.held_out]


def clips_to_tensor(frames_BFHWC: np.ndarray) -> torch.Tensor:
    """`[B, F, H, W, 3]` in [0, 1] to `[B, 3, F, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames_BFHWC.transpose(0, 4, 1, 2, 3))) * 2.0 - 1.0


def decode_unclamped(vae: AutoencoderKLWan, z_BCFHW: torch.Tensor) -> torch.Tensor:
    """`AutoencoderKLWan.decode` without its last line, which cuts off the gradient of saturated colours."""
    chunks, cache = [], None
    for z_BC1HW in z_BCFHW.split(1, dim=2):
        pixels, cache = decode_one(vae, z_BC1HW, cache)
        chunks.append(pixels)
    return torch.cat(chunks, dim=2)


def train_vae(
    state_file: Path, num_steps: int, seed: int, device: torch.device, begin_from: Path | None = None
) -> AutoencoderKLWan:
    """Trains the VAE (resuming from `state_file`) and measures the mean and spread of its latents.

    Args:
        state_file: where training is kept; it goes on from there if it exists.
        num_steps: of the learning rate's schedule.
        seed: of everything random.
        device: where it is trained.
        begin_from: a checkpoint's folder, to train on from its weights; None begins from nothing.

    Returns:
        The VAE, with `latents_mean` and `latents_std` in its config, as the Wan pipelines read them.
    """
    torch.manual_seed(seed)
    vae = _new_vae() if begin_from is None else AutoencoderKLWan.from_pretrained(begin_from, subfolder="vae")
    vae = vae.to(device, torch.float32).train()
    num_short = SHORT_STEPS if begin_from is None else 0
    schedule = Schedule(num_steps, LEARNING_RATE, num_warmup_steps=200 if begin_from is None else 50)
    ema_decay = 0.998 if begin_from is None else 0.99
    train("vae", vae, _loss_of(vae, "vae", seed, device, num_short), schedule, state_file, ema_decay=ema_decay)
    _measure_latents(vae.eval(), training_scenes(), seed, device)
    return vae


def train_decoder(
    vae: AutoencoderKLWan, state_file: Path, num_steps: int, seed: int, device: torch.device
) -> AutoencoderKLWan:
    """Trains the decoder alone (resuming from `state_file`): latents stay, and so does whatever was trained on them."""
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    schedule = Schedule(num_steps, LEARNING_RATE, num_warmup_steps=50)
    loss_of = _loss_of(vae.train(), "decoder", seed, device, num_short=0)
    train("decoder", vae, loss_of, schedule, state_file, ema_decay=0.99)
    return vae.eval()


def _loss_of(
    vae: AutoencoderKLWan, stage: str, seed: int, device: torch.device, num_short: int
) -> Callable[[int], tuple[torch.Tensor, dict[str, float]]]:
    """The loss of a step, and figures of it; the first `num_short` steps are of short clips alone."""
    scenes = training_scenes()

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, stage, step)
        picked = 0 if step < num_short else int(rng.choice(len(CLIPS), p=CLIP_SHARES))
        batch, num_frames = CLIPS[picked]
        x, weight = (tensor.to(device) for tensor in draw_batch(scenes, batch, num_frames, rng))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            z = posterior.mean.float()
            noise = torch.randn(z.shape, generator=generator).to(device)
            out = decode_unclamped(vae, z + LATENT_NOISE * z.detach().std() * noise).float()
        error = out - x
        squared = error.square()
        kl = 0.5 * z.square().mean()  # the mode is used: only its size is held down
        loss = (weight * error.abs()).mean() + 2.0 * (weight * squared).mean() + KL_WEIGHT * kl
        psnr = float(10.0 * torch.log10(4.0 / squared.mean().detach().clamp_min(1e-8)))
        return loss, {"psnr": psnr, f"psnr{num_frames}": psnr, "z": float(z.detach().std())}

    return loss_of


def _new_vae() -> AutoencoderKLWan:
    vae = AutoencoderKLWan(**VAE_CONFIG)
    with torch.no_grad():
        for half in (vae.encoder, vae.decoder):
            half.conv_in.weight.mul_(INITIAL_GAIN)
            half.conv_out.weight.mul_(INITIAL_GAIN)
        vae.quant_conv.weight.mul_(INITIAL_GAIN)
        vae.post_quant_conv.weight.mul_(INITIAL_GAIN)
        for conv in vae.modules():
            if isinstance(conv, WanCausalConv3d) and conv.kernel_size == (3, 3, 3):
                conv.weight[:, :, :-1].mul_(PAST_GAIN)
    return vae


def draw_batch(
    scenes: list[Scene], batch: int, num_frames: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random clips `[B, 3, F, H, W]` in [-1, 1], and the weight of each pixel in the loss `[B, 1, F, H, W]`."""
    clips, covers = [], []
    for index in rng.integers(len(scenes), size=batch):
        scene = scenes[int(index)]
        placement, details = Placement.random(rng), Details.random(scene, rng)
        clips.append(render_detailed(scene, placement, details, num_frames))
        cover_FHW = coverage(scene.shape, positions(scene, placement, num_frames), details.size * RADIUS)
        if details.companion is not None:
            middle = np.array([[details.companion.x, details.companion.y]])
            cover_FHW = np.maximum(cover_FHW, coverage("circle", middle, COMPANION_RADIUS))
        covers.append(cover_FHW)
    return clips_to_tensor(np.stack(clips)), _loss_weight(torch.from_numpy(np.stack(covers)))


def _loss_weight(cover_BFHW: torch.Tensor) -> torch.Tensor:
    """`[B, 1, F, H, W]`, mean 1, high on what is not ground and around its edge."""
    is_object = (cover_BFHW > 0.0).float()
    around = torch.nn.functional.max_pool2d(is_object, 2 * EDGE + 1, stride=1, padding=EDGE)
    weight = 1.0 + SUBJECT_WEIGHT * around[:, None]
    return weight / weight.mean()


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, scenes: list[Scene], seed: int, device: torch.device) -> None:
    rng = step_rng(seed, "latents", 0)
    latents = [vae.encode(draw_batch(scenes, 1, 45, rng)[0].to(device)).latent_dist.mode() for _ in range(96)]
    z_CN = torch.cat(latents).transpose(0, 1).flatten(1).float()
    vae.register_to_config(
        latents_mean=[round(float(value), 5) for value in z_CN.mean(1)],
        latents_std=[round(float(value), 5) for value in z_CN.std(1)],
    )
