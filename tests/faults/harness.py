"""A Ray cluster of several nodes on this machine, a run on it as a process of its own, and what its dataset must be.

Nodes, raylets, actors and drivers are real processes, found by a mark in their environment and ended by their ids, so
that other Rays on the machine are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ray.cluster_utils import Cluster

from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.faults.network import Namespace, Network
from tests.pace import PACE, Limit, paced
from tests.processes import output_of

ROOT: Final = Path(__file__).parents[2]
MARK: Final = "MIGA_TEST_CLUSTER"
"""Environment variable that every process of a test's cluster inherits."""

NODE_MARK: Final = "MIGA_TEST_NODE"
"""The same of every process of a node that is in a network namespace."""
BUSIER: Final = 1.5
"""By how much slower the machine must have become for a cluster to be started anew, with heartbeats that suit it."""


def failure_detection() -> dict[str, int]:
    """A node that is silent for two to six seconds is dead, where Ray's defaults take a minute."""
    limits = {"initial_delay_ms": 1000, "period_ms": 500, "timeout_ms": 1000}
    return {f"health_check_{name}": int(paced(value)) for name, value in limits.items()} | {
        "health_check_failure_threshold": 4
    }


def patient_ray() -> dict[str, str]:
    """Environment in which Ray gives its own processes the time that they take on this machine.

    Nor does it kill workers because others have used up the machine's memory.
    """
    return {
        "RAY_AUTH_MODE": "disabled",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_register_timeout_seconds": str(int(paced(60))),
        "RAY_gcs_server_port_wait_time_s": str(int(paced(30))),
        "RAY_raylet_start_wait_time_s": str(int(paced(30))),
    }


