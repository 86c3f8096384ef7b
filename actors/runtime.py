"""Ray itself: joining the cluster, or starting a local one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from miga.errors import UsageError
from pipeline.config import WorkersConfig

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What a run's workers take.

    Attributes:
        num_actors: backbone actors at the start.
        cpus, gpus: slots of each.
    """

    num_actors: int
    cpus: float
    gpus: float

    def room(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Actors that nodes with these resources hold, all told."""
        return sum(self._room_on(node) for node in nodes)

    def _room_on(self, node: Mapping[str, float]) -> int:
        room = int((node.get("CPU", 0.0) + 1e-9) // self.cpus)
        return min(room, int((node.get("GPU", 0.0) + 1e-9) // self.gpus)) if self.gpus else room


@contextmanager
def ray_session(
    workers: WorkersConfig, address: str | None = None, has_simulated_gpus: bool = False
) -> Iterator[Slots]:
    """Joins the cluster at `address`, or the one this process was started in, or starts a local one for the block.

    Inside another session it is that one, which stays: several runs in turn share one Ray.

    Args:
        workers: what is wanted of it.
        address: of a cluster.
        has_simulated_gpus: whether a local Ray is to have a GPU for every actor, whatever this machine has.

    Raises:
        UsageError: if there is no cluster at `address`.
    """
    if ray.is_initialized():
        yield plan_slots(workers, ray.cluster_resources())
        return
    # Ray leaves a token file behind that makes later clusters refuse workers without one: say it for all.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"no Ray cluster answers at {address}: {error}", "check --address, or leave it out for a local run"
            ) from None
    else:
        num_actors = workers.num_actors or workers.max_actors or (2 if has_simulated_gpus else 1)
        needed = num_actors * workers.cpus_per_actor
        num_cpus = max(os.cpu_count() or 1, int(-(-needed // 1)))
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_actors if has_simulated_gpus else None,
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            **quiet,
        )
    try:
        yield plan_slots(workers, ray.cluster_resources())
    finally:
        ray.shutdown()


def plan_slots(workers: WorkersConfig, resources: dict[str, float]) -> Slots:
    """One actor per GPU; where there are none, two on CPU slots, or as many as there is room for.

    Raises:
        UsageError: if the cluster has not even room for one.
    """
    num_gpus, num_cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    gpus = workers.gpus_per_actor if workers.gpus_per_actor is not None else (1.0 if num_gpus else 0.0)
    room_cpu = int(num_cpus // workers.cpus_per_actor)
    room = min(room_cpu, int(num_gpus // gpus)) if gpus else room_cpu
    if room < 1 and workers.num_actors is None:
        raise UsageError(
            f"the cluster has {num_cpus:g} CPU slots and {num_gpus:g} GPUs, too few for one actor "
            f"({workers.cpus_per_actor:g} CPU slots, {gpus:g} GPUs)",
            "lower cpus_per_actor or gpus_per_actor in [workers], or join a larger cluster",
        )
    default = room if gpus else min(room, 2)
    return Slots(num_actors=workers.num_actors or default, cpus=workers.cpus_per_actor, gpus=gpus)
