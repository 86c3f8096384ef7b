"""The heap's settings, seen from outside: where the C library then puts a block of 16 MiB."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from miga import allocator
from tests.pace import paced

PROGRAM = """
import ctypes, json
from miga.allocator import keep_heap_steady
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
def blocks_from_kernel(num_bytes):
    before = libc.mallinfo2().hblks
    block = libc.malloc(num_bytes)
    count = libc.mallinfo2().hblks - before
    libc.free(block)
    return count
took_effect = keep_heap_steady()
print(json.dumps([took_effect, blocks_from_kernel(16 << 20), libc.mallinfo2().keepcost, blocks_from_kernel(64 << 20)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_blocks_below_32_mib_come_from_the_heap_and_stay_in_it() -> None:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=paced(60)
    ).stdout
    took_effect, num_16_mib, free_at_end_bytes, num_64_mib = json.loads(out)
    assert took_effect
    assert num_16_mib == 0, "glibc's own border is 128 KiB at the start"
    assert free_at_end_bytes >= 16 << 20, "a freed block is kept, not given back"
    assert num_64_mib == 1


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> None:
        raise AssertionError("no library must be opened")

    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    monkeypatch.setattr(allocator.platform, "system", lambda: "Darwin")
    assert not allocator.keep_heap_steady()
    monkeypatch.setattr(allocator.platform, "system", lambda: "Linux")
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_heap_steady()
