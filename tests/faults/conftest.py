"""What the fault tests share: a cluster of real processes, and the dataset of a run that nothing happened to."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import FaultCluster, Run, dataset, signal_quietly
from tests.faulty_s3 import FaultyS3, bucket_client, s3_server

CALL_S = 0.02
SETTINGS = """\
model = "simulated:wan?call_s={call_s}&decode_s=0.001&faults=1&marks={marks}"
profile = "paper"
[sampler]
num_steps = 16
handoff_level = 4
[run]
prompts_per_shard = 4
checkpoint_every_s = 0.3
lease_ttl_s = 3.0
max_failed_share = 1.0
"""
LENGTHS = (161, 81, 241, 121)


@dataclass
class Workshop:
    """Makes runs of one prompt set under one folder."""

    folder: Path

    def run(
        self,
        out: str | Path,
        prompts: list[dict[str, Any]],
        *,
        call_s: float = CALL_S,
        settings: str = "",
        **options: Any,
    ) -> Run:
        """A run that is not started yet."""
        name = f"run-{len(list(self.folder.iterdir()))}"
        (self.folder / name).mkdir()
        file, config = self.folder / name / "prompts.jsonl", self.folder / name / "run.toml"
        marks = self.folder / name / "marks"
        marks.mkdir()
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        config.write_text(SETTINGS.format(call_s=call_s, marks=marks) + settings)
        return Run(file, str(out), config, **options)


def usual_prompts(count: int = 8, frames: tuple[int, ...] = LENGTHS) -> list[dict[str, Any]]:
    """Rows of several lengths."""
    return [{"prompt": f"a video {row}", "num_frames": frames[row % len(frames)]} for row in range(count)]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "runs").mkdir()
    return Workshop(tmp_path / "runs")


@pytest.fixture(scope="session")
def cluster() -> Iterator[FaultCluster]:
    """Two nodes with two fake GPUs each, and whatever nodes a test has left there."""
    cluster = FaultCluster(num_nodes=2, gpus_per_node=2)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def whole_cluster(cluster: FaultCluster) -> FaultCluster:
    """The cluster, with two nodes again whatever a test before has done to it."""
    while len(cluster.nodes) < 2:
        cluster.add_node()
    return cluster


@pytest.fixture(scope="session")
def undisturbed(
    cluster: FaultCluster, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[dict[str, Any]]], dict[int, dict[str, Any]]]:
    """Prompts → the dataset of a run that nothing happens to; each distinct prompt set is made once."""
    made: dict[str, dict[int, dict[str, Any]]] = {}

    def make(prompts: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        key = json.dumps(prompts)
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            (folder / "runs").mkdir()
            run = Workshop(folder / "runs").run(folder / "out", prompts, call_s=0.0, address=cluster.address)
            status, summary = run.finish()
            assert (status, summary["ok"]) == (0, len(prompts)), (summary, run.log)
            made[key] = dataset(run.out)
        return made[key]

    return make


@pytest.fixture
def drivers() -> Iterator[list[Run]]:
    """Runs that are ended with the test, however it ends."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        if run.process is not None and run.process.poll() is None:
            signal_quietly(run.process.pid, signal.SIGKILL)
            run.process.communicate()


@dataclass
class Bucket:
    """A bucket behind a proxy that fails as told."""

    proxy: FaultyS3
    environment: dict[str, str]
    client: Any


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """For this process too, which reads what the run has put there."""
    with s3_server() as environment, FaultyS3(environment["AWS_ENDPOINT_URL"]) as proxy:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client = bucket_client()
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Bucket(proxy, environment | {"AWS_ENDPOINT_URL": proxy.url}, client)
