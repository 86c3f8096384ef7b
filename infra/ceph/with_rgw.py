"""Runs a command beside a Ceph RADOS gateway: a real S3 server, started from Debian's packages, without root.

    python infra/ceph/with_rgw.py [--folder FOLDER] COMMAND ...

The packages are downloaded with apt-get and unpacked into a folder (280 MB, kept for the next time); nothing is
installed. One monitor, one manager, one OSD that keeps objects in memory, and one gateway are started on free ports of
127.0.0.1, without authentication among themselves. COMMAND finds the server by MIGA_TEST_S3_ENDPOINT, AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. At its end all four are stopped, by their process ids.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("radosgw", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common")
START_LIMIT_S = 90.0

CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
ms bind msgr1 = false
ms mon client mode = crc
mon cluster log file = {state}/cluster.log
public addr = 127.0.0.1
keyring = {state}/keyring
admin socket = {state}/$name.asok
run dir = {state}
log file = {state}/$name.log
pid file = {state}/$name.pid
crash dir = {state}
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
osd class load list = *
osd class default list = *
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
mon data = {state}/mon
osd data = {state}/osd
mgr data = {state}/mgr
rgw data = {state}/rgw
mgr module path = {share}/mgr
mon allow pool size one = true
mon pg warn min per osd = 0
rgw frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw enable usage log = false
rgw run sync thread = false
rgw lc debug interval = -1
rgw thread pool size = 32
"""


class SetupError(Exception):
    """The gateway cannot be had here."""


