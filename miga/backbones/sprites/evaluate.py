"""How good the embedded backbone is, read off its frames by the scorer: the world itself, the VAE, the base clip.

Long videos are measured through the whole sampler by `jobs/benches/quality.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from miga.backbones.base import Backbone
from miga.backbones.sprites.scorer import Score, score
from miga.backbones.sprites.train_vae import clips_to_tensor
from miga.backbones.sprites.training import step_rng
from miga.backbones.sprites.world import Placement, Scene, all_scenes, held_out_scenes, render
from miga.backbones.wan.backbone import WanBackbone
from miga.base_clip import advance_base_clip, start_base_clip
from miga.config import SamplerConfig
from miga.denoise_pass import Stepper, run_in_batches
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.solvers import UniPCSolver

NUM_FRAMES = 45


def world_scores(num_scenes: int, seed: int = 0, num_frames: int = NUM_FRAMES) -> list[Score]:
    """Scores of clips drawn by the world itself: what the scorer gets wrong on its own."""
    return [score(frames, scene) for scene, frames in _drawn(all_scenes(), num_scenes, seed, num_frames)]


@torch.inference_mode()
def vae_scores(backbone: WanBackbone, num_scenes: int, seed: int = 0, num_frames: int = NUM_FRAMES) -> list[Score]:
    """Scores of held-out clips after the VAE's round trip, decoded as the sampler decodes them."""
    assert backbone.vae is not None, "loaded without the VAE"
    scenes = [scene for scene in all_scenes() if scene.held_out]
    scores = []
    for scene, frames in _drawn(scenes, num_scenes, seed, num_frames):
        latent_dist = backbone.vae.encode(clips_to_tensor(frames[None]).to(backbone.device)).latent_dist
        mean, std = (
            torch.tensor(backbone.vae.config[name], device=backbone.device).view(-1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        x_FCHW = ((latent_dist.mode()[0] - mean) / std).transpose(0, 1)
        scores.append(score(backbone.frame_decoder().decode(x_FCHW).numpy() / np.float32(255.0), scene))
    return scores


@torch.inference_mode()
def base_clip_scores(backbone: Backbone, config: SamplerConfig, scenes: Sequence[Scene], seed: int = 0) -> list[Score]:
    """Scores of the base model's own short clips, one per scene, each with a seed and a wording of its own."""
    denoiser = backbone.denoiser(config)
    (negative,) = backbone.encode_prompts([backbone.spec.negative_prompt])
    scores = []
    for number, scene in enumerate(scenes):
        (embedding,) = backbone.encode_prompts([scene.caption(number % 3)])
        stepper = Stepper(
            denoiser.schedule,
            UniPCSolver(denoiser.schedule),
            PromptTrack([backbone.condition(embedding, negative)]),
            NamedNoise(seed + number, backbone.spec.latent_shape, backbone.device),
            run_in_batches(denoiser),
        )
        clip = start_base_clip(config, stepper)
        for _ in range(config.num_steps):
            clip = advance_base_clip(clip, config, stepper)
        scores.append(score(backbone.frame_decoder().decode(clip.x_FCHW).numpy() / np.float32(255.0), scene))
    return scores


def share_all_right(scores: Sequence[Score]) -> dict[str, float]:
    """Share of clips with every frame right, per attribute and in all three at once; mean motion and residual."""
    return {
        "colour": float(np.mean([clip.colour == 1.0 for clip in scores])),
        "ground": float(np.mean([clip.ground == 1.0 for clip in scores])),
        "shape": float(np.mean([clip.shape == 1.0 for clip in scores])),
        "colour, ground and shape": float(np.mean([clip.all_right == 1.0 for clip in scores])),
        "motion": float(np.nanmean([clip.motion for clip in scores])),
        "residual": float(np.mean([clip.residual for clip in scores])),
    }


def share_of_frames(scores: Sequence[Score]) -> dict[str, float]:
    """Mean share of frames right, per attribute; mean motion and residual."""
    names = ("colour", "ground", "shape", "all_right", "motion", "residual")
    return {name: float(np.nanmean([getattr(clip, name) for clip in scores])) for name in names}


def _drawn(scenes: Sequence[Scene], num_scenes: int, seed: int, num_frames: int) -> Iterator[tuple[Scene, np.ndarray]]:
    rng = step_rng(seed, "evaluate", 0)
    for index in rng.permutation(len(scenes))[:num_scenes]:
        yield scenes[index], render(scenes[index], Placement.random(rng), num_frames)


__all__ = ["base_clip_scores", "held_out_scenes", "share_all_right", "share_of_frames", "vae_scores", "world_scores"]
