"""What all tests share: no network, one thread, and a tiny random model in the real format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

TINY_SETTINGS = {
    "num_frames": 29,
    "height": 32,
    "width": 32,
    "fps": 8,
    "negative_prompt": "",
    "default_num_frames": 37,
    "sampler": {
        "num_steps": 8,
        "zigzag_width": 2,
        "handoff_level": 3,
        "num_guidance_latents": 2,
        "guidance_scale": 2.0,
        "flow_shift": 3.0,
        "num_eval_latents": 2,
        "num_reference_latents": 2,
        "num_reflection_guidance_latents": 4,
        "judged_group": 3,
    },
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Wan folder with random weights: 8 latents a clip, 32 x 32 pixels."""
    from tests.tiny_wan import build_tiny_wan

    return build_tiny_wan(tmp_path_factory.mktemp("model") / "tiny", settings=TINY_SETTINGS)
