"""Settings of the authors' program, and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from miga.methods.base import Profile
from miga.methods.queue_settings import QueueSettings


@dataclass(frozen=True, kw_only=True)
class ReleasedSettings(QueueSettings):
    """Of the authors' program. `judged_group` counts before a push.

    Attributes:
        released_branch: which of the two programs of the authors.
    """

    takes_wan_program_steps: ClassVar[bool] = True

    released_branch: str = ""

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.check_queue()
        branches = ("wan", "videocrafter2")
        self.require(self.released_branch in branches, "released_branch", f"one of {branches}")
        highest = self.num_steps - self.num_base_groups - 2
        self.require(highest >= 1, "num_steps", f"at least {self.num_base_groups + 3}, to initialise the queue")
        self.require(
            self.handoff_level <= highest, "handoff_level",
            f"1 to {highest}: initialisation ends two levels above it, below the base clip's groups",
        )  # fmt: skip
        self.require(
            self.stride < self.window, "stride", f"1 to {self.window - 1}: a window must see beyond what it keeps"
        )
        if self.self_reflection:
            self.require(
                self.judged_group <= self.num_initial_passes, "judged_group",
                f"at most {self.num_initial_passes}: the tail is judged after the passes of initialisation, once the "
                "judged group stands behind the whole base clip",
            )  # fmt: skip
        self.check_reflection()

    @property
    def queue_length(self) -> int:
        """Latents that a pass over the full queue sees, from level `e + 1` on."""
        return (self.num_steps - self.handoff_level) * self.zigzag_width

    @property
    def longest_judged(self) -> int:
        """See `QueueSettings.longest_judged`: initialisation ends two levels above the handoff."""
        return self.queue_length - 2 * self.zigzag_width

    @property
    def num_initial_passes(self) -> int:
        """Passes of initialisation that fill the queue; a video of fewer groups gets one a group."""
        return self.num_steps - self.num_base_groups - self.handoff_level - 2

    def num_groups_asked(self, num_latents: int) -> int:
        """Groups that are made for a video: on Wan a base clip's more than it has, dropped at the end."""
        num_dropped = self.num_base_groups if self.released_branch == "wan" else 0
        return -(-num_latents // self.zigzag_width) + num_dropped


_BY_FAMILY: Final[dict[str, dict[str, Any]]] = {
    "wan": {"released_branch": "wan", "self_reflection": True, "num_guidance_latents": 4},
    "videocrafter2": {
        "released_branch": "videocrafter2",
        "self_reflection": False,
        "num_guidance_latents": 4,
        "reflection_threshold": 0.001,
        "judged_group": 13,
    },
}
"""What the authors' programs fix, over the published settings of the family."""

PROFILES: Final[dict[str, Profile]] = {
    "released": Profile(
        "MIGA as the authors' program does it where that differs (its faults apart)", {}, by_family=_BY_FAMILY
    ),
}
