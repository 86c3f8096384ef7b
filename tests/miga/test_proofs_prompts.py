"""Prompts in turn (Eq. A3), seen from what they leave in the latents.

The network here writes its condition into a channel of all it predicts, the noise has nothing there, and the `renoise`
solver keeps nothing else: so after a pass every latent carries the prompt that its last step was taken under. It must
be that of the first latent its window keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from miga.checkpoint import load_state, save_state
from miga.config import SamplerConfig
from miga.generate import Sampler, VideoState
from miga.methods.fifo.fifo import FifoState
from miga.methods.miga.two_stage import TwoStageState
from miga.methods.scalingnoise.beam_search import BeamSearchState
from miga.methods.unified.unified_only import UnifiedOnlyState
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.unified import UnifiedState
from tests.miga.closed_form import FEW_STEPS, PROFILES, SHAPE, make_sampler, make_schedule, profile_config

PROMPTS = [1.0, 2.0, 3.0, 4.0]
MARK = 3


class MarkingDenoiser:
    def __init__(self, config: SamplerConfig) -> None:
        self.window = config.window
        self.schedule = make_schedule(config)

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        clean = 0.3 * x_BFCHW + 0.1 * x_BFCHW.mean(1, keepdim=True)
        clean[:, :, MARK] = torch.tensor(conditions)[:, None, None, None]
        return clean


def unmarked_noise(purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
    noise = NamedNoise(0, SHAPE)(purpose, latents, candidate)
    noise[:, MARK] = 0.0
    return noise


def few_steps(profile: str, **settings: Any) -> SamplerConfig:
    own = {"handoff_level": 2} | {key: value for key, value in PROFILES[profile].settings.items()}
    return profile_config(
        profile, solver="renoise", timesteps=FEW_STEPS, num_steps=len(FEW_STEPS), handoff_level=own["handoff_level"],
        **settings,
    )  # fmt: skip


class Marks:
    """What every latent should carry, followed pass by pass."""

    def __init__(self, sampler: Sampler, latents_per_prompt: int) -> None:
        self.config, self.num_latents = sampler.config, sampler.num_latents
        self.alpha = sampler.stepper.schedule.alpha
        self.latents_per_prompt = latents_per_prompt
        self.from_stage_1: dict[int, float] = {}
        self.num_checked = 0

    def prompt(self, first_kept: int) -> float:
        """Eq. A3."""
        return PROMPTS[min(max(0, first_kept) // self.latents_per_prompt, len(PROMPTS) - 1)]

    def first_kept(self, latent: int, first: int, length: int | None, num_guidance: int = 0) -> int:
        """Of the window that keeps a latent of the queue that began with latent `first`."""
        config, position = self.config, latent - first
        start = position // config.stride * config.stride
        if length is None or config.method == "scalingnoise" or getattr(config, "lookahead", False):
            return first + start
        if length <= config.window:
            return first
        last = length - config.window + max(num_guidance, getattr(config, "lead", 0))
        return first + (last if position >= last else start)

    def check_queue(self, before: FrameQueue, after: FrameQueue) -> None:
        """A queue, and what it is after a push and a pass (and a pop)."""
        num_guidance, pushed = getattr(self.config, "num_guidance_latents", 0), after.first + len(after)
        if self.config.method in ("fifo", "scalingnoise"):
            pushed = before.first + self.config.num_steps
        length = pushed - before.first
        for latent in range(before.first, pushed):
            self.from_stage_1[latent] = self.prompt(self.first_kept(latent, before.first, length, num_guidance))
        self.check(after, self.from_stage_1)

    def check_unified(self, state: UnifiedState, entered: dict[int, float]) -> None:
        for number, waiting in enumerate(state.waiting):
            if waiting is not None:
                self.check(waiting, entered if number == 0 else self.of_stage_2(waiting.indices))

    def of_stage_2(self, latents: range) -> dict[int, float]:
        return {latent: self.prompt(self.first_kept(latent, 0, self.num_latents)) for latent in latents}

    def check(self, queue: FrameQueue, expected: dict[int, float]) -> None:
        for latent, level, x_CHW in zip(queue.indices, queue.level_F.tolist(), queue.x_FCHW, strict=True):
            if level < self.config.num_steps:
                found = float(x_CHW[MARK].mean()) / float(self.alpha[level])
                assert found == pytest.approx(expected[latent], abs=1e-4), f"latent {latent} at level {level}"
                self.num_checked += 1

    def check_pass(self, before: VideoState, after: VideoState, finished: torch.Tensor | None) -> None:
        old, new = before.method, after.method
        if old is None:
            assert after.base is None or float(after.base.x_FCHW[:, MARK].max()) <= 1.0, "one window: the first prompt"
            return
        if isinstance(old, TwoStageState) and isinstance(new, TwoStageState):
            self.check_queue(old.queue, new.queue)
            self.check_unified(new.unified, self.from_stage_1)
        elif isinstance(old, UnifiedOnlyState) and isinstance(new, UnifiedOnlyState):
            self.check_unified(new.unified, {})
        elif isinstance(old, FifoState) and isinstance(new, FifoState):
            self.check_queue(old.queue, new.queue)
        elif isinstance(old, BeamSearchState) and isinstance(new, BeamSearchState):
            self.check_queue(old.beams[0].queue, new.beams[0].queue)
        if finished is not None:
            latents = range(before.num_finished, after.num_finished)
            ends_in_stage_1 = self.config.method != "unified" and getattr(self.config, "handoff_level", 1) == 1
            expected = self.from_stage_1 if ends_in_stage_1 else self.of_stage_2(latents)
            level = torch.zeros(len(latents), dtype=torch.int64)
            self.check(FrameQueue(finished, level, {}, before.num_finished), expected)


CASES: list[tuple[str, dict[str, Any]]] = [
    *((profile, {}) for profile in PROFILES if profile != "released"),
    ("paper", {"position_0_context": True, "num_guidance_latents": 0}),
    ("paper", {"drain": True, "stride": 2}),
    ("stage-2-only", {"position_0_context": True, "stride": 4}),
]


@pytest.mark.parametrize(("profile", "settings"), CASES)
@pytest.mark.parametrize("num_latents", [13, None])
@pytest.mark.sampled(24)
def test_every_step_is_taken_under_its_prompt(
    profile: str, settings: dict[str, Any], num_latents: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved and loaded between any two passes; past the last prompt too."""
    monkeypatch.setattr("miga.checkpoint.os.fsync", lambda _: None)
    config = few_steps(profile, **settings)
    per_prompt, end = 3, num_latents or 20
    track = PromptTrack(PROMPTS, per_prompt)
    sampler = make_sampler(MarkingDenoiser(config), config, num_latents, prompts=track, noise=unmarked_noise)
    state, marks = sampler.start(), Marks(sampler, per_prompt)
    used: set[float] = set()
    while state.num_finished < end:
        save_state(state, tmp_path / "state", config=config, num_latents=num_latents, seed=0)
        before = load_state(tmp_path / "state", config=config, num_latents=num_latents, seed=0)
        sampler = make_sampler(MarkingDenoiser(config), config, num_latents, prompts=track, noise=unmarked_noise)
        state, finished = sampler.advance(before)
        marks.check_pass(before, state, finished)
        used |= set() if finished is None else {round(float(mark)) for mark in finished[:, MARK].mean((1, 2))}
    assert used >= ({1, 2, 3, 4} if num_latents is None else {1, 2, 3})
    assert marks.num_checked >= 2 * end


@pytest.mark.parametrize("profile", ["swift", "paper", "fifo", "stage-2-only"])
def test_more_prompts_than_latents(profile: str) -> None:
    """Each latent has its own; those left over are never used."""
    config = few_steps(profile, stride=1)
    prompts = [float(number) for number in range(1, 12)]
    track = PromptTrack.spread(prompts, 9)
    sampler = make_sampler(MarkingDenoiser(config), config, 9, prompts=track, noise=unmarked_noise)
    parts = [finished for _, finished in sampler.run() if finished is not None]
    marks = [round(float(mark)) for mark in torch.cat(parts)[:, MARK].mean((1, 2))]
    last_window_starts_at = 9 if profile == "fifo" else 9 - config.window
    assert marks == [min(latent, last_window_starts_at) + 1 for latent in range(9)]
