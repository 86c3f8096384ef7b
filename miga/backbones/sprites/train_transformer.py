"""Trains the sprite world's denoiser: `WanTransformer3DModel` with a small UMT5 encoder, on short clips only.

Every clip is noised to one level for all of its latents, as real backbones are trained: what the sampler does with
several levels in one window is as new to this model as it is to them.

Legend: `x_BCFHW` B clips, C channels, F latents, H, W latent cells, normalised to zero mean and unit spread.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from tqdm import tqdm
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from miga.backbones.sprites.details import TEXTURES, Details, render_detailed
from miga.backbones.sprites.train_vae import Z_DIM, clips_to_tensor, training_scenes
from miga.backbones.sprites.training import Schedule, autocast, kept, step_rng, train
from miga.backbones.sprites.world import (
    COLOURS,
    GROUNDS,
    MOTIONS,
    OMISSIBLE,
    SHAPES,
    TEMPLATES,
    Placement,
    Scene,
)
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import NUM_TEXT_TOKENS

NUM_FRAMES: Final = 45
"""Length of a training clip: 12 latents, the only length the model learns."""
TEXT_DIM: Final = 64
UNKNOWN_ID: Final = 2
"""Number of the unknown token."""
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
CHUNK: Final = 64
"""Clips encoded into one file."""
LEARNING_RATE: Final = 1.5e-3
EMPTY_CAPTION_SHARE: Final = 0.1
"""Share of clips shown without their caption: what classifier-free guidance steers away from."""
PARTIAL_CAPTION_SHARE: Final = 0.2
"""Share of captions that leave something open: each of `OMISSIBLE` with even odds."""
NAMED_DETAIL_SHARE: Final = 0.25
"""Share of captions that name a texture, and of those that name a second object, where a clip shows it."""
LATER_WORDS: Final = (*TEXTURES.values(), "small", "dot")
"""Words that came to the grammar later: they stand behind the others, so that those keep their numbers."""
UNKNOWN_WORD_SHARE: Final = 0.02
"""Share of words replaced by the unknown token, so that prompts beyond the grammar do not derail the model."""


def build_tokenizer() -> T5TokenizerFast:
    """A tokenizer of the grammar's words; anything else is `<unk>`."""
    phrases = [*COLOURS, *GROUNDS, *SHAPES, *MOTIONS.values(), *TEMPLATES]
    words = sorted({word for phrase in phrases for word in phrase.replace(",", " ").split() if "{" not in word})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), (",", -2.0)]
    vocabulary += [(f"▁{word}", -2.0) for word in (*words, *LATER_WORDS)]
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

    def load_checkpoint(self, folder: Path) -> None:
        """Takes the weights of a checkpoint's folder, one with fewer words too: old words keep their embeddings.

        A new word begins at the unknown one's, which the others know how to read past.
        """
        self.transformer.load_state_dict(
            WanTransformer3DModel.from_pretrained(
                folder, subfolder="transformer", torch_dtype=torch.float32
            ).state_dict()
        )
        saved = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32).state_dict()
        own = self.text_encoder.state_dict()
        unknown = saved["shared.weight"][UNKNOWN_ID]
        for name in ("shared.weight", "encoder.embed_tokens.weight"):
            num_new = len(own[name]) - len(saved.get(name, own[name]))
            if num_new and name in saved:
                begin = unknown + 0.1 * unknown.std() * torch.randn(num_new, len(unknown))
                saved[name] = torch.cat([saved[name], begin])
        self.text_encoder.load_state_dict(saved)


