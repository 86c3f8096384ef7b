"""A network of its own for a test's cluster: a bridge on this machine, and a network namespace for every node.

The cable of a node can be pulled and plugged in again (`ip link set … down`), which no process on it is told of. It
takes root; `why_not` says what is missing.
"""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from typing import Final

_TOOL: Final = "ip"


class NetworkError(Exception):
    """What `ip` says."""


def _ip(*arguments: str) -> None:
    try:
        subprocess.run([_TOOL, *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NetworkError("there is no `ip` here (Debian: iproute2)") from None
    except subprocess.CalledProcessError as error:
        raise NetworkError(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from error


@dataclass(frozen=True)
class Namespace:
    """Where a node is.

    Attributes:
        name: of the namespace.
        cable: its end on the bridge.
        address: IPv4.
    """

    name: str
    cable: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """The same command, run in there."""
        return [_TOOL, "netns", "exec", self.name, *arguments]

    def cut(self) -> None:
        """Pulls the cable: packets are lost from now on, and connections stay open."""
        _ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Plugs it in again."""
        _ip("link", "set", self.cable, "up")


class Network:
    """The bridge; `with Network() as network`. At its end nothing of it is left.

    Attributes:
        address: of this machine on it.

    Raises:
        NetworkError: if it cannot be made.
    """

    def __init__(self) -> None:
        self._mark = f"{os.getpid() % 0xFFFF:04x}{random.SystemRandom().randrange(256):02x}"
        self._subnet = f"10.{random.SystemRandom().randrange(128, 255)}.{random.SystemRandom().randrange(256)}"
        self._bridge = f"mgb{self._mark}"
        self._namespaces: list[Namespace] = []
        self._num_made = 0
        self.address = f"{self._subnet}.1"

    def __enter__(self) -> Network:
        _ip("link", "add", self._bridge, "type", "bridge")
        try:
            _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        except NetworkError:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self) -> Namespace:
        """A namespace that is connected to the bridge."""
        number = self._num_made = self._num_made + 1
        cable, inner = f"mgv{self._mark}{number:x}", f"mgi{self._mark}{number:x}"
        made = Namespace(f"miga-{self._mark}-{number}", cable, f"{self._subnet}.{number + 1}")
        _ip("netns", "add", made.name)
        self._namespaces.append(made)
        _ip("link", "add", cable, "type", "veth", "peer", "name", inner, "netns", made.name)
        _ip("link", "set", cable, "master", self._bridge, "up")
        for what in (
            ("addr", "add", f"{made.address}/24", "dev", inner),
            ("link", "set", inner, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", made.name, *what)
        return made

    def remove(self, namespace: Namespace) -> None:
        """Removes it; processes that are still in there have no network any more."""
        self._namespaces.remove(namespace)
        _ip("link", "del", namespace.cable)
        _ip("netns", "del", namespace.name)

    def close(self) -> None:
        """Removes all of it."""
        for namespace in list(self._namespaces):
            self.remove(namespace)
        _ip("link", "del", self._bridge)


def why_not() -> str | None:
    """Why there can be no such network here; None if there can."""
    try:
        with Network() as network:
            network.add()
    except NetworkError as error:
        return str(error)
    return None
