"""Makes the sprite world's denoiser causal and few-step, on from any checkpoint of it (`miga/training/causal.py`).

The text encoder and the VAE stay what they are. Clips may be longer than the model's own: the scenes' world renders any
length, and windows behind a sink need them.

Legend: B clips, F latents, C channels, H, W cells, L text tokens, D text channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from miga.backbones.sprites.details import Details
from miga.backbones.sprites.train_transformer import EncodedClips, random_caption
from miga.backbones.sprites.train_vae import training_scenes
from miga.backbones.sprites.training import Schedule, autocast, step_rng, train
from miga.backbones.wan.causal.network import CausalWan
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.spec import NUM_TEXT_TOKENS
from miga.training.causal import (
    NUM_GRID,
    Velocity,
    block_sigmas,
    consistency_loss,
    grid_sigmas,
    noised,
    shown_latents,
    teacher_forcing_mask,
)

Kind = Literal["causal", "window"]

WINDOW: Final = 12
"""Latents that a training window shows."""
BLOCK: Final = 3
BATCH: Final = 8
FLOW_SHIFT: Final = 5.0
GUIDANCE_SCALE: Final = 3.0
"""Of the teacher's steps."""
FIRST_BLOCK_SHARE: Final = 0.4
"""Share of steps that learn a video's first block alone: it decides what is shown, and all later ones go on from it."""
FIRST_BLOCK_CLIPS: Final = 2 * WINDOW // BLOCK
"""Clips of such a step for one of the others: as many tokens, for it has neither clean latents nor later blocks."""
TEXT_MULTIPLE: Final = 32
"""What lengths of text are a multiple of: all captions are shorter."""
EMPTY_CAPTION_SHARE: Final = 0.02
"""Share of clips without their caption in stage A: enough for guidance in stage B."""
TARGET_DECAY: Final = 0.95
"""Of the student's slow average."""
TEACHER_RATE: Final = 2e-4
STUDENT_RATE: Final = 1e-4


Choose: TypeAlias = Callable[[np.random.Generator, int], tuple[list[int], list[int]]]
"""Of a clip's length, by a generator: which latents are shown, and which positions among them are learnt from."""


@dataclass(frozen=True)
class CaptionBatch:
    """Embeddings `[B, L, D]` of captions and of as many empty ones, and what else is random in the step."""

    text: torch.Tensor
    no_text: torch.Tensor
    generator: torch.Generator
    rng: np.random.Generator


@dataclass(frozen=True)
class Batch(CaptionBatch):
    """Captions with their clean windows `[B, F, C, H, W]`, noise of that shape, and which latents are learnt from."""

    clean: torch.Tensor
    noise: torch.Tensor
    learnt: list[int]


@dataclass(frozen=True)
class Captions:
    """What training steps are told.

    Attributes:
        text_encoder, tokenizer: of the checkpoint; not trained.
        seed: of everything random.
        batch: clips a step.
        device: where it is trained.
    """

    text_encoder: Any
    tokenizer: Any
    seed: int
    batch: int = BATCH
    device: str | torch.device = "cpu"

    def draw_captions(self, stage: str, step: int) -> CaptionBatch:
        """Captions of a step, of any clips of the world: the same whenever they are drawn."""
        rng, scenes = step_rng(self.seed, stage, step), training_scenes()
        captions = []
        for index in rng.integers(len(scenes), size=self.batch):
            scene = scenes[int(index)]
            details = Details.random(scene, rng)
            companion = details.companion.colour if details.companion else ""
            captions.append(random_caption(scene, details.texture.kind, companion, rng))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return CaptionBatch(self.texts(captions), self.texts([""] * self.batch), generator, rng)

    @torch.no_grad()
    def texts(self, captions: list[str]) -> torch.Tensor:
        """Their embeddings `[B, L, D]`, padded with zeros to one of few lengths: each is compiled for by itself."""
        tokens = self.tokenizer(captions, padding="longest", pad_to_multiple_of=TEXT_MULTIPLE, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]


