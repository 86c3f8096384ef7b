"""The authors' programs written out naively: lists of single latents, explicit loops, whole passes over all latents.

It shares with the sampler only the names of the noise. A latent has a diffusers scheduler of its own where the solver
is UniPC; DDIM and Euler are written from their formulas.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

from miga.config import SamplerConfig
from miga.noise import NoiseSource


@dataclass
class Latent:
    index: int
    x: torch.Tensor
    level: int
    scheduler: UniPCMultistepScheduler | None


class ReleasedReference:
    """One video of `num_latents` behind a clean base clip; `prompts[k]` rules latents `k * latents_per_prompt ...`."""

    def __init__(
        self,
        denoiser: Any,
        config: SamplerConfig,
        noise: NoiseSource,
        prompts: Sequence[Any],
        latents_per_prompt: int,
        num_latents: int,
        base: torch.Tensor,
    ) -> None:
        self.denoiser, self.config, self.noise, self.num_latents, self.base = denoiser, config, noise, num_latents, base
        self.prompts, self.latents_per_prompt = prompts, latents_per_prompt
        self.is_wan = config.released_branch == "wan"
        self.alpha, self.sigma = denoiser.schedule.alpha.tolist(), denoiser.schedule.sigma.tolist()
        self.num_calls = self.num_searches = self.num_corrections = 0
        self.scores: list[float] = []

    def video(self) -> torch.Tensor:
        c = self.config
        num_asked = -(-self.num_latents // c.zigzag_width) + (c.window // c.zigzag_width) * self.is_wan
        popped = self.stage_1(self.initialised(num_asked), num_asked)
        clean_level = 0 if self.is_wan else 1
        latents = [self.entering(latent.x, latent.index, latent.level) for latent in popped]
        for number in range(c.handoff_level - clean_level):
            self.one_pass(latents, self.moving_border(len(latents), c.window, number))
        assert all(latent.level == clean_level for latent in latents)
        again = c.handoff_level if self.is_wan else c.handoff_level + 1
        latents = [self.noised(latent.x, latent.index, again, "second/renoise") for latent in latents]
        for number in range(c.handoff_level):
            self.one_pass(latents, self.moving_border(len(latents), c.window, number), purpose="second/")
        assert [(latent.index, latent.level) for latent in latents] == [(i, clean_level) for i in range(len(latents))]
        if self.is_wan:
            latents = latents[: -c.window]
        return torch.stack([latent.x for latent in latents[: self.num_latents]])

    def initialised(self, num_asked: int) -> list[Latent]:
        c = self.config
        lowest = c.num_steps - c.window // c.zigzag_width
        queue = [self.noised(self.base[i], i, lowest + i // c.zigzag_width, "renoise") for i in range(c.window)]
        for _ in range(num_asked):
            self.push_copies(queue, "push")
            if queue[0].level == c.handoff_level + 2:
                break
            windows = self.remainder_first(len(queue), c.window - c.num_guidance_latents)
            self.one_pass(queue, windows, guided=True)
            queue = self.reflect(queue)
        return queue

    def stage_1(self, queue: list[Latent], num_needed: int) -> list[Latent]:
        c, wide = self.config, self.config.zigzag_width
        popped: list[Latent] = []
        num_passes, has_reached = 0, False
        while len(popped) < num_needed * wide:
            windows = self.moving_border(len(queue), c.window - c.num_guidance_latents, num_passes)
            self.one_pass(queue, windows, guided=True, snapshot=self.is_wan)
            if has_reached:
                assert [latent.level for latent in queue[:wide]] == [c.handoff_level] * wide
                popped, queue = popped + queue[:wide], queue[wide:]
            if queue and queue[0].level == c.handoff_level + 1:
                has_reached = True
                if queue[-1].level >= c.num_steps - 1:
                    (self.push_copies if self.is_wan else self.push_noise)(queue, "push")
            num_passes += 1
        return popped

    def remainder_first(self, length: int, capacity: int) -> list[tuple[int, int]]:
        """Start of each window, and how many it keeps."""
        if length <= self.config.window:
            return [(0, length)]
        stride, last = self.config.stride, length - capacity
        first = last % stride
        windows = [(0, first)] if first else []
        windows += [(first + k * stride, stride) for k in range(last // stride)]
        return [*windows, (last, capacity)]

    def moving_border(self, length: int, capacity: int, number: int) -> list[tuple[int, int]]:
        if length <= self.config.window:
            return [(0, length)]
        stride, last = self.config.stride, length - capacity
        border = number % stride
        if length - border < capacity:
            border = 0
        rest = (length - border - capacity) % stride
        windows = [(0, border)] if border else []
        windows += [(border + k * stride, stride) for k in range((last - border) // stride)]
        windows += [(last - rest, rest)] if rest else []
        return [*windows, (last, capacity)]

    def one_pass(
        self,
        queue: list[Latent],
        windows: list[tuple[int, int]],
        guided: bool = False,
        snapshot: bool = False,
        held: int = 0,
        purpose: str = "",
        candidate: int = 0,
    ) -> None:
        """All latents one level down, but for the first `held`."""
        c, m = self.config, self.config.num_guidance_latents
        waiting: list[tuple[Latent, torch.Tensor]] = []
        for start, keep in windows:
            has_guidance = guided and 0 < m <= start and len(queue) > c.window
            guidance = self.guidance(start) if has_guidance else []
            seen = guidance + list(range(start, min(len(queue), start + c.window - len(guidance))))
            keeps_held_alone = start + keep <= held
            outputs = self.call([queue[i] for i in seen], queue[start if keeps_held_alone else max(start, held)].index)
            for i in range(max(start, held), start + keep):
                clean = outputs[seen.index(i, len(guidance))]
                if snapshot:
                    waiting.append((queue[i], clean))
                else:
                    self.step(queue[i], clean, purpose, candidate)
        for latent, clean in waiting:
            self.step(latent, clean, purpose, candidate)

    def guidance(self, start: int) -> list[int]:
        m, wide = self.config.num_guidance_latents, self.config.zigzag_width
        if start >= m * wide:
            return [start - ((wide // 2 or 1) + j * wide) for j in reversed(range(m))]
        return [start - (j + 1) * (start // m) for j in reversed(range(m))]

    def call(self, latents: list[Latent], first_kept: int) -> torch.Tensor:
        self.num_calls += 1
        prompt = self.prompts[min(first_kept // self.latents_per_prompt, len(self.prompts) - 1)]
        levels = torch.tensor([latent.level for latent in latents])
        return self.denoiser(torch.stack([latent.x for latent in latents])[None], levels[None], [prompt])[0]

    def step(self, latent: Latent, clean: torch.Tensor, purpose: str, candidate: int) -> None:
        r, x = latent.level, latent.x
        if latent.scheduler is not None:
            timestep = latent.scheduler.timesteps[self.config.num_steps - r]
            latent.x = latent.scheduler.step(clean, timestep, x, return_dict=False)[0]
        else:
            eps = (x - self.alpha[r] * clean) / self.sigma[r]
            a, a_prev = self.alpha[r] ** 2, self.alpha[r - 1] ** 2
            spread = 0.0
            if self.config.eta:
                spread = self.config.eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
            latent.x = self.alpha[r - 1] * clean + (self.sigma[r - 1] ** 2 - spread**2) ** 0.5 * eps
            if self.config.eta:
                latent.x = latent.x + spread * self.noise(f"{purpose}step@{r}", [latent.index], candidate)[0]
        latent.level -= 1

    def reflect(self, queue: list[Latent]) -> list[Latent]:
        c = self.config
        judged = len(queue) - c.judged_group * c.zigzag_width
        if not c.self_reflection or judged < max(c.window, c.num_reflection_guidance_latents):
            return queue
        reference = queue[judged - c.num_reference_latents : judged]
        score = self.score(queue[judged:], reference)
        if self.scores and self.scores[-1] - score > c.reflection_threshold:
            self.num_searches += 1
            candidates = [self.grow(queue, judged, number) for number in range(1, c.num_candidates + 1)]
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
        purpose = f"search@{queue[judged].index}"
        for _ in range(c.judged_group):
            self.push_copies(grown, purpose, number)
            windows = self.remainder_first(len(grown), c.window)
            self.one_pass(grown, windows, held=held, purpose=f"{purpose}/", candidate=number)
        assert [latent.level for latent in grown[held:]] == [latent.level for latent in queue[judged:]]
        return grown[held:]

    def score(self, judged: list[Latent], reference: list[Latent]) -> float:
        a = torch.stack([latent.x for latent in judged[: self.config.num_eval_latents]])
        b = torch.stack([latent.x for latent in reference])
        if not self.is_wan:
            return float(torch.cosine_similarity(a.mean((0, 1)).flatten(), b.mean((0, 1)).flatten(), dim=0))
        cosines = [
            torch.cosine_similarity(one.mean(0).flatten(), other.mean(0).flatten(), dim=0) for one in a for other in b
        ]
        return float(sum(cosines) / len(cosines))

    def push_copies(self, queue: list[Latent], purpose: str, candidate: int = 0) -> None:
        for _ in range(self.config.zigzag_width):
            queue.append(self.noised(self.base[-1], queue[-1].index + 1, self.config.num_steps, purpose, candidate))

    def push_noise(self, queue: list[Latent], purpose: str) -> None:
        for _ in range(self.config.zigzag_width):
            index = queue[-1].index + 1
            queue.append(self.entering(self.noise(purpose, [index])[0], index, self.config.num_steps))

    def noised(self, clean: torch.Tensor, index: int, level: int, purpose: str, candidate: int = 0) -> Latent:
        noise = self.noise(purpose, [index], candidate)[0]
        return self.entering(self.alpha[level] * clean + self.sigma[level] * noise, index, level)

    def entering(self, x: torch.Tensor, index: int, level: int) -> Latent:
        if self.config.solver != "unipc":
            return Latent(index, x, level, None)
        scheduler = UniPCMultistepScheduler(prediction_type="sample", use_flow_sigmas=True)
        scheduler.set_timesteps(self.config.num_steps)
        scheduler.sigmas = torch.tensor(self.sigma, dtype=torch.float64).flip(0)
        scheduler.set_begin_index(self.config.num_steps - level)
        return Latent(index, x, level, scheduler)
