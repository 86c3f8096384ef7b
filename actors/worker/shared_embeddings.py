"""The embeddings of a hosted video, put into Ray's store once for all helpers."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
import ray


class SharedEmbeddings:
    """Put there when the first helper asks.

    Args:
        embeddings: the negative prompt's, then each prompt's.

    Attributes:
        token: names the video to helpers.
    """

    def __init__(self, embeddings: Sequence[np.ndarray]) -> None:
        self.token = os.urandom(8).hex()
        self._embeddings = embeddings
        self._lock = threading.Lock()
        self._references: list[ray.ObjectRef] | None = None

    def references(self) -> list[ray.ObjectRef]:
        """Of each; the same for every helper."""
        with self._lock:
            if self._references is None:
                self._references = [ray.put(embedding) for embedding in self._embeddings]
            return self._references
