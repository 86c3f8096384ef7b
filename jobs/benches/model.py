"""How good the embedded backbone is by itself: the world, its VAE, its base clip."""

from __future__ import annotations

import time
from typing import Any

from miga.backbones.registry import load_backbone
from miga.backbones.sprites.evaluate import (
    base_clip_scores,
    share_all_right,
    share_of_frames,
    vae_scores,
    world_scores,
)
from miga.backbones.sprites.world import held_out_scenes
from miga.profiles import resolve_config


def bench_model(num_prompts: int) -> dict[str, list[dict[str, Any]]]:
    """Shares of frames (world, VAE) and of clips (base model) that show what they should."""
    backbone = load_backbone("sprites", device="cpu")
    config = resolve_config("paper", backbone.spec)
    started_s = time.monotonic()
    clips = base_clip_scores(backbone, config, held_out_scenes(num_prompts, seed=0))
    clip_s = (time.monotonic() - started_s) / num_prompts
    rows: list[dict[str, Any]] = [
        {"what": "drawn by the world, frames", **share_of_frames(world_scores(num_prompts))},
        {"what": "after the VAE, frames", **share_of_frames(vae_scores(backbone, num_prompts))},
        {"what": f"base clip ({clip_s:.1f} s each), frames", **share_of_frames(clips)},
        {"what": "base clip, whole clips", **_renamed(share_all_right(clips))},
    ]
    return {f"{num_prompts} clips of held-out scenes": rows}


def _renamed(values: dict[str, float]) -> dict[str, float]:
    return {"all_right" if name.startswith("colour,") else name: value for name, value in values.items()}
