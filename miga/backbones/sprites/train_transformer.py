"""Trains the sprite world's denoiser: `WanTransformer3DModel` with a small UMT5 encoder, on short clips only.

Every clip is noised to one level for all of its latents, as real backbones are trained: what the sampler does with
several levels in one window is as new to this model as it is to them.

Legend: `x_BCFHW` B clips, C channels, F latents, H, W latent cells, normalised to zero mean and unit spread.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from tqdm import tqdm
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from miga.backbones.sprites.train_vae import Z_DIM, training_scenes
from miga.backbones.sprites.training import Schedule, step_rng, train
from miga.backbones.sprites.world import (
    COLOURS,
    GROUNDS,
    MOTIONS,
    OMISSIBLE,
    SHAPES,
    TEMPLATES,
    Placement,
    Scene,
    render,
)
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import NUM_TEXT_TOKENS

NUM_FRAMES: Final = 45
"""Length of a training clip: 12 latents, the only length the model learns."""
TEXT_DIM: Final = 64
TRANSFORMER_CONFIG: Final[dict[str, Any]] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": Z_DIM,
    "out_channels": Z_DIM,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 640,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
BATCH: Final = 32
EMPTY_CAPTION_SHARE: Final = 0.1
"""Share of clips shown without their caption: what classifier-free guidance steers away from."""
PARTIAL_CAPTION_SHARE: Final = 0.2
"""Share of captions that leave something open: each of `OMISSIBLE` with even odds."""
UNKNOWN_WORD_SHARE: Final = 0.02
"""Share of words replaced by the unknown token, so that prompts beyond the grammar do not derail the model."""


def build_tokenizer() -> T5TokenizerFast:
    """A tokenizer of the grammar's words; anything else is `<unk>`."""
    phrases = [*COLOURS, *GROUNDS, *SHAPES, *MOTIONS.values(), *TEMPLATES]
    words = sorted({word for phrase in phrases for word in phrase.replace(",", " ").split() if "{" not in word})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -2.0)]
    vocabulary += [(f"▁{word}", -2.0) for word in words]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=NUM_TEXT_TOKENS)


def build_text_encoder(tokenizer: T5TokenizerFast) -> UMT5EncoderModel:
    """An untrained UMT5 encoder for that tokenizer."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
        )
    )


class TextToVideo(nn.Module):
    """The two modules that learn together."""

    def __init__(self, tokenizer: T5TokenizerFast) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.transformer = WanTransformer3DModel(**TRANSFORMER_CONFIG)
        use_compact_padding(self.transformer)

    def forward(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, ids_BL: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Predicted velocity, noise minus clean, `[B, C, F, H, W]`."""
        text = self.text_encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state * mask_BL[..., None]
        return self.transformer(x_BCFHW, timestep_B, text, return_dict=False)[0]


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, num_clips: int, seed: int, file: Path) -> tuple[torch.Tensor, list[int]]:
    """Latents `[clips, C, F, H, W]` (float16, normalised) of random training clips, and the scene of each.

    They are kept in `file`, and read from there the next time.
    """
    scenes = training_scenes()
    if file.exists():
        saved = torch.load(file, weights_only=True)
        return saved["x"], saved["scene"]
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    chunks, picked = [], []
    for batch in tqdm(range(math.ceil(num_clips / 16)), desc="encode clips", mininterval=5.0):
        rng = step_rng(seed, "clips", batch)
        indices = [int(index) for index in rng.integers(len(scenes), size=16)]
        clips = torch.cat([_clip(scenes[index], Placement.random(rng)) for index in indices]).to(vae.device)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            z = vae.encode(clips).latent_dist.mode()
        chunks.append(((z.float().cpu() - mean) / std).half())
        picked += indices
    x = torch.cat(chunks)
    torch.save({"x": x, "scene": picked}, file)
    return x, picked


def _clip(scene: Scene, placement: Placement) -> torch.Tensor:
    frames = torch.from_numpy(render(scene, placement, NUM_FRAMES))
    return frames.permute(3, 0, 1, 2)[None] * 2.0 - 1.0


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    if rng.random() < EMPTY_CAPTION_SHARE:
        return ""
    omit = [name for name in OMISSIBLE if rng.random() < 0.5] if rng.random() < PARTIAL_CAPTION_SHARE else []
    return scene.caption(int(rng.integers(len(TEMPLATES))), omit)


def train_transformer(
    vae: AutoencoderKLWan, clips_file: Path, state_file: Path, num_clips: int, num_steps: int, seed: int
) -> tuple[WanTransformer3DModel, UMT5EncoderModel, T5TokenizerFast]:
    """Trains denoiser and text encoder (resuming from `state_file`) on clips encoded once.

    Returns:
        The transformer, the text encoder, both with averaged weights, and the tokenizer.
    """
    device = vae.device
    latents, scene_of = encode_clips(vae, num_clips, seed, clips_file)
    scenes = training_scenes()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = TextToVideo(tokenizer).to(device)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, "transformer", step)
        picked = rng.integers(len(latents), size=BATCH)
        captions = [_caption(scenes[scene_of[index]], rng) for index in picked]
        tokens = tokenizer(captions, padding="longest", return_tensors="pt")
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        unknown = torch.from_numpy(rng.random(tuple(ids.shape)) < UNKNOWN_WORD_SHARE).to(device)
        ids = torch.where(unknown & (ids > 2), tokenizer.unk_token_id, ids)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = latents[torch.from_numpy(picked)].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = torch.sigmoid(0.4 + 1.3 * torch.randn(BATCH, generator=generator)).to(device)
        noised = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            velocity = model(noised, 1000.0 * sigma, ids, mask)
        loss = nn.functional.mse_loss(velocity.float(), noise - clean)
        return loss, {"loss": float(loss.detach())}

    train("transformer", model, loss_of, Schedule(num_steps, 1.5e-3), state_file, ema_decay=0.999, muon=True)
    return model.transformer.eval(), model.text_encoder.eval(), tokenizer
