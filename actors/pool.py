"""The workers of a run as Ray actors: started, watched, and started anew when they die.

Every actor is pinned to its GPU (or CPU slot) for the run, and dies with the driver. Ray restarts one whose process
died; calls are never retried by Ray: which row is tried again is for the ledger to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from actors.backbone import BackboneWorker, WorkerInfo, WorkerSettings
from actors.runtime import Slots
from actors.text_encoder import TextEncoderWorker


@dataclass
class _Member:
    actor: Any
    info: WorkerInfo | None = None
    starts: int = 0


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
        """Starts all of them; `poll` says when each is ready."""
        for number in range(self.slots.num_actors):
            self._start(f"worker-{number}")

    def actor(self, name: str) -> Any:
        """The actor of a worker."""
        return self._members[name].actor

    def info(self, name: str) -> WorkerInfo | None:
        """What a worker said of itself when it was ready."""
        return self._members[name].info

    @property
    def starting(self) -> list[ray.ObjectRef]:
        """References to wait on: one per worker that is loading its backbone."""
        return list(self._starting)

    def started(self, reference: ray.ObjectRef) -> str | None:
        """Takes a reference of `starting` that is ready.

        Returns:
            The worker that is now ready; None if its process died while loading (it is started anew).

        Raises:
            MigaError: if loading failed for a reason that would fail every worker.
        """
        name = self._starting.pop(reference)
        try:
            self._members[name].info = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            if isinstance(getattr(error, "cause", None), Exception) or self._members[name].starts >= 5:
                raise
            self.restart(name, error)
            return None
        return name

    def restart(self, name: str, error: RayActorError) -> None:
        """A worker's process is gone: waits for Ray's restart of it, or starts another in its place."""
        if isinstance(error, ActorUnavailableError):
            self._watch(name)
        else:
            self._start(name)

    def _start(self, name: str) -> None:
        kind = ray.remote(BackboneWorker).options(
            num_cpus=self.slots.cpus, num_gpus=self.slots.gpus, max_restarts=-1, max_task_retries=0
        )
        starts = self._members[name].starts if name in self._members else 0
        self._members[name] = _Member(kind.remote(self.settings), starts=starts)
        self._watch(name)

    def _watch(self, name: str) -> None:
        member = self._members[name]
        member.starts += 1
        self._starting[member.actor.describe.remote()] = name


def start_text_encoder(settings: WorkerSettings) -> Any:
    """The text encoder's actor: beside the pool, on no slot of its own; its calls are pure, so Ray may retry them."""
    kind = ray.remote(TextEncoderWorker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    return kind.remote(settings.model, settings.revision, settings.num_threads)
