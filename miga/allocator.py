"""The C library's heap, set so that a process which makes videos for hours keeps its size.

glibc hands large blocks to the kernel and takes them back, and moves the size from which it does so up and down as the
program runs; every thread has a heap of its own besides. So what a process holds drifts by tens of MiB though it uses
the same. With the border fixed and one heap for all threads, the space that one pass frees is what the next one takes.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

LARGE_BLOCK_BYTES: Final = 32 * 2**20
"""From this size on blocks come from the kernel: the most that glibc allows. Handing smaller ones back and forth costs
more in page faults than it saves: at 1 MiB, decoding takes twice the time."""
KEPT_FREE_BYTES: Final = 64 * 2**20
"""Free space at the end of the heap that is not given back."""


def keep_heap_steady() -> bool:
    """Fixes the settings for the whole process, from now on.

    Call it before much is allocated. It changes no result.

    Returns:
        Whether it took effect; False where the C library is not glibc, which is left as it is.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_FREE_BYTES),
    )
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
