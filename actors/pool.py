"""The workers of a run as Ray actors: started, watched, and replaced when they die.

Every actor is pinned to its GPU (or CPU slot) for the run, and dies with the driver. Neither actors nor calls are
retried by Ray: an actor that died, or cannot be reached, is killed for good and another started in its place, wherever
there is room; which row is tried again is for the ledger to say. (Ray's own restart answers calls with errors while it
lasts, comes back on the node that may be dying, and leaves an actor that was only cut off free to go on.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.backbone import BackboneWorker, WorkerSettings
from actors.runtime import Slots
from actors.text_encoder import TextEncoderWorker
from miga.errors import MigaError, ModelError, UsageError

MAX_FAILED_STARTS = 5
"""Times in a row that a worker may die while it loads its backbone."""


@dataclass
class _Member:
    actor: Any
    failed_starts: int = 0


@dataclass
class Pool:
    """The backbone actors, by name.

    Attributes:
        settings: what each is told.
        slots: how many there are and what each takes.
    """

    settings: WorkerSettings
    slots: Slots
    _members: dict[str, _Member] = field(default_factory=dict)
    _starting: dict[ray.ObjectRef, str] = field(default_factory=dict)

    def start(self) -> None:
        """Starts all of them."""
        for number in range(self.slots.num_actors):
            self._start(f"worker-{number}", failed_starts=0)

    def actor(self, name: str) -> Any:
        """The actor of a worker."""
        return self._members[name].actor

    @property
    def starting(self) -> list[ray.ObjectRef]:
        """References to wait on: one per worker that is loading its backbone."""
        return list(self._starting)

    def started(self, reference: ray.ObjectRef) -> str | None:
        """Takes a reference of `starting` that is ready.

        Returns:
            The worker that is now ready; None if its process died while loading (another is started).

        Raises:
            MigaError: if loading failed for a reason that would fail every worker.
        """
        name = self._starting.pop(reference)
        member = self._members[name]
        try:
            ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, MigaError):
                raise error.cause from None
            raise ModelError(
                f"{name} cannot load {self.settings.model!r}: {type(error.cause).__name__}: {error.cause}",
                "try it in Python: LongVideoPipeline.from_pretrained",
            ) from error
        except RayActorError as error:
            if member.failed_starts + 1 >= MAX_FAILED_STARTS:
                raise ModelError(
                    f"{name} died {MAX_FAILED_STARTS} times while loading {self.settings.model!r}: {error}",
                    "most often the machine has too little memory: fewer num_actors in [workers] need less",
                ) from error
            self._replace(name, member.failed_starts + 1)
            return None
        member.failed_starts = 0
        return name

    def replace(self, name: str) -> None:
        """A ready worker has died or cannot be reached: another takes its name."""
        self._replace(name, failed_starts=0)

    def _replace(self, name: str, failed_starts: int) -> None:
        ray.kill(self._members[name].actor, no_restart=True)
        self._start(name, failed_starts)

    def _start(self, name: str, failed_starts: int) -> None:
        kind = ray.remote(BackboneWorker).options(
            num_cpus=self.slots.cpus, num_gpus=self.slots.gpus, max_restarts=0, max_task_retries=0
        )
        member = _Member(kind.remote(self.settings), failed_starts=failed_starts)
        self._members[name] = member
        self._starting[member.actor.load.remote()] = name


def start_text_encoder(settings: WorkerSettings, slots: Slots) -> Any:
    """The text encoder's actor: beside the pool, on no CPU slot of its own; its calls are pure, so Ray may retry them.

    Raises:
        UsageError: if it is to have a share of a GPU that the backbone actors do not leave: it would wait for ever.
    """
    share = settings.text_gpus
    left = ray.cluster_resources().get("GPU", 0.0) - slots.num_actors * slots.gpus if share else 0.0
    if left < share - 1e-9:
        raise UsageError(
            f"the text encoder is to have {share:g} GPUs, and the {slots.num_actors} backbone actors leave {left:g}",
            "in [workers] lower num_actors or gpus_per_actor (0.8 leaves it 0.2 of each), or set text_gpus = 0",
        )
    kind = ray.remote(TextEncoderWorker).options(num_cpus=0, num_gpus=share, max_restarts=-1, max_task_retries=-1)
    device = "cuda" if share else "cpu"
    return kind.remote(settings.model, settings.revision, settings.num_threads, settings.text_dtype, device)
