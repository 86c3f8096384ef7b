"""Counts the bytes of all tensors alive at once, by their shapes: full-size modules without memory or work."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AliveBytes(TorchDispatchMode):
    """`alive` now, `peak` at most, `largest` of a single tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if (key := storage._cdata) not in self._seen:
                    self._seen.add(key)
                    self.alive += storage.nbytes()
                    self.peak, self.largest = max(self.peak, self.alive), max(self.largest, storage.nbytes())
                    weakref.finalize(storage, self._free, key, storage.nbytes())
        return out

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


@contextmanager
def shapes_only(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Inside, tensors have shapes and no memory; modules are built in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)
