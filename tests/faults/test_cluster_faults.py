"""Actors, raylets, nodes and drivers of a real cluster die, fall silent or are drained; the dataset is as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import open_storage
from tests.faults.conftest import Workshop, usual_prompts
from tests.faults.harness import ROOT, FaultCluster, Run, check_dataset, dataset, signal_quietly, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Undisturbed = Callable[[list[dict[str, Any]]], dict[int, dict[str, Any]]]


def started(run: Run, drivers: list[Run]) -> Run:
    """The run, once it has put its first checkpoint into storage: videos are in the making."""
    drivers.append(run.start())
    wait_for(lambda: run.files("checkpoint") or run.process.poll() is not None, what="a first checkpoint")  # type: ignore[union-attr]
    assert run.process is not None
    assert run.process.poll() is None, run.log
    return run


def finished(run: Run, expected: dict[int, dict[str, Any]]) -> None:
    status, summary = run.wait()
    assert (status, summary["ok"]) == (0, len(expected)), (summary, run.log)
    check_dataset(run.out, expected)


def attempts(run: Run) -> dict[int, int]:
    """Row → the attempt that was taken."""
    from pipeline.manifest import Manifest

    return {row.row: row.attempt for row in Manifest(open_storage(run.out), 4).read_rows()}


def test_backbone_actors_are_killed_while_they_make_videos(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts()
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, address=whole_cluster.address), drivers)
    killed = [process.pid for process in whole_cluster.actors()][:2]
    assert len(killed) == 2
    for pid in killed:
        signal_quietly(pid, signal.SIGKILL)
    finished(run, expected)
    assert max(attempts(run).values()) > 1, "no video was lost: nothing was tested"


def test_an_actor_that_dies_goes_on_from_its_checkpoint(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One video that takes ten seconds; its host is killed near the end, and what is left takes less than a whole."""
    prompts = usual_prompts(1, (241,))
    expected = undisturbed(prompts)
    run = workshop.run(
        tmp_path / "out", prompts, call_s=0.08, address=whole_cluster.address,
        settings="[workers]\nnum_actors = 1\n",
    )  # fmt: skip
    drivers.append(run.start())
    wait_for(lambda: len(run.files("checkpoint")) >= 12, what="twelve checkpoints")
    before = set(run.files("checkpoint"))
    (actor,) = whole_cluster.actors()
    signal_quietly(actor.pid, signal.SIGKILL)
    later = wait_for(lambda: set(run.files("checkpoint")) - before, what="a checkpoint of the second attempt")
    assert before <= set(run.files("checkpoint")), "the checkpoints it goes on from are gone before the row is settled"
    assert all("a2-" in path for path in later if "a1-" not in path)
    finished(run, expected)
    assert attempts(run) == {0: 2}


def test_a_helper_is_killed_and_its_window_is_made_elsewhere(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One video on four actors: three of them are helpers; the video loses no attempt when two of these die."""
    prompts = usual_prompts(1, (241,))
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.2, address=whole_cluster.address), drivers)
    everyone = wait_for(lambda: len(whole_cluster.actors()) == 4 and whole_cluster.actors(), what="four actors")
    helpers = [process for process in everyone if "make_video" not in process.title]
    for process in helpers[:2]:
        signal_quietly(process.pid, signal.SIGKILL)
    finished(run, expected)


def test_a_raylet_is_killed(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts()
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, address=whole_cluster.address), drivers)
    whole_cluster.kill_raylet(whole_cluster.nodes[0])
    finished(run, expected)


def test_a_node_loses_its_power_and_another_joins(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts()
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address), drivers)
    whole_cluster.kill_node(whole_cluster.nodes[0])
    joined = whole_cluster.add_node()
    wait_for(lambda: whole_cluster.actors(joined), what="an actor on the node that joined")
    finished(run, expected)


def test_all_nodes_are_lost_and_the_run_waits_for_new_ones(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts(4)
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address), drivers)
    for node in list(whole_cluster.nodes):
        whole_cluster.kill_node(node)
    time.sleep(8.0)  # longer than the cluster takes to say so
    assert run.process is not None
    assert run.process.poll() is None, run.log
    whole_cluster.add_node()
    finished(run, expected)


def test_a_node_is_drained(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A spot node with a notice: what it makes is saved and made on elsewhere, and it costs the rows no attempt."""
    prompts = usual_prompts()
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address), drivers)
    node = whole_cluster.nodes[0]
    wait_for(lambda: whole_cluster.actors(node), what="actors on the node")
    drain(whole_cluster.address, node.node_id)
    wait_for(lambda: not whole_cluster.actors(node), what="the drained node to be left")
    whole_cluster.kill_node(node)
    finished(run, expected)
    assert "died" not in run.log


def drain(address: str, node_id: str) -> None:
    """Tells the cluster that a node will be gone in a minute, as a cloud's notice does."""
    code = (
        "import sys, time; from ray._raylet import GcsClient;"
        "client = GcsClient(address=sys.argv[1]);"
        "print(client.drain_node(sys.argv[2], 2, 'spot notice', int(time.time() * 1000) + 60000))"
    )
    done = subprocess.run([sys.executable, "-c", code, address, node_id], capture_output=True, text=True, check=True)
    assert "True" in done.stdout, done.stdout + done.stderr


