"""Which sockets processes listen on, from the kernel's tables."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LISTENING = "0A"


@dataclass(frozen=True)
class Listener:
    """A TCP socket that waits for connections, and a process that has it open."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    pid: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port} of process {self.pid}"


def listening(pids: Iterable[int]) -> list[Listener]:
    """All TCP sockets on which these processes listen, in their own network namespace.

    An IPv4 address in IPv6's notation (::ffff:127.0.0.1) is given as the IPv4 address that it is.
    """
    found: dict[str, Listener] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            inodes = set(_sockets_of(pid))
            for table in ("tcp", "tcp6"):
                for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                    columns = line.split()
                    if columns[3] == LISTENING and columns[9] in inodes:
                        host, _, port = columns[1].rpartition(":")
                        found[columns[9]] = Listener(_address(host), int(port, 16), pid)
    return list(found.values())


def _sockets_of(pid: int) -> Iterable[str]:
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            link = os.readlink(handle)
            if link.startswith("socket:["):
                yield link[len("socket:[") : -1]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """From the kernel's notation: 32-bit words of the machine's byte order, in hex."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    return getattr(address, "ipv4_mapped", None) or address
