"""Ray itself: joining the cluster, or starting a local one that nobody else can reach."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config
from ray.exceptions import AuthenticationError

from actors.worker.scratch import new_folder, remove_abandoned
from miga.backbones.loading import first_line
from miga.errors import MigaError, UsageError
from pipeline.config import WorkersConfig

LOCAL_OBJECT_STORE_BYTES: Final = 256 * 2**20
MIN_FREE_BYTES: Final = 64 * 2**20
"""For the logs of a local Ray, and the sockets."""
SHARED_MEMORY: Final = "/dev/shm"
CONNECT_TIMEOUT_S: Final = 10.0
START_PATIENCE_S: Final = 180.0

IS_MAC: Final = sys.platform == "darwin"
MAX_SOCKET_BYTES: Final = 103 if IS_MAC else 107
"""Of the path of a socket: the kernel's limit."""
_LONGEST_SOCKET: Final = "/miga-12345678/r/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"

_ADDRESS: Final = re.compile(r"(ray://)?(?P<host>[^\s:/@\[\]]+|\[[0-9A-Fa-f:.%a-z]+\]):(?P<port>[0-9]{1,5})", re.ASCII)
_QUIET: Final[dict[str, Any]] = {"logging_level": logging.WARNING, "log_to_driver": False}


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


class RayStartError(MigaError):
    """Ray could not be started on this machine."""


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
        UsageError: if there is no cluster at `address`, or this machine's settings allow no Ray.
        RayStartError: if it does not start here.
    """
    if ray.is_initialized():
        yield plan_slots(workers, ray.cluster_resources())
        return
    if address := cluster_address(address):
        session = _joined(address)
    else:
        num_actors = workers.num_actors or workers.max_actors or (2 if has_simulated_gpus else 1)
        needed = num_actors * workers.cpus_per_actor
        session = _started(max(os.cpu_count() or 1, math.ceil(needed)), num_actors if has_simulated_gpus else None)
    with session:
        yield plan_slots(workers, ray.cluster_resources())


def cluster_address(address: str | None) -> str | None:
    """Where the cluster is that a run is to join; None if it starts a Ray of its own."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


# ---- a cluster that is there -----------------------------------------------------------------------------------------


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Its own settings hold, those of authentication among them."""
    check_answers(address)
    with _environment(_defaults()):
        try:
            ray.init(address=address, **_QUIET)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, RayError and Exception itself
            hint = "check --address, or leave it out for a local run"
            if isinstance(error, AuthenticationError):
                hint = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to those of the cluster"
            raise UsageError(f"no Ray cluster answers at {address}: {first_line(error)}", hint) from None
        try:
            yield
        finally:
            ray.shutdown()


def check_answers(address: str) -> None:
    """Whether anything listens there: Ray itself would try for minutes.

    Raises:
        UsageError: if nothing does, or it is no address.
    """
    if address == "auto":
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise UsageError(
            f"{address!r} is no address of a Ray cluster",
            "give HOST:PORT as `ray start --head` says it, or auto; through the job server: ray job submit",
        )
    try:
        with socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=CONNECT_TIMEOUT_S):
            pass
    except (OSError, UnicodeError) as error:  # a name that no resolver can ask for
        raise UsageError(
            f"no Ray cluster answers at {address}: {first_line(error)}",
            "check --address (or RAY_ADDRESS), or leave it out for a local run",
        ) from None


# ---- one of the run's own --------------------------------------------------------------------------------------------


@contextmanager
def _started(num_cpus: int, num_gpus: int | None) -> Iterator[None]:
    """A Ray that listens on loopback alone, and that takes nothing from whoever lacks its token.

    Ray keeps what it writes in a folder that is nobody else's. It is removed at the end, or by the next run where this
    one failed: until then its logs can be read.
    """
    folder = _own_folder()
    with _environment(_defaults() | _own_settings()), _on_loopback():
        try:
            with patient_start():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    include_dashboard=False,
                    object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                    _temp_dir=str(folder / "r"),  # Ray opens it to everybody; the folder around it stays shut
                    **_QUIET,
                )
        except Exception as error:  # OSError, ValueError, RuntimeError, and "timed out" as Exception itself
            raise RayStartError(
                f"Ray did not start on this machine: {first_line(error)}",
                f"its logs are in {folder}/r/session_latest/logs (raylet.out, gcs_server.out); a busy machine, or one "
                "short of memory, may just need another try",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _own_settings() -> dict[str, str | None]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_TOKEN_PATH": None,
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }


@contextmanager
def patient_start() -> Iterator[None]:
    """Makes Ray ask for its own node for minutes, not for half a one: on a busy machine that is not enough."""
    get_node = services.get_node
    give_up_s = time.monotonic() + START_PATIENCE_S

    def ask(*arguments: Any) -> Any:
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.1)

    services.get_node = ask
    try:
        yield
    finally:
        services.get_node = get_node


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Makes Ray of this process take in the environment, which it has read when it was imported.

    Without clusters, as it is by default on a Mac, Ray takes loopback for the node's address, and every part of it
    listens there and nowhere else.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_authentication_again()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _read_authentication_again() -> None:
    """Ray reads mode and token once. The mode comes first: threads of it may still ask for the old token."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, or removes those that are None, for the block; Ray reads its authentication anew at both ends."""
    before = {name: os.environ.get(name) for name in values}
    _set_all(values)
    try:
        yield
    finally:
        _set_all(before)
        _read_authentication_again()


