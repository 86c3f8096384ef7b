"""Encodes clips, and drives the processes of a training: until its last step, whoever of them dies on the way."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.training.encoder import EncodeJob, encode_clips
from actors.training.process import TrainingJob, TrainingProcess
from jobs.training.plan import NOTES, TrainingPlan
from jobs.training.progress import add_progress, averaged, begin_progress, draw_curves
from miga.errors import InputError, MigaError, OutputError, UsageError, WorkerError
from miga.training.conditions import NONE
from miga.training.encoded import INDEX, EncodedClips, write_index
from miga.training.state import SavedStep, name_latest, saved_step

MAX_STARTS: Final = 3
"""Times that the processes are started without a state written in between."""
MAX_LEFT_OUT: Final = 0.5
"""Share of the videos that may be of no use."""
PLACE_PATIENCE_S: Final = 600.0
DEATH_PATIENCE_S: Final = 15.0
"""How long it may take until it is known that a process died whose message another one misses."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """How the work is laid on machines; changes nothing in the result, but for the number of processes.

    Attributes:
        device: "cuda" or "cpu", of all.
        cpus, gpus: slots of a process.
        num_threads: of a process.
        num_encoders: workers that encode clips.
        dtype, autocast, checkpointing: see `TrainingJob`.
        save_every: steps after which a state is written.
        log_every: steps that are told of together.
        measure_every, measure_steps: see `TrainingJob`.
    """

    device: str
    cpus: float
    gpus: float
    num_threads: int
    num_encoders: int
    dtype: str
    autocast: str
    checkpointing: bool
    save_every: int
    log_every: int
    measure_every: int
    measure_steps: int


def encode(plan: TrainingPlan, machines: Machines, say: Callable[[str], None]) -> None:
    """Encodes the clips that are not yet encoded; once all are, it does nothing.

    Raises:
        OutputError: if the folder holds clips for other settings.
        InputError: if most of the videos are of no use.
    """
    if not plan.sources:
        return
    facts = plan.encoding()
    plan.clips.mkdir(parents=True, exist_ok=True)
    noted = plan.clips / "encoding.json"
    if noted.exists() and json.loads(noted.read_text()) != facts:
        earlier = json.loads(noted.read_text())
        other = [name for name in facts if facts[name] != earlier.get(name)]
        raise OutputError(
            f"{str(plan.clips)!r} holds clips encoded for another {' and '.join(other)}",
            "choose another folder, or delete that one",
        )
    if (plan.clips / INDEX).exists():
        EncodedClips(plan.clips)
        return
    noted.write_text(json.dumps(facts))
    left_out: dict[str, str] = {}
    num_done = 0

    def told(number: int, reason: str) -> None:
        nonlocal num_done
        num_done += 1
        if reason:
            left_out[plan.sources[number].name] = reason
            say(f"{plan.sources[number].name} is left out: {reason}")
        if num_done % 50 == 0 or num_done == len(plan.sources):
            say(f"{num_done} of {len(plan.sources)} clips encoded")

    job = EncodeJob(
        model=plan.place,
        revision=plan.revision,
        device=machines.device,
        num_threads=machines.num_threads,
        names=tuple(name for name in plan.settings.mixture if name != NONE),
        folder=str(plan.clips.resolve()),
        seed=plan.settings.seed,
    )
    numbers = encode_clips(
        job, plan.sources, num_actors=machines.num_encoders, cpus=machines.cpus, gpus=machines.gpus, told=told
    )
    if len(left_out) > MAX_LEFT_OUT * len(plan.sources):
        name, reason = next(iter(left_out.items()))
        raise InputError(
            f"{len(left_out)} of {len(plan.sources)} videos are of no use, such as {name!r}: {reason}",
            "take longer videos, or a model of shorter clips",
        )
    write_index(plan.clips, {"numbers": numbers, "left_out": left_out, **facts})


def train(plan: TrainingPlan, machines: Machines, say: Callable[[str], None]) -> str:
    """Trains until the plan's last step, going on from the last state; where the result is.

    Raises:
        MigaError: if it cannot be trained.
    """
    states = plan.out / "state"
    states.mkdir(parents=True, exist_ok=True)
    _note(plan)
    job = TrainingJob(
        model=plan.place,
        revision=plan.revision,
        part=plan.part,
        clips=str(plan.clips.resolve()),
        states=str(states.resolve()),
        device=machines.device,
        dtype=machines.dtype,
        autocast=machines.autocast,
        num_threads=machines.num_threads,
        rank=plan.rank,
        alpha=plan.alpha,
        checkpointing=machines.checkpointing,
        holds=plan.spec.image_input == "first_latent",
        settings=plan.settings,
        measure_every=machines.measure_every,
        measure_steps=machines.measure_steps,
    )
    num_starts = 0
    while True:
        before = saved_step(states)
        try:
            return _go_on(plan, machines, job, before, say)
        except RayActorError as error:
            after = saved_step(states)
            num_starts = num_starts + 1 if after == before else 1
            if num_starts >= MAX_STARTS:
                raise WorkerError(
                    f"the processes of the training died {num_starts} times without a state between: {error}",
                    "most often memory: take a smaller --lora-rank or --batch, --checkpointing, or more memory",
                ) from None
            say(f"a process of the training died; all are started again from step {after.step if after else 0}")


def _go_on(
    plan: TrainingPlan, machines: Machines, job: TrainingJob, saved: SavedStep | None, say: Callable[[str], None]
) -> str:
    count = plan.num_processes
    if saved is not None and saved.num_processes != count:
        raise UsageError(
            f"the training in {str(plan.out)!r} is of {saved.num_processes} processes, each with its own bank, "
            f"and {count} are to go on with it",
            f"say --processes {saved.num_processes}",
        )
    if saved is not None and saved.step >= plan.num_steps:
        say(f"{saved.step} steps are done already")
    group = _place(count, machines)
    processes: list[Any] = []
    try:
        kind = ray.remote(TrainingProcess)
        processes = [
            kind.options(
                num_cpus=machines.cpus,
                num_gpus=machines.gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
            ).remote(job, number, count)
            for number in range(count)
        ]
        address = ray.get(processes[0].address.remote())
        step = max(_ask(processes, "begin", address, None if saved is None else saved.step))
        begin_progress(plan.out, step)
        while step < plan.num_steps:
            until = min(plan.num_steps, step + machines.log_every - step % machines.log_every)
            lines = averaged(_ask(processes, "advance", until))
            step = until
            add_progress(plan.out, lines)
            say(_line(lines, step, plan.num_steps))
            if step % machines.save_every == 0 or step == plan.num_steps:
                _ask(processes, "save")
                name_latest(plan.out / "state", SavedStep(step, count))
                draw_curves(plan.out)
        result: str = ray.get(processes[0].write_result.remote(str(plan.out.resolve()), plan.result))
        return result
    finally:
        for process in processes:
            ray.kill(process, no_restart=True)
        remove_placement_group(group)


def _ask(processes: Sequence[Any], method: str, *arguments: Any) -> list[Any]:
    """Asks all of them at once; the answers, process by process.

    Raises:
        MigaError: of the first that has one.
        RayActorError: if one of them died.
    """
    asked = [getattr(process, method).remote(*arguments) for process in processes]
    waiting = list(asked)
    try:
        while waiting:  # one that has failed leaves the others waiting for its messages
            done, waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)
        found: list[Any] = ray.get(asked)
        return found
    except RayTaskError as error:
        if isinstance(error.cause, MigaError):
            raise error.cause from None
        for reference in asked:  # whoever lost a message may have lost it to another's death
            with contextlib.suppress(RayTaskError, GetTimeoutError):
                ray.get(reference, timeout=DEATH_PATIENCE_S)
        raise WorkerError(
            f"the training itself failed: {error.cause or error}",
            "of memory: take a smaller --lora-rank or --batch; the same command goes on from the last state",
        ) from None


def _place(count: int, machines: Machines) -> Any:
    """Slots for all processes at once, near each other where that can be.

    Raises:
        UsageError: if there is no room.
    """
    bundle = {"CPU": machines.cpus, **({"GPU": machines.gpus} if machines.gpus else {})}
    group = placement_group([bundle] * count, strategy="PACK")
    if not group.wait(PLACE_PATIENCE_S):
        remove_placement_group(group)
        raise UsageError(
            f"{count} processes of {machines.cpus:g} CPU slots and {machines.gpus:g} GPUs find no room at once",
            "ask for fewer by --processes, or join a larger cluster",
        )
    return group


def _note(plan: TrainingPlan) -> None:
    unfinished = plan.out / f".{NOTES}"
    unfinished.write_text(json.dumps(plan.notes(), indent=2, sort_keys=True) + "\n")
    os.replace(unfinished, plan.out / NOTES)


def _line(lines: Sequence[dict[str, Any]], step: int, num_steps: int) -> str:
    loss = sum(line["loss"] for line in lines) / len(lines)
    last = lines[-1]
    text = f"step {step} of {num_steps}: loss {loss:.4f}, {last['bank_samples']:.0f} errors in the bank"
    measured = [line["hand_over_rms"] for line in lines if "hand_over_rms" in line]
    injected = [line["injected_condition_rms"] for line in lines if "injected_condition_rms" in line]
    if measured and injected:
        ratio = (sum(injected) / len(injected)) / max(sum(measured) / len(measured), 1e-9)
        text += f", injected errors are {ratio:.2f} times those measured at a clip's end"
    return text
