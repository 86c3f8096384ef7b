"""Anchors: finished latents that are kept for good, clean, beside the queue, for windows to be guided by.

Which are kept depends on places in the video alone, so it is the same on one GPU and on eight, resumed or not, and the
plan of a video knows it. How many are kept is bounded, however long the video is.

Source: decisions/0012.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from miga.guidance import spread_indices
from miga.prompts import PromptTrack
from miga.queue import FrameQueue

Anchors: TypeAlias = tuple[FrameQueue, ...]
"""Queues of one latent each, in the order of the video."""

KINDS: Final = ("base", "first", "prompt", "every")


def parse_anchors(text: str) -> tuple[str, int]:
    """What a text such as "first" or "every:8" stands for: a kind, and the spacing of "every" (else 0).

    Raises:
        ValueError: saying what is wrong with it.
    """
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of base, first, prompt, every:N")
    if kind != "every":
        if colon:
            raise ValueError(f"{kind!r} takes no number")
        return kind, 0
    if not (number.isdecimal() and number.isascii() and len(number) <= 6 and int(number) >= 1):
        raise ValueError(f"{number!r} is no number of latents, as in every:8")
    return kind, int(number)


@dataclass(frozen=True)
class AnchorKeeper:
    """Which latents of a video become anchors, and which go again.

    - "base": of the clean base clip, so there before the first pass.
    - "first": of the video's own first clip, as it is finished.
    - "prompt": of the first clip of each prompt's stretch; those of the prompt before go when its first one comes.
    - "every": latents 0, n, 2n, …; when there would be more than `most`, every second one goes, and n doubles.

    Attributes:
        kind: one of `KINDS`.
        spacing: of "every", latents.
        count: latents of a clip that are kept, from the middle of as many equal parts of it.
        most: of "every", how many are kept.
        window: `f0`, latents of a clip.
        prompts: which prompt a latent stands under.
    """

    kind: str
    spacing: int
    count: int
    most: int
    window: int
    prompts: PromptTrack

    def begin(self, clean: FrameQueue) -> Anchors:
        """The anchors that a video starts with.

        Args:
            clean: the base clip, from latent 0 on, at level 0.
        """
        if self.kind != "base":
            return ()
        return tuple(clean[place : place + 1].compact() for place in spread_indices(self.window, self.count))

    def after(self, held: Anchors, finished: FrameQueue) -> Anchors:
        """The anchors once more latents are finished, which follow those before."""
        for place in finished.indices:
            if self._is_wanted(place):
                held = self._with(held, finished[place - finished.first : place - finished.first + 1])
        return held

    def prompt_of(self, anchor: FrameQueue) -> int:
        """Number of the prompt that an anchor stands under; the base clip is made under the first."""
        return 0 if self.kind == "base" else self.prompts.index(anchor.first)

    def _is_wanted(self, place: int) -> bool:
        if self.kind == "every":
            return place % self.spacing == 0
        begin = {"first": 0, "prompt": self.prompts.first(self.prompts.index(place)), "base": place + 1}[self.kind]
        return place - begin in spread_indices(self.window, self.count)

    def _with(self, held: Anchors, anchor: FrameQueue) -> Anchors:
        if self.kind == "prompt":
            held = tuple(each for each in held if self.prompt_of(each) == self.prompt_of(anchor))
        if self.kind == "every":
            spacing = _spacing(held) or self.spacing
            if anchor.first % spacing:
                return held
            if len(held) >= self.most:
                held = held[::2]
                if anchor.first % (2 * spacing):
                    return held
        return (*held, anchor.compact())


def _spacing(held: Sequence[FrameQueue]) -> int:
    """Of anchors 0, n, 2n, …: n; 0 while there are fewer than two."""
    return held[1].first - held[0].first if len(held) > 1 else 0
