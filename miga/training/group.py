"""The processes of one training: what they tell each other, over `torch.distributed` or with nobody.

Every process draws inputs of its own and holds a bank of its own; gradients are averaged, and in the first steps
everybody's residuals go to everybody's bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed


class Group(Protocol):
    """The processes of a training.

    Attributes:
        rank: which one this is, from 0 on.
        size: how many there are.
    """

    rank: int
    size: int

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Everybody's tensor of this shape, process by process."""
        ...

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Puts the mean over all processes in each of these tensors."""
        ...


class Alone:
    """One process."""

    rank = 0
    size = 1

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """See `Group.gather`."""
        return [tensor]

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """See `Group.average`."""


class Distributed:
    """Several processes, over gloo or NCCL.

    Args:
        group: of `torch.distributed`; all processes are in it.
    """

    def __init__(self, group: torch.distributed.ProcessGroup) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._group = group

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """See `Group.gather`."""
        tensor = tensor.contiguous()
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        self._group.allgather([found], [tensor]).wait()
        return found

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """See `Group.average`: one message for all tensors of a type."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            self._group.allreduce([flat]).wait()
            flat /= self.size
            for tensor, part in zip(alike, torch.split(flat, [tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))
