"""The queue of latents: a value. Saving it is a checkpoint.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, TypeAlias

import torch

History: TypeAlias = dict[str, torch.Tensor]
"""What a solver remembers of earlier steps. Every tensor has one entry per latent along its first dimension, so that
histories are sliced, concatenated, permuted and saved entry by entry without knowing what they hold."""

ADDED_LATER: Final = types.MappingProxyType({"added later": True})
"""Metadata of a field of a state that versions before had not: files leave it out where it holds its default."""


@dataclass(frozen=True)
class FrameQueue:
    """Latents in the order of the video, each at its own level and with its own solver history.

    Attributes:
        x_FCHW: the latents.
        level_F: denoise steps each has still to take, int64, on the CPU.
        history: what the solver remembers of each.
        first: index in the video of the latent at the head.
    """

    x_FCHW: torch.Tensor
    level_F: torch.Tensor
    history: History
    first: int = 0

    def __len__(self) -> int:
        return len(self.level_F)

    def __getitem__(self, part: slice) -> FrameQueue:
        start, stop, step = part.indices(len(self))
        assert step == 1, "a queue has no gaps"
        history = {name: tensor[start:stop] for name, tensor in self.history.items()}
        return FrameQueue(self.x_FCHW[start:stop], self.level_F[start:stop], history, self.first + start)

    def append(self, tail: FrameQueue) -> FrameQueue:
        """This queue with another, which goes on where it ends, behind it."""
        assert tail.first == self.first + len(self), f"{tail.first} does not follow {self.first} + {len(self)}"
        history = {name: torch.cat([tensor, tail.history[name]]) for name, tensor in self.history.items()}
        x, level = torch.cat([self.x_FCHW, tail.x_FCHW]), torch.cat([self.level_F, tail.level_F])
        return FrameQueue(x, level, history, self.first)

    def pop(self, count: int) -> tuple[FrameQueue, FrameQueue]:
        """The first `count` latents, and what is left."""
        return self[:count], self[count:]

    def at_level(self, level_F: torch.Tensor) -> FrameQueue:
        """The same latents, said to be at other levels."""
        return FrameQueue(self.x_FCHW, level_F, self.history, self.first)

    def compact(self) -> FrameQueue:
        """The same queue in storage of its own, so that what it was cut from can be freed."""
        history = {name: tensor.clone() for name, tensor in self.history.items()}
        return replace(self, x_FCHW=self.x_FCHW.clone(), level_F=self.level_F.clone(), history=history)

    def to(self, device: torch.device) -> FrameQueue:
        """The same latents on a device; levels stay on the CPU."""
        history = {name: tensor.to(device) for name, tensor in self.history.items()}
        return replace(self, x_FCHW=self.x_FCHW.to(device), history=history)

    @property
    def like(self) -> torch.Tensor:
        """An empty tensor of the latents' dtype, on their device."""
        return self.x_FCHW[:0]

    @property
    def indices(self) -> range:
        """Index in the video of every latent."""
        return range(self.first, self.first + len(self))


def map_queues(
    state: Any,
    change: Callable[[FrameQueue], FrameQueue],
    change_tensor: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Any:
    """A state (frozen dataclasses and tuples) with every queue in it changed, and every tensor beside them."""
    if isinstance(state, FrameQueue):
        return change(state)
    if isinstance(state, torch.Tensor):
        return change_tensor(state)
    if is_dataclass(state) and not isinstance(state, type):
        values = {field.name: getattr(state, field.name) for field in fields(state)}
        return replace(state, **{name: map_queues(value, change, change_tensor) for name, value in values.items()})
    if isinstance(state, tuple):
        return tuple(map_queues(item, change, change_tensor) for item in state)
    return state
