"""What the fault tests share: a cluster of real processes, a bucket that fails as told, and runs that must not mind."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pytest

from pipeline.records.manifest import Manifest
from pipeline.storage.open import open_storage
from tests.faults.harness import FaultCluster, Run, check_dataset, dataset, signal_quietly
from tests.faulty_s3 import Fault, FaultyS3, bucket_client
from tests.pace import PACE, paced
from tests.processes import wait_for

CALL_S = 0.02
PROMPTS_PER_SHARD = 4
SETTINGS = """\
model = "simulated:wan?call_s={call_s}&decode_s=0.001&faults={faults}&marks={marks}{model}"
profile = "paper"
[sampler]
num_steps = 16
handoff_level = 4
[run]
prompts_per_shard = {prompts_per_shard}
checkpoint_every_s = {checkpoint_every_s}
lease_ttl_s = {lease_ttl_s:.1f}
max_failed_share = 1.0
"""
LEASE_TTL_S = 3.0
"""On an idle machine, as all seconds here."""
LENGTHS = (161, 81, 241, 121)

Prompts: TypeAlias = list[dict[str, Any]]
Dataset: TypeAlias = dict[int, dict[str, Any]]
T = TypeVar("T")
Undisturbed: TypeAlias = Callable[[Prompts], Dataset]


@dataclass
class Workshop:
    """Makes runs of one prompt set under one folder."""

    folder: Path

    def run(
        self,
        out: str | Path,
        prompts: Prompts,
        *,
        call_s: float = CALL_S,
        checkpoint_every_s: float = 0.3,
        faults: bool = True,
        model: str = "",
        settings: str = "",
        **options: Any,
    ) -> Run:
        """A run that is not started yet.

        Args:
            out: where it writes.
            prompts: rows of its prompt file.
            call_s: seconds of a network call.
            checkpoint_every_s: how often a video is saved.
            faults: whether prompts get the faults that they ask for.
            model: more options of the simulated GPU, as "&load_s=2".
            settings: more of the config: of [run], then other sections.
            **options: of `Run`.
        """
        folder = self.folder / f"run-{len(list(self.folder.iterdir()))}"
        marks = folder / "marks"
        marks.mkdir(parents=True)
        file, config = folder / "prompts.jsonl", folder / "run.toml"
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        text = SETTINGS.format(
            call_s=call_s,
            faults=int(faults),
            marks=marks,
            model=model,
            prompts_per_shard=PROMPTS_PER_SHARD,
            checkpoint_every_s=checkpoint_every_s,
            lease_ttl_s=paced(LEASE_TTL_S),
        )
        config.write_text(text + patient(settings))
        return Run(file, str(out), config, marks=marks, **options)


def patient(settings: str) -> str:
    """The settings, with an actor's time to answer at this machine's pace where they leave it as it is."""
    if "silent_after_s" in settings:
        return settings
    return (settings if "[workers]\n" in settings else f"{settings}[workers]\n").replace(
        "[workers]\n", f"[workers]\nsilent_after_s = {paced(120.0):.1f}\n"
    )


def usual_prompts(count: int = 8, frames: tuple[int, ...] = LENGTHS) -> Prompts:
    """Rows of several lengths."""
    return [{"prompt": f"a video {row}", "num_frames": frames[row % len(frames)]} for row in range(count)]


@dataclass
class Trial:
    """A run that something happens to, and the dataset that it must come to all the same.

    Attributes:
        cluster: two nodes with two fake GPUs each.
        out: where the run writes.
        address: of the Ray that it is made on; None: it starts one of its own.
        run: as it was made last.
        expected: the rows and bytes of an undisturbed run of its prompts.
    """

    cluster: FaultCluster
    out: str
    address: str | None
    _workshop: Workshop
    _drivers: list[Run]
    _undisturbed: Undisturbed
    run: Run = field(init=False)
    expected: Dataset = field(init=False)

    def prepare(self, prompts: Prompts, **options: Any) -> Run:
        """A run that is not started; for its options see `Workshop.run`."""
        self.expected = self._undisturbed(prompts)
        self.run = self._workshop.run(self.out, prompts, address=self.address, **options)
        self._drivers.append(self.run)
        return self.run

    def start(self, prompts: Prompts, **options: Any) -> Run:
        """A run that is started."""
        return self.prepare(prompts, **options).start()

    def begin(self, prompts: Prompts, **options: Any) -> Run:
        """A run that has put its first checkpoint into storage: videos are in the making."""
        run = self.start(prompts, **options)
        self.until(lambda: run.files("checkpoint"), what="a first checkpoint")
        return run

    def until(self, condition: Callable[[], T], what: str) -> T:
        """The first true value of `condition`, to which it comes while the run goes on."""

        def found() -> T:
            assert self.run.is_alive, f"the run ended before it came to {what}:\n{self.run.log[-3000:]}"
            return condition()

        return wait_for(found, what=what)

    def second(self) -> Run:
        """The same command once more, not started."""
        run = Run(self.run.prompts, self.run.out, self.run.config, self.run.address, self.run.environment)
        self._drivers.append(run)
        return run

    def ends_as_undisturbed(self, run: Run | None = None) -> dict[str, Any]:
        """Waits for the end of the run (or of a second one); returns its summary.

        Raises:
            AssertionError: if a row is not made, or anything differs from the undisturbed run's dataset.
        """
        run = run or self.run
        status, summary = run.wait()
        num_ok = sum(row["status"] == "ok" for row in self.expected.values())
        assert (status, summary["ok"]) == (0 if num_ok == len(self.expected) else 3, num_ok), (summary, run.log)
        check_dataset(run.out, self.expected)
        return summary

    def attempts(self) -> dict[int, int]:
        """Row → the attempt that was taken."""
        return {row.row: row.attempt for row in Manifest(open_storage(self.out), PROMPTS_PER_SHARD).read_rows()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a test waits for has limits of its own; this is for what nobody thought of."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(autouse=True)
def pace() -> float:
    """As it is when the test begins."""
    return PACE.calibrate()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "runs").mkdir()
    return Workshop(tmp_path / "runs")


@pytest.fixture(scope="session")
def s3_proxy(s3_server: dict[str, str]) -> Iterator[FaultyS3]:
    """Before the S3 server, the same for all: the nodes of the cluster are told of it when they start."""
    with FaultyS3(s3_server["AWS_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def s3_environment(s3_server: dict[str, str], s3_proxy: FaultyS3) -> dict[str, str]:
    """What leads to that proxy."""
    return s3_server | {"AWS_ENDPOINT_URL": s3_proxy.url}


@pytest.fixture(scope="session")
def cluster(s3_environment: dict[str, str]) -> Iterator[FaultCluster]:
    """Two nodes with two fake GPUs each, and whatever nodes a test has left there."""
    cluster = FaultCluster(num_nodes=2, gpus_per_node=2, environment=s3_environment)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def whole_cluster(cluster: FaultCluster) -> FaultCluster:
    """The cluster, with two nodes again whatever a test before has done to it, and no actor that outlived its run."""
    wait_for(lambda: not cluster.actors(), what="the actors of runs before to be gone", seconds=30)
    cluster.suit()
    return cluster


@pytest.fixture(scope="session")
def undisturbed(cluster: FaultCluster, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Prompts → the dataset of a run that nothing happens to, not even what a prompt asks for; made once for each."""
    made: dict[str, Dataset] = {}

    def make(prompts: Prompts) -> Dataset:
        key = json.dumps(prompts)
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            (folder / "runs").mkdir()
            workshop = Workshop(folder / "runs")
            run = workshop.run(folder / "out", prompts, call_s=0.0, faults=False, address=cluster.address)
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
        if run.process is not None and run.is_alive:
            signal_quietly(run.process.pid, signal.SIGKILL)
            run.process.communicate()


@pytest.fixture
def trial(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> Trial:
    """On the cluster, into a local folder."""
    return Trial(whole_cluster, str(tmp_path / "out"), whole_cluster.address, workshop, drivers, undisturbed)


@dataclass
class Bucket:
    """A bucket behind a proxy that fails as told.

    Attributes:
        root: a place in it.
    """

    proxy: FaultyS3
    root: str

    def hold(self, target: str, method: str = "PUT") -> Fault:
        """The next request of that kind stays on its way until the fault is released, and is then lost."""
        return self.proxy.fail("hold", method=method, target=target)


@pytest.fixture
def bucket(
    s3_proxy: FaultyS3, s3_server: dict[str, str], s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """For this process too, which reads what the run has put there."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    name = f"faults-{uuid.uuid4().hex}"
    bucket_client().create_bucket(Bucket=name)
    for variable, value in s3_environment.items():
        monkeypatch.setenv(variable, value)
    yield Bucket(s3_proxy, f"s3://{name}/dataset")
    s3_proxy.recover()
