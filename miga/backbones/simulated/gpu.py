"""A simulated card: calls of the network wait for it in turn, and hold it for as long as they are told."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import Final

from miga.backbones.turns import Turns
from miga.errors import ModelError

SPEED_VARIABLE: Final = "MIGA_SIMULATED_SPEED"


class SimulatedGpu:
    """One card: whatever uses it waits for its turn, in the order of asking, and then takes its time.

    Args:
        speed: how many times as fast as it is told.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._turns = Turns()

    @contextlib.contextmanager
    def taken(self, seconds: float) -> Iterator[None]:
        """Holds the card for so many seconds, those that the block takes included."""
        with self._turns.taken():
            until_s = time.monotonic() + seconds / self.speed
            yield
            if (left_s := until_s - time.monotonic()) > 0:
                time.sleep(left_s)


def speed_of_process() -> float:
    """What `MIGA_SIMULATED_SPEED` says; 1 where it says nothing.

    Raises:
        ModelError: if it is no positive number.
    """
    text = os.environ.get(SPEED_VARIABLE, "1")
    with contextlib.suppress(ValueError):
        if 0.0 < (speed := float(text)) < math.inf:
            return speed
    raise ModelError(f"{SPEED_VARIABLE} is {text!r}", "set it to a number such as 0.5 (half as fast), or unset it")
