"""How far a video is, in calls of the network, which are known before it is begun (`cost.py`).

Legend: B windows in a batch, F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from miga.backbones.base import Backbone, CachedDenoiser
from miga.cached_call import CachedCall
from miga.config import SamplerConfig
from miga.cost import CallCount, count_calls
from miga.video import Progress

OnProgress: TypeAlias = Callable[[int, int], None]
"""Is told the network calls done and those in all, after every one. Where a search begins, there are more in all."""


class CallsCounted:
    """The progress bar of one video.

    Args:
        backbone: the model.
        config: the sampler's settings.
        num_latents: length of the video.
        progress_bar: makes the bar, of so many calls.
        on_progress: is told as well, if there is one.

    Attributes:
        backbone: the model, its calls counted: the video is to be made with it.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: SamplerConfig,
        num_latents: int,
        progress_bar: Callable[[int], Any],
        on_progress: OnProgress | None,
    ) -> None:
        self.backbone: Any = _CountedBackbone(backbone, self._called)
        self._count: CallCount = count_calls(config, num_latents)
        self._on_progress = on_progress
        self._done, self._total = 0, self._count.total
        self._bar = progress_bar(self._total)

    def __enter__(self) -> CallsCounted:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def look(self, step: Progress) -> None:
        """Counts the calls of the searches that were begun."""
        self._expect(self._count.total + self._count.per_search * sum(step.trace.searched))

    def _called(self, num_calls: int) -> None:
        self._done += num_calls
        self._expect(self._done)
        self._bar.update(num_calls)
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)

    def _expect(self, total: int) -> None:
        if total > self._total:
            self._bar.total = self._total = total
            self._bar.refresh()


class _CountedBackbone:
    """A backbone whose denoisers say when they were called; all else is as it was."""

    def __init__(self, backbone: Backbone, called: Callable[[int], None]) -> None:
        self._backbone, self._called = backbone, called

    def denoiser(self, config: SamplerConfig) -> _CountedDenoiser:
        denoiser = self._backbone.denoiser(config)
        kind = _CountedCachedDenoiser if isinstance(denoiser, CachedDenoiser) else _CountedDenoiser
        return kind(denoiser, self._called)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


class _CountedDenoiser:
    def __init__(self, denoiser: Any, called: Callable[[int], None]) -> None:
        self._denoiser, self._called = denoiser, called
        self.window, self.schedule = denoiser.window, denoiser.schedule
        self.takes_positions = getattr(denoiser, "takes_positions", False)
        self.frame_attention = getattr(denoiser, "frame_attention", None)
        self.time_rotation = getattr(denoiser, "time_rotation", None)

    def __call__(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[Any], **told: torch.Tensor
    ) -> torch.Tensor:
        clean_BFCHW: torch.Tensor = self._denoiser(x_BFCHW, level_BF, conditions, **told)
        self._called(len(conditions))
        return clean_BFCHW


class _CountedCachedDenoiser(_CountedDenoiser):
    """See `CachedDenoiser`."""

    def open_cache(self, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        return self._denoiser.open_cache(num_slots, latent_size, **others)

    def call_cached(self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[Any]) -> torch.Tensor:
        clean_BFCHW: torch.Tensor = self._denoiser.call_cached(x_BFCHW, call, conditions)
        self._called(len(conditions))
        return clean_BFCHW
