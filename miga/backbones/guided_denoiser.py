"""What networks share on their way to clean latents: classifier-free guidance on a range of levels, branch by branch.

Legend: B windows in a batch, F latents, C channels, H, W latent cells, L text tokens, D text channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import torch

from miga.backbones.turns import Turn
from miga.errors import NonFiniteError
from miga.frame_attention import FrameAttention
from miga.schedule import NoiseSchedule

TextCondition: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Text embeddings `[L, D]` of the prompt and of the negative prompt."""


class GuidedDenoiser(ABC):
    """See `miga.backbones.base.BranchedDenoiser`.

    Args:
        schedule: what the levels stand for.
        window: most latents of a call.
        guidance_scale: of classifier-free guidance; 1 means one forward a call instead of two.
        guided_levels: it acts on latents of these levels alone, first and last included; None for all. A call without
            any such latent takes one forward.
        turn: what a forward has to wait for.
        frame_attention: what stands in for attention along the frames, in every call; None: attention itself.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        window: int,
        guidance_scale: float,
        guided_levels: tuple[int, int] | None,
        turn: Turn,
        frame_attention: FrameAttention | None = None,
    ) -> None:
        self.schedule = schedule
        self.window = window
        self.guidance_scale = guidance_scale
        self.guided_levels = guided_levels or (0, schedule.num_steps)
        self.turn = turn
        self.frame_attention = frame_attention

    takes_positions: ClassVar[bool] = False
    """See `miga.backbones.base.PositionedDenoiser`."""

    def __call__(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[TextCondition],
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicted clean latents, float32; positions are for those that take them.

        Raises:
            NonFiniteError: if the network returns NaN or infinity.
        """
        branches = range(self.num_branches(level_BF))
        predictions = [self.predict_branch(x_BFCHW, level_BF, conditions, branch, position_BF) for branch in branches]
        return self.combine(x_BFCHW, level_BF, predictions)

    def num_branches(self, level_BF: torch.Tensor) -> int:
        """See `BranchedDenoiser`."""
        return 2 if self.guidance_scale != 1.0 and bool(self._is_guided(level_BF).any()) else 1

    @abstractmethod
    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[TextCondition],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the network predicts `[B, C, F, H, W]`, float32, under the prompt (branch 0) or the negative one (1)."""

    @abstractmethod
    def to_clean(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, prediction_BCFHW: torch.Tensor) -> torch.Tensor:
        """The clean latents `[B, F, C, H, W]` that a prediction stands for."""

    @torch.no_grad()
    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """See `BranchedDenoiser`.

        Raises:
            NonFiniteError: if the network returned NaN or infinity.
        """
        prediction = predictions[0]
        if len(predictions) > 1:
            away = predictions[1]
            scale_BF = 1.0 + (self.scale_of(level_BF) - 1.0) * self._is_guided(level_BF).to(prediction)
            prediction = away + scale_BF[:, None, :, None, None] * (prediction - away)
        clean_BFCHW = self.to_clean(x_BFCHW, level_BF, prediction)
        require_finite(clean_BFCHW)
        return clean_BFCHW

    def scale_of(self, level_BF: torch.Tensor) -> torch.Tensor | float:
        """The guidance scale of latents at these levels, where guidance acts."""
        return self.guidance_scale

    def _is_guided(self, level_BF: torch.Tensor) -> torch.Tensor:
        return (self.guided_levels[0] <= level_BF) & (level_BF <= self.guided_levels[1])


def require_finite(clean_BFCHW: torch.Tensor) -> None:
    """Refuses what a network predicted if it is no number.

    Raises:
        NonFiniteError: if it is NaN or infinite.
    """
    if not torch.isfinite(clean_BFCHW).all():
        raise NonFiniteError(
            "the network returned NaN or infinity",
            hint="if it happens to every row, the weights are broken or do not bear the dtype: try float32",
        )
