"""Writes the trained parts as one folder in the layout of a Wan2.1 checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5EncoderModel

from miga.backbones.sprites.train_transformer import NUM_FRAMES
from miga.backbones.sprites.train_vae import Z_DIM
from miga.backbones.sprites.world import FPS, SIZE

FLOW_SHIFT: Final = 3.0
SETTINGS: Final[dict[str, Any]] = {
    "family": "wan",
    "num_frames": NUM_FRAMES,
    "height": SIZE,
    "width": SIZE,
    "fps": FPS,
    "negative_prompt": "",
    "default_num_frames": 177,
    "sampler": {
        "num_steps": 30,
        "zigzag_width": 4,
        "handoff_level": 7,
        "num_guidance_latents": 3,
        "guidance_scale": 3.0,
        "flow_shift": FLOW_SHIFT,
        "num_eval_latents": 4,
        "num_reference_latents": 8,
        "num_reflection_guidance_latents": 8,
        "judged_group": 6,
    },
}
"""`miga.json`: what diffusers' layout has no place for. The settings scale Wan's to a window of 12 latents."""


def save_checkpoint(
    folder: Path,
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: T5TokenizerFast,
) -> None:
    """Saves the pipeline, weights in half precision, with `miga.json` beside it.

    A transformer that takes a condition beside its latents makes it an image-to-video model, as Wan2.2's are laid out.
    """
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to("cpu", torch.float16),
        vae=vae.to("cpu", torch.float16),
        scheduler=scheduler,
        transformer=transformer.to("cpu", torch.float16),
    )
    pipeline.save_pretrained(folder)
    # transformers 5 calls its fast T5 tokenizer plain T5Tokenizer; Wan's folders name it as before, and both load.
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    if transformer.config.in_channels != Z_DIM:
        index["_class_name"] = "WanImageToVideoPipeline"
        index |= {"image_encoder": [None, None], "image_processor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "miga.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
