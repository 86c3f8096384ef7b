"""The nodes of the cluster as they come, go, and are about to go.

A node that is drained (a spot instance that was given notice, an autoscaler that takes it back) goes on working for a
while; what runs there may be moved first. Ray tells only its own libraries so; a Ray that does not tell costs that
notice, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

POLL_S = 2.0


@dataclass(frozen=True)
class NodesView:
    """The cluster at one moment.

    Attributes:
        alive: nodes that are there.
        draining: those of them that are about to go.
        resources: node → what it has in all.
    """

    alive: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()
    resources: dict[str, dict[str, float]] = field(default_factory=dict)

    def staying(self) -> list[dict[str, float]]:
        """Resources of each node that is not about to go."""
        return [values for node, values in self.resources.items() if node not in self.draining]


class ClusterNodes:
    """Looks every few seconds, in a thread.

    Args:
        tell: called there with what it saw.
    """

    def __init__(self, tell: Callable[[NodesView], None]) -> None:
        self._tell = tell
        self._stop = threading.Event()
        self._gcs = _gcs_client()
        self._thread = threading.Thread(target=self._run, name="miga-nodes", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> NodesView:
        """The cluster now."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        alive = frozenset(node["NodeID"] for node in nodes)
        resources = {node["NodeID"]: dict(node["Resources"]) for node in nodes}
        return NodesView(alive, alive & self._draining(), resources)

    def _draining(self) -> frozenset[str]:
        if self._gcs is None:
            return frozenset()
        try:
            return frozenset(self._gcs.get_draining_nodes(timeout=POLL_S))
        except Exception:  # of a private interface, anything may come; the next look may fare better
            return frozenset()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                view = self.look()
            except Exception:  # the head is not to be reached just now
                continue
            self._tell(view)


def _gcs_client() -> Any:
    """What tells which nodes are drained; None where this Ray has no such thing."""
    try:
        from ray._raylet import GcsClient

        client = GcsClient(address=ray.get_runtime_context().gcs_address)
    except Exception:  # private: its name, place and arguments may change
        return None
    return client if hasattr(client, "get_draining_nodes") else None
