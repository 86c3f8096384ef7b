"""S3 fails, and processes die in the middle of what they put there; the dataset is as without."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.conftest import Bucket, Trial, usual_prompts
from tests.faults.harness import Run, signal_quietly
from tests.pace import paced
from tests.processes import descendants, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

ACTORS = "[workers]\nnum_actors = 2\n"
PROMPTS = usual_prompts(5)
STAGES = {
    "taking the lease": r"/lease/000001\.json",
    "saying what the run is": r"/run\.json",
    "a checkpoint": r"/checkpoint/",
    "a video": r"/video/",
    "a row": r"/done/",
    "a shard's file": r"/manifest/",
}


@pytest.fixture
def trial(trial: Trial, bucket: Bucket) -> Trial:
    """Into a bucket, on a Ray of its own."""
    return replace(trial, out=bucket.root, address=None)


@pytest.fixture
def run(trial: Trial) -> Run:
    """Not started."""
    return trial.prepare(PROMPTS, settings=ACTORS)


@pytest.mark.parametrize("stage", STAGES)
def test_the_driver_is_killed_while_something_is_being_put(stage: str, bucket: Bucket, run: Run, trial: Trial) -> None:
    fault = bucket.hold(STAGES[stage])
    run.start()
    wait_for(lambda: fault.num_hit, what=f"{stage} to be put")
    run.kill()
    fault.released.set()
    run.start()
    trial.ends_as_undisturbed()


@pytest.mark.parametrize("stage", STAGES)
def test_the_answer_is_lost_after_it_was_accepted(stage: str, bucket: Bucket, run: Run, trial: Trial) -> None:
    fault = bucket.proxy.fail("lose", times=2, method="PUT", target=STAGES[stage])
    run.start()
    trial.ends_as_undisturbed()
    assert fault.num_hit


def test_an_actor_is_killed_while_it_uploads(bucket: Bucket, run: Run, trial: Trial) -> None:
    fault = bucket.proxy.fail("hold", times=2, method="PUT", target="/video/")
    run.start()
    assert run.process is not None
    wait_for(lambda: fault.num_hit, what="a video to be uploaded")
    actors = [pid for pid, title in descendants(run.process.pid).items() if title.startswith("ray::BackboneWorker")]
    assert actors
    for pid in actors:
        signal_quietly(pid, signal.SIGKILL)
    fault.released.set()
    trial.ends_as_undisturbed()


@pytest.mark.parametrize("kind", ["busy", "error", "reset", "slow"])
def test_the_server_is_moody(kind: Any, bucket: Bucket, run: Run, trial: Trial) -> None:
    """Every third request fails, from the first on."""
    fault = bucket.proxy.fail(kind, times=10**6, delay_s=0.3, every=3)
    run.start()
    trial.ends_as_undisturbed()
    assert fault.num_hit > 10


def test_the_server_is_gone_for_a_while(bucket: Bucket, run: Run, trial: Trial) -> None:
    """Longer than the lease's time to live, so it is held again without having been lost to anybody."""
    run.start()
    wait_for(lambda: any("/done/" in target for method, target in bucket.proxy.requests if method == "PUT"))
    bucket.proxy.is_gone = True
    back = threading.Timer(paced(12.0), setattr, (bucket.proxy, "is_gone", False))
    back.start()
    trial.ends_as_undisturbed()
    back.join()


@pytest.mark.parametrize("kind", ["full", "quota"])
def test_the_bucket_is_full(kind: Any, bucket: Bucket, run: Run, trial: Trial) -> None:
    """The run ends and says so; nothing is lost, and the same command goes on once there is room."""
    fault = bucket.proxy.fail(kind, times=10**6, method="PUT|POST", target="/(video|checkpoint)/")
    run.start()
    status, _ = run.wait()
    assert status == 1, run.log
    assert "full" in run.log or "space" in run.log or "quota" in run.log.lower(), run.log
    assert not run.files("done")
    fault.times = 0
    run.start()
    trial.ends_as_undisturbed()


def test_actors_on_other_nodes_are_as_patient_as_the_driver(trial: Trial, bucket: Bucket) -> None:
    """Their own environment, which is their node's, says nothing of it."""
    trial = replace(trial, address=trial.cluster.address)
    fault = bucket.proxy.fail("busy", times=10**6, method="PUT", target="/video/")
    patience_s = f"{paced(2.0):.0f}"
    run = trial.start(PROMPTS[:2], settings=ACTORS, environment={"MIGA_S3_PATIENCE_S": patience_s})
    status, _ = run.wait()
    assert status == 1, run.log
    assert f"no usable answer for {patience_s} s" in run.log, run.log
    fault.times = 0
    run.start()
    trial.ends_as_undisturbed()


def test_a_partitioned_coordinator_does_not_commit_beside_its_successor(bucket: Bucket, run: Run, trial: Trial) -> None:
    """The first is stopped (as on a machine that hangs), the second takes the run over, then the first wakes up."""
    run.start()
    assert run.process is not None
    wait_for(lambda: run.files("checkpoint"), what="a checkpoint")
    signal_quietly(run.process.pid, signal.SIGSTOP)
    second = trial.second().start()
    wait_for(lambda: any("/lease/000002.json" in target for _, target in bucket.proxy.requests), what="a take-over")
    signal_quietly(run.process.pid, signal.SIGCONT)
    status, _ = run.wait()
    assert status == 1, run.log
    trial.ends_as_undisturbed(second)
