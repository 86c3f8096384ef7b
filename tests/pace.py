"""How fast this machine is just now: time limits of tests are seconds of an idle machine.

A machine that is merely busy makes everything take longer, and that is no fault of the program. So every limit of a
test, and every setting that is one (a lease's time to live, Ray's heartbeats), goes through `paced` or `Limit`. The
pace is measured: how long a new process takes for a loop, again every `KEPT_S` seconds; and, where `calibrate` was
called, what starting a worker's imports costs beyond that.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LOOP: Final = ("-S", "-c", "n = 0\nfor i in range(500_000):\n    n += i * i")
LOOP_S: Final = 0.1
"""Of an idle machine with two cores, of 2023 or so."""
IMPORTS: Final = ("-c", "import actors.worker.backbone")
IMPORTS_S: Final = 4.5
KEPT_S: Final = 15.0
CHANGED: Final = 1.5
"""By how much the loop must have changed for the imports to be measured again."""


def time_of(arguments: tuple[str, ...]) -> float:
    """Seconds that a new Python process takes for something."""
    begun_s = time.monotonic()
    subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parents[1], check=True)
    return time.monotonic() - begun_s


class Pace:
    """By what this machine is slower than an idle one; never less than 1.

    Args:
        measure: seconds that a Python process with these arguments takes.
        now_s: a steady clock.
    """

    def __init__(
        self, measure: Callable[[tuple[str, ...]], float] = time_of, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._measure = measure
        self._now_s = now_s
        self._loop = 1.0
        self._measured_at_s: float | None = None
        self._imports_beyond = 1.0
        self._calibrated_at: float | None = None

    def factor(self) -> float:
        """As it was at most `KEPT_S` ago."""
        if self._measured_at_s is None or self._now_s() - self._measured_at_s >= KEPT_S:
            self._look()
        return max(1.0, self._loop * self._imports_beyond)

    def calibrate(self) -> float:
        """The factor as it is now; what imports cost is measured where that is not known at about this load."""
        self._look()
        before = self._calibrated_at
        if before is None or max(self._loop / before, before / self._loop) >= CHANGED:
            self._imports_beyond = max(1.0, self._measure(IMPORTS) / IMPORTS_S / self._loop)
            self._calibrated_at = self._loop
        return self.factor()

    def _look(self) -> None:
        self._loop = max(1.0, self._measure(LOOP) / LOOP_S)
        self._measured_at_s = self._now_s()


PACE: Final = Pace()


def paced(seconds: float) -> float:
    """What takes so long on an idle machine may take so long here and now."""
    return seconds * PACE.factor()


class Limit:
    """So many seconds of an idle machine, counted from now on, each at the pace of its time."""

    def __init__(self, seconds: float, pace: Pace = PACE, now_s: Callable[[], float] = time.monotonic) -> None:
        self._pace = pace
        self._now_s = now_s
        self._left_s = seconds
        self._looked_at_s = now_s()

    @property
    def is_over(self) -> bool:
        """Whether they have passed."""
        now_s = self._now_s()
        self._left_s -= (now_s - self._looked_at_s) / self._pace.factor()
        self._looked_at_s = now_s
        return self._left_s <= 0
