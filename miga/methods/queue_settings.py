"""Settings of the methods with a zigzag queue and two stages: the paper's, and its authors' program's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from miga.anchors import parse_anchors
from miga.config import MAX_CANDIDATES, SamplerConfig
from miga.denoise_pass import Stepper
from miga.errors import ConfigError
from miga.guidance import Sources, parse_sources
from miga.methods.shared_settings import SHARED_PUBLISHED, shared_in_proportion

MAX_ANCHORS: Final = 256
MAX_GAP: Final = 1000
"""Latents; many times the window of any model, and far from where an angle in float64 loses its digits."""
_EXAMPLES: Final = {
    "guidance_from": "'nearest', 'head', 'spread', 'anchors', or so many of each, such as 'head:1,nearest:2'",
    "guidance_anchors": "'base', 'first', 'prompt' or 'every:8'",
}


@dataclass(frozen=True, kw_only=True)
class QueueSettings(SamplerConfig):
    """Of a zigzag queue with long-range guidance and self-reflection, and of what follows it.

    Attributes:
        stride: `S`, latents kept of every window but a pass's last.
        zigzag_width: `L_zig`, latents that share a level in Stage 1's queue.
        handoff_level: `e` (the paper's tau_e), level of the queue's head: Stage 1 hands latents on at level `e - 1`,
            Stage 2 takes them down the rest together.
        num_guidance_latents: `m_guid`, earlier latents put before a window (long-range guidance); 0 switches it off.
        guidance_from: where they come from: "nearest" (right before the window, as in Eq. 8), "head" (the queue's
            cleanest), "spread" (from the head to the window), "anchors" (finished latents that are kept), or so many of
            each: "head:1,nearest:2". One source may stand without a number, and takes the rest.
        guidance_anchors: which latents are kept as anchors, if `guidance_from` asks for any: "base" (of the base clip),
            "first" (of the video's first clip, once it is finished), "prompt" (of the first clip of each prompt's
            stretch), or "every:N" (each N-th).
        max_anchors: of "every:N", how many are kept: when there would be more, every second goes, and N doubles.
        anchor_level: the level that anchors are shown at: "clean" (0), or "window" (noised to that of the cleanest
            latent of the queue that the window shows).
        guidance_across_prompts: whether head, spread and anchors may stand under an earlier prompt than the window; if
            not, which is what follows where they are asked for, the nearest latents make up for those that are missing.
        guidance_gap: how far two neighbours in a window may lie apart in the positions that the network is told: 1 is
            contiguous, as published; more tells true distances up to that many latents (models with rotary positions).
        self_reflection: whether Stage 1 evaluates, and where needed searches, the tail of its queue.
        reflection_threshold: `delta_adju`, fall of the consistency score that starts a search.
        num_eval_latents: `f_eval`, latents that are judged.
        num_reference_latents: `f_ref`, latents before them that they are compared with.
        num_reflection_guidance_latents: `f_guid`, latents before them that a candidate is grown from.
        num_candidates: `n_samp`, candidates of a search.
        judged_group: `G`, which group of the queue is judged, counted from the tail (1 is the last).
        reflection_judge: what is compared: "neighbours" (Eq. 5-7), or "still" (what stands still, motion taken out,
            with the anchors where there are any).
    """

    stride: int
    zigzag_width: int
    handoff_level: int
    num_guidance_latents: int
    guidance_from: str = "nearest"
    guidance_anchors: str = "base"
    max_anchors: int = 8
    anchor_level: Literal["clean", "window"] = "clean"
    guidance_across_prompts: bool = True
    guidance_gap: int = 1
    self_reflection: bool = False
    reflection_threshold: float
    num_eval_latents: int
    num_reference_latents: int
    num_reflection_guidance_latents: int
    num_candidates: int
    judged_group: int
    reflection_judge: Literal["neighbours", "still"] = "neighbours"

    added_later: ClassVar[frozenset[str]] = frozenset(
        {
            "guidance_from",
            "guidance_anchors",
            "max_anchors",
            "anchor_level",
            "guidance_across_prompts",
            "guidance_gap",
            "reflection_judge",
        }
    )

    follows: ClassVar[frozenset[str]] = frozenset({"guidance_across_prompts"})

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Half a window is kept; guidance that remembers does so within a prompt."""
        return {"stride": values["window"] // 2, "guidance_across_prompts": values["guidance_from"] == "nearest"}

    @property
    def sources(self) -> Sources:
        """Where guidance latents come from (`guidance_from`)."""
        return parse_sources(self.guidance_from, self.num_guidance_latents)

    @property
    def anchor_kind(self) -> tuple[str, int]:
        """Which latents are kept as anchors, and how far apart (`guidance_anchors`)."""
        return parse_anchors(self.guidance_anchors)

    @property
    def most_anchors(self) -> int:
        """Anchors that a video holds at most."""
        if not self.sources.anchors:
            return 0
        return self.max_anchors if self.anchor_kind[0] == "every" else self.sources.anchors

    @property
    def tells_positions(self) -> str:
        """See `SamplerConfig.tells_positions`."""
        return "guidance_gap" if self.guidance_gap > 1 else ""

    def guided_stepper(self, stepper: Stepper) -> Stepper:
        """The stepper for passes with long-range guidance: what their windows tell of positions and anchors."""
        return replace(stepper, max_gap=self.guidance_gap, noises_anchors=self.anchor_level == "window")

    @property
    def num_base_groups(self) -> int:
        """`n_zig`, groups that the base clip fills."""
        return self.window // self.zigzag_width

    @property
    def queue_length(self) -> int:
        """Latents that a pass over the full queue sees: `(T - e + 1) * L_zig`, levels `e ... T`."""
        return (self.num_steps - self.handoff_level + 1) * self.zigzag_width

    @property
    def longest_judged(self) -> int:
        """Latents of the longest queue whose tail is judged."""
        return self.queue_length

    def check_queue(self) -> None:
        """Checks the queue.

        Raises:
            ConfigError: if a value is out of range.
        """
        self.require(1 <= self.stride <= self.window, "stride", f"1 to window = {self.window}")
        divisors = [width for width in range(1, self.window + 1) if self.window % width == 0]
        self.require(
            self.zigzag_width in divisors,
            "zigzag_width",
            f"a divisor of window = {self.window}, one of {divisors}: the base clip must fill whole groups",
        )
        self.require(
            1 <= self.handoff_level <= self.num_steps,
            "handoff_level",
            f"1 to num_steps = {self.num_steps}: the level that Stage 1's queue begins at",
        )
        room = self.room - self.stride
        self.require(
            0 <= self.num_guidance_latents <= room, "num_guidance_latents",
            f"0 to {room}: a guided window must still hold its stride of {self.stride} local latents",
        )  # fmt: skip
        self._check_sources()

    def _check_sources(self) -> None:
        """Where guidance comes from."""
        for name, parse in (("guidance_from", lambda: self.sources), ("guidance_anchors", lambda: self.anchor_kind)):
            try:
                parse()
            except ValueError as error:
                raise ConfigError(
                    f"sampler.{name} = {getattr(self, name)!r} cannot be: {error}", f"write {_EXAMPLES[name]}"
                ) from None
        self.require(2 <= self.max_anchors <= MAX_ANCHORS, "max_anchors", f"2 to {MAX_ANCHORS}")
        self.require(1 <= self.guidance_gap <= MAX_GAP, "guidance_gap", f"1 to {MAX_GAP}")
        if self.sources.anchors:
            self.require(
                self.anchor_kind[0] == "every" or self.sources.anchors <= self.window, "guidance_from",
                f"at most window = {self.window} anchors, the latents of a clip",
            )  # fmt: skip

    def check_reflection(self) -> None:
        """Checks self-reflection, where it is on.

        Raises:
            ConfigError: if a value is out of range.
        """
        if not self.self_reflection:
            return
        self.require(math.isfinite(self.reflection_threshold), "reflection_threshold", "a finite number")
        held = 1 <= self.num_candidates <= MAX_CANDIDATES
        self.require(held, "num_candidates", f"at least 1, at most {MAX_CANDIDATES}")
        self.require(self.judged_group >= 1, "judged_group", "at least 1 (the last group of the queue)")
        tail = self.judged_group * self.zigzag_width
        self.require(1 <= self.num_eval_latents <= tail, "num_eval_latents", f"1 to {tail}, the latents judged from on")
        self.require(
            1 <= self.num_reference_latents <= self.num_reflection_guidance_latents, "num_reference_latents",
            f"1 to num_reflection_guidance_latents = {self.num_reflection_guidance_latents}: a candidate is compared "
            "with the latents it is grown from",
        )  # fmt: skip
        room = self.longest_judged - tail
        self.require(
            self.num_reflection_guidance_latents <= room, "judged_group",
            f"so small that num_reflection_guidance_latents = {self.num_reflection_guidance_latents} stand before it "
            f"in the queue (there is room for {max(0, room)})",
        )  # fmt: skip


PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "wan": {
        **SHARED_PUBLISHED["wan"],
        "zigzag_width": 7,
        "handoff_level": 10,
        "num_guidance_latents": 4,
        "reflection_threshold": 0.01,
        "num_eval_latents": 7,
        "num_reference_latents": 14,
        "num_reflection_guidance_latents": 14,
        "num_candidates": 3,
        "judged_group": 10,
    },
    "videocrafter2": {
        **SHARED_PUBLISHED["videocrafter2"],
        "zigzag_width": 4,
        "handoff_level": 10,
        "num_guidance_latents": 6,
        "reflection_threshold": 0.01,
        "num_eval_latents": 4,
        "num_reference_latents": 12,
        "num_reflection_guidance_latents": 12,
        "num_candidates": 5,
        "judged_group": 14,
    },
}
"""Settings of the paper (what it leaves open: of its released program), by family of model."""


def in_proportion(window: int, num_steps: int) -> dict[str, Any]:
    """Settings for models that nothing is published for: Wan's, in proportion to their window and steps."""
    width = max(width for width in range(1, max(2, window // 3 + 1)) if window % width == 0)
    handoff = max(1, round(num_steps * 10 / 54))
    return {
        **PUBLISHED["wan"],
        **shared_in_proportion(window, num_steps),
        "zigzag_width": width,
        "handoff_level": handoff,
        "num_guidance_latents": round(window * 4 / 21),
        "num_eval_latents": width,
        "num_reference_latents": 2 * width,
        "num_reflection_guidance_latents": 2 * width,
        "judged_group": max(1, min(10, num_steps - handoff - 1)),
    }


def at_steps(settings: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
    """Published settings at another number of steps than theirs: what is a noise level stays that noise level.

    A level is a number of steps, and the noise that it stands for is a function of its place among all steps. So
    Stage 1 hands latents on at the same noise if `R = e - 1`, the steps left to Stage 2, has the same place; one step
    is left to it at least. The judged group, counted in levels from the tail, stays at its noise likewise, as far as
    what it is compared with still stands before it in the queue.

    Args:
        settings: published ones, `num_steps` among them.
        num_steps: those to take instead.
    """
    first = (
        1 if settings["solver"] == "ddim" else 0
    )  # the level of the lowest time step: 0, or already 1 (`schedule.py`)
    share = (num_steps - first) / (settings["num_steps"] - first)
    handoff = min(num_steps, 1 + max(1, first + round((settings["handoff_level"] - 1 - first) * share)))
    num_before = -(-settings["num_reflection_guidance_latents"] // settings["zigzag_width"])
    room = num_steps - handoff + 1 - num_before
    judged = max(1, min(round(settings["judged_group"] * share), room))
    return {**settings, "num_steps": num_steps, "handoff_level": handoff, "judged_group": judged}
