"""`sprites-i2v`: the embedded model made to take pictures, as Wan's image-to-video models do.

Its patch embedding is widened from 8 to 20 channels (8 of the noisy latents, 4 of the mask, 8 of the condition's
latents), and the new columns are zero: before any training it is the text-to-video model, bit for bit where the
condition is zero. It then learns four kinds of conditions at once, told apart by y itself: the first five frames, a
frame and a reference, latents handed over, and none.

Legend: B clips, C channels, F frames or latents, H, W pixels or latent cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from tqdm import tqdm
from transformers import T5TokenizerFast, UMT5EncoderModel

from miga.backbones.sprites.details import Details, render_detailed
from miga.backbones.sprites.train_transformer import (
    NUM_FRAMES,
    UNKNOWN_ID,
    UNKNOWN_WORD_SHARE,
    random_caption,
)
from miga.backbones.sprites.train_vae import clips_to_tensor, training_scenes
from miga.backbones.sprites.training import Schedule, autocast, step_rng, train
from miga.backbones.sprites.world import PERIOD, Placement, Scene
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.padding import use_compact_padding
from miga.errors import ModelError, OutputError
from miga.image_condition import ImageBackbone
from miga.training.chance import SeededChance
from miga.training.conditions import NONE, conditions_of, frames_before
from miga.training.encoded import (
    INDEX,
    EncodedClip,
    EncodedClips,
    clip_file,
    write_clip,
    write_index,
)

MASK_CHANNELS: Final = 4
KINDS: Final[Mapping[str, float]] = {
    "film-5": 0.35,
    "film-1": 0.35,
    "shot-1": 0.25,
    "pro-1": 0.25,
    "pro-0": 0.25,
    NONE: 0.15,
}
"""How often each condition is drawn among those that a clip has: a first one has film-1 and pro-0, others the rest."""
FIRST_SHARE: Final = 0.25
"""Share of clips that are a video's first."""
MAX_START: Final = 3 * PERIOD
"""Frame of its video that a later clip begins with at most."""
PARTIAL_CAPTION_SHARE: Final = 0.5
"""Share of captions that leave something open: what they leave open only the picture tells."""
LEARNING_RATE: Final = 8e-4


