"""The GPU of a worker: one call of the network at a time, whoever asks for it, and a count of what they took."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from miga.backbones.base import Backbone, BranchedDenoiser, CachedDenoiser, Condition, FrameDecoder
from miga.cached_call import CachedCall
from miga.config import SamplerConfig
from miga.methods.causal.together import VideoInStep

_NUM_REMEMBERED: Final = 31


@dataclass
class CallTime:
    """What a call took."""

    seconds: float = 0.0


class GpuClock:
    """Counts the calls of one GPU, and lets them in one by one.

    Attributes:
        num_calls: so far, in windows: a batch is several, one branch of a guided call is half of one.
        busy_s: seconds that they took.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_s: float | None = None
        self._recent_s: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self.num_calls = 0.0
        self.busy_s = 0.0

    @contextmanager
    def call(self, num_windows: float = 1.0) -> Iterator[CallTime]:
        """Holds the GPU for a call; what it took is known afterwards."""
        took = CallTime()
        with self._lock:
            self._started_s = started_s = time.monotonic()
            try:
                yield took
            finally:
                took.seconds = took_s = time.monotonic() - started_s
                self._started_s = None
                self.busy_s += took_s
                self.num_calls += num_windows
                self._recent_s.append(took_s / num_windows)

    @property
    def call_running_s(self) -> float:
        """How long the call that runs just now has been running; 0 if none does."""
        started_s = self._started_s
        return 0.0 if started_s is None else time.monotonic() - started_s

    @property
    def call_s(self) -> float | None:
        """Seconds of a call: the middle one of the last few, so that a first, slow one does not count."""
        return statistics.median(self._recent_s) if self._recent_s else None


class _ClockedDenoiser:
    """A denoiser whose calls the clock counts; all else is as it was."""

    def __init__(self, denoiser: Any, clock: GpuClock) -> None:
        self._denoiser, self._clock = denoiser, clock
        self.window, self.schedule = denoiser.window, denoiser.schedule
        self.takes_positions = getattr(denoiser, "takes_positions", False)
        self.frame_attention = getattr(denoiser, "frame_attention", None)
        self.time_rotation = getattr(denoiser, "time_rotation", None)

    def __call__(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Condition], **told: torch.Tensor
    ) -> torch.Tensor:
        with self._clock.call(len(conditions)):
            return _complete(self._denoiser(x_BFCHW, level_BF, conditions, **told))


class _ClockedBranchedDenoiser(_ClockedDenoiser):
    """See `BranchedDenoiser`; a branch counts as half a call."""

    def num_branches(self, level_BF: torch.Tensor) -> int:
        count: int = self._denoiser.num_branches(level_BF)
        return count

    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[Condition],
        branch: int,
        **told: torch.Tensor,
    ) -> torch.Tensor:
        with self._clock.call(len(conditions) / 2):
            return _complete(self._denoiser.predict_branch(x_BFCHW, level_BF, conditions, branch, **told))

    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        clean_BFCHW: torch.Tensor = self._denoiser.combine(x_BFCHW, level_BF, predictions)
        return clean_BFCHW


class _ClockedCachedDenoiser(_ClockedDenoiser):
    """See `CachedDenoiser`."""

    def open_cache(self, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        return self._denoiser.open_cache(num_slots, latent_size, **others)

    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Condition]) -> torch.Tensor:
        return self.timed_call(x_BFCHW, call, conditions)[0]

    def timed_call(
        self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Condition]
    ) -> tuple[torch.Tensor, float]:
        """The same, and the seconds that it took (see `Lockstep`)."""
        with self._clock.call(len(conditions)) as took:
            output_BFCHW = _complete(self._denoiser.call_cached(x_BFCHW, call, conditions))
        return output_BFCHW, took.seconds


class _ClockedBranchedCachedDenoiser(_ClockedBranchedDenoiser, _ClockedCachedDenoiser):
    """Both."""


_KINDS: Final = {
    (False, False): _ClockedDenoiser,
    (True, False): _ClockedBranchedDenoiser,
    (False, True): _ClockedCachedDenoiser,
    (True, True): _ClockedBranchedCachedDenoiser,
}
"""By whether a denoiser is branched, and whether it keeps a cache."""


def _complete(output: torch.Tensor) -> torch.Tensor:
    """The output, once the GPU has computed it: else the clock would see it queued, another thread read too soon."""
    if output.is_cuda:
        torch.cuda.current_stream(output.device).synchronize()
    return output


class InTurnDecoder:
    """A `FrameDecoder` of one of several videos, of which one is decoded at a time.

    Args:
        decoder: of the video.
        turn: held while it decodes.
    """

    def __init__(self, decoder: FrameDecoder, turn: threading.Lock) -> None:
        self._decoder, self._turn = decoder, turn

    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """See `FrameDecoder`."""
        with self._turn:
            return _complete(self._decoder.decode(x_FCHW))


class ClockedBackbone:
    """A backbone for one video: its network's calls are counted, and its conditions remembered.

    Args:
        backbone: the loaded model.
        clock: of its GPU.
        in_step: the video's denoiser, where several are made in step; its calls are counted already.
        decoding: held while a video in step is decoded.

    Attributes:
        conditions: those made so far, each with the number of the prompt that it was made of.
    """

    def __init__(
        self,
        backbone: Backbone,
        clock: GpuClock,
        in_step: VideoInStep | None = None,
        decoding: threading.Lock | None = None,
    ) -> None:
        self._backbone, self._clock, self._in_step, self._decoding = backbone, clock, in_step, decoding
        self.conditions: list[Condition] = []

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> Condition:
        """See `Backbone`."""
        self.conditions.append(self._backbone.condition(prompt_embedding, negative_embedding))
        return self.conditions[-1]

    def denoiser(self, config: SamplerConfig) -> Any:
        """See `Backbone`."""
        if self._in_step is not None:
            return self._in_step
        denoiser = self._backbone.denoiser(config)
        kind = _KINDS[isinstance(denoiser, BranchedDenoiser), isinstance(denoiser, CachedDenoiser)]
        return kind(denoiser, self._clock)

    def frame_decoder(self) -> FrameDecoder:
        """See `Backbone`."""
        decoder = self._backbone.frame_decoder()
        return decoder if self._decoding is None else InTurnDecoder(decoder, self._decoding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)
