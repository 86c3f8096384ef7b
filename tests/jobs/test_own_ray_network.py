"""Whether another host can get into the Ray of a run: two network namespaces, one cable between them.

The run is in one, and the other is the network. The same attempts are made at a Ray without protection, which lets
them in, so that they are known to be able to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import descendants, wait_for
from tests.sockets import listening

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

RUN_IP, OTHER_IP = "10.77.0.1", "10.77.0.2"
ROOT = Path(__file__).parents[2]

OWN = """
from actors.runtime import ray_session
from pipeline.config import WorkersConfig
with ray_session(WorkersConfig()):
"""
PLAIN = """
import ray
from actors.runtime import patient_start
with patient_start():
    ray.init(address="local", include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
if True:
"""
TALK = """\
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    for line in iter(input, "end"):
        print(sum(node["Alive"] for node in ray.nodes()), flush=True)
"""
CONNECT = """
import json, socket, sys
def is_open(port):
    try:
        socket.create_connection((sys.argv[1], port), timeout=5).close()
    except OSError:
        return False
    return True
print(json.dumps([port for port in json.load(sys.stdin) if is_open(port)]))
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """Names of the two namespaces."""

    run: str
    other: str

    def command(self, namespace: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", namespace, *command]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Two namespaces of this test alone; the machine's own network is left as it is."""
    tag = uuid.uuid4().hex[:6]
    names = Network(f"miga-run-{tag}", f"miga-other-{tag}")
    try:
        ip("netns", "add", names.run)
        ip("netns", "add", names.other)
        ip("-n", names.run, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names.other)
        for name, address, peer in ((names.run, RUN_IP, OTHER_IP), (names.other, OTHER_IP, RUN_IP)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", peer)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(names)
        reason = f"no network namespaces can be made here: {getattr(error, 'stderr', '') or error}"
        if os.environ.get("MIGA_REQUIRE_NETNS"):
            pytest.fail(reason)
        pytest.skip(reason)
    yield names
    _remove(names)


def _remove(names: Network) -> None:
    for name in (names.run, names.other):
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    path = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environment(folder: Path, **values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_TMPDIR": str(folder), "HOME": str(folder), "PYTHONPATH": str(ROOT)} | values


@dataclass
class Doors:
    """What another host could do.

    Attributes:
        open_ports: of the session, as far as they answer there.
        has_joined: whether a worker of its own became part of the session.
    """

    open_ports: list[int]
    has_joined: bool


def doors_of(network: Network, folder: Path, code: str, **settings: str) -> Doors:
    """Starts a session in the one namespace, and tries to get in from the other."""
    (folder / "run").mkdir()
    (folder / "other").mkdir()
    session = subprocess.Popen(
        network.command(network.run, sys.executable, "-c", code + TALK),
        env=environment(folder / "run", **settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert session.stdin is not None
    assert session.stdout is not None
    worker = None
    try:
        gcs_port = int(session.stdout.readline().rpartition(":")[2])
        ports = sorted({one.port for one in listening({session.pid, *descendants(session.pid)})})
        assert gcs_port in ports
        tried = subprocess.run(
            network.command(network.other, sys.executable, "-c", CONNECT, RUN_IP),
            input=json.dumps(ports), capture_output=True, text=True, check=True,
        )  # fmt: skip
        worker = subprocess.Popen(
            network.command(
                network.other, sys.executable, "-m", "ray.scripts.scripts",
                "start", "--block", f"--address={RUN_IP}:{gcs_port}", "--num-cpus=1", "--object-store-memory=100000000",
            ),
            env=environment(folder / "other", RAY_AUTH_MODE="disabled"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def num_nodes() -> int:
            print("count", file=session.stdin, flush=True)
            return int(session.stdout.readline())

        with contextlib.suppress(AssertionError):  # neither joined nor given up
            wait_for(lambda: num_nodes() > 1 or worker.poll() is not None, seconds=40)
        return Doors(json.loads(tried.stdout), num_nodes() > 1)
    finally:
        for process in filter(None, (worker, session)):
            started = descendants(process.pid)
            for pid in (process.pid, *started):
                subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)
            process.wait()


def test_without_protection_another_host_gets_in(network: Network, folder: Path) -> None:
    doors = doors_of(network, folder, PLAIN, RAY_AUTH_MODE="disabled")
    assert doors.open_ports
    assert doors.has_joined


def test_the_token_alone_keeps_it_out(network: Network, folder: Path) -> None:
    doors = doors_of(network, folder, PLAIN, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    assert doors.open_ports
    assert not doors.has_joined


def test_a_run_of_ones_own_shows_no_door(network: Network, folder: Path) -> None:
    assert doors_of(network, folder, OWN) == Doors(open_ports=[], has_joined=False)