def widened(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """The same transformer with room for a condition beside its latents; the new columns are zero.

    Raises:
        ModelError: if it has that room already.
    """
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    latent_channels = config["out_channels"] or config["in_channels"]
    if config["in_channels"] != latent_channels:
        raise ModelError(
            f"this transformer takes {config['in_channels']} channels, and its latents have {latent_channels}: it "
            "has a condition already",
            "begin from a text-to-video model, or train that one on",
        )
    config |= {"in_channels": 2 * latent_channels + MASK_CHANNELS, "out_channels": latent_channels}
    wide = WanTransformer3DModel(**config)
    weights = transformer.state_dict()
    narrow = weights["patch_embedding.weight"]
    wider = narrow.new_zeros(wide.patch_embedding.weight.shape)
    wider[:, :latent_channels] = narrow
    wide.load_state_dict({**weights, "patch_embedding.weight": wider})
    return wide.to(transformer.device, transformer.dtype).eval()


def encode_world_clips(backbone: ImageBackbone, num_clips: int, seed: int, folder: Path) -> EncodedClips:
    """Random clips of the world under their conditions, encoded; they are kept in `folder`, and read from there.

    Args:
        backbone: with its VAE.
        num_clips: how many; more than are there already are added.
        seed: of the clips, a generator for each.
        folder: where they lie, in the form that `jobs.train_svi` takes too.

    Raises:
        OutputError: if those in the folder are another model's, or of another seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts, noted = {"model": backbone.spec.revision, "seed": seed}, folder / "encoding.json"
    earlier = json.loads(noted.read_text()) if noted.exists() else facts
    if other := [name for name, value in facts.items() if earlier.get(name) != value]:
        raise OutputError(
            f"{str(folder)!r} holds clips of another {' and '.join(other)}",
            "choose another --work-dir, or delete that one: its training is of those clips",
        )
    noted.write_text(json.dumps(facts))
    (folder / INDEX).unlink(missing_ok=True)
    for number in tqdm(range(num_clips), desc="encode clips", mininterval=5.0):
        if not clip_file(folder, number).exists():
            write_clip(clip_file(folder, number), _encode(backbone, step_rng(seed, "i2v-clips", number)))
    write_index(folder, {"numbers": list(range(num_clips)), "world": "sprites", **facts})
    return EncodedClips(folder)


@torch.no_grad()
def _encode(backbone: ImageBackbone, rng: Any) -> EncodedClip:
    scenes = training_scenes()
    index = int(rng.integers(len(scenes)))
    scene = scenes[index]
    placement, details = Placement.random(rng), Details.random(scene, rng)
    per_latent = backbone.spec.frames_per_latent
    num_before = frames_before("pro-1", per_latent)
    is_first = rng.random() < FIRST_SHARE
    start = 0 if is_first else int(rng.integers(num_before, MAX_START))
    frames_BCFHW = clips_to_tensor(render_detailed(scene, placement, details, start + NUM_FRAMES)[None])
    video_FCHW = frames_BCFHW[0].transpose(0, 1).to(backbone.device)
    clip_FCHW, reference_CHW = video_FCHW[start:], video_FCHW[0]
    before_FCHW = video_FCHW[:0] if is_first else video_FCHW[start + per_latent - num_before : start + per_latent]
    names = ("film-1", "shot-1", "pro-0") if is_first else ("film-5", "shot-1", "pro-1")
    texture, companion = details.texture.kind, details.companion.colour if details.companion else ""
    caption = scene.caption(0)
    (text_LD,) = backbone.encode_prompts([caption])  # type: ignore[attr-defined]  # a pretrained one
    return EncodedClip(
        clean_CFHW=backbone.encode_frames(clip_FCHW).transpose(0, 1),
        conditions=conditions_of(backbone, clip_FCHW, reference_CHW, before_FCHW, names),
        text_LD=text_LD,
        notes={"caption": caption, "scene": str(index), "texture": texture, "companion": companion},
    )


def train_image_to_video(
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    tokenizer: T5TokenizerFast,
    clips: EncodedClips,
    state_file: Path,
    num_steps: int,
    seed: int,
    *,
    batch: int,
    device: torch.device,
    stop_at: int | None = None,
    learning_rate: float = LEARNING_RATE,
    told: list[float] | None = None,
) -> WanTransformer3DModel:
    """Trains a widened transformer (resuming from `state_file`); the text encoder stays as it is.

    Args:
        transformer: widened, or trained before.
        text_encoder: of the same checkpoint.
        tokenizer: of the same checkpoint.
        clips: to learn from.
        state_file: where training is kept; it goes on from there if it exists.
        num_steps: of the learning rate's schedule.
        seed: of everything random.
        batch: clips a step.
        device: where it is trained.
        stop_at: stop after so many steps of the schedule.
        learning_rate: the highest.
        told: takes every step's loss.

    Returns:
        The transformer with averaged weights.
    """
    scenes = training_scenes()
    use_compact_padding(transformer)
    transformer = transformer.to(device).train()
    text_encoder = text_encoder.to(device).eval()

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, chance = step_rng(seed, "i2v", step), SeededChance(seed, *b"i2v", step)
        picked = [clips[chance.choice(len(clips))] for _ in range(batch)]
        captions = [_caption(clip, scenes, rng) for clip in picked]
        tokens = tokenizer(captions, padding="longest", return_tensors="pt")
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        unknown = torch.from_numpy(rng.random(tuple(ids.shape)) < UNKNOWN_WORD_SHARE).to(device)
        ids = torch.where(unknown & (ids > UNKNOWN_ID), UNKNOWN_ID, ids)
        with torch.no_grad():
            text = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        clean = torch.stack([clip.clean_CFHW for clip in picked]).to(device)
        y = torch.stack([_drawn(clip, chance) for clip in picked]).to(device)
        noise = chance.normal(clean.shape).to(device)
        sigma = torch.sigmoid(0.4 + 1.3 * chance.normal((batch,))).to(device)
        noised = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        with autocast(device):
            shown = torch.cat([noised, y], dim=1)
            velocity = transformer(shown, 1000.0 * sigma, text, return_dict=False)[0]
        loss = nn.functional.mse_loss(velocity.float(), noise - clean)
        figure = float(loss.detach())
        if told is not None:
            told.append(figure)
        return loss, {"loss": figure}

    schedule = Schedule(num_steps, learning_rate, num_warmup_steps=50)
    train("i2v", transformer, loss_of, schedule, state_file, ema_decay=0.999, muon=True, stop_at=stop_at)
    return transformer.eval()


def _caption(clip: EncodedClip, scenes: list[Scene], rng: Any) -> str:
    notes = clip.notes
    return random_caption(
        scenes[int(notes["scene"])], notes["texture"], notes["companion"], rng, partial_share=PARTIAL_CAPTION_SHARE
    )


def _drawn(clip: EncodedClip, chance: SeededChance) -> torch.Tensor:
    """One of a clip's conditions."""
    name = chance.among({name: share for name, share in KINDS.items() if name == NONE or name in clip.conditions})
    if name != NONE:
        return clip.conditions[name]
    channels, *rest = clip.clean_CFHW.shape
    return clip.clean_CFHW.new_zeros(channels + MASK_CHANNELS, *rest)


def read_backbone(folder: Path | str, device: torch.device) -> WanBackbone:
    """A sprites checkpoint with all its parts, in float32."""
    return WanBackbone.from_pretrained(folder, dtype=torch.float32, device=device)


@torch.no_grad()
def conditioned_loss(
    transformer: WanTransformer3DModel,
    clips: EncodedClips,
    sigmas: tuple[float, ...] = (0.3, 0.6, 0.9),
    most: int = 32,
) -> float:
    """Mean loss over clips, each under each of its conditions, at fixed noise: what two checkpoints are compared by."""
    use_compact_padding(transformer)
    losses = []
    for number in range(min(most, len(clips))):
        clip = clips[number]
        noise = SeededChance(number, *b"held").normal(clip.clean_CFHW.shape)
        text = clip.text_LD.float()[None]
        for y in clip.conditions.values():
            for sigma in sigmas:
                noised = torch.cat([torch.lerp(clip.clean_CFHW, noise, sigma), y])[None].to(transformer.device)
                time = torch.tensor([1000.0 * sigma], device=transformer.device)
                velocity = transformer(noised, time, text.to(transformer.device), return_dict=False)[0]
                losses.append(float((velocity[0].cpu() - (noise - clip.clean_CFHW)).square().mean()))
    return math.fsum(losses) / len(losses)


def write_image_to_video(folder: Path, backbone: WanBackbone, transformer: WanTransformer3DModel) -> None:
    """A checkpoint's folder of the transformer and the other parts of the model that it began as."""
    from miga.backbones.sprites.checkpoint_folder import save_checkpoint

    assert backbone.text is not None
    vae: AutoencoderKLWan = backbone.vae
    save_checkpoint(folder, vae, transformer, backbone.text.encoder, backbone.text.tokenizer)
