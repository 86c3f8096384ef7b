"""Where the long-range guidance of a queue comes from: the plan of a pass, anchors and prompts taken into account.

Source: MIGA Eq. 8, section 3.3; decisions/0001 (the plan), decisions/0012 (where guidance comes from).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from miga.anchors import AnchorKeeper, Anchors
from miga.denoise_pass import Stepper
from miga.guidance import Sources, even_choice, head_indices
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.windows import Stretch, Window, plan_pass

if TYPE_CHECKING:
    from miga.methods.queue_settings import QueueSettings


@dataclass(frozen=True)
class LongRange:
    """The long-range guidance of one video.

    Attributes:
        config: the settings.
        prompts: which prompt a latent stands under.
        lead: latents of context before a window that has no guidance.
    """

    config: QueueSettings
    prompts: PromptTrack
    lead: int = 0

    @property
    def keeper(self) -> AnchorKeeper | None:
        """Keeps the anchors; None where none are shown."""
        config = self.config
        if not config.sources.anchors:
            return None
        kind, spacing = config.anchor_kind
        return AnchorKeeper(kind, spacing, config.sources.anchors, config.max_anchors, config.window, self.prompts)

    def begin(self, clean_FCHW: torch.Tensor, stepper: Stepper) -> Anchors:
        """See `AnchorKeeper.begin`; `clean_FCHW` is the base clip."""
        if self.keeper is None:
            return ()
        return self.keeper.begin(stepper.fresh(clean_FCHW, torch.zeros(len(clean_FCHW), dtype=torch.int64), 0))

    def after(self, anchors: Anchors, finished: FrameQueue | None) -> Anchors:
        """See `AnchorKeeper.after`."""
        return anchors if self.keeper is None or finished is None else self.keeper.after(anchors, finished)

    def plan(self, queue: FrameQueue, anchors: Anchors, offset: int = 0) -> tuple[Window, ...]:
        """The windows of a pass over a queue, beside anchors."""
        return self._plan(queue, self.config.sources, self._stretches(queue, anchors), offset)

    def held_for(self, queue: FrameQueue, position: int, anchors: Anchors) -> Anchors:
        """What candidates for the queue's tail are shown beside the latents that they are grown from.

        The anchors that a window would be shown that starts there, and of the queue itself its head, at its levels: a
        candidate's own queue begins too late to hold it.

        Args:
            queue: the queue.
            position: of the first latent of the tail.
            anchors: those kept.
        """
        sources, stretches = self.config.sources, self._stretches(queue, anchors)
        stretch = next(each for each in reversed(stretches) if each.start <= position)
        (first, stop), room = stretch.anchors, max(0, position - stretch.own)
        shown = [first + each for each in even_choice(stop - first, min(sources.anchors, stop - first))]
        head = head_indices(room, min(sources.head, room), self.config.zigzag_width)
        places = [stretch.own + each for each in head]
        return (*(anchors[each] for each in shown), *(queue[each : each + 1].compact() for each in places))

    def candidate_plan(self, queue: FrameQueue, held: Anchors) -> tuple[Window, ...]:
        """The windows of a pass over a candidate's queue, beside what is held for it."""
        asked = self.config.sources
        missing = asked.anchors + asked.head - len(held)
        sources = Sources(anchors=len(held), spread=asked.spread, nearest=asked.nearest + missing)
        return self._plan(queue, sources, (Stretch(anchors=(0, len(held))),), 0)

    def _plan(
        self, queue: FrameQueue, sources: Sources, stretches: tuple[Stretch, ...], offset: int
    ) -> tuple[Window, ...]:
        config = self.config
        return plan_pass(
            len(queue),
            config.room,
            config.stride,
            config.num_guidance_latents,
            config.zigzag_width,
            offset,
            self.lead,
            sources,
            stretches,
        )

    def _stretches(self, queue: FrameQueue, anchors: Anchors) -> tuple[Stretch, ...]:
        if self.config.guidance_across_prompts:
            return (Stretch(anchors=(0, len(anchors))),)
        of = [] if self.keeper is None else [self.keeper.prompt_of(anchor) for anchor in anchors]
        found = []
        for prompt in sorted({self.prompts.index(place) for place in queue.indices}):
            start = self.prompts.first(prompt) - queue.first
            first = next((number for number, each in enumerate(of) if each == prompt), 0)
            found.append(Stretch(start, max(0, start), (first, first + of.count(prompt))))
        return (found[0]._replace(start=min(0, found[0].start)), *found[1:])
