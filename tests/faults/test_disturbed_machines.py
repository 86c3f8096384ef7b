"""The time of day jumps, or the disk of OUT is full, under a whole run: its driver, its actors and their Ray.

Both come from `disturbed/sitecustomize.py`, which every process of the run imports when it starts.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.rows import ManifestRow
from pipeline.storage.local import LocalStorage
from tests.faults.conftest import Trial, usual_prompts
from tests.faults.harness import Run
from tests.pace import paced

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DISTURBED = Path(__file__).with_name("disturbed")
DAY_S = 86_400
PROMPTS = usual_prompts(5, (81, 121))
ACTORS = "[workers]\nnum_actors = 1\n"


@pytest.fixture
def trial(trial: Trial) -> Trial:
    """On a Ray of its own, whose processes all start in the run's environment."""
    return replace(trial, address=None)


def disturbed(**variables: Path | str) -> dict[str, str]:
    """The environment of a run that is disturbed."""
    path = os.pathsep.join(filter(None, (str(DISTURBED), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path} | {f"MIGA_TEST_{name}": str(value) for name, value in variables.items()}


# ---- the clock ----


def refused(second: Run) -> None:
    """There is a run that writes here, and this one is told so."""
    status, _ = second.finish()
    assert status == 2, second.log
    assert "another run is writing" in second.log


def test_the_clock_jumps_a_day_on_and_two_days_back(trial: Trial, tmp_path: Path) -> None:
    """After each jump the lease is still held, so a second coordinator is refused; no row loses an attempt."""
    clock = tmp_path / "clock"
    environment = disturbed(CLOCK=clock)
    run = trial.begin(PROMPTS, call_s=0.04, settings=ACTORS, environment=environment)
    for jump_s in (DAY_S, -DAY_S):
        clock.write_text(str(jump_s))
        assert abs(time_in(environment) - time.time() - jump_s) < paced(60)
        num_done = len(run.files("done"))
        refused(trial.second())
        trial.until(lambda num_done=num_done: len(run.files("done")) > num_done, what="another row")  # type: ignore[misc]
    trial.ends_as_undisturbed()
    assert all("-e1a1" in path for path in run.files("video"))


def time_in(environment: dict[str, str]) -> float:
    """The time of day that processes see there."""
    command = [sys.executable, "-c", "import time; print(time.time())"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


# ---- the disk ----


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """While this file exists, OUT has no space left for what it names."""
    return tmp_path / "full"


def ends_full(run: Run) -> None:
    """It ends at once, and says what is wrong and what to do."""
    status, _ = run.wait()
    assert status == 1, run.log
    assert "no space left on the device" in run.log, run.log
    assert "the same command again: it resumes" in run.log, run.log


def check_whole(trial: Trial) -> None:
    """What can be seen is whole: videos of the undisturbed run, sidecars that can be read, and nothing half there."""
    storage = LocalStorage(trial.out)
    videos = {row["sha256"] for row in trial.expected.values()}
    for path in storage.list("video"):
        assert hashlib.sha256(storage.read_bytes(path)).hexdigest() in videos, path
    for path in storage.list("done"):
        row = ManifestRow.from_json(storage.read_bytes(path).decode())
        assert row.sha256 == trial.expected[row.row]["sha256"]
    assert not list(storage.leftovers())
    assert not list(Path(trial.out).rglob("*.tmp"))


def test_the_disk_is_full_while_videos_are_made(trial: Trial, full: Path) -> None:
    """From a first checkpoint on nothing can be written."""
    run = trial.begin(PROMPTS, settings=ACTORS, environment=disturbed(DISK=trial.out, FULL=full))
    full.touch()
    ends_full(run)
    check_whole(trial)
    full.unlink()
    run.start()
    trial.ends_as_undisturbed()


@pytest.mark.parametrize("what", ["lease/", "video/", "done/", "manifest/", "report"])
def test_the_disk_has_no_room_for(what: str, trial: Trial, full: Path) -> None:
    """It ends at that; what came before stays, and is gone on from."""
    full.write_text(what)
    run = trial.start(PROMPTS[:2], settings=ACTORS, environment=disturbed(DISK=trial.out, FULL=full))
    ends_full(run)
    check_whole(trial)
    assert not [path for path in run.files("") if path.startswith(what)]
    full.unlink()
    run.start()
    trial.ends_as_undisturbed()


def test_a_checkpoint_for_which_there_is_no_room_is_done_without(trial: Trial, full: Path) -> None:
    full.write_text("checkpoint/")
    trial.start(PROMPTS[:2], settings=ACTORS, environment=disturbed(DISK=trial.out, FULL=full))
    trial.ends_as_undisturbed()
    assert not [path for path in Path(trial.out, "checkpoint").rglob("*") if path.is_file()]
