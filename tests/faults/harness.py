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
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ray.cluster_utils import Cluster

from pipeline.manifest import Manifest
from pipeline.run_folder import read_run
from pipeline.storage import open_storage

ROOT: Final = Path(__file__).parents[2]
MARK: Final = "MIGA_TEST_CLUSTER"
"""Environment variable that every process of a test's cluster inherits."""

FAST_FAILURE_DETECTION: Final = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}
"""A node that is silent for two to six seconds is dead, where Ray's defaults take a minute."""

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 90.0, what: str = "that") -> T:
    """The first true value of `condition`; polled."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"it did not come to {what} in {seconds:g} s")


@dataclass
class Process:
    """A process of the cluster."""

    pid: int
    parent: int
    title: str

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


class FaultCluster:
    """A head without GPUs, where the driver is, and worker nodes with one or more fake GPUs each.

    Args:
        num_nodes: worker nodes to begin with.
        gpus_per_node: of each.
        environment: what processes of the nodes inherit besides, such as credentials.
    """

    def __init__(
        self, num_nodes: int = 2, gpus_per_node: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._gpus_per_node = gpus_per_node
        self._environment = {MARK: self.mark, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
        self._environment |= environment or {}
        with self._marked():
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 4, "num_gpus": 0, "_system_config": FAST_FAILURE_DETECTION},
            )
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add_node()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self) -> Any:
        """One more node, as an autoscaler would."""
        with self._marked():
            node = self._cluster.add_node(num_cpus=4, num_gpus=self._gpus_per_node)
        self.nodes.append(node)
        return node

    def kill_node(self, node: Any) -> None:
        """All of a node's processes at once: the power is gone."""
        pids = [self.raylet_pid(node), *(process.pid for process in self.processes(parent=self.raylet_pid(node)))]
        for pid in pids:
            signal_quietly(pid, signal.SIGKILL)
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_raylet(self, node: Any) -> None:
        """The raylet alone; its workers notice and end themselves, once it is no zombie either."""
        self.nodes.remove(node)
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()

    def raylet_pid(self, node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    def processes(self, parent: int | None = None) -> Iterator[Process]:
        """All that the cluster has started, from /proc."""
        mark = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()
                if mark not in (folder / "environ").read_bytes() or state[0] == "Z":
                    continue
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                process = Process(int(folder.name), int(state[1]), title)
                if parent is None or process.parent == parent:
                    yield process

    def actors(self, node: Any = None) -> list[Process]:
        """Processes of the backbone actors, on one node or on all."""
        parent = None if node is None else self.raylet_pid(node)
        return [process for process in self.processes(parent) if process.title.startswith("ray::BackboneWorker")]

    def node_of(self, actor: Process) -> Any:
        """The node that an actor is on."""
        return next(node for node in self.nodes if self.raylet_pid(node) == actor.parent)

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
                env=os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"} | dict(self.environment),
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
            stdout, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the run did not end in {seconds:g} s:\n{self.log[-3000:]}") from None
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
    per_shard = int(read_run(storage).config["run"]["prompts_per_shard"])
    manifest = Manifest(storage, per_shard)
    rows: dict[int, dict[str, Any]] = {}
    for row in manifest.read_rows():
        assert row.row not in rows, f"row {row.row} is in the manifest twice"
        content = None
        if row.status == "ok":
            assert row.uri is not None
            data = storage.read_bytes(row.uri.removeprefix(storage.root).lstrip("/"))
            content = hashlib.sha256(data).hexdigest()
            assert content == row.sha256, f"row {row.row}: the file is not what the manifest says"
        rows[row.row] = {
            "id": row.id,
            "status": row.status,
            "sha256": content,
            "num_frames": row.num_frames if row.status == "ok" else None,
            "network_calls": row.network_calls,
            "error_type": row.error_type,
        }
    return rows


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
