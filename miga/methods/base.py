"""What a method of making a video longer than a clip offers: one `Method` value a folder.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch

from miga.backbones.base import Denoiser
from miga.config import SamplerConfig
from miga.denoise_pass import Stepper
from miga.image_condition import Pictures
from miga.methods.shared_settings import SHARED_PUBLISHED, shared_in_proportion
from miga.queue import FrameQueue
from miga.reflection import GrowAll

Features: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""An extractor to judge by: clean latents `[F, C, H, W]` to one vector each, `[F, D]` (decoding is its own affair)."""


class Course(Protocol):
    """A method at work on one video. Its state is a value: a frozen dataclass of queues, tensors and plain values.

    What self-reflection did, where there is any, is `state.trace`. Which windows a pass has depends on levels and
    places of latents alone, never on what is in them: so the same code, run on queues without latents, is the video's
    plan (`plan.py`).
    """

    def start(self, clean_FCHW: Any) -> Any:
        """The state behind a clean base clip of `f0` latents (None where none is needed)."""
        ...

    def advance(self, state: Any) -> tuple[Any, FrameQueue | None]:
        """One pass further: the state, and the latents that are finished (None if there are none)."""
        ...

    def is_open(self, state: Any) -> bool:
        """Whether that many passes over a longer video would have come to the same state, whatever its length."""
        ...


@dataclass(frozen=True)
class Begin:
    """What a method begins a video with, beside its settings.

    Attributes:
        stepper: takes the steps.
        num_latents: of the video; None if it has no end.
        grow_all: grows the candidates of a search elsewhere; None: here, side by side.
        features: what candidates are judged by, where the method takes such; None: the latents themselves.
        denoiser: the network, for methods that keep a cache in it; None where only a plan is made.
        pictures: those of the video; None where there are none, and where nothing looks at latents (a plan).
    """

    stepper: Stepper
    num_latents: int | None
    grow_all: GrowAll | None = None
    features: Features | None = None
    denoiser: Denoiser | None = None
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Profile:
    """A named way to sample.

    Attributes:
        summary: what it is for.
        settings: what it fixes over the published settings.
        by_family: what it fixes for models of one family alone.
        derive: what follows from the other settings, where the user says nothing of it.
        ablates: parts of a method that are switched off in it, by name, and the settings that do so.
    """

    summary: str
    settings: Mapping[str, Any]
    by_family: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}
    ablates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to make a video longer than a clip.

    Attributes:
        name: as users name it.
        settings: its settings, a frozen dataclass.
        state: its state, a frozen dataclass.
        begin: begins a video.
        profiles: its named settings.
        published: what is published for it, by family of model.
        in_proportion: what to take for a model that nothing is published for, from its window and number of steps.
        at_steps: what published settings come to at another number of steps than theirs.
        needs_base_clip: whether it starts from a clean clip of one window.
        takes_features: whether `Begin.features` means anything to it.
        is_lazy: whether windows of several of its passes may run at once; not where a pass looks at what it made.
        needs_cache: whether the network must be a `CachedDenoiser`. Its course has `replay`, beside what others have.
        makes_together: whether several videos can be made in step, calls of theirs that do the same made as one.
        needs_picture: whether it makes nothing without a first picture, and shows pictures itself.
        had_other_name: whether settings are its own that an earlier version noted under another method's name.
    """

    name: str
    settings: type[SamplerConfig]
    state: type
    begin: Callable[[Any, Begin], Course]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: SHARED_PUBLISHED)
    in_proportion: Callable[[int, int], Mapping[str, Any]] = shared_in_proportion
    at_steps: Callable[[Mapping[str, Any], int], Mapping[str, Any]] = lambda settings, num_steps: settings
    needs_base_clip: bool = True
    takes_features: bool = False
    is_lazy: bool = True
    needs_cache: bool = False
    makes_together: bool = False
    needs_picture: bool = False
    had_other_name: Callable[[Mapping[str, Any]], bool] = lambda values: False
