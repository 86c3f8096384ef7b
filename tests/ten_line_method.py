"""A method as small as one can be: plain windows, one after the other. `docs/add-a-method.md` quotes it whole.

Every window is denoised from noise to clean behind the last clean latents of the window before, and that is all: no
queue, no latents at different levels but for that context.
"""

from __future__ import annotations

from dataclasses import dataclass

from miga.config import SamplerConfig
from miga.methods.base import Begin, Method, Profile
from miga.queue import FrameQueue
from miga.windows import Window


@dataclass(frozen=True, kw_only=True)
class PlainSettings(SamplerConfig):
    """What the method is told beside what all are.

    Attributes:
        num_kept: clean latents of a window that the next one begins with.
    """

    num_kept: int = 2

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.require(1 <= self.num_kept <= self.window // 2, "num_kept", f"1 to {self.window // 2}, half a window")


@dataclass(frozen=True)
class PlainState:
    """One video: the window in the making, clean latents first."""

    queue: FrameQueue

    @property
    def num_clean(self) -> int:
        """Its clean latents."""
        return int((self.queue.level_F == 0).sum())


@dataclass(frozen=True)
class Plain:
    """Plain windows, one after the other."""

    config: PlainSettings
    begin: Begin

    def start(self, clean_FCHW: None) -> PlainState:
        """A window of noise."""
        config = self.config
        return PlainState(self.begin.stepper.noise_queue(0, config.window, config.num_steps, "push"))

    def advance(self, state: PlainState) -> tuple[PlainState, FrameQueue | None]:
        """The window one level down; once it is clean, its new latents are finished, and noise follows its last."""
        config, stepper, num_clean, total = self.config, self.begin.stepper, state.num_clean, len(state.queue)
        stepped = stepper.pass_over(state.queue, [Window((), 0, total, num_clean, total)])
        if int(stepped.level_F[0]) > 0:
            return PlainState(state.queue[:num_clean].append(stepped)), None
        kept = stepped[len(stepped) - config.num_kept :].compact()
        begun = stepper.push_noise(kept, config.window - config.num_kept, config.num_steps, "push")
        num_left = None if self.begin.num_latents is None else self.begin.num_latents - stepped.first
        return PlainState(begun), stepped[:num_left]

    def is_open(self, state: PlainState) -> bool:
        """Until the last window, of which less than all may be of the video, is done."""
        assert self.begin.num_latents is not None
        return state.queue.first + state.num_clean <= self.begin.num_latents


METHOD = Method(
    name="plain",
    settings=PlainSettings,
    state=PlainState,
    begin=Plain,
    profiles={"plain": Profile("plain windows, each behind the last clean latents of the one before", {})},
    needs_base_clip=False,
)