@dataclass(frozen=True)
class EncodedClips:
    """Training clips as latents.

    Attributes:
        x_NCFHW: latents of N clips, float16, normalised.
        scenes: what each shows, as an index into `training_scenes()`.
        textures: kind of each one's texture.
        companions: colour of each one's second object; "" where there is none.
    """

    x_NCFHW: torch.Tensor
    scenes: list[int]
    textures: list[str]
    companions: list[str]


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLWan, num_clips: int, seed: int, folder: Path, num_frames: int = NUM_FRAMES
) -> EncodedClips:
    """Random training clips, encoded; they are kept in `folder`, a file for `CHUNK` of them, and read from there."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for number in tqdm(range(math.ceil(num_clips / CHUNK)), desc="encode clips", mininterval=5.0):
        encode = functools.partial(_encode_chunk, vae, step_rng(seed, "clips", number), num_frames)
        chunks.append(kept(folder / f"{number:05d}.pt", encode))
    return EncodedClips(
        x_NCFHW=torch.cat([chunk["x"] for chunk in chunks]),
        scenes=[value for chunk in chunks for value in chunk["scenes"]],
        textures=[value for chunk in chunks for value in chunk["textures"]],
        companions=[value for chunk in chunks for value in chunk["companions"]],
    )


def _encode_chunk(vae: AutoencoderKLWan, rng: np.random.Generator, num_frames: int) -> dict[str, Any]:
    scenes = training_scenes()
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    chunk: dict[str, Any] = {"x": [], "scenes": [], "textures": [], "companions": []}
    for index in rng.integers(len(scenes), size=CHUNK):
        scene = scenes[int(index)]
        placement, details = Placement.random(rng), Details.random(scene, rng)
        clip = clips_to_tensor(render_detailed(scene, placement, details, num_frames)[None]).to(vae.device)
        with autocast(vae.device):
            z = vae.encode(clip).latent_dist.mode()
        chunk["x"].append(((z.float().cpu() - mean) / std).half())
        chunk["scenes"].append(int(index))
        chunk["textures"].append(details.texture.kind)
        chunk["companions"].append(details.companion.colour if details.companion else "")
    return {**chunk, "x": torch.cat(chunk["x"])}


def random_caption(
    scene: Scene,
    texture: str,
    companion: str,
    rng: np.random.Generator,
    *,
    partial_share: float = PARTIAL_CAPTION_SHARE,
) -> str:
    """A caption as training shows it: sometimes none, sometimes (`partial_share`) with things left open."""
    if rng.random() < EMPTY_CAPTION_SHARE:
        return ""
    omit = [name for name in OMISSIBLE if rng.random() < 0.5] if rng.random() < partial_share else []
    named_texture = TEXTURES.get(texture, "") if rng.random() < NAMED_DETAIL_SHARE else ""
    named_companion = companion if rng.random() < NAMED_DETAIL_SHARE else ""
    return scene.caption(int(rng.integers(len(TEMPLATES))), omit, texture=named_texture, companion=named_companion)


def train_transformer(
    vae: AutoencoderKLWan,
    clips: EncodedClips,
    state_file: Path,
    num_steps: int,
    seed: int,
    *,
    begin_from: Path | None = None,
    batch: int = BATCH,
    stop_at: int | None = None,
    compiled: bool = False,
) -> tuple[WanTransformer3DModel, UMT5EncoderModel, T5TokenizerFast]:
    """Trains denoiser and text encoder (resuming from `state_file`) on clips encoded once.

    Args:
        vae: whose device is trained on.
        clips: to learn from.
        state_file: where training is kept; it goes on from there if it exists.
        num_steps: of the learning rate's schedule.
        seed: of everything random.
        begin_from: a checkpoint's folder, to train on from its weights; None begins from nothing.
        batch: clips a step.
        stop_at: stop after so many steps of the schedule.
        compiled: train a compiled transformer: two minutes at the start, then 1.7 times as fast on a CPU.

    Returns:
        The transformer, the text encoder, both with averaged weights, and the tokenizer.
    """
    device = vae.device
    scenes = training_scenes()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = TextToVideo(tokenizer)
    if begin_from is not None:
        model.load_checkpoint(begin_from)
    model = model.to(device).train()
    if compiled:
        model.transformer.compile()

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, "transformer", step)
        picked = [int(index) for index in rng.integers(len(clips.scenes), size=batch)]
        captions = [
            random_caption(scenes[clips.scenes[index]], clips.textures[index], clips.companions[index], rng)
            for index in picked
        ]
        tokens = tokenizer(captions, padding="longest", return_tensors="pt")
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        unknown = torch.from_numpy(rng.random(tuple(ids.shape)) < UNKNOWN_WORD_SHARE).to(device)
        ids = torch.where(unknown & (ids > UNKNOWN_ID), UNKNOWN_ID, ids)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = clips.x_NCFHW[picked].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = torch.sigmoid(0.4 + 1.3 * torch.randn(batch, generator=generator)).to(device)
        noised = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        with autocast(device):
            velocity = model(noised, 1000.0 * sigma, ids, mask)
        loss = nn.functional.mse_loss(velocity.float(), noise - clean)
        return loss, {"loss": float(loss.detach())}

    schedule = Schedule(num_steps, LEARNING_RATE, num_warmup_steps=200 if begin_from is None else 50)
    train("transformer", model, loss_of, schedule, state_file, ema_decay=0.999, muon=True, stop_at=stop_at)
    return model.transformer.eval(), model.text_encoder.eval(), tokenizer
