"""How good the embedded backbone is by itself: the world, its VAE, its base clip."""

from __future__ import annotations

import time
from typing import Any

from miga.backbones.registry import load_backbone
from miga.backbones.sprites.evaluate import (
    base_clips,
    detail_errors,
    mean_drift,
    share_all_right,
    share_of_frames,
    vae_clips,
    world_clips,
)
from miga.backbones.sprites.world import held_out_scenes
from miga.profiles import resolve_config


def bench_model(num_prompts: int, model: str = "sprites") -> dict[str, list[dict[str, Any]]]:
    """What shows what it should, of plain scenes: shares of frames (world, VAE) and of clips; and errors of details."""
    backbone = load_backbone(model, device="cpu")
    config = resolve_config("paper", backbone.spec)
    started_s = time.monotonic()
    made = base_clips(backbone, config, held_out_scenes(num_prompts, seed=0))
    clip_s = (time.monotonic() - started_s) / num_prompts
    drawn, decoded = world_clips(num_prompts), vae_clips(backbone, num_prompts)
    scores = [clip.score for clip in made]
    shares: list[dict[str, Any]] = [
        {"what": "drawn by the world, frames", **share_of_frames([clip.score for clip in drawn])},
        {"what": "after the VAE, frames", **share_of_frames([clip.score for clip in decoded])},
        {"what": f"base clip ({clip_s:.1f} s each), frames", **share_of_frames(scores)},
        {"what": "base clip, whole clips", **_renamed(share_all_right(scores))},
    ]
    drawn, decoded = world_clips(num_prompts, detailed=True), vae_clips(backbone, num_prompts, detailed=True)
    details: list[dict[str, Any]] = [
        {"what": "drawn by the world, from what was drawn", **detail_errors(drawn)},
        {"what": "after the VAE, from what was drawn", **detail_errors(decoded)},
        {"what": "after the VAE, from a clip's first frames", **mean_drift(decoded)},
        {"what": "base clip, from its own first frames", **mean_drift(made)},
    ]
    return {
        f"{num_prompts} clips of held-out scenes": shares,
        "Distances by attribute, of scenes with details; identity: 0 is the same clip, 1 another": details,
    }


def _renamed(values: dict[str, float]) -> dict[str, float]:
    return {"all_right" if name.startswith("colour,") else name: value for name, value in values.items()}
