"""A run to which everything happens that can, at random: `make chaos`, or `python -m tests.faults.chaos --seed 7`.

A small cluster with nodes that come and go, OUT in a bucket behind a server that fails, prompts that break things.
Every few seconds a fault is drawn. In the end the dataset must be the one that an undisturbed run makes. The same
seed draws the same faults in the same order; when they strike depends on the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.faults.conftest import Workshop, usual_prompts
from tests.faults.harness import FaultCluster, Run, check_dataset, dataset, signal_quietly
from tests.faulty_s3 import FaultyS3, bucket_client, s3_server

BAD_PROMPTS: Final = ("fault: nan", "fault: error", "fault: oom", "fault: oom once")
CALM_S: Final = (0.5, 3.0)
"""Seconds between two faults, from and to."""


class Chaos:
    """Draws faults for a run on a cluster, until it has ended."""

    def __init__(self, seed: int, cluster: FaultCluster, proxy: FaultyS3, run: Run, last_s: float) -> None:
        self._random = random.Random(seed)
        self._cluster = cluster
        self._proxy = proxy
        self._run = run
        self._quiet_at_s = time.monotonic() + last_s
        self._stopped: list[int] = []
        self.struck: Counter[str] = Counter()

    def until_the_run_ends(self, limit_s: float) -> int:
        """Exit status of the last driver, which is left in peace after `last_s`."""
        end_s = time.monotonic() + limit_s
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.kill_an_actor, 5),
            (self.stop_an_actor_for_a_while, 1),
            (self.kill_a_raylet, 1),
            (self.kill_a_node, 1),
            (self.cut_a_node_off, 1),
            (self.kill_the_driver, 2),
            (self.terminate_the_driver, 1),
            (self.upset_the_server, 5),
        ]
        while time.monotonic() < end_s:
            assert self._run.process is not None
            status = self._run.process.poll()
            if status in (0, 3):
                return int(status)
            if status is not None:  # it was killed, or gave up: the same command again, as its user would
                self.struck["the run is started again"] += 1
                self._run.start()
            if time.monotonic() < self._quiet_at_s:
                kind = self._random.choices([fault for fault, _ in kinds], [weight for _, weight in kinds])[0]
                kind()
                self.struck[kind.__name__.replace("_", " ")] += 1
            self._wake()
            while len(self._cluster.nodes) < 2:
                self._cluster.add_node()
            time.sleep(self._random.uniform(*CALM_S))
        raise AssertionError(f"the run did not end:\n{self._run.log[-4000:]}")

    def kill_an_actor(self) -> None:
        """Whatever it is doing: loading, hosting, helping, uploading."""
        if actors := sorted(self._cluster.actors(), key=lambda process: process.pid):
            signal_quietly(self._random.choice(actors).pid, signal.SIGKILL)

    def stop_an_actor_for_a_while(self) -> None:
        """It is silent until the next fault is drawn, or for good."""
        if actors := sorted(self._cluster.actors(), key=lambda process: process.pid):
            pid = self._random.choice(actors).pid
            signal_quietly(pid, signal.SIGSTOP)
            self._stopped.append(pid)

    def kill_a_raylet(self) -> None:
        """Its actors notice."""
        self._cluster.kill_raylet(self._random.choice(self._cluster.nodes))

    def kill_a_node(self) -> None:
        """Power off."""
        self._cluster.kill_node(self._random.choice(self._cluster.nodes))

    def cut_a_node_off(self) -> None:
        """Its raylet falls silent while its actors go on."""
        node = self._random.choice(self._cluster.nodes)
        self._stopped.append(self._cluster.raylet_pid(node))
        signal_quietly(self._stopped[-1], signal.SIGSTOP)
        self._cluster.nodes.remove(node)

    def kill_the_driver(self) -> None:
        """SIGKILL."""
        self._run.kill()

    def terminate_the_driver(self) -> None:
        """SIGTERM, as `ray job stop` does."""
        assert self._run.process is not None
        self._run.process.send_signal(signal.SIGTERM)

    def upset_the_server(self) -> None:
        """The next requests fail in some way."""
        kind: Any = self._random.choice(["busy", "error", "reset", "lose", "slow", "cut"])
        self._proxy.fail(kind, times=self._random.randrange(1, 12), delay_s=0.5)

    def _wake(self) -> None:
        """What was stopped two faults ago goes on."""
        if len(self._stopped) > 1:
            signal_quietly(self._stopped.pop(0), signal.SIGCONT)

    def wake_all(self) -> None:
        """At the end nothing is left stopped: it would not be ended by a cluster's shutdown."""
        while self._stopped:
            signal_quietly(self._stopped.pop(), signal.SIGCONT)


def chaos_prompts(num_videos: int) -> list[dict[str, Any]]:
    """Rows of several lengths, one in six of which breaks something."""
    prompts = usual_prompts(num_videos)
    for number, row in enumerate(range(5, num_videos, 6)):
        prompts[row] = {"prompt": BAD_PROMPTS[number % len(BAD_PROMPTS)], "num_frames": 81}
    return prompts


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def run_chaos(seed: int, num_videos: int, last_s: float, folder: Path, limit_s: float = 900.0) -> Counter[str]:
    """Makes the dataset under faults for `last_s` seconds, and holds it against that of an undisturbed run.

    Returns:
        How often each fault struck.

    Raises:
        AssertionError: if the dataset differs in anything, or the run does not end.
    """
    prompts = chaos_prompts(num_videos)
    (folder / "runs").mkdir()
    workshop = Workshop(folder / "runs")
    with s3_server() as environment, FaultyS3(environment["AWS_ENDPOINT_URL"]) as proxy:
        environment = environment | {"AWS_ENDPOINT_URL": proxy.url}
        with _environment(environment):
            bucket_client().create_bucket(Bucket="chaos")
            calm = workshop.run(folder / "calm", prompts, call_s=0.0, settings="[workers]\nnum_actors = 2\n")
            status, summary = calm.finish()
            assert status in (0, 3), (summary, calm.log)
            expected = dataset(calm.out)
            cluster = FaultCluster(num_nodes=2, gpus_per_node=2, environment=environment)
            try:
                run = workshop.run(
                    f"s3://chaos/{uuid.uuid4().hex}",
                    prompts,
                    call_s=0.05,
                    address=cluster.address,
                    settings="max_attempts = 1000\n[workers]\nsilent_after_s = 15.0\n",
                ).start()
                chaos = Chaos(seed, cluster, proxy, run, last_s)
                try:
                    chaos.until_the_run_ends(limit_s)
                finally:
                    chaos.wake_all()
                    if run.process is not None and run.process.poll() is None:
                        run.kill()
                check_dataset(run.out, expected)
            finally:
                cluster.shutdown()
    return chaos.struck


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=150.0, help="how long faults strike")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="miga-chaos-") as folder:
        struck = run_chaos(arguments.seed, arguments.videos, arguments.seconds, Path(folder))
    for fault, count in sorted(struck.items()):
        print(f"{count:4d}  {fault}")
    print(f"{arguments.videos} videos: the rows and bytes of an undisturbed run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