def _defaults() -> dict[str, str | None]:
    """Settings of Ray where the user has made none."""
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_gcs_server_port_wait_time_s": f"{START_PATIENCE_S:.0f}",
    }
    return {name: os.environ.get(name, value) for name, value in values.items()}


def _set_all(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _own_folder() -> Path:
    """A new folder for Ray's sockets, logs and spilled objects.

    Raises:
        UsageError: if paths in it are too long for sockets, or there is no folder for temporary files.
        RayStartError: if there is no room.
    """
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    hint = "set RAY_TMPDIR to a short folder that you may write into, such as /tmp"
    try:
        parent = Path(os.environ.get("RAY_TMPDIR") or ("/tmp" if IS_MAC else tempfile.gettempdir())).absolute()
        longest = len(os.fsencode(parent)) + len(_LONGEST_SOCKET)
        if longest > MAX_SOCKET_BYTES:
            raise UsageError(
                f"{variable} is too long for Ray's sockets: in {parent} their paths have up to {longest} bytes, "
                f"where {MAX_SOCKET_BYTES} are the most",
                hint,
            )
        remove_abandoned(parent)
        folder = new_folder(parent)
        check_room(folder)
        return folder
    except OSError as error:
        raise UsageError(
            f"{variable}: no folder for Ray's files can be made: {error.strerror or error}", hint
        ) from None


def check_room(folder: Path) -> None:
    """Whether there is room for what Ray writes in its folder, and for objects in shared memory or else there too.

    Raises:
        RayStartError: if there is not.
    """
    needed = MIN_FREE_BYTES
    if not Path(SHARED_MEMORY).is_dir() or shutil.disk_usage(SHARED_MEMORY).free < LOCAL_OBJECT_STORE_BYTES:
        needed += LOCAL_OBJECT_STORE_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        shutil.rmtree(folder, ignore_errors=True)
        raise RayStartError(
            f"no room for Ray in {folder.parent}: {free >> 20} MiB are free, and {needed >> 20} MiB are needed"
            + (f" ({SHARED_MEMORY} is full or small)" if needed > MIN_FREE_BYTES else ""),
            "free some, or set RAY_TMPDIR to a folder with room; most of it is not needed where "
            f"{SHARED_MEMORY} has {LOCAL_OBJECT_STORE_BYTES >> 20} MiB free (a container's --shm-size)",
        )


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
