"""A run through the job server of a real cluster, as the README says it: submitted, stopped, terminated, finished.

The cluster asks for a token, OUT lies in a bucket, and every secret that the processes are given is one that can be
recognised wherever it should not be.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.pace import paced
from tests.processes import descendants, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.s3]

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "../../up", "/etc/passwd", "a\\b", "$(touch pwned)", "%2e%2e%2fup", "..", "CON: <a>|*?", "\u202egpj.\u00e9",
)  # fmt: skip
NUM_ROWS = len(HOSTILE)
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-secret-key-0d1f6c",
    "AWS_SESSION_TOKEN": "canary-of-the-session-5e2b7a",
    "HF_TOKEN": "hf_canaryOfTheHub93c41e",
    "RAY_AUTH_TOKEN": "c0ffee" + "0123456789abcdef" * 3 + "5eed",
}


@dataclass
class Cluster:
    """A head node of one machine.

    Attributes:
        env: what a client needs to be let in.
        address: of the dashboard and job server.
        folder: where Ray keeps everything.
        pid: of `ray start --block`.
    """

    env: dict[str, str]
    address: str
    folder: Path
    pid: int

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False, timeout=paced(120)
        )

    def submit(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As the README says it; does not wait for the end."""
        return self.job(
            "submit", "--address", self.address, "--submission-id", name, "--no-wait",
            "--runtime-env", "infra/runtime_env.yaml", "--working-dir", ".",
            "--", "python", "-m", "jobs.generate", *arguments,
        )  # fmt: skip

    def info(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask(f"/api/jobs/{name}"))
        return found

    def ask(self, path: str) -> bytes:
        token = {"Authorization": f"Bearer {SECRETS['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.address + path, headers=token), timeout=paced(10)
        ) as answer:
            content: bytes = answer.read()
        return content


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def told_on_failure(cluster: Cluster, name: str) -> Iterator[None]:
    """What the job and Ray have written goes into the failure's message."""
    try:
        yield
    except AssertionError as error:
        written = [path for path in kept_files(cluster.folder) if path.suffix in (".log", ".err", ".out")]
        tails = [f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in written]
        status = cluster.info(name)
        raise AssertionError(f"{error}\n{status}\n" + "\n".join(tails)) from error


@pytest.fixture(scope="module")
def bucket_env() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIACANARY0000000000",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket_env: dict[str, str]) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="mj-", dir="/tmp"))  # short: sockets lie in it
    port, dashboard, agent, metrics, client = free_ports(5)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    env |= bucket_env | SECRETS | {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}",
        "--num-cpus=4", f"--object-store-memory={100 << 20}", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    found = Cluster(env=env, address=f"http://127.0.0.1:{dashboard}", folder=folder, pid=head.pid)
    try:
        wait_for(lambda: found.ask("/api/jobs/"))
        yield found
    finally:
        started = descendants(head.pid)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(paced(20))
        for pid in (head.pid, *started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bucket(bucket_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    import s3fs

    for name, value in (bucket_env | SECRETS).items():
        monkeypatch.setenv(name, value)
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@pytest.mark.slow
def test_the_job_server_lets_nobody_in_without_the_token_and_listens_on_loopback(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(cluster.address + "/api/jobs/", timeout=paced(10))
    port = int(cluster.address.rpartition(":")[2])
    listening = {
        line.split()[1].split(":")[0]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    }
    assert listening == {"0100007F"}  # 127.0.0.1, and no other address


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_submitted_run_survives_being_stopped_and_terminated_and_tells_no_secret(
    cluster: Cluster, bucket: Any, tmp_path: Path
) -> None:
    from jobs.run.report import make_report
    from pipeline.storage.open import open_storage

    bucket.mkdir("dataset")
    rows = [{"id": text, "prompt": f"a red circle {text}"} for text in HOSTILE]
    bucket.pipe("dataset/prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    # 3 s a video, however fast the machine is: time to stop a run before its end
    model = "simulated:wan?call_s=0.02&decode_s=0&load_s=0"
    arguments = ("s3://dataset/prompts.jsonl", "s3://dataset/run", "--model", model, "--num-frames", "81",
                 "--num-actors", "1")  # fmt: skip

    def settled() -> dict[str, bytes]:
        return {path: bucket.cat(path) for path in bucket.find("dataset/run/done")}

    output, made = "", {}
    for name in ("stopped", "terminated"):
        done = cluster.submit(name, *arguments)
        assert done.returncode == 0, done.stderr
        output += done.stdout + done.stderr
        with told_on_failure(cluster, name):
            wait_for(lambda before=made: settled().keys() - before.keys())
        if name == "stopped":
            done = cluster.job("stop", "--address", cluster.address, name)
            assert done.returncode == 0, done.stderr
            assert cluster.info(name)["status"] == "STOPPED"
        else:
            driver = next(
                pid
                for pid, command in descendants(cluster.pid).items()
                if command.startswith(("python -m jobs.generate", f"{sys.executable} -m jobs.generate"))
            )
            os.kill(driver, signal.SIGTERM)
            wait_for(lambda: cluster.info("terminated")["status"] == "FAILED")
            assert cluster.info(name)["driver_exit_code"] == 1
        logs = cluster.job("logs", "--address", cluster.address, name).stdout
        assert "the same command goes on from here" in logs
        output += logs
        now = settled()
        assert len(made) < len(now) < NUM_ROWS
        assert made.items() <= now.items()
        made = now

    done = cluster.submit("finished", *arguments)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: cluster.info("finished")["status"] in ("SUCCEEDED", "FAILED"))
    logs = cluster.job("logs", "--address", cluster.address, "finished").stdout
    output += (
        done.stdout + done.stderr + logs + make_report(open_storage("s3://dataset/run"), str(tmp_path)).read_text()
    )
    assert cluster.info("finished")["status"] == "SUCCEEDED", logs
    assert f"{len(made)} of them before" in logs

    manifest = pq.read_table(io.BytesIO(bucket.cat("dataset/run/manifest/shard-00000.parquet"))).to_pylist()
    assert [(row["row"], row["id"], row["status"]) for row in manifest] == [
        (number, row["id"], "ok") for number, row in enumerate(rows)
    ]
    assert all(bucket.info(f"dataset/run/{row['uri']}")["size"] == row["bytes"] for row in manifest)
    assert made.items() <= settled().items()
    objects = {path: bucket.cat(path) for path in bucket.find("dataset")}
    # Ids and prompts become no names: all are the program's own, below OUT.
    ours = re.compile(r"dataset/(prompts\.jsonl|run/[a-z]+([./][0-9a-z-]+)+)")
    assert [path for path in objects if not ours.fullmatch(path)] == []
    assert not (ROOT / "pwned").exists()

    # No secret: in the clients' output, in any object, in any file that Ray keeps, the job's logs among them.
    assert any(b"the same command goes on from here" in path.read_bytes() for path in kept_files(cluster.folder))
    for name, secret in SECRETS.items():
        assert secret not in output, name
        assert [path for path, content in objects.items() if secret.encode() in content] == [], name
        assert [path for path in kept_files(cluster.folder) if secret.encode() in path.read_bytes()] == [], name


def kept_files(folder: Path) -> list[Path]:
    """Everything that Ray has written, the unpacked code of the job aside."""
    return [path for path in folder.rglob("*") if path.is_file() and "runtime_resources" not in path.parts]
