"""Runs to which everything happens that can, at random: `make chaos CHAOS="--seeds 1-20 --seconds 20"`.

A small cluster with nodes that come and go, each in a network namespace of its own; OUT in a bucket behind a server
that fails and falls silent, or, every third seed, on a disk that fills up; clocks that are set; prompts that break
things. Faults are drawn from the seed, the first two so that twenty seeds in a row have every kind. When they strike
depends on the machine. In the end the dataset must be the one that an undisturbed run makes:

    rows        in the manifest, of as many in the prompt file
    lost        rows that are not there, or given up although they can be made
    doubled     rows that are there more than once
    differing   rows of other content than the undisturbed run's, or whose file is not what the manifest says
    orphans     what is left in OUT after `miga gc` and belongs to nothing: files that no row refers to and that are not
                the run's own (run.json, lease, manifest, sidecars, report), uploads in parts; and actors still running

Namespaces and the disk take root. Without it those two faults are left out, and the first line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from pipeline.storage.open import open_storage
from tests.faults import network, small_disk
from tests.faults.conftest import Workshop, usual_prompts
from tests.faults.harness import FaultCluster, Node, Run, fingerprint, manifest_of, signal_quietly, tool
from tests.faults.network import Network
from tests.faults.small_disk import SmallDisk
from tests.faulty_s3 import FaultyS3, bucket_client, s3_server
from tests.pace import Limit, paced
from tests.processes import wait_for
from tests.silent_s3 import SilentS3

DISTURBED: Final = Path(__file__).with_name("disturbed")
BAD_PROMPTS: Final = ("fault: nan", "fault: error", "fault: oom", "fault: oom once")
CALM_S: Final = (0.5, 3.0)
"""Seconds between two faults, from and to."""
NUM_NODES: Final = 2
LOCAL_EVERY: Final = 3
"""Every so many seeds OUT is a folder."""
OF_THE_SERVER: Final = ("upset the server", "silence the server")
KINDS: Final = {
    "kill an actor": 4,
    "stop an actor": 1,
    "kill a raylet": 1,
    "stop a raylet": 1,
    "kill a node": 1,
    "pull a cable": 2,
    "kill the driver": 2,
    "terminate the driver": 1,
    "freeze the driver": 2,
    "upset the server": 4,
    "silence the server": 2,
    "fill the disk": 2,
    "set a clock": 2,
}
"""Kind of fault → how often it is drawn, beside the others."""
STEPS_S: Final = (86_400.0, -86_400.0, 3_600.0, -3_600.0, 30.0, -30.0)

Dataset: TypeAlias = Mapping[int, Mapping[str, Any]]


def is_local(seed: int) -> bool:
    """Whether OUT is a folder on the small disk."""
    return seed % LOCAL_EVERY == 0


def kinds_of(seed: int, left_out: Sequence[str] = ()) -> list[str]:
    """What can strike a run of this seed."""
    none = {*left_out, *(OF_THE_SERVER if is_local(seed) else ())}
    return [kind for kind in KINDS if kind not in none]


def planned(seed: int, left_out: Sequence[str] = ()) -> list[str]:
    """The first two faults of a seed: they take turns, so that a row of seeds has all kinds."""
    kinds = kinds_of(seed, left_out)
    return [kinds[(2 * seed + number) % len(kinds)] for number in range(2)]


@dataclass
class World:
    """What a run is made in, and what can be done to it.

    Attributes:
        environment: of drivers and nodes.
        clocks: files that set the clock of drivers, and of nodes.
        left_out: kinds of faults that this machine does not allow.
    """

    folder: Path
    environment: dict[str, str]
    faulty: FaultyS3
    silent: SilentS3
    clocks: dict[str, Path]
    network: Network | None = None
    disk: SmallDisk | None = None
    left_out: tuple[str, ...] = ()

    def environment_of(self, who: str) -> dict[str, str]:
        """Of the drivers or the nodes."""
        return self.environment | {"MIGA_TEST_CLOCK": str(self.clocks[who])}


@contextmanager
def new_world(folder: Path) -> Iterator[World]:
    """A server behind two proxies, a network, a disk and clocks; this process reaches the server directly."""
    reasons = {"pull a cable": network.why_not(), "fill the disk": small_disk.why_not()}
    with ExitStack() as stack:
        direct = stack.enter_context(s3_server())
        stack.enter_context(_environment(direct))
        net = None if reasons["pull a cable"] else stack.enter_context(Network())
        disk = None if reasons["fill the disk"] else stack.enter_context(SmallDisk())
        faulty = stack.enter_context(FaultyS3(direct["AWS_ENDPOINT_URL"]))
        silent = stack.enter_context(SilentS3(faulty.url, host=net.address if net else "127.0.0.1"))
        scratch = (disk.folder if disk else folder) / "scratch"
        scratch.mkdir()
        python_path = os.pathsep.join(filter(None, (str(DISTURBED), os.environ.get("PYTHONPATH"))))
        environment = direct | {"AWS_ENDPOINT_URL": silent.url, "PYTHONPATH": python_path}
        environment |= {"TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"}
        clocks = {who: folder / f"clock-of-{who}" for who in ("drivers", "nodes")}
        left_out = tuple(kind for kind, reason in reasons.items() if reason)
        yield World(folder, environment, faulty, silent, clocks, net, disk, left_out)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


class Chaos:
    """Draws faults for a run on a cluster, until it has ended.

    Attributes:
        struck: kind → how often it found something to strike.
        complaints: what a driver did that it must not do.
    """

    def __init__(self, seed: int, world: World, cluster: FaultCluster, run: Run, last_s: float) -> None:
        self._random = random.Random(seed)
        self._world = world
        self._cluster = cluster
        self._run = run
        self._drivers = [run]
        self._last_s = last_s
        self._kinds = kinds_of(seed, world.left_out)
        self._plan = planned(seed, world.left_out)
        self._begun_s = time.monotonic()
        self._undo: list[tuple[float, Callable[[], object]]] = []
        self._told_to_stop: set[int] = set()
        self.struck: Counter[str] = Counter()
        self.complaints: list[str] = []

    def until_the_run_ends(self, limit_s: float) -> None:
        """Faults strike from its first checkpoint on for `last_s`; then the driver is left in peace."""
        limit, quiet = Limit(limit_s), None
        while not limit.is_over:
            if self._has_ended():
                return
            if quiet is None and self._run.files("checkpoint"):
                quiet = Limit(self._last_s)
            if quiet is not None and not quiet.is_over:
                self._strike()
            elif quiet is not None:
                self._undo_all()
            self._pause(self._random.uniform(*CALM_S))
        raise AssertionError(f"the run did not end:\n{self._run.log[-4000:]}")

    def close(self) -> None:
        """Nothing is left stopped or cut: it would not be ended by a cluster's shutdown."""
        self._undo_all()
        for run in self._drivers:
            if run.is_alive:
                run.kill()

    # ---- a step ----

    def _has_ended(self) -> bool:
        """Whether all rows are settled; a driver that was killed, or gave up, is started again, as its user would."""
        if self._run.is_alive:
            return False
        assert self._run.process is not None
        self._judge(self._run)
        if self._run.process.returncode in (0, 3):
            return True
        self.struck["(the run is started again)"] += 1
        self._run.start()
        return False

    def _judge(self, run: Run) -> None:
        if "Traceback" in run.log:
            self.complaints.append(f"a driver's traceback:\n{run.log[-3000:]}")

    def _strike(self) -> None:
        weights = [KINDS[kind] for kind in self._kinds]
        kind = self._plan.pop(0) if self._plan else self._random.choices(self._kinds, weights)[0]
        begun_s = time.monotonic()
        is_struck = getattr(self, kind.replace(" ", "_"))()
        if is_struck:
            self.struck[kind] += 1
        with (self._world.folder / "faults.log").open("a") as log:
            log.write(f"{begun_s - self._begun_s:7.1f} s  {kind}{'' if is_struck else ': nothing to strike'}\n")

    def _pause(self, seconds: float) -> None:
        """Time in which what is over is undone, and lost nodes are followed by others."""
        end = Limit(seconds)
        while not end.is_over:
            self._tick()
            time.sleep(0.1)
        for node in [one for one in self._cluster.nodes if not Path(f"/proc/{one.raylet}/stat").exists()]:
            self._cluster.kill_node(node)
        while len(self._cluster.nodes) < NUM_NODES:
            self._cluster.add_node()

    def _later(self, seconds: float, undo: Callable[[], object]) -> None:
        self._undo.append((time.monotonic() + paced(seconds), undo))

    def _tick(self) -> None:
        due = [item for item in self._undo if item[0] <= time.monotonic()]
        self._undo = [item for item in self._undo if item not in due]
        for _, undo in due:
            undo()

    def _undo_all(self) -> None:
        self._world.silent.speak()
        self._undo, due = [], self._undo
        for _, undo in due:
            undo()

    # ---- the faults: each says whether there was something to strike ----

    def _an_actor(self) -> int | None:
        actors = sorted(process.pid for process in self._cluster.actors())
        return self._random.choice(actors) if actors else None

    def _a_node(self) -> Node:
        return self._random.choice(self._cluster.nodes)

    def _stop(self, pid: int, seconds: float) -> None:
        signal_quietly(pid, signal.SIGSTOP)
        self._later(seconds, lambda: signal_quietly(pid, signal.SIGCONT))

    def kill_an_actor(self) -> bool:
        """Whatever it is doing: loading, hosting, helping, uploading."""
        pid = self._an_actor()
        if pid is not None:
            signal_quietly(pid, signal.SIGKILL)
        return pid is not None

    def stop_an_actor(self) -> bool:
        """It is silent for a while, perhaps for longer than is waited for it."""
        pid = self._an_actor()
        if pid is not None:
            self._stop(pid, self._random.choice([2.0, 20.0]))
        return pid is not None

    def kill_a_raylet(self) -> bool:
        """Its actors notice."""
        self._cluster.kill_raylet(self._a_node())
        return True

    def stop_a_raylet(self) -> bool:
        """The cluster declares its node dead while its actors go on; then it wakes up."""
        node = self._a_node()
        self._cluster.nodes.remove(node)
        self._stop(node.raylet, 10.0)
        return True

    def kill_a_node(self) -> bool:
        """Power off."""
        self._cluster.kill_node(self._a_node())
        return True

    def pull_a_cable(self) -> bool:
        """For less than the cluster takes to call the node dead, or for more; what runs there goes on, cut off."""
        namespace = self._a_node().namespace
        assert namespace is not None
        namespace.cut()
        self._later(self._random.choice([1.0, 10.0]), namespace.mend)
        return True

    def kill_the_driver(self) -> bool:
        """SIGKILL."""
        is_alive = self._run.is_alive
        self._run.kill()
        return is_alive

    def terminate_the_driver(self) -> bool:
        """SIGTERM, as `ray job stop` does."""
        assert self._run.process is not None
        is_alive = self._run.is_alive
        self._told_to_stop.add(self._run.process.pid)
        self._run.process.send_signal(signal.SIGTERM)
        return is_alive

    def freeze_the_driver(self) -> bool:
        """SIGSTOP until another driver has taken the run over, then SIGCONT: it must notice that, and stop."""
        first = self._run
        epoch = self._lease_of(first)
        if epoch is None:
            return False
        assert first.process is not None
        signal_quietly(first.process.pid, signal.SIGSTOP)
        self._run = Run(first.prompts, first.out, first.config, first.address, first.environment).start()
        self._drivers.append(self._run)
        try:
            wait_for(lambda: self._is_taken_over(epoch), 120, "a take-over of the lease")
        finally:
            signal_quietly(first.process.pid, signal.SIGCONT)
        wait_for(lambda: self._ticked(not first.is_alive), 120, "the end of a driver that was frozen")
        self._judge(first)
        noticed = ["another run has taken over"]
        if first.process.pid in self._told_to_stop:
            noticed.append("miga: stopped;")
        has_noticed = first.process.returncode == 1 and any(text in first.log for text in noticed)
        if not has_noticed and first.process.returncode not in (0, 3):  # 0, 3: all was done when it was frozen
            self.complaints.append(
                f"a driver without a lease ended with {first.process.returncode}:\n{first.log[-3000:]}"
            )
        return True

    def _is_taken_over(self, epoch: int) -> bool:
        if not self._run.is_alive:  # it was refused, or failed: once more
            self._has_ended()
        return self._ticked(self._lease_of(self._run) not in (None, epoch))

    def _ticked(self, answer: bool) -> bool:
        self._tick()
        return answer

    def _lease_of(self, run: Run) -> int | None:
        """The epoch of the newest lease, if this driver holds it and is alive."""
        if not run.is_alive:
            return None
        assert run.process is not None
        storage = open_storage(run.out)
        names = [path for path in storage.list("lease") if path.endswith(".json")]
        if not names:
            return None
        claim = json.loads(storage.read_bytes(max(names)))
        return int(claim["epoch"]) if claim["owner"]["pid"] == run.process.pid else None

    def upset_the_server(self) -> bool:
        """The next requests fail in some way."""
        kind: Any = self._random.choice(["busy", "error", "reset", "lose", "slow", "cut"])
        self._world.faulty.fail(kind, times=self._random.randrange(1, 12), delay_s=0.5)
        return True

    def silence_the_server(self) -> bool:
        """It takes what is sent and says nothing; then it goes on, or ends the connections."""
        seconds = self._random.choice([2.0, 8.0])
        if self._random.random() < 0.5:
            self._world.silent.silence(paced(seconds))
        else:
            stage: Any = self._random.choice(["request headers", "request body", "done", "response headers"])
            self._world.silent.stop_at(stage, times=6)
            self._later(seconds, self._world.silent.speak)
        return True

    def fill_the_disk(self) -> bool:
        """Where workers have their scratch folders, and OUT if that is a folder."""
        assert self._world.disk is not None
        self._world.disk.fill()
        self._later(self._random.choice([2.0, 8.0]), self._world.disk.free)
        return True

    def set_a_clock(self) -> bool:
        """That of the drivers, or of all nodes; on or back."""
        clock = self._world.clocks[self._random.choice(["drivers", "nodes"])]
        new = clock.with_suffix(".new")
        new.write_text(str(self._random.choice(STEPS_S)))
        new.replace(clock)
        return True


