"""Long-range guidance from wherever, written out naively over `reference.py`: plain loops over lists of latents.

Stage 2 runs as the latents come, so that it is known which are finished before a pass of Stage 1: latents that become
anchors are clean then, and stay as they are.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch

from tests.miga.reference import Latent, Reference


class RememberingReference(Reference):
    """One video of `num_latents` under the settings of `QueueSettings`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.anchors: list[Latent] = []
        self.held: list[Latent] | None = None  # while a candidate grows: all that stands beside its queue
        self.rows: list[list[Latent]] = [[] for _ in range(self.config.handoff_level)]
        self.num_done = [0] * self.config.handoff_level
        counts = dict.fromkeys(("anchors", "head", "spread", "nearest"), 0)
        for part in self.config.guidance_from.split(","):
            name, _, number = part.partition(":")
            counts[name] = int(number) if number else self.config.num_guidance_latents
        self.counts = counts

    # ---- the video ----

    def paper(self) -> torch.Tensor:
        c = self.config
        base, top, wide = self.base_clip(), c.num_steps, c.zigzag_width
        queue = [self.renoised(base[i], i, top - c.window // wide + i // wide) for i in range(c.window)]
        if c.guidance_anchors == "base":
            self.anchors = [self.entering(base[i], i, 0) for i in self.of_a_clip()]
        while len(self.rows[-1]) < self.num_latents:
            queue = self.pushed_and_judged(queue)
            is_full = queue[0].level == c.handoff_level
            self.one_pass(queue, c.num_guidance_latents)
            if is_full:
                popped, queue = queue[:wide], queue[wide:]
                self.rows[0] += popped[: self.num_latents - len(self.rows[0])]
                for latent in self.finished():
                    self.remember(latent)
        return torch.stack([latent.x for latent in self.rows[-1]])

    def finished(self) -> list[Latent]:
        """Latents that Stage 2 finishes, now that more have come."""
        c, total = self.config, self.num_latents
        before = int(c.position_0_context)
        local = c.window - before
        starts = [0] if total <= c.window else [*range(0, total - local, c.unified_stride), total - local]
        num_before = len(self.rows[-1])
        for number in range(len(self.rows) - 1):
            row = self.rows[number]
            while self.num_done[number] < len(starts):
                start = starts[self.num_done[number]]
                end = [*starts, total][self.num_done[number] + 1]
                lead = before if start else 0
                stop = min(total, start + c.window - lead)
                if len(row) < stop:
                    break
                outputs = self.call(row[start - lead : stop], start)
                for position in range(start, end):
                    latent = copy.deepcopy(row[position])
                    latent.step(outputs[lead + position - start])
                    self.rows[number + 1].append(latent)
                self.num_done[number] += 1
        return self.rows[-1][num_before:]

    # ---- anchors ----

    def of_a_clip(self) -> list[int]:
        window, count = self.config.window, self.counts["anchors"]
        return [math.floor((j + 0.5) * window / count) for j in range(count)]

    def prompt_of(self, index: int) -> int:
        return min(max(0, index) // self.latents_per_prompt, len(self.prompts) - 1)

    def remember(self, latent: Latent) -> None:
        kind, _, number = self.config.guidance_anchors.partition(":")
        if not self.counts["anchors"] or kind == "base":
            return
        if kind == "first" and latent.index in self.of_a_clip():
            self.anchors.append(latent)
        prompt = self.prompt_of(latent.index)
        if kind == "prompt" and latent.index - prompt * self.latents_per_prompt in self.of_a_clip():
            self.anchors = [each for each in self.anchors if self.prompt_of(each.index) == prompt] + [latent]
        if kind == "every":
            spacing = int(number)  # of all candidates so far, the finest spacing that leaves few enough
            while latent.index // spacing + 1 > self.config.max_anchors:
                spacing *= 2
            if latent.index % int(number) == 0:
                self.anchors = [each for each in [*self.anchors, latent] if each.index % spacing == 0]

    # ---- what a window is shown ----

    def eligible(self, first_shown: int) -> list[Latent]:
        if self.held is not None:
            return self.held
        if self.config.guidance_across_prompts:
            return self.anchors
        prompt = self.prompt_of(first_shown)
        if self.config.guidance_anchors == "base":
            return self.anchors if prompt == 0 else []
        return [each for each in self.anchors if self.prompt_of(each.index) == prompt]

    def one_pass(self, queue: list[Latent], num_guidance: int, held: int = 0) -> None:
        c, length = self.config, len(queue)
        if not num_guidance:
            return super().one_pass(queue, num_guidance, held)
        before = 1 if c.position_0_context else 0
        local = c.window - max(num_guidance, before)
        starts = [0] if length <= c.window else [*range(0, length - local, c.stride), length - local]
        clean: dict[int, torch.Tensor] = {}
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            if end <= held:
                continue
            eligible = self.eligible(queue[start].index)
            most = self.counts["anchors"] if self.held is None else len(self.held)
            if length <= c.window:
                eligible = self.eligible(queue[0].index)
                most = min(most, c.window - length)
            anchors = self.evenly(eligible, most)
            guidance: list[int] = []
            if length > c.window:
                guidance = self.from_queue(queue, start, num_guidance - len(anchors))
            if not guidance and not anchors and start > 0:
                guidance = [start - 1] * before
            stop = min(length, start + c.window - len(anchors) - len(guidance))
            seen = [*guidance, *range(start, stop)]
            shown = [queue[i] for i in seen]
            if c.anchor_level == "window":
                level = min(latent.level for latent in shown)
                anchors = [self.noised(anchor, level) if anchor.level == 0 else anchor for anchor in anchors]
            outputs = self.call([*anchors, *shown], queue[max(start, held)].index)[len(anchors) :]
            clean |= dict(zip(seen[len(guidance) :], outputs[len(guidance) :], strict=True))
        for position in range(held, length):
            queue[position].step(clean[position])
        return None

    @staticmethod
    def evenly(latents: list[Latent], most: int) -> list[Latent]:
        if len(latents) <= most:
            return latents
        return [latents[math.floor(j * (len(latents) - 1) / max(1, most - 1))] for j in range(most)]

    def noised(self, anchor: Latent, level: int) -> Latent:
        latent = self.entering(anchor.x, anchor.index, level)
        sigma = float(latent.scheduler.sigmas[self.config.num_steps - level])
        latent.x = (1.0 - sigma) * anchor.x + sigma * self.noise("anchor", [anchor.index])[0]
        return latent

    def from_queue(self, queue: list[Latent], start: int, count: int) -> list[int]:
        """Positions: head, then spread, then the nearest until there are enough; who is late moves aside."""
        c = self.config
        if start < count:
            return []
        own = 0
        if self.held is None and not c.guidance_across_prompts:
            begin = self.prompt_of(queue[start].index) * self.latents_per_prompt
            own = max(0, begin - queue[0].index)
        room = max(0, start - own)
        head = 0 if self.held is not None else min(self.counts["head"], room)
        spread = min(self.counts["spread"], room - head)
        wanted: list[int] = []
        apart = min(c.zigzag_width, room // max(1, head))
        wanted += [own + j * apart + apart // 2 for j in range(head)]
        wanted += [own + math.floor((j + 0.5) * room / spread) for j in range(spread)]
        wanted += self.guidance(start, count - head - spread)[::-1] if count > head + spread else []
        taken: list[int] = []
        for position in wanted:
            for distance in range(start):
                free = [p for p in (position + distance, position - distance) if 0 <= p < start and p not in taken]
                if free:
                    taken.append(free[0])
                    break
        return sorted(taken)

    def grow(self, queue: list[Latent], judged: int, number: int) -> list[Latent]:
        """Beside a candidate's queue: the anchors a window there is shown, and the queue's head."""
        own = 0
        if not self.config.guidance_across_prompts:
            own = max(0, self.prompt_of(queue[judged].index) * self.latents_per_prompt - queue[0].index)
        room = max(0, judged - own)
        head = min(self.counts["head"], room)
        apart = min(self.config.zigzag_width, room // max(1, head))
        heads = [copy.deepcopy(queue[own + j * apart + apart // 2]) for j in range(head)]
        self.held = [*self.evenly(self.eligible(queue[judged].index), self.counts["anchors"]), *heads]
        grown = super().grow(queue, judged, number)
        self.held = None
        return grown

    # ---- the network ----

    def call(self, latents: list[Latent], first_kept: int) -> torch.Tensor:
        gap = self.config.guidance_gap
        if gap == 1:
            return super().call(latents, first_kept)
        self.num_calls += 1
        positions = [0]
        for one, other in itertools.pairwise(latents):
            positions.append(positions[-1] + max(1, min(gap, other.index - one.index)))
        prompt = self.prompts[self.prompt_of(first_kept)]
        levels = torch.tensor([latent.level for latent in latents])
        x = torch.stack([latent.x for latent in latents])
        return self.denoiser(x[None], levels[None], [prompt], torch.tensor([positions]))[0]