@dataclass(frozen=True)
class Examples(Captions):
    """What training steps are made of.

    Attributes:
        clips: encoded, all of one length of whole blocks.
    """

    clips: EncodedClips = field(kw_only=True)

    def draw(self, stage: str, step: int, empty_share: float, choose: Choose) -> Batch:
        """The batch of a step: the same whenever it is drawn.

        Args:
            stage: name of the stage.
            step: which one.
            empty_share: share of captions left empty.
            choose: which latents are shown.
        """
        rng, scenes, clips = step_rng(self.seed, stage, step), training_scenes(), self.clips
        shown, learnt = choose(rng, clips.x_NCFHW.shape[2])
        count = self.batch * (FIRST_BLOCK_CLIPS if len(shown) == BLOCK else 1)
        picked = [int(index) for index in rng.integers(len(clips.scenes), size=count)]
        captions = [
            ""
            if rng.random() < empty_share
            else random_caption(scenes[clips.scenes[at]], clips.textures[at], clips.companions[at], rng)
            for at in picked
        ]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = clips.x_NCFHW[picked][:, :, shown].float().transpose(1, 2).contiguous()
        noise = torch.randn(clean.shape, generator=generator)
        return Batch(
            self.texts(captions), self.texts([""] * count), generator, rng,
            clean.to(self.device), noise.to(self.device), learnt,
        )  # fmt: skip


