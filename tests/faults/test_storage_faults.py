"""S3 fails, and processes die in the middle of what they put there; the dataset is as without."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import Bucket, Workshop, usual_prompts
from tests.faults.harness import Run, check_dataset, signal_quietly, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

NAME = "dataset"
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

Undisturbed = Callable[[list[dict[str, Any]]], dict[int, dict[str, Any]]]


@pytest.fixture
def run(bucket: Bucket, workshop: Workshop, drivers: list[Run]) -> Run:
    """A run into a bucket, on a Ray of its own."""
    bucket.client.create_bucket(Bucket=NAME)
    run = workshop.run(f"s3://{NAME}/{uuid.uuid4().hex}", PROMPTS, settings=ACTORS)  # moto remembers across servers
    drivers.append(run)
    return run


def finished(run: Run, expected: dict[int, dict[str, Any]]) -> None:
    status, summary = run.wait()
    assert (status, summary["ok"]) == (0, len(expected)), (summary, run.log)
    check_dataset(run.out, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_the_driver_is_killed_while_something_is_being_put(
    stage: str, bucket: Bucket, run: Run, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(PROMPTS)
    fault = bucket.proxy.fail("hold", method="PUT", target=STAGES[stage])
    run.start()
    wait_for(lambda: fault.num_hit, what=f"{stage} to be put")
    run.kill()
    fault.released.set()
    run.start()
    finished(run, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_the_answer_is_lost_after_it_was_accepted(
    stage: str, bucket: Bucket, run: Run, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(PROMPTS)
    fault = bucket.proxy.fail("lose", times=2, method="PUT", target=STAGES[stage])
    run.start()
    finished(run, expected)
    assert fault.num_hit


def test_an_actor_is_killed_while_it_uploads(bucket: Bucket, run: Run, undisturbed: Undisturbed) -> None:
    from tests.actors.test_generate_run import descendants

    expected = undisturbed(PROMPTS)
    fault = bucket.proxy.fail("hold", times=2, method="PUT", target="/video/")
    run.start()
    assert run.process is not None
    wait_for(lambda: fault.num_hit, what="a video to be uploaded")
    actors = [pid for pid, title in descendants(run.process.pid).items() if title.startswith("ray::BackboneWorker")]
    assert actors
    for pid in actors:
        signal_quietly(pid, signal.SIGKILL)
    fault.released.set()
    finished(run, expected)


@pytest.mark.parametrize("kind", ["busy", "error", "reset", "slow"])
def test_the_server_is_moody(kind: Any, bucket: Bucket, run: Run, undisturbed: Undisturbed) -> None:
    """Every third request fails, from the first on."""
    expected = undisturbed(PROMPTS)
    fault = bucket.proxy.fail(kind, times=10**6, delay_s=0.3, every=3)
    run.start()
    finished(run, expected)
    assert fault.num_hit > 10


def test_the_server_is_gone_for_a_while(bucket: Bucket, run: Run, undisturbed: Undisturbed) -> None:
    """Longer than the lease's time to live, so it is held again without having been lost to anybody."""
    expected = undisturbed(PROMPTS)
    run.start()
    wait_for(lambda: any("/done/" in target for method, target in bucket.proxy.requests if method == "PUT"))
    bucket.proxy.is_gone = True
    back = threading.Timer(12.0, setattr, (bucket.proxy, "is_gone", False))
    back.start()
    finished(run, expected)
    back.join()


@pytest.mark.parametrize("kind", ["full", "quota"])
def test_the_bucket_is_full(kind: Any, bucket: Bucket, run: Run, undisturbed: Undisturbed) -> None:
    """The run ends and says so; nothing is lost, and the same command goes on once there is room."""
    expected = undisturbed(PROMPTS)
    fault = bucket.proxy.fail(kind, times=10**6, method="PUT|POST", target="/(video|checkpoint)/")
    run.start()
    status, _ = run.wait()
    assert status == 1, run.log
    assert "full" in run.log or "space" in run.log or "quota" in run.log.lower(), run.log
    assert not run.files("done")
    fault.times = 0
    run.start()
    finished(run, expected)


def test_a_partitioned_coordinator_does_not_commit_beside_its_successor(
    bucket: Bucket, run: Run, undisturbed: Undisturbed, drivers: list[Run]
) -> None:
    """The first is stopped (as on a machine that hangs), the second takes the run over, then the first wakes up."""
    expected = undisturbed(PROMPTS)
    run.start()
    assert run.process is not None
    wait_for(lambda: run.files("checkpoint"), what="a checkpoint")
    signal_quietly(run.process.pid, signal.SIGSTOP)
    second = Run(run.prompts, run.out, run.config)
    drivers.append(second.start())
    wait_for(lambda: any("/lease/000002.json" in target for _, target in bucket.proxy.requests), what="a take-over")
    signal_quietly(run.process.pid, signal.SIGCONT)
    status, _ = run.wait()
    assert status == 1, run.log
    finished(second, expected)
