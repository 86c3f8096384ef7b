"""Settings of FIFO-Diffusion, and its profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from miga.config import LaterWindows, SamplerConfig
from miga.methods.base import Profile


@dataclass(frozen=True, kw_only=True)
class DiagonalSettings(SamplerConfig):
    """Of a queue of `T` latents one level apart.

    Attributes:
        stride: `S`, latents kept of every window but a pass's last.
    """

    stride: int

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Half a window is kept."""
        return {"stride": values["window"] // 2}

    @property
    def queue_length(self) -> int:
        """Latents of the queue."""
        return self.num_steps

    @property
    def right_half(self) -> int:
        """The latents that a window of lookahead denoising can keep."""
        return self.room - self.window // 2

    def check_diagonal(self, *, keeps_right_half: bool) -> None:
        """Checks the queue.

        Raises:
            ConfigError: if a value is out of range.
        """
        self.require(1 <= self.stride <= self.window, "stride", f"1 to window = {self.window}")
        why = "the base clip fills the last `window` places of a queue of `num_steps`"
        self.require(self.num_steps >= self.window, "num_steps", f"at least window = {self.window}: {why}")
        if keeps_right_half:
            half = self.right_half
            self.require(self.stride <= half, "stride", f"1 to {half}: each window writes its right half")


@dataclass(frozen=True, kw_only=True)
class FifoSettings(DiagonalSettings):
    """Of FIFO-Diffusion.

    Attributes:
        lookahead: whether windows keep their right half behind clean context, as FIFO-Diffusion's program does, or
            their left part as Alg. 3 prints it.
        image_condition: of a model that takes a picture beside its latents, what windows are conditioned on that do not
            begin with the video's first latent: "anchor" (the picture, in a place before their own latents), or
            "reference" (the same, the picture in place of grey behind it).
    """

    lookahead: bool = True
    image_condition: LaterWindows = ""

    added_later: ClassVar[frozenset[str]] = frozenset({"image_condition"})

    @classmethod
    def implied(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Half a window is kept; of lookahead denoising all that a picture before it leaves of the right half."""
        half = values["window"] // 2
        takes_a_place = bool(values.get("image_condition")) and values.get("lookahead", True)
        return {"stride": max(1, min(half, values["window"] - 1 - half) if takes_a_place else half)}

    @property
    def later_windows(self) -> LaterWindows:
        """See `SamplerConfig.later_windows`."""
        return self.image_condition

    def check(self) -> None:
        """See `SamplerConfig.check`."""
        self.check_diagonal(keeps_right_half=self.lookahead)


PROFILES: Final[dict[str, Profile]] = {
    "fifo": Profile("FIFO-Diffusion with lookahead denoising, the baseline", {}),
    "fifo-literal": Profile(
        "FIFO-Diffusion as Alg. 3 prints it: windows keep their left part, no clean context", {"lookahead": False}
    ),
}