def test_a_node_is_cut_off_with_its_actors_still_running(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Its raylet is stopped, so the cluster declares it dead, while its actors go on and put their videos in place."""
    prompts = usual_prompts()
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address), drivers)
    node = wait_for(
        lambda: next((node for node in whole_cluster.nodes if whole_cluster.actors(node)), None), what="a node at work"
    )
    raylet, actors = whole_cluster.raylet_pid(node), whole_cluster.actors(node)
    signal_quietly(raylet, signal.SIGSTOP)
    try:
        finished(run, expected)
    finally:
        whole_cluster.nodes.remove(node)
        for pid in (raylet, *(process.pid for process in actors)):
            signal_quietly(pid, signal.SIGKILL)


def test_an_actor_falls_silent_and_is_replaced(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Its process is stopped: no death, no news. The run must not wait for it for ever."""
    prompts = usual_prompts(4)
    expected = undisturbed(prompts)
    run = started(
        workshop.run(
            tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address,
            settings="[workers]\nsilent_after_s = 5.0\n",
        ),
        drivers,
    )  # fmt: skip
    actor = whole_cluster.actors()[0]
    signal_quietly(actor.pid, signal.SIGSTOP)
    try:
        finished(run, expected)
    finally:
        signal_quietly(actor.pid, signal.SIGKILL)


def test_the_driver_is_killed_again_and_again(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts()
    expected = undisturbed(prompts)
    run = workshop.run(tmp_path / "out", prompts, address=whole_cluster.address)
    for number in range(3):
        drivers.append(run.start())
        wanted = len(run.files("done")) + 1
        wait_for(lambda wanted=wanted: len(run.files("done")) >= wanted, what=f"row {number} to be done")  # type: ignore[misc]
        run.kill()
    status, summary = run.finish()
    assert (status, summary["ok"], summary["resumed"]) == (0, len(expected), True), (summary, run.log)
    assert summary["already_done"] >= 3
    check_dataset(run.out, expected)


def test_a_long_video_outlives_its_driver(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """The next driver goes on from the checkpoint, not from the first latent."""
    prompts = usual_prompts(1, (241,))
    expected = undisturbed(prompts)
    run = workshop.run(tmp_path / "out", prompts, call_s=0.08, address=whole_cluster.address)
    drivers.append(run.start())
    wait_for(lambda: len(run.files("checkpoint")) >= 8, what="eight checkpoints")
    run.kill()
    left = set(run.files("checkpoint"))
    assert left
    drivers.append(run.start())
    wait_for(lambda: any("e2a" in path for path in run.files("checkpoint")), what="a checkpoint of the second driver")
    assert left & set(run.files("checkpoint")), "it has begun anew"
    finished(run, expected)


def test_sigterm_leaves_a_run_to_go_on_with(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts(4)
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address), drivers)
    assert run.process is not None
    signalled_s = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    run.process.communicate(timeout=20)
    assert run.process.returncode not in (0, None)
    assert time.monotonic() - signalled_s < 15
    assert "Traceback" not in run.log
    drivers.append(run.start())
    finished(run, expected)


def test_a_second_coordinator_on_the_same_out_is_refused(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts(4)
    expected = undisturbed(prompts)
    run = started(workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address), drivers)
    second = Run(run.prompts, run.out, run.config, run.address)
    drivers.append(second.start())
    status, _ = second.wait()
    assert status not in (0, 3)
    assert str(os.getpid()) not in second.log
    assert str(run.process.pid) in second.log, second.log  # type: ignore[union-attr]
    finished(run, expected)


def test_two_coordinators_started_at_once_make_one_dataset(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    prompts = usual_prompts(4)
    expected = undisturbed(prompts)
    run = workshop.run(tmp_path / "out", prompts, call_s=0.05, address=whole_cluster.address)
    second = Run(run.prompts, run.out, run.config, run.address)
    drivers += [run.start(), second.start()]
    ends = sorted(one.wait()[0] for one in (run, second))
    assert ends[0] == 0, (run.log, second.log)
    check_dataset(run.out, expected)


def test_prompts_that_break_things_are_quarantined_with_their_reason(
    whole_cluster: FaultCluster, workshop: Workshop, drivers: list[Run], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    faults = {
        "fault: kill at call 5": "WorkerLostError",
        "fault: nan": "NonFiniteError",
        "fault: oom": "WorkerError",
        "fault: error": "RuntimeError",
        "fault: kill once at call 30": None,
        "fault: oom once": None,
    }
    good = usual_prompts(4)
    prompts = good + [{"prompt": prompt, "num_frames": 81} for prompt in faults]
    expected = undisturbed(good)
    run = workshop.run(tmp_path / "out", prompts, address=whole_cluster.address)
    drivers.append(run.start())
    status, summary = run.wait()
    assert (status, summary["failed"]) == (3, 4), (summary, run.log)
    rows = dataset(run.out)
    assert {row: rows[row] for row in expected} == expected
    for number, (prompt, error_type) in enumerate(faults.items(), start=len(good)):
        assert rows[number]["error_type"] == error_type, (prompt, rows[number])
    check_dataset(run.out, rows)
    assert sum(path.startswith("dead/") for path in run.files("dead")) == 4


def test_the_same_bytes_wherever_the_windows_ran(
    whole_cluster: FaultCluster, workshop: Workshop, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One video on one actor, and one on four."""
    prompts = usual_prompts(1, (161,))
    expected = undisturbed(prompts)
    for number, settings in enumerate(["[workers]\nnum_actors = 1\n", "[workers]\nnum_actors = 4\n"]):
        run = workshop.run(tmp_path / f"out-{number}", prompts, address=whole_cluster.address, settings=settings)
        status, summary = run.finish()
        assert status == 0, (summary, run.log)
        check_dataset(run.out, expected)


def test_nothing_is_left_running(whole_cluster: FaultCluster) -> None:
    """Last in the file: no actor outlives its driver."""
    wait_for(lambda: not whole_cluster.actors(), what="the actors of ended runs to be gone", seconds=30)
    assert ROOT.is_dir()
