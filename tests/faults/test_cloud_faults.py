"""Whole runs into Google Cloud Storage and Azure Blob Storage: killed, with lost answers; the dataset is as without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pipeline.storage.open import open_storage
from pipeline.upkeep.verify import verify
from tests.faults.conftest import Trial, usual_prompts
from tests.faulty_s3 import FaultyS3
from tests.processes import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ACTORS = "[workers]\nnum_actors = 2\n"
PROMPTS = usual_prompts(4)


def at(folder: str) -> str:
    """Part of a target that puts something into that folder: Google's have their slashes escaped."""
    return f"(/|%2F){folder}(/|%2F)"


@pytest.fixture(params=["gs", "az"])
def trial(request: pytest.FixtureRequest, trial: Trial) -> Trial:
    """Into a bucket, on a Ray of its own."""
    return replace(trial, out=request.getfixturevalue(f"{request.param}_root") + "/run", address=None)


@pytest.fixture
def proxy(trial: Trial, fake_clouds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    server = fake_clouds[trial.out.partition("://")[0]]
    with FaultyS3(server.url) as proxy:
        for name, value in server.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.mark.parametrize("stage", ["checkpoint", "video", "done"])
def test_a_killed_run_goes_on_to_the_same_dataset(stage: str, proxy: FaultyS3, trial: Trial) -> None:
    fault = proxy.fail("hold", method="PUT", target=at(stage))
    run = trial.start(PROMPTS, settings=ACTORS)
    wait_for(lambda: fault.num_hit, what=f"a file of {stage}/ to be put")
    run.kill()
    fault.released.set()
    run.start()
    trial.ends_as_undisturbed()
    found = verify(open_storage(trial.out))
    assert found.is_sound, found


def test_answers_are_lost_and_every_third_request_fails(proxy: FaultyS3, trial: Trial) -> None:
    for stage in ("lease", "done", "manifest"):
        proxy.fail("lose", times=2, method="PUT", target=at(stage))
    fault = proxy.fail("busy", times=10**6, every=3)
    trial.start(PROMPTS, settings=ACTORS)
    trial.ends_as_undisturbed()
    assert fault.num_hit > 10


def test_a_second_run_is_refused_while_the_first_lives(proxy: FaultyS3, trial: Trial) -> None:
    """By the lease, whose conditional writes hold in every bucket."""
    run = trial.begin(PROMPTS, settings=ACTORS)
    status, _ = trial.second().finish()
    assert status != 0
    trial.ends_as_undisturbed(run)