def main() -> int:
    """Starts it, runs the command, stops it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "miga-ceph"
    parser.add_argument("--folder", type=Path, default=cache, help="for the packages (default: %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("no command to run")
    try:
        root = unpacked_packages(options.folder)
        with gateway(root) as environment:
            return subprocess.run(options.command, env=os.environ | environment, check=False).returncode
    except SetupError as error:
        print(f"with_rgw: {error}", file=sys.stderr)
        return 2


def unpacked_packages(folder: Path) -> Path:
    """The folder with the files of the packages and of all that they need and this machine has not.

    Raises:
        SetupError: if there is no apt, or the packages are not to be had.
    """
    root = folder / "root"
    if (folder / "complete").exists():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise SetupError(f"there is no {tool}: this needs Debian or Ubuntu (or its container)")
    simulated = subprocess.run(
        ["apt-get", "--simulate", "--no-install-recommends", "install", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    names = re.findall(r"^Inst (\S+)", simulated.stdout, re.MULTILINE)
    if simulated.returncode or not names:
        last = " ".join((simulated.stderr or simulated.stdout).split())[-300:]
        raise SetupError(f"apt does not know the packages {', '.join(PACKAGES)} (apt-get update may help): {last}")
    downloads = folder / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["apt-get", "download", *names], cwd=downloads, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"the packages cannot be downloaded: {' '.join(done.stderr.split())[-300:]}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    shutil.rmtree(downloads)
    (folder / "complete").touch()
    return root


@contextlib.contextmanager
def gateway(root: Path) -> Iterator[dict[str, str]]:
    """The environment that leads to a running gateway.

    Raises:
        SetupError: if a part of it does not start; the end of its log is shown.
    """
    state = Path(tempfile.mkdtemp(prefix="miga-rgw-"))
    cluster = Cluster(root, state)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
        shutil.rmtree(state, ignore_errors=True)


class Cluster:
    """Four daemons, and what they need to find each other."""

    def __init__(self, root: Path, state: Path) -> None:
        self._state = state
        self._bin = root / "usr" / "bin"
        libraries = next(iter(root.glob("usr/lib/*-linux-gnu")))
        self._port = free_port()
        text = CONFIG.format(
            fsid=(fsid := str(uuid.uuid4())),
            mon_port=(mon_port := free_port()),
            rgw_port=self._port,
            state=state,
            libraries=libraries,
            share=root / "usr" / "share" / "ceph",
        )
        self._fsid, self._mon_port = fsid, mon_port
        self._config = state / "ceph.conf"
        self._config.write_text(text)
        paths = [libraries, *root.glob("lib/*-linux-gnu"), *libraries.glob("*/")]
        self._environment = os.environ | {
            "LD_LIBRARY_PATH": ":".join(map(str, paths)),
            "PYTHONPATH": str(root / "usr" / "lib" / "python3" / "dist-packages"),
            "CEPH_CONF": str(self._config),
        }
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self) -> dict[str, str]:
        """Starts the daemons, in the order in which they need each other, and makes a user."""
        for name in ("mon", "osd", "mgr", "rgw"):
            (self._state / name).mkdir()
        (self._state / "keyring").write_text("")
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", f"[v2:127.0.0.1:{self._mon_port}]",
                  self._state / "monmap")  # fmt: skip
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", self._state / "monmap")
        self._daemon("ceph-mon", "-i", "a")
        identity = str(uuid.uuid4())
        self._until(lambda: self._ceph("osd", "new", identity), "the monitor")
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", identity)
        self._daemon("ceph-mgr", "-i", "x")
        self._daemon("ceph-osd", "-i", "0")
        self._until(lambda: '"num_up_osds":1' in self._ceph("osd", "stat", "--format", "json"), "the OSD")
        keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10).upper(), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        self._run("radosgw-admin", "user", "create", "--uid", "miga", "--display-name", "miga",
                  "--access-key", keys["AWS_ACCESS_KEY_ID"], "--secret", keys["AWS_SECRET_ACCESS_KEY"])  # fmt: skip
        self._daemon("radosgw", "-n", "client.rgw")
        url = f"http://127.0.0.1:{self._port}"
        self._until(lambda: answers(url), "the gateway")
        return {"MIGA_TEST_S3_ENDPOINT": url, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", **keys}

    def stop(self) -> None:
        """Ends what was started, by process id, the last first."""
        for _, process in reversed(self._daemons):
            process.terminate()
        for _, process in reversed(self._daemons):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()

    def _daemon(self, name: str, *arguments: object) -> None:
        command = [str(self._bin / name), "-c", str(self._config), "-f", *map(str, arguments)]
        log = open(self._state / f"{name}.out", "wb")  # noqa: SIM115 (the daemon's)
        process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._daemons.append((name, process))

    def _run(self, name: str, *arguments: object) -> str:
        command = [str(self._bin / name), "-c", str(self._config), *map(str, arguments)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise SetupError(f"{name} failed: {' '.join((done.stderr or done.stdout).split())[-500:]}\n{self._logs()}")
        return done.stdout

    def _ceph(self, *arguments: str) -> str:
        """The answer of the monitors to a command; empty if there is none."""
        command = ["/usr/bin/python3", str(self._bin / "ceph"), "-c", str(self._config), "--connect-timeout", "5"]
        done = subprocess.run(
            [*command, *arguments], env=self._environment, capture_output=True, text=True, check=False, timeout=60
        )
        (self._state / "ceph.out").write_text(done.stdout + done.stderr)
        return done.stdout.replace(" ", "") if done.returncode == 0 else ""

    def _until(self, condition: Callable[[], object], what: str) -> None:
        end_s = time.monotonic() + START_LIMIT_S
        while not condition():
            for name, process in self._daemons:
                if process.poll() is not None:
                    raise SetupError(f"{name} ended with status {process.returncode}\n{self._logs()}")
            if time.monotonic() > end_s:
                raise SetupError(f"{what} did not come up in {START_LIMIT_S:.0f} s\n{self._logs()}")
            time.sleep(0.5)

    def _logs(self) -> str:
        ends = []
        for path in sorted([*self._state.glob("*.out"), *self._state.glob("*.log")]):
            if lines := path.read_text(errors="replace").splitlines()[-8:]:
                ends.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(ends)


def answers(url: str) -> bool:
    """Whether something speaks HTTP there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def free_port() -> int:
    """A port of 127.0.0.1 that was free just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
