"""Several prompts in one window: which text each of its frames stands under, in which half of the network.

A method that puts frames of several prompts into one window makes one condition of theirs, `SeveralConditions`, and
its settings name a strategy, `FrameTexts` (`SamplerConfig.frame_texts`), that a denoiser is given beside it.

Legend: F frames (latents), L text tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


@dataclass(frozen=True)
class SeveralConditions:
    """The condition of a window under several prompts, in the order of the video.

    Attributes:
        conditions: what the network takes for each alone. The negative prompt is that of the first.
    """

    conditions: tuple[Any, ...]


class TextsOfFrames(NamedTuple):
    """The text of every frame.

    Attributes:
        down_FLD: what a U-shaped network sees down to its middle, that included.
        up_FLD: what it sees on the way up.
    """

    down_FLD: torch.Tensor
    up_FLD: torch.Tensor


class FrameTexts(Protocol):
    """A strategy: the texts of the frames of one call."""

    def __call__(self, texts_LD: Sequence[torch.Tensor], num_frames: int, step: int) -> TextsOfFrames:
        """The text of every frame.

        Args:
            texts_LD: embeddings of the prompts, in order.
            num_frames: F.
            step: number of the denoise step, 0 for the one from pure noise.
        """
        ...
