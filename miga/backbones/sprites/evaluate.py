"""How good the embedded backbone is, read off its frames by the scorer: the world itself, the VAE, the base clip.

Long videos are measured through the whole sampler by `jobs/benches/quality.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from miga.backbones.base import Backbone
from miga.backbones.sprites.details import PLAIN, Details, render_detailed
from miga.backbones.sprites.identity import ALL, ATTRIBUTES, Look, distances, identity_drift
from miga.backbones.sprites.scorer import Reading, Score, SecondObject, read_frames, score_reading
from miga.backbones.sprites.train_vae import clips_to_tensor
from miga.backbones.sprites.training import step_rng
from miga.backbones.sprites.world import Placement, Scene, all_scenes
from miga.backbones.wan.backbone import WanBackbone
from miga.base_clip import advance_base_clip, start_base_clip
from miga.config import SamplerConfig
from miga.denoise_pass import Stepper, run_in_batches
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.solvers import UniPCSolver

NUM_FRAMES: Final = 45
NUM_FIRST: Final = 13
"""Frames that a short clip's identity is held against."""


@dataclass(frozen=True)
class Clip:
    """A clip of the evaluation.

    Attributes:
        scene: what was asked for.
        reading: what is read off it.
        details: what else it was drawn with, if the world has drawn it.
    """

    scene: Scene
    reading: Reading
    details: Details | None = None

    @property
    def score(self) -> Score:
        """Against the scene."""
        return score_reading(self.reading, self.scene)


def world_clips(num_scenes: int, seed: int = 0, num_frames: int = NUM_FRAMES, *, detailed: bool = False) -> list[Clip]:
    """Clips drawn by the world itself, with random details or none: what the scorer gets wrong on its own."""
    return [
        Clip(scene, read_frames(frames), details)
        for scene, details, frames in _drawn(all_scenes(), num_scenes, seed, num_frames, detailed)
    ]


@torch.inference_mode()
def vae_clips(
    backbone: WanBackbone, num_scenes: int, seed: int = 0, num_frames: int = NUM_FRAMES, *, detailed: bool = False
) -> list[Clip]:
    """Held-out clips, with random details or none, after the VAE's round trip, decoded as the sampler decodes them."""
    assert backbone.vae is not None, "loaded without the VAE"
    scenes = [scene for scene in all_scenes() if scene.held_out]
    clips = []
    for scene, details, frames in _drawn(scenes, num_scenes, seed, num_frames, detailed):
        latent_dist = backbone.vae.encode(clips_to_tensor(frames[None]).to(backbone.device)).latent_dist
        mean, std = (
            torch.tensor(backbone.vae.config[name], device=backbone.device).view(-1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        x_FCHW = ((latent_dist.mode()[0] - mean) / std).transpose(0, 1)
        decoded = backbone.frame_decoder().decode(x_FCHW).numpy() / np.float32(255.0)
        clips.append(Clip(scene, read_frames(decoded), details))
    return clips


@torch.inference_mode()
def base_clips(backbone: Backbone, config: SamplerConfig, scenes: Sequence[Scene], seed: int = 0) -> list[Clip]:
    """The base model's own short clips, one per scene, each with a seed and a wording of its own."""
    denoiser = backbone.denoiser(config)
    (negative,) = backbone.encode_prompts([backbone.spec.negative_prompt])
    clips = []
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
        frames = backbone.frame_decoder().decode(clip.x_FCHW).numpy() / np.float32(255.0)
        clips.append(Clip(scene, read_frames(frames)))
    return clips


def detail_errors(clips: Sequence[Clip]) -> dict[str, float]:
    """Mean distance, by attribute, between the details that clips were drawn with and what is read off their frames."""
    found = [
        distances(_true_look(clip.scene, clip.details), clip.reading) for clip in clips if clip.details is not None
    ]
    return {name: float(np.nanmean(np.concatenate([one[name] for one in found]))) for name in ATTRIBUTES}


def mean_drift(clips: Sequence[Clip], num_first: int = NUM_FIRST) -> dict[str, float]:
    """Mean identity drift of short clips from their own first frames, by attribute and in all."""
    found = [identity_drift(clip.reading, num_first) for clip in clips]
    return {name: float(np.nanmean([one[name] for one in found])) for name in (*ATTRIBUTES, ALL)}


def _true_look(scene: Scene, details: Details) -> Look:
    texture, other, companion = details.texture, details.companion, None
    if other is not None:
        companion = SecondObject(details.companion_colour(), other.x, other.y, num_pixels=0)
    return Look(
        subject_C=details.subject_colour(scene),
        ground_C=details.ground_colour(scene),
        size=details.size,
        texture=texture,
        velocity_2=texture.speed * np.array([np.cos(texture.angle), np.sin(texture.angle)]),
        companion=companion,
    )


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


def _drawn(
    scenes: Sequence[Scene], num_scenes: int, seed: int, num_frames: int, detailed: bool
) -> Iterator[tuple[Scene, Details, np.ndarray]]:
    rng = step_rng(seed, "evaluate", 0)
    for index in rng.permutation(len(scenes))[:num_scenes]:
        scene, placement = scenes[index], Placement.random(rng)
        details = Details.random(scene, rng) if detailed else PLAIN
        yield scene, details, render_detailed(scene, placement, details, num_frames)
