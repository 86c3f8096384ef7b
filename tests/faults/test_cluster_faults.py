"""Actors, raylets, nodes and drivers of a real cluster die, fall silent or are drained; the dataset is as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.faults.conftest import Trial, usual_prompts
from tests.faults.harness import FaultCluster, check_dataset, quarantined, signal_quietly
from tests.pace import paced
from tests.processes import output_of, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_backbone_actors_are_killed_while_they_make_videos(trial: Trial) -> None:
    trial.begin(usual_prompts())
    killed = trial.cluster.actors()[:2]
    assert len(killed) == 2
    for actor in killed:
        actor.end()
    trial.ends_as_undisturbed()
    assert max(trial.attempts().values()) > 1, "no video was lost: nothing was tested"


def test_an_actor_that_dies_goes_on_from_its_checkpoint(trial: Trial) -> None:
    """One video that takes ten seconds; its host is killed near the end, and what is left takes less than a whole."""
    run = trial.start(usual_prompts(1, (241,)), call_s=0.08, settings="[workers]\nnum_actors = 1\n")
    wait_for(lambda: len(run.files("checkpoint")) >= 12, what="twelve checkpoints")
    before = set(run.files("checkpoint"))
    (actor,) = trial.cluster.actors()
    actor.end()
    later = wait_for(lambda: set(run.files("checkpoint")) - before, what="a checkpoint of the second attempt")
    assert before <= set(run.files("checkpoint")), "the checkpoints it goes on from are gone before the row is settled"
    assert all("a2-" in path for path in later if "a1-" not in path)
    trial.ends_as_undisturbed()
    assert trial.attempts() == {0: 2}


def test_a_helper_is_killed_and_its_window_is_made_elsewhere(trial: Trial) -> None:
    """One video on four actors: three of them are helpers; the video loses no attempt when two of these die."""
    trial.begin(usual_prompts(1, (241,)), call_s=0.2)
    killed: set[int] = set()
    while len(killed) < 2:
        helper = wait_for(
            lambda: next((one for one in trial.cluster.actors() if one.is_in("run_window")), None), what="a helper"
        )
        helper.end()
        killed.add(helper.pid)
    trial.ends_as_undisturbed()
    assert trial.attempts() == {0: 1}


def test_a_raylet_is_killed(trial: Trial) -> None:
    trial.begin(usual_prompts())
    trial.cluster.kill_raylet(trial.cluster.nodes[0])
    trial.ends_as_undisturbed()


def test_a_node_loses_its_power_and_another_joins(trial: Trial) -> None:
    trial.begin(usual_prompts(), call_s=0.05)
    trial.cluster.kill_node(trial.cluster.nodes[0])
    joined = trial.cluster.add_node()
    wait_for(lambda: trial.cluster.actors(joined), what="an actor on the node that joined")
    trial.ends_as_undisturbed()


def test_all_nodes_are_lost_and_the_run_waits_for_new_ones(trial: Trial) -> None:
    run = trial.begin(usual_prompts(4), call_s=0.05)
    for node in list(trial.cluster.nodes):
        trial.cluster.kill_node(node)
    wait_for(lambda: not trial.cluster.num_alive(), what="the cluster to say that they are lost")
    assert run.is_alive, run.log
    trial.cluster.add_node()
    trial.ends_as_undisturbed()


def test_a_node_is_drained(trial: Trial) -> None:
    """A spot node with a notice: what it makes is saved and made on elsewhere, and it costs the rows no attempt."""
    run = trial.begin(usual_prompts(), call_s=0.05)
    node = trial.cluster.nodes[0]
    wait_for(lambda: trial.cluster.actors(node), what="actors on the node")
    drain(trial.cluster.address, node.node_id)
    wait_for(lambda: not trial.cluster.actors(node), what="the drained node to be left")
    trial.cluster.kill_node(node)
    trial.ends_as_undisturbed()
    assert "died" not in run.log


def drain(address: str, node_id: str) -> None:
    """Tells the cluster that a node will be gone in a minute, as a cloud's notice does."""
    code = (
        "import sys, time; from ray._raylet import GcsClient;"
        "client = GcsClient(address=sys.argv[1]);"
        "print(client.drain_node(sys.argv[2], 2, 'spot notice', int((time.time() + float(sys.argv[3])) * 1000)))"
    )
    command = [sys.executable, "-c", code, address, node_id, str(paced(60))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "True" in done.stdout, done.stdout + done.stderr


def test_a_node_is_cut_off_with_its_actors_still_running(trial: Trial) -> None:
    """Its raylet is stopped, so the cluster declares it dead, while its actors go on and put their videos in place."""
    trial.begin(usual_prompts(), call_s=0.05)
    nodes = trial.cluster.nodes
    node = wait_for(lambda: next((node for node in nodes if trial.cluster.actors(node)), None), what="a node at work")
    raylet, actors = node.raylet, trial.cluster.actors(node)
    signal_quietly(raylet, signal.SIGSTOP)
    try:
        trial.ends_as_undisturbed()
    finally:
        nodes.remove(node)
        for pid in (raylet, *(actor.pid for actor in actors)):
            signal_quietly(pid, signal.SIGKILL)


def test_an_actor_falls_silent_and_is_replaced(trial: Trial) -> None:
    """Its process is stopped: no death, no news. The run must not wait for it for ever."""
    trial.begin(usual_prompts(4), call_s=0.05, settings=f"[workers]\nsilent_after_s = {paced(5.0):.1f}\n")
    actor = trial.cluster.actors()[0]
    signal_quietly(actor.pid, signal.SIGSTOP)
    try:
        trial.ends_as_undisturbed()
    finally:
        actor.end()


def test_the_driver_is_killed_again_and_again(trial: Trial) -> None:
    run = trial.prepare(usual_prompts())
    for number in range(3):
        run.start()
        wanted = len(run.files("done")) + 1
        wait_for(lambda wanted=wanted: len(run.files("done")) >= wanted, what=f"row {number} to be done")  # type: ignore[misc]
        run.kill()
    run.start()
    summary = trial.ends_as_undisturbed()
    assert summary["resumed"]
    assert summary["already_done"] >= 3


def test_a_long_video_outlives_its_driver(trial: Trial) -> None:
    """The next driver goes on from the checkpoint, not from the first latent."""
    run = trial.start(usual_prompts(1, (241,)), call_s=0.08)
    wait_for(lambda: len(run.files("checkpoint")) >= 8, what="eight checkpoints")
    run.kill()
    left = set(run.files("checkpoint"))
    assert left
    run.start()
    wait_for(lambda: any("e2a" in path for path in run.files("checkpoint")), what="a checkpoint of the second driver")
    assert left & set(run.files("checkpoint")), "it has begun anew"
    trial.ends_as_undisturbed()


def test_sigterm_leaves_a_run_to_go_on_with(trial: Trial) -> None:
    run = trial.begin(usual_prompts(4), call_s=0.05)
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    output_of(run.process, 15)
    assert run.process.returncode not in (0, None)
    assert "Traceback" not in run.log
    run.start()
    trial.ends_as_undisturbed()


def test_a_second_coordinator_on_the_same_out_is_refused(trial: Trial) -> None:
    run = trial.begin(usual_prompts(4), call_s=0.05)
    second = trial.second()
    status, _ = second.finish()
    assert status not in (0, 3)
    assert str(os.getpid()) not in second.log
    assert str(run.process.pid) in second.log, second.log  # type: ignore[union-attr]
    trial.ends_as_undisturbed()


def test_two_coordinators_started_at_once_make_one_dataset(trial: Trial) -> None:
    run = trial.start(usual_prompts(4), call_s=0.05)
    second = trial.second().start()
    (status, _), (second_status, _) = run.wait(), second.wait()
    assert 0 in (status, second_status), (run.log, second.log)
    check_dataset(run.out, trial.expected)


def test_prompts_that_break_things_are_quarantined_with_their_reason(trial: Trial) -> None:
    faults = {
        "fault: kill at call 5": "WorkerLostError",
        "fault: nan": "NonFiniteError",
        "fault: oom": "WorkerError",
        "fault: error": "RuntimeError",
        "fault: kill once at call 30": None,
        "fault: oom once": None,
    }
    good = usual_prompts(4)
    run = trial.prepare(good + [{"prompt": prompt, "num_frames": 81} for prompt in faults])
    for row, error_type in enumerate(faults.values(), start=len(good)):
        if error_type is not None:
            trial.expected = trial.expected | {row: quarantined(trial.expected[row], error_type)}
    run.start()
    trial.ends_as_undisturbed()
    assert sum(path.startswith("dead/") for path in run.files("dead")) == 4


def test_the_same_bytes_wherever_the_windows_ran(trial: Trial) -> None:
    """One video on one actor, and one on four."""
    for number in (1, 4):
        one = replace(trial, out=f"{trial.out}-{number}")
        one.start(usual_prompts(1, (161,)), settings=f"[workers]\nnum_actors = {number}\n")
        one.ends_as_undisturbed()


def test_nothing_is_left_running(whole_cluster: FaultCluster) -> None:
    """Last in the file: no actor outlives its driver."""
    assert not whole_cluster.actors()