class Windows:
    """What a transformer predicts of noised windows: behind clean ones, or alone.

    Args:
        kind: "causal": a block sees the clean ones before it; "window": all latents see each other.
        transformer: predicts.
        compiled: compile it: a minute at the start, then faster.
    """

    def __init__(self, kind: Kind, transformer: WanTransformer3DModel, *, compiled: bool = False) -> None:
        masked = CausalWan(transformer).masked
        self._kind, self._masked = kind, torch.compile(masked, dynamic=False) if compiled else masked
        self._device = transformer.device
        self._position_F = torch.arange(WINDOW, dtype=torch.float64)

    def velocity(self, clean_BFCHW: torch.Tensor | None, text_BLD: torch.Tensor) -> Velocity:
        """The velocity of noised windows, given the clean ones where blocks see them."""

        def of(x_BFCHW: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
            num_latents = x_BFCHW.shape[1]
            timestep_BF, position_F, mask_FF = 1000.0 * sigma_BF, self._position_F[:num_latents], None
            if self._kind == "causal" and num_latents > BLOCK:  # a first block has nothing before it
                assert clean_BFCHW is not None
                x_BFCHW = torch.cat([clean_BFCHW, x_BFCHW], 1)
                timestep_BF = torch.cat([torch.zeros_like(timestep_BF), timestep_BF], 1)
                position_F, mask_FF = position_F.repeat(2), teacher_forcing_mask(num_latents, BLOCK)
            position_F = position_F.to(x_BFCHW.device)
            with autocast(self._device):
                out = self._masked(x_BFCHW, timestep_BF, position_F, mask_FF, text_BLD, NUM_TEXT_TOKENS)
            return out[:, -num_latents:].float()

        return of

    def guided(self, clean_BFCHW: torch.Tensor | None, captions: CaptionBatch, scale: float) -> Velocity:
        """The velocity of noised windows with classifier-free guidance."""
        with_text, without = (self.velocity(clean_BFCHW, text) for text in (captions.text, captions.no_text))

        def of(x_BFCHW: torch.Tensor, sigma_BF: torch.Tensor) -> torch.Tensor:
            base_BFCHW = without(x_BFCHW, sigma_BF)
            return base_BFCHW + scale * (with_text(x_BFCHW, sigma_BF) - base_BFCHW)

        return of


def train_teacher(
    transformer: WanTransformer3DModel,
    examples: Examples,
    state_file: Path,
    num_steps: int,
    *,
    stop_at: int | None = None,
    learning_rate: float = TEACHER_RATE,
    compiled: bool = False,
) -> WanTransformer3DModel:
    """Stage A: teacher forcing, in place; it goes on from `state_file` if that exists.

    Args:
        transformer: weights to begin from.
        examples: to learn from.
        state_file: where training is kept.
        num_steps: of the learning rate's schedule.
        stop_at: stop after so many of them.
        learning_rate: its peak.
        compiled: see `Windows`.
    """
    use_compact_padding(transformer)
    windows = Windows("causal", transformer, compiled=compiled)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = examples.draw("teacher forcing", step, EMPTY_CAPTION_SHARE, causal_window)
        num_latents = batch.clean.shape[1]
        draw_BN = torch.randn(len(batch.clean), num_latents // BLOCK, generator=batch.generator).to(examples.device)
        sigma_BF = block_sigmas(num_latents, BLOCK, draw_BN, FLOW_SHIFT if num_latents == BLOCK else 1.0)
        velocity = windows.velocity(batch.clean, batch.text)(noised(batch.clean, batch.noise, sigma_BF), sigma_BF)
        error = (velocity - (batch.noise - batch.clean))[:, batch.learnt]
        loss = error.square().mean()
        return loss, {"loss": float(loss.detach())}

    schedule = Schedule(num_steps, learning_rate, num_warmup_steps=50)
    train("teacher forcing", transformer, loss_of, schedule, state_file, muon=True, stop_at=stop_at)
    return transformer.eval()


def causal_window(rng: np.random.Generator, num_latents: int) -> tuple[list[int], list[int]]:
    """A clip's first block alone; else its beginning, or as often a later window behind the first block."""
    return first_block(rng, num_latents) if rng.random() < FIRST_BLOCK_SHARE else any_window(rng, num_latents)


def first_block(rng: np.random.Generator, num_latents: int) -> tuple[list[int], list[int]]:
    """A clip's first block."""
    return list(range(BLOCK)), list(range(BLOCK))


def any_window(rng: np.random.Generator, num_latents: int) -> tuple[list[int], list[int]]:
    """A clip's beginning, or as often a later window behind its first block."""
    return shown_latents(num_latents, WINDOW, BLOCK, 0.0 if rng.random() < 0.5 else float(rng.random()))


def first_window(rng: np.random.Generator, num_latents: int) -> tuple[list[int], list[int]]:
    """A clip's beginning."""
    return shown_latents(num_latents, WINDOW, BLOCK, 0.0)


class _Pair(nn.Module):
    """The student and its slow average, which no gradient reaches; a state of both resumes exactly."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.student = transformer
        self.target = copy.deepcopy(transformer).requires_grad_(False)

    def follow(self, decay: float) -> None:
        """Takes the average one step further."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.student.parameters()), 1.0 - decay)


def distil(
    kind: Kind,
    teacher: WanTransformer3DModel,
    examples: Examples,
    state_file: Path,
    num_steps: int,
    *,
    stop_at: int | None = None,
    learning_rate: float = STUDENT_RATE,
    compiled: bool = False,
) -> WanTransformer3DModel:
    """Stage B: consistency distillation into a student of few steps; it goes on from `state_file` if that exists.

    Args:
        kind: whose windows, see `Windows`; of "causal" the teacher comes from stage A.
        teacher: takes guided steps; not changed.
        examples: to learn from.
        state_file: where training is kept.
        num_steps: of the learning rate's schedule.
        stop_at: stop after so many of them.
        learning_rate: its peak.
        compiled: see `Windows`.

    Returns:
        The student's averaged weights.
    """
    use_compact_padding(teacher)
    teacher.eval().requires_grad_(False)
    pair = _Pair(copy.deepcopy(teacher).requires_grad_(True))
    student, target, guide = (Windows(kind, each, compiled=compiled) for each in (pair.student, pair.target, teacher))
    sigmas = grid_sigmas(FLOW_SHIFT).to(examples.device)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step:
            pair.follow(TARGET_DECAY)
        batch = examples.draw(f"distil {kind}", step, 0.0, causal_window if kind == "causal" else first_window)
        at_B = torch.from_numpy(batch.rng.integers(NUM_GRID, size=len(batch.clean))).to(examples.device)
        sigma_B, next_B = sigmas[at_B], sigmas[at_B + 1]
        x_BFCHW = noised(batch.clean, batch.noise, sigma_B[:, None].expand(batch.clean.shape[:2]))

        loss = consistency_loss(
            student.velocity(batch.clean, batch.text),
            target.velocity(batch.clean, batch.text),
            guide.guided(batch.clean, batch, GUIDANCE_SCALE),
            x_BFCHW,
            sigma_B,
            next_B,
            batch.learnt,
        )
        return loss, {"loss": float(loss.detach())}

    schedule = Schedule(num_steps, learning_rate, num_warmup_steps=20)
    train(f"distil {kind}", pair, loss_of, schedule, state_file, ema_decay=0.99, muon=True, stop_at=stop_at)
    return pair.student.eval()