@dataclass
class Process:
    """A process of the cluster."""

    pid: int
    parent: int
    title: str
    node: str = ""

    def is_in(self, method: str) -> bool:
        """Whether this method of an actor is running, the last of those that are."""
        return self.title.endswith(f".{method}")

    def end(self) -> None:
        """SIGKILL."""
        signal_quietly(self.pid, signal.SIGKILL)

    def sends_from(self, port: int) -> bool:
        """Whether it holds the TCP connection (IPv4) that has this local port."""
        sockets = {
            columns[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if int((columns := line.split())[1].rpartition(":")[2], 16) == port
        }
        links = {f"socket:[{inode}]" for inode in sockets}
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{self.pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed since
                    if os.readlink(handle) in links:
                        return True
        return False


@dataclass(eq=False)
class Node:
    """A node of the cluster.

    Attributes:
        raylet: its process.
        node_id: Ray's name of it.
        started: what started it in this process.
        mark: in the environment of its processes, where it was started by a process of its own in a namespace.
    """

    raylet: int
    node_id: str = ""
    started: Any = None
    namespace: Namespace | None = None
    mark: str = ""


class FaultCluster:
    """A head without GPUs, where the driver is, and worker nodes with one or more fake GPUs each.

    Args:
        num_nodes: worker nodes to begin with.
        gpus_per_node: of each.
        environment: what processes of the nodes inherit besides, such as credentials.
        network: on which every node has a namespace of its own; None: all are on this machine's.
    """

    def __init__(
        self,
        num_nodes: int = 2,
        gpus_per_node: int = 1,
        environment: Mapping[str, str] | None = None,
        network: Network | None = None,
    ) -> None:
        self._num_nodes = num_nodes
        self._gpus_per_node = gpus_per_node
        self._network = network
        self._of_its_own = dict(environment or {})
        try:
            self._start()
        except BaseException:
            self.shutdown()
            raise

    def _start(self) -> None:
        self.mark = uuid.uuid4().hex
        self._pace = PACE.calibrate()
        self._environment = patient_ray() | {MARK: self.mark, "RAY_worker_niceness": "0"} | self._of_its_own
        where = {"node_ip_address": self._network.address} if self._network else {}
        head = {"num_cpus": 4, "num_gpus": 0, "_system_config": failure_detection(), **where}
        self._cluster = self._patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.nodes: list[Node] = []
        for _ in range(self._num_nodes):
            self.add_node()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def suit(self) -> None:
        """Has the nodes that it began with again; begins anew where this machine got much slower since it began."""
        if PACE.calibrate() > BUSIER * self._pace:
            self.shutdown()
            self._start()
        while len(self.nodes) < self._num_nodes:
            self.add_node()

    def add_node(self) -> Node:
        """One more node, as an autoscaler would."""
        if self._network is not None:
            net = self._network
            node = self._patiently(lambda: self._add_to(net))
        else:
            started = self._patiently(lambda: self._cluster.add_node(num_cpus=4, num_gpus=self._gpus_per_node))
            raylet = started.all_processes["raylet"][0].process.pid
            node = Node(raylet, started.node_id, started)
        self.nodes.append(node)
        return node

    def _patiently(self, start: Callable[[], Any]) -> Any:
        """Ray gives a node 30 s to start, on any machine: one that took longer is ended, and started once more."""
        limit = Limit(60)
        while True:
            before = {process.pid for process in self.processes()}
            try:
                with self._marked():
                    return start()
            except Exception as error:  # Ray raises no other
                for process in list(self.processes()):
                    if process.pid not in before:
                        process.end()
                if limit.is_over:
                    raise AssertionError(f"a node of Ray does not start: {error}") from error

    def _add_to(self, network: Network) -> Node:
        namespace, mark = network.add(), uuid.uuid4().hex
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}"]
        command += [f"--node-ip-address={namespace.address}", "--num-cpus=4", f"--num-gpus={self._gpus_per_node}"]
        command += [f"--object-store-memory={150 << 20}", "--min-worker-port=0", "--max-worker-port=0"]
        environment = os.environ | self._environment | {NODE_MARK: mark}
        done = subprocess.run(
            namespace.command(*command), env=environment, capture_output=True, text=True, check=False, timeout=paced(90)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (raylet,) = (one.pid for one in self.processes() if one.node == mark and "/raylet/raylet " in one.title)
        return Node(raylet, namespace=namespace, mark=mark)

    def kill_node(self, node: Node) -> None:
        """All of a node's processes at once: the power is gone."""
        for process in list(self.processes()):
            if process.parent == node.raylet or (node.mark and process.node == node.mark):
                process.end()
        self.kill_raylet(node)
        if node.started is not None:
            self._cluster.remove_node(node.started, allow_graceful=False)

    def kill_raylet(self, node: Node) -> None:
        """The raylet alone; its workers notice and end themselves, once it is no zombie either."""
        self.nodes.remove(node)
        signal_quietly(node.raylet, signal.SIGKILL)
        if node.started is not None:
            node.started.all_processes["raylet"][0].process.wait()

    def num_alive(self) -> int:
        """Nodes with GPUs that the cluster takes for alive."""
        found = self._cluster.global_state.node_table()
        return sum(one["Alive"] and one["Resources"].get("GPU", 0) > 0 for one in found)

    def processes(self, parent: int | None = None) -> Iterator[Process]:
        """All that the cluster has started, from /proc."""
        mark, node_mark = f"{MARK}={self.mark}".encode(), f"{NODE_MARK}=".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()
                environment = (folder / "environ").read_bytes().split(b"\0")
                if mark not in environment or state[0] == "Z":
                    continue
                node = next((one.partition(b"=")[2] for one in environment if one.startswith(node_mark)), b"")
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                process = Process(int(folder.name), int(state[1]), title, node.decode())
                if parent is None or process.parent == parent:
                    yield process

    def actors(self, node: Node | None = None) -> list[Process]:
        """Processes of the backbone actors, on one node or on all."""
        parent = None if node is None else node.raylet
        return [process for process in self.processes(parent) if process.title.startswith("ray::BackboneWorker")]

    def node_of(self, actor: Process) -> Node:
        """The node that an actor is on."""
        return next(node for node in self.nodes if node.raylet == actor.parent)

    def shutdown(self) -> None:
        """Ends every process of the cluster."""
        with contextlib.suppress(Exception):
            self._cluster.shutdown()
        for process in list(self.processes()):
            if process.pid != os.getpid():
                signal_quietly(process.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _marked(self) -> Iterator[None]:
        before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def signal_quietly(pid: int, number: signal.Signals) -> None:
    """Signals a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass
class Run:
    """A dataset and the command that makes it.

    Attributes:
        environment: of the driver, beside this process's.
        marks: folder in which faults that strike once are noted.
    """

    prompts: Path
    out: str
    config: Path
    address: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    marks: Path | None = None
    process: subprocess.Popen[str] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its driver is running."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Run:
        """Starts the driver, or starts it again."""
        command = [sys.executable, "-m", "jobs.cli", "generate", str(self.prompts), self.out, "--json"]
        command += ["--config", str(self.config), *self.options]
        if self.address:
            command += ["--address", self.address]
        self._log = self.prompts.with_name(f"{self.prompts.stem}-{uuid.uuid4().hex[:6]}.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | patient_ray() | {"PYTHONUNBUFFERED": "1"} | dict(self.environment),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self, seconds: float = 180.0) -> tuple[int, dict[str, Any]]:
        """Exit status and summary."""
        assert self.process is not None
        try:
            stdout, _ = output_of(self.process, seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the run did not end in {seconds:g} s of an idle machine:\n{self.log[-3000:]}"
            ) from None
        assert "Traceback" not in self.log, self.log[-5000:]
        lines = stdout.strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else {}

    def kill(self) -> None:
        """SIGKILL to the driver."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def finish(self, seconds: float = 180.0) -> tuple[int, dict[str, Any]]:
        """Starts it and waits for its end."""
        return self.start().wait(seconds)

    def files(self, prefix: str) -> list[str]:
        """What storage holds there."""
        return list(open_storage(self.out).list(prefix))


def dataset(out: str) -> dict[int, dict[str, Any]]:
    """Row → what must not depend on what went wrong on the way; the files are read and hashed."""
    storage = open_storage(out)
    rows: dict[int, dict[str, Any]] = {}
    for row in manifest_of(storage).read_rows():
        assert row.row not in rows, f"row {row.row} is in the manifest twice"
        rows[row.row] = fingerprint(storage, row)
        assert rows[row.row]["sha256"] == row.sha256, f"row {row.row}: the file is not what the manifest says"
    return rows


def manifest_of(storage: Storage) -> Manifest:
    """Of the run in there."""
    return Manifest(storage, int(read_run(storage).config["run"]["prompts_per_shard"]))


def fingerprint(storage: Storage, row: ManifestRow) -> dict[str, Any]:
    """What of a row must not depend on what went wrong on the way; its file is read and hashed."""
    content = None
    if row.status == "ok":
        assert row.uri is not None
        try:
            data = storage.read_bytes(row.uri.removeprefix(storage.root).lstrip("/"))
            content = hashlib.sha256(data).hexdigest()
        except FileNotFoundError:
            content = "not there"
    return {
        "id": row.id,
        "status": row.status,
        "sha256": content,
        "num_frames": row.num_frames if row.status == "ok" else None,
        "network_calls": row.network_calls,
        "error_type": row.error_type,
    }


def quarantined(row: Mapping[str, Any], error_type: str) -> dict[str, Any]:
    """What `dataset` says of that row where it is given up."""
    lost = dict.fromkeys(("sha256", "num_frames", "network_calls"))
    return dict(row) | lost | {"status": "failed", "error_type": error_type}


def check_dataset(out: str, expected: Mapping[int, Mapping[str, Any]]) -> None:
    """The rows and bytes of an undisturbed run, all shards sealed, and after `gc` nothing that no row refers to."""
    rows = dataset(out)
    assert rows == expected, {row: (rows.get(row), expected.get(row)) for row in rows if rows[row] != expected.get(row)}
    tool("gc", out)
    storage = open_storage(out)
    assert len(list(storage.list("video"))) == sum(row["status"] == "ok" for row in expected.values())
    assert not list(storage.list("checkpoint"))
    assert dataset(out) == expected
    tool("verify", out)


def tool(name: str, *arguments: str) -> str:
    """Runs a command of `miga` that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"miga {name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
