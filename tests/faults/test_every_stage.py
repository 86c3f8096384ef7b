"""An actor, its raylet, its whole node or the driver is killed in each state of a row and of a worker.

The states are those of `pipeline/scheduling/ledger.py`:

    row      waiting       workers are loading
             making        before any checkpoint; while one is put into storage
             uploading     while its video is put into storage
             settled       while its sidecar is written (done, or dead), while its checkpoints are removed, while the
                           file of its shard is written
    worker   starting      workers are loading
             hosting       making, uploading
             helping, idle beside the host of the only video

"Resting" passes within one event of the coordinator, where nothing can be struck. That the driver dies at each of its
own writes, and while its actors put checkpoints and videos, is in `test_storage_faults.py`.

OUT is in a bucket behind a proxy: whatever is on its way to storage is held there until the fault has struck and the
run has noticed it. Runs that need no helper have one actor, so it is known who does what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import pytest

from tests.faults.conftest import Bucket, Trial, usual_prompts
from tests.faults.harness import FaultCluster, Process, quarantined

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

Victim: TypeAlias = Literal["actor", "raylet", "node", "driver"]
ON_A_NODE: Final[tuple[Victim, ...]] = ("actor", "raylet", "node")

PROMPTS: Final = usual_prompts(3, (161, 81, 81))
QUICK: Final[dict[str, Any]] = {"call_s": 0.01, "settings": "[workers]\nnum_actors = 1\n"}
"""A few seconds of work for one actor."""


@pytest.fixture
def trial(trial: Trial, bucket: Bucket) -> Trial:
    """Into a bucket."""
    return replace(trial, out=bucket.root)


def strike(victim: Victim, actor: Process, trial: Trial) -> None:
    """Kills the actor, with it the raylet or node that it is on, or the driver, and waits until that is made good.

    A lost node is followed by another, a driver by the next; in the end there is an actor that was not there before.
    """
    cluster = trial.cluster
    before = {one.pid for one in cluster.actors()}
    if victim == "driver":
        trial.run.kill()
        trial.run.start()
    elif victim == "actor":
        actor.end()
    else:
        node = cluster.node_of(actor)
        (cluster.kill_raylet if victim == "raylet" else cluster.kill_node)(node)
        cluster.add_node()
    trial.until(
        lambda: {one.pid for one in cluster.actors()} - before, what="another actor in the place of the lost one"
    )


def only_actor(cluster: FaultCluster) -> Process:
    (actor,) = cluster.actors()
    return actor


def actor_in(method: str, trial: Trial, raylet: int | None = None) -> Process:
    """An actor in which this method is running, perhaps of a certain node."""
    return trial.until(
        lambda: next(
            (one for one in trial.cluster.actors() if one.is_in(method) and raylet in (None, one.parent)), None
        ),
        what=f"an actor in {method}",
    )


@pytest.mark.parametrize("victim", [*ON_A_NODE, "driver"])
def test_workers_are_loading(victim: Victim, trial: Trial) -> None:
    trial.start(PROMPTS, model="&load_s=2", **QUICK)
    strike(victim, actor_in("load", trial), trial)
    trial.ends_as_undisturbed()


@pytest.mark.parametrize("victim", [*ON_A_NODE, "driver"])
def test_a_video_is_in_the_making_without_a_checkpoint(victim: Victim, trial: Trial) -> None:
    """Its third network call does not end, which only happens once."""
    prompts = [{"prompt": "fault: hang once at call 3", "num_frames": 81}, *PROMPTS[1:]]
    run = trial.start(prompts, checkpoint_every_s=1e6, **QUICK)
    assert run.marks is not None
    trial.until(lambda: list(run.marks.iterdir()), what="the third call")  # type: ignore[union-attr]
    strike(victim, only_actor(trial.cluster), trial)
    assert not run.files("checkpoint")
    trial.ends_as_undisturbed()


@pytest.mark.parametrize("victim", ON_A_NODE)
@pytest.mark.parametrize("what", ["checkpoint", "video", "done", "manifest"])
def test_something_is_put_into_storage(what: str, victim: Victim, trial: Trial, bucket: Bucket) -> None:
    """By the actor that dies (checkpoint, video), or by the driver, which goes on with what it was doing."""
    fault = bucket.hold(f"/{what}/")
    trial.start(PROMPTS, **QUICK)
    trial.until(lambda: fault.num_hit, what=f"{what} to be put")
    strike(victim, only_actor(trial.cluster), trial)
    fault.released.set()
    trial.ends_as_undisturbed()


@pytest.mark.parametrize("victim", [*ON_A_NODE, "driver"])
def test_a_row_is_given_up(victim: Victim, trial: Trial, bucket: Bucket) -> None:
    """The sidecar of a row that failed is being written."""
    run = trial.prepare([*PROMPTS[1:], {"prompt": "fault: nan", "num_frames": 81}], **QUICK)
    trial.expected = trial.expected | {2: quarantined(trial.expected[2], "NonFiniteError")}
    fault = bucket.hold("/dead/")
    run.start()
    trial.until(lambda: fault.num_hit, what="the row to be given up")
    strike(victim, only_actor(trial.cluster), trial)
    fault.released.set()
    trial.ends_as_undisturbed()


def test_checkpoints_are_removed_as_the_driver_dies(trial: Trial, bucket: Bucket) -> None:
    """Those of a row that is recorded: nobody will need them, and nobody but `gc` will know of them."""
    fault = bucket.hold("/checkpoint/", method="DELETE")
    trial.start(PROMPTS, **QUICK)
    trial.until(lambda: fault.num_hit, what="a checkpoint to be removed")
    strike("driver", only_actor(trial.cluster), trial)
    fault.released.set()
    trial.ends_as_undisturbed()


@dataclass
class Beside:
    """The only video is being made, and others are there: its host is known by the checkpoint that it puts."""

    host: Process
    other: Process


@pytest.fixture
def one_video(trial: Trial, bucket: Bucket) -> Callable[[bool], Beside]:
    """Starts it, with or without helpers. It is not put into storage before the proxy recovers."""

    def start(has_helpers: bool) -> Beside:
        bucket.hold("/video/")
        fault = bucket.hold("/checkpoint/")
        settings = f'[workers]\nnum_actors = 3\nshare = "{"windows" if has_helpers else "nothing"}"\n'
        trial.start(PROMPTS[:1], call_s=0.1 if has_helpers else 0.02, settings=settings)
        port = trial.until(lambda: fault.client_port, what="a checkpoint of the host")
        (host,) = (actor for actor in trial.cluster.actors() if actor.sends_from(port))
        (elsewhere,) = (node for node in trial.cluster.nodes if node.raylet != host.parent)
        method = "run_window" if has_helpers else "answer"
        return Beside(host, actor_in(method, trial, elsewhere.raylet))

    return start


@pytest.mark.parametrize("victim", ON_A_NODE)
@pytest.mark.parametrize("has_helpers", [False, True], ids=["idle", "helping"])
def test_it_is_not_the_host(
    has_helpers: bool, victim: Victim, one_video: Callable[[bool], Beside], trial: Trial, bucket: Bucket
) -> None:
    """On the other node is one that has nothing to do, or computes a window. The video goes on in its first attempt."""
    beside = one_video(has_helpers)
    strike(victim, beside.other, trial)
    assert beside.host.pid in {actor.pid for actor in trial.cluster.actors()}
    bucket.proxy.recover()
    trial.ends_as_undisturbed()
    assert trial.attempts() == {0: 1}


def test_the_driver_dies_while_a_video_has_helpers(
    one_video: Callable[[bool], Beside], trial: Trial, bucket: Bucket
) -> None:
    strike("driver", one_video(True).other, trial)
    bucket.proxy.recover()
    trial.ends_as_undisturbed()


def test_the_text_encoder_dies_while_it_encodes(trial: Trial) -> None:
    """Ray starts it again, and the prompts with it."""
    trial.start(PROMPTS, model="&text_s=1", **QUICK)
    encoder = trial.until(lambda: next(encoders(trial.cluster), None), what="a prompt to be encoded")
    encoder.end()
    trial.ends_as_undisturbed()
    assert set(trial.attempts().values()) == {1}


def encoders(cluster: FaultCluster) -> Iterator[Process]:
    """Processes of text encoders, while they encode."""
    return (process for process in cluster.processes() if process.title.startswith("ray::TextEncoderWorker."))
