"""The workers of a run as Ray actors: started, replaced when they die, ended when they are not needed.

Every actor is pinned to its GPU (or CPU slot) while it lives, and dies with the driver. Neither actors nor calls are
retried by Ray: an actor that died, or cannot be reached, is killed for good and another started in its place, wherever
there is room; which row is tried again is for the ledger to say. (Ray's own restart answers calls with errors while it
lasts, comes back on the node that may be dying, and leaves an actor that was only cut off free to go on.)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ray

from actors.messages import VideoTask, WorkerInfo, WorkerSettings
from actors.runtime import Slots
from actors.text_encoder import TextEncoderWorker
from actors.worker.backbone import CONCURRENCY_GROUPS, BackboneWorker
from miga.errors import UsageError

StartActor: TypeAlias = Callable[[], Any]


@dataclass(eq=False)
class Member:
    """An actor in its place.

    Attributes:
        name: of the place; whoever follows here has it too.
        generation: counts the actors of the place.
        actor: Ray's.
        info: what it says of itself; None while it loads.
        started_s: when it was started.
        heard_at_s: when it last answered.
        busy_s, num_calls: of its GPU, as it last told.
        outgoing: what it is to begin, and its embeddings, told with the next call for news.
    """

    name: str
    generation: int
    actor: Any
    info: WorkerInfo | None = None
    is_ready: bool = False
    started_s: float = field(default_factory=time.monotonic)
    heard_at_s: float = field(default_factory=time.monotonic)
    idle_since_s: float | None = None
    busy_s: float = 0.0
    num_calls: float = 0.0
    outgoing: tuple[VideoTask | None, Sequence[Any]] = (None, ())

    @property
    def key(self) -> str:
        """Names this actor, not its place."""
        return f"{self.name}#{self.generation}"


class Pool:
    """The places of a run's workers, filled or empty.

    Args:
        start_actor: makes an actor.
        kill: ends one.

    Attributes:
        retired: places that are not filled again.
    """

    def __init__(self, start_actor: StartActor, kill: Callable[[Any], None] = ray.kill) -> None:
        self._start_actor, self._kill = start_actor, kill
        self._members: dict[str, Member] = {}
        self.retired: set[str] = set()
        self._generations = itertools.count(1)

    def __len__(self) -> int:
        return len(self._members)

    def members(self) -> list[Member]:
        """All of them, the longest there first."""
        return list(self._members.values())

    def get(self, name: str) -> Member | None:
        """Who is in that place; None if nobody."""
        return self._members.get(name)

    def is_current(self, member: Member) -> bool:
        """Whether it is the one in its place: what others say is no longer of interest."""
        return self._members.get(member.name) is member

    def by_key(self, key: str) -> Member | None:
        """The member of that key, if it is still there."""
        member = self._members.get(key.rpartition("#")[0])
        return member if member is not None and member.key == key else None

    def start(self, name: str | None = None) -> Member:
        """Starts an actor in an empty place (by default the first one)."""
        name = name or next(
            free
            for number in itertools.count()
            if (free := f"worker-{number}") not in self._members and free not in self.retired
        )
        assert name not in self._members
        member = Member(name, next(self._generations), self._start_actor())
        self._members[name] = member
        return member

    def end(self, member: Member) -> None:
        """Ends an actor, if it is still there at all; its place is empty."""
        if self.is_current(member):
            del self._members[member.name]
        self._kill(member.actor)

    def close(self) -> None:
        """Ends all actors: another run of this process may need their slots."""
        for member in self.members():
            self.end(member)

    def retire(self, name: str) -> None:
        """Leaves that place empty for good."""
        self.retired.add(name)
        if member := self._members.get(name):
            self.end(member)


def backbone_starter(settings: WorkerSettings, slots: Slots) -> StartActor:
    """What makes a run's workers."""
    kind = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(BackboneWorker).options(
        num_cpus=slots.cpus, num_gpus=slots.gpus, max_restarts=0, max_task_retries=0
    )
    return lambda: kind.remote(settings)


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
