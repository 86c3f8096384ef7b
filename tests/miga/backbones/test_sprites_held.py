"""What a model that was trained on text alone makes of a first latent that is held: measured on the embedded one.

Captions leave colour and ground open, so only the picture tells them. `-s` prints the figures of docs/images.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miga.backbones.registry import load_backbone
from miga.backbones.sprites.scorer import read_frames
from miga.backbones.sprites.world import Placement, held_out_scenes, render
from miga.image_condition import Pictures
from miga.profiles import resolve_config
from miga.video import make_video

NUM_SCENES, NUM_FRAMES = 6, 89


@pytest.mark.slow
def test_what_it_makes_of_a_picture() -> None:
    backbone = load_backbone("sprites", device="cpu")
    config = resolve_config("swift", backbone.spec, {"num_steps": 16})
    (negative,) = backbone.encode_prompts([backbone.spec.negative_prompt])
    rng = np.random.default_rng(0)
    drawn = [(scene, render(scene, Placement.random(rng), 1)[0]) for scene in held_out_scenes(NUM_SCENES, 7)]
    shares: dict[bool, np.ndarray] = {}
    for has_picture in (False, True):
        right, first, moved = [], [], []
        for seed, (scene, world) in enumerate(drawn):
            (embedding,) = backbone.encode_prompts([scene.caption(0, omit=("colour", "ground"))])
            frame = torch.from_numpy(world).permute(2, 0, 1) * 2.0 - 1.0
            pictures = Pictures(backbone, frame) if has_picture else None  # type: ignore[arg-type]
            num_latents = backbone.spec.num_latents(NUM_FRAMES)
            steps = make_video(backbone, config, [embedding], negative, num_latents, seed, pictures=pictures)
            frames = np.concatenate([step.frames for step in steps if step.frames is not None]) / 255.0
            first.append(np.abs(frames[0] - world).mean())
            reading, half = read_frames(frames), NUM_FRAMES // 2
            moved.append(np.linalg.norm(np.diff(reading.xy_F2, axis=0), axis=1))
            colour = np.array([seen == scene.colour for seen in reading.colour])
            ground = np.array([seen == scene.ground for seen in reading.ground])
            right.append([colour[:half].mean(), colour[half:].mean(), ground[:half].mean(), ground[half:].mean()])
        shares[has_picture] = np.mean(right, axis=0)
        print(has_picture, "colour, ground, halves:", shares[has_picture].round(2), "first:", np.mean(first).round(3))
        print(
            "pixels to the second frame:",
            np.nanmean([m[0] for m in moved]),
            "later:",
            np.nanmean(np.array(moved)[:, 1:]),
        )
    assert np.mean(first) < 0.05
    assert shares[True][2] > shares[False][2] + 0.2, "the ground of the first half follows the picture more often"
