"""The whole method written out naively: lists of single latents, each with a diffusers scheduler of its own.

Slow and short. It shares with the sampler only the names of the noise. A window's outputs are written for *all* its
local latents and later windows overwrite: a latent so ends with the output of the last window that starts at or before
it, which is what "every window keeps its first latents, the last one all" means. Stage 2 is whole passes over exactly
the latents of the video.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

from miga.config import SamplerConfig
from miga.noise import NoiseSource
from tests.miga.closed_form import reflects


@dataclass
class Latent:
    index: int
    x: torch.Tensor
    level: int
    scheduler: UniPCMultistepScheduler

    def step(self, clean: torch.Tensor) -> None:
        timestep = self.scheduler.timesteps[len(self.scheduler.timesteps) - self.level]
        self.x = self.scheduler.step(clean, timestep, self.x, return_dict=False)[0]
        self.level -= 1


class Reference:
    """One video of `num_latents`; `prompts[k]` rules latents `k * latents_per_prompt ...`."""

    def __init__(
        self,
        denoiser: Any,
        config: SamplerConfig,
        noise: NoiseSource,
        prompts: Sequence[Any],
        latents_per_prompt: int,
        num_latents: int,
    ) -> None:
        self.denoiser, self.config, self.noise, self.num_latents = denoiser, config, noise, num_latents
        self.prompts, self.latents_per_prompt = prompts, latents_per_prompt
        self.num_calls = self.num_searches = self.num_corrections = 0
        self.scores: list[float] = []

    def paper(self) -> torch.Tensor:
        c = self.config
        base, top, wide = self.base_clip(), c.num_steps, c.zigzag_width
        num_groups = c.window // wide
        queue = [self.renoised(base[i], i, top - num_groups + i // wide) for i in range(c.window)]
        popped: list[Latent] = []
        while queue[0].level > c.handoff_level:
            queue = self.pushed_and_judged(queue)
            self.one_pass(queue, c.num_guidance_latents)
        while len(popped) < self.num_latents:
            queue = self.pushed_and_judged(queue)
            levels = [level for level in range(c.handoff_level, top + 1) for _ in range(wide)]
            assert [latent.level for latent in queue] == levels[: len(queue) if c.drain else None]
            self.one_pass(queue, c.num_guidance_latents)
            popped, queue = popped + queue[:wide], queue[wide:]
        popped = popped[: self.num_latents]
        for _ in range(c.handoff_level - 1):
            self.one_pass(popped, 0)
        assert [(latent.index, latent.level) for latent in popped] == [(i, 0) for i in range(self.num_latents)]
        return torch.stack([latent.x for latent in popped])

    def pushed_and_judged(self, queue: list[Latent]) -> list[Latent]:
        """A queue that drains gets no more than the video's latents and one group beside them, and is left alone."""
        num_entered = queue[-1].index + 1
        if self.config.drain and num_entered >= self.num_latents + self.config.zigzag_width:
            return queue
        self.push(queue, "push")
        return self.reflect(queue)

    def stage_2_only(self) -> torch.Tensor:
        latents: list[Latent] = []
        self.push(latents, "push", count=self.num_latents)
        for _ in range(self.config.num_steps):
            self.one_pass(latents, 0)
        return torch.stack([latent.x for latent in latents])

    def fifo(self) -> torch.Tensor:
        c = self.config
        base, half, extra = self.base_clip(), c.window // 2, c.num_steps - c.window
        queue = self.fifo_queue(base)
        context = [self.renoised(base[0], i - half - extra, 1) for i in range(half)]
        for latent in context:
            latent.level = 0
        out: list[Latent] = []
        for _ in range(self.num_latents + extra):
            everything = context + queue
            clean = {}
            for start in range(0, len(queue), c.stride):
                low = max(0, min(start, len(everything) - c.window))
                outputs = self.call(everything[low : low + c.window], queue[start].index)
                for position in range(start, min(start + c.stride, len(queue))):
                    clean[position] = outputs[half + position - low]
            for position, latent in enumerate(queue):
                latent.step(clean[position])
            out.append(queue.pop(0))
            context = [*context[1:], out[-1]]
            self.push(queue, "push")
        return torch.stack([latent.x for latent in out[-self.num_latents :]])

    def fifo_literal(self) -> torch.Tensor:
        """Alg. 3 line by line, reading from before the pass; the copies that Alg. 1 puts first are left out."""
        c = self.config
        extra = c.num_steps - c.window
        queue, out = self.fifo_queue(self.base_clip()), []
        num_windows = math.ceil(extra / c.stride) + 1
        for _ in range(self.num_latents + extra):
            clean = {}
            for i in range(num_windows):
                is_last = i == num_windows - 1
                start = extra if is_last else i * c.stride
                outputs = self.call(queue[start : start + c.window], queue[start].index)
                for j in range(c.window if is_last else c.stride):
                    clean[start + j] = outputs[j]
            for position, latent in enumerate(queue):
                latent.step(clean[position])
            out.append(queue.pop(0).x)
            self.push(queue, "push")
        return torch.stack(out[extra:])

    def fifo_queue(self, base: list[torch.Tensor]) -> list[Latent]:
        extra = self.config.num_steps - self.config.window
        return [self.renoised(base[max(0, i - extra)], i - extra, i + 1) for i in range(self.config.num_steps)]

    def base_clip(self) -> list[torch.Tensor]:
        clip: list[Latent] = []
        self.push(clip, "base", count=self.config.window)
        for _ in range(self.config.num_steps):
            self.one_pass(clip, 0)
        return [latent.x for latent in clip]

    def one_pass(self, queue: list[Latent], num_guidance: int, held: int = 0) -> None:
        """All latents of the queue one level down, but for the first `held`."""
        c, length = self.config, len(queue)
        before = 1 if getattr(c, "position_0_context", False) else 0
        local = c.window - max(num_guidance, before)
        starts = [0] if length <= c.window else [*range(0, length - local, c.stride), length - local]
        clean: dict[int, torch.Tensor] = {}
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            if end <= held:
                continue  # keeps nothing that is stepped
            guidance: list[int] = []
            if length > c.window and num_guidance and start >= num_guidance:
                guidance = self.guidance(start, num_guidance)
            elif start > 0:
                guidance = [start - 1] * before
            stop = min(length, start + c.window - len(guidance))
            seen = [*guidance, *range(start, stop)]
            outputs = self.call([queue[i] for i in seen], queue[max(start, held)].index)
            clean |= dict(zip(seen[len(guidance) :], outputs[len(guidance) :], strict=True))
        for position in range(held, length):
            queue[position].step(clean[position])

    def guidance(self, start: int, num_guidance: int) -> list[int]:
        wide = self.config.zigzag_width
        if start >= num_guidance * wide:
            middle = wide // 2 if wide > 1 else 1
            return sorted(start - middle - j * wide for j in range(num_guidance))
        return sorted(start - (j + 1) * (start // num_guidance) for j in range(num_guidance))

    def call(self, latents: list[Latent], first_kept: int) -> torch.Tensor:
        self.num_calls += 1
        prompt = self.prompts[min(max(0, first_kept) // self.latents_per_prompt, len(self.prompts) - 1)]
        levels = torch.tensor([latent.level for latent in latents])
        return self.denoiser(torch.stack([latent.x for latent in latents])[None], levels[None], [prompt])[0]

    def reflect(self, queue: list[Latent]) -> list[Latent]:
        c = self.config
        judged = len(queue) - c.judged_group * c.zigzag_width
        if not reflects(c) or judged < c.num_reflection_guidance_latents:
            return queue
        reference = queue[judged - c.num_reference_latents : judged]
        score = self.score(queue[judged:], reference)
        if self.scores and self.scores[-1] - score > c.reflection_threshold:
            self.num_searches += 1
            candidates = [self.grow(queue, judged, number) for number in range(1, c.num_candidates + 1)]
            for candidate in candidates:
                assert [latent.level for latent in candidate] == [latent.level for latent in queue[judged:]]
            scores = [self.score(candidate, reference) for candidate in candidates]
            if max(scores) > score:
                score = max(scores)
                queue = queue[:judged] + candidates[scores.index(score)]
                self.num_corrections += 1
        self.scores.append(score)
        return queue

    def grow(self, queue: list[Latent], judged: int, number: int) -> list[Latent]:
        c = self.config
        held = c.num_reflection_guidance_latents
        grown = copy.deepcopy(queue[judged - held : judged])
        for push in range(c.judged_group):
            self.push(grown, f"search@{queue[judged].index}", candidate=number)
            if push < c.judged_group - 1:
                self.one_pass(grown, c.num_guidance_latents, held)
        return grown[held:]

    def score(self, judged: list[Latent], reference: list[Latent]) -> float:
        cosines = [
            torch.cosine_similarity(a.x.mean(0).flatten(), b.x.mean(0).flatten(), dim=0)
            for a in judged[: self.config.num_eval_latents]
            for b in reference
        ]
        return float(sum(cosines) / len(cosines))

    def push(self, queue: list[Latent], purpose: str, candidate: int = 0, count: int | None = None) -> None:
        for _ in range(count or getattr(self.config, "zigzag_width", 1)):
            index = queue[-1].index + 1 if queue else 0
            queue.append(self.entering(self.noise(purpose, [index], candidate)[0], index, self.config.num_steps))

    def renoised(self, clean: torch.Tensor, index: int, level: int) -> Latent:
        latent = self.entering(clean, index, level)
        sigma = float(latent.scheduler.sigmas[self.config.num_steps - level])
        latent.x = (1.0 - sigma) * clean + sigma * self.noise("renoise", [index])[0]
        return latent

    def entering(self, x: torch.Tensor, index: int, level: int) -> Latent:
        scheduler = UniPCMultistepScheduler(
            prediction_type="sample", use_flow_sigmas=True, flow_shift=self.config.flow_shift
        )
        scheduler.set_timesteps(self.config.num_steps)
        scheduler.set_begin_index(self.config.num_steps - level)
        return Latent(index, x, level, scheduler)