# ---- what has come of it ----


@dataclass
class Outcome:
    """What a seed came to."""

    seed: int
    out: str
    num_expected: int
    rows: int = 0
    lost: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the dataset is that of an undisturbed run, and nothing else is there."""
        wrong = (self.lost, self.doubled, self.differing, self.orphans, self.complaints)
        return self.rows == self.num_expected and not any(wrong)

    @property
    def num_faults(self) -> int:
        """That struck; what the user did about them is none."""
        return sum(count for kind, count in self.struck.items() if not kind.startswith("("))

    def __str__(self) -> str:
        wrong = f"lost {len(self.lost)}  doubled {len(self.doubled)}  differing {len(self.differing)}"
        struck = ", ".join(f"{kind} {count}" for kind, count in sorted(self.struck.items()))
        return (
            f"seed {self.seed:3d}  {self.out:6}  rows {self.rows}/{self.num_expected}  {wrong}  "
            f"orphans {len(self.orphans)}  faults {self.num_faults:2d}  {self.seconds:4.0f} s  "
            f"{'whole' if self.is_whole else 'WRONG'}  ({struck})"
        )

    def judge(self, out: str, expected: Dataset) -> None:
        """Reads the dataset, collects garbage, and holds both against what they must be."""
        storage = open_storage(out)
        rows = list(manifest_of(storage).read_rows())
        found = {row.row: fingerprint(storage, row) for row in rows}
        self.rows = len(rows)
        self.doubled = sorted(row for row, count in Counter(row.row for row in rows).items() if count > 1)
        for row, content in expected.items():
            if row not in found or (found[row]["status"], content["status"]) == ("failed", "ok"):
                self.lost.append(row)
            elif found[row] != content:
                self.differing.append(row)
        self.differing += sorted(found.keys() - expected.keys())
        for command in ("gc", "verify"):
            try:
                tool(command, out)
            except AssertionError as error:
                self.complaints.append(str(error))
        videos = {f"{Path(row.uri).parent.name}/{Path(row.uri).name}" for row in rows if row.uri}
        self.orphans += orphans(out, videos)


_OWN: Final = re.compile(
    r"run\.json|report(\.html|/.*)|lease/\d{6}\.(json|beat|released)|manifest/shard-\d{5}\.parquet|"
    r"(done|dead)/\d{5}/\d{8}-[0-9a-f]{16}\.json"
)


def orphans(out: str, videos: set[str]) -> list[str]:
    """Files and uploads in OUT that are neither the run's own nor one of the videos (`SHARD/NAME`)."""
    if out.startswith("s3://"):
        bucket, _, prefix = out.removeprefix("s3://").partition("/")
        client = bucket_client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        names = [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", ())]
        uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
        left = [f"an upload in parts of {upload['Key']}" for upload in uploads]
    else:
        names = [path.relative_to(out).as_posix() for path in Path(out).rglob("*") if path.is_file()]
        left = []
    return left + [name for name in names if not _OWN.fullmatch(name) and name.removeprefix("video/") not in videos]


# ---- a seed, and many ----


def chaos_prompts(num_videos: int) -> list[dict[str, Any]]:
    """Rows of several lengths, every third of which breaks something, up to four."""
    prompts = usual_prompts(num_videos)
    for row, prompt in zip(range(2, num_videos, 3), BAD_PROMPTS, strict=False):
        prompts[row] = {"prompt": prompt, "num_frames": 81}
    return prompts


def calm_dataset(prompts: list[dict[str, Any]], folder: Path) -> Dataset:
    """What an undisturbed run makes of them."""
    (folder / "runs").mkdir(parents=True)
    run = Workshop(folder / "runs").run(folder / "out", prompts, call_s=0.0, settings="[workers]\nnum_actors = 2\n")
    status, summary = run.finish()
    assert status in (0, 3), (summary, run.log)
    storage = open_storage(run.out)
    return {row.row: fingerprint(storage, row) for row in manifest_of(storage).read_rows()}


def run_seed(
    seed: int,
    prompts: list[dict[str, Any]],
    expected: Dataset,
    last_s: float,
    folder: Path,
    limit_s: float = 600.0,
) -> Outcome:
    """Makes the dataset under faults for `last_s` seconds, and holds it against that of an undisturbed run.

    Args:
        seed: of the faults.
        prompts: of the run.
        expected: what an undisturbed run makes of them.
        last_s: for how long faults strike.
        folder: for prompts, logs and clocks.
        limit_s: for the run; all seconds are those of an idle machine.
    """
    begun_s = time.monotonic()
    (folder / "runs").mkdir(parents=True)
    outcome = Outcome(seed, "folder" if is_local(seed) else "bucket", len(expected))
    with new_world(folder) as world:
        bucket_client().create_bucket(Bucket="chaos")
        place = world.disk.folder if world.disk else folder
        out = str(place / "out") if is_local(seed) else f"s3://chaos/{uuid.uuid4().hex}"
        cluster = FaultCluster(NUM_NODES, 2, world.environment_of("nodes"), world.network)
        try:
            run = Workshop(folder / "runs").run(
                out,
                prompts,
                call_s=0.03,
                address=cluster.address,
                environment=world.environment_of("drivers"),
                settings=f"max_attempts = 1000\n[workers]\nsilent_after_s = {paced(10.0):.1f}\n",
            )
            chaos = Chaos(seed, world, cluster, run.start(), last_s)
            try:
                chaos.until_the_run_ends(limit_s)
            except AssertionError as error:
                chaos.complaints.append(str(error))
            finally:
                chaos.close()
            outcome.struck, outcome.complaints = chaos.struck, chaos.complaints
            outcome.judge(out, expected)
            try:
                wait_for(lambda: not cluster.actors(), 60, "the end of all actors")
            except AssertionError:
                outcome.orphans += [f"process {actor.pid}: {actor.title}" for actor in cluster.actors()]
        finally:
            cluster.shutdown()
    outcome.seconds = time.monotonic() - begun_s
    return outcome


def seeds_of(text: str) -> list[int]:
    """The seeds that "1-20,25" names.

    Raises:
        ValueError: if it names none.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError("no seeds")
    return seeds


def tell(outcomes: Sequence[Outcome]) -> None:
    """The table at the end."""
    total: Counter[str] = Counter()
    print("\n seed out      rows  lost  doubled  differing  orphans  faults  seconds")
    for one in outcomes:
        total.update(one.struck)
        rows, mark = f"{one.rows}/{one.num_expected}", "" if one.is_whole else "  WRONG"
        print(
            f"{one.seed:5d} {one.out:6} {rows:>6} {len(one.lost):5d} {len(one.doubled):8d} {len(one.differing):10d} "
            f"{len(one.orphans):8d} {one.num_faults:7d} {one.seconds:8.0f}{mark}"
        )
    print("\nfaults struck, all seeds together:")
    for kind in [*KINDS, *sorted(total.keys() - KINDS.keys())]:
        print(f"{total[kind]:5d}  {kind}")
    print(
        f"\n{sum(one.is_whole for one in outcomes)} of {len(outcomes)} seeds: the rows and bytes of an undisturbed run"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if every seed came to the undisturbed dataset, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=seeds_of, help='as "1-20" or "3,5"; default: one of the time of day')
    parser.add_argument("--seed", type=int, help="one")
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long faults strike, on an idle machine")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the drivers' logs there, and when what struck")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process, namespace or disk is left
    seeds = options.seeds or [options.seed if options.seed is not None else int(time.time()) % 100_000]
    for why in filter(None, (network.why_not(), small_disk.why_not())):
        print(f"left out, as this machine does not allow it: {why}", flush=True)
    prompts = chaos_prompts(options.videos)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="miga-chaos-") as temporary:
        folder = options.keep or Path(temporary)
        expected = calm_dataset(prompts, Path(temporary) / "calm")
        for seed in seeds:
            try:
                outcome = run_seed(seed, prompts, expected, options.seconds, folder / f"seed-{seed}")
            except AssertionError as error:  # of the cluster: there was no run
                outcome = Outcome(seed, "none", len(expected), complaints=[str(error)])
            outcomes.append(outcome)
            print(outcomes[-1], flush=True)
            for name in ("lost", "doubled", "differing", "orphans", "complaints"):
                for what in getattr(outcomes[-1], name):
                    print(f"    {name}: {what}", flush=True)
    if len(outcomes) > 1:
        tell(outcomes)
    return 0 if all(outcome.is_whole for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
