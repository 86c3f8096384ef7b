"""One measurement of `jobs.bench memory`, in a process of its own: `PROFILE NUM_LATENTS`."""

from __future__ import annotations

import json
import sys

from jobs.bench import peak_memory_mib
from miga.backbones.registry import load_backbone
from miga.config import resolve_config
from miga.video import make_video

WARM_LATENTS = 24
"""Enough for every stage to have run at its full size."""


def main() -> int:
    """Makes the video, throws its frames away, prints the peaks."""
    profile, num_latents = sys.argv[1], int(sys.argv[2])
    backbone = load_backbone("sprites", device="cpu")
    config = resolve_config(profile, backbone.spec)
    embedding, negative = backbone.encode_prompts(
        ["a red circle moving side to side on a grey ground", backbone.spec.negative_prompt]
    )
    warm_mib = 0.0
    for step in make_video(backbone, config, [embedding], negative, num_latents, seed=0):
        if step.num_latents_done >= WARM_LATENTS and not warm_mib:
            warm_mib = peak_memory_mib()
    peak_mib = peak_memory_mib()
    print(json.dumps({"peak_mib": peak_mib, f"growth_after_{WARM_LATENTS}_mib": peak_mib - warm_mib}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
