"""How many actors a cluster gets, and what each takes."""

from __future__ import annotations

import pytest

from actors.runtime import Slots, plan_slots
from miga.errors import UsageError
from pipeline.config import WorkersConfig


@pytest.mark.parametrize(
    ("workers", "resources", "slots"),
    [
        (WorkersConfig(), {"CPU": 2.0}, Slots(num_actors=2, cpus=1.0, gpus=0.0)),
        (WorkersConfig(), {"CPU": 64.0}, Slots(num_actors=2, cpus=1.0, gpus=0.0)),
        (WorkersConfig(), {"CPU": 1.0}, Slots(num_actors=1, cpus=1.0, gpus=0.0)),
        (WorkersConfig(), {"CPU": 64.0, "GPU": 8.0}, Slots(num_actors=8, cpus=1.0, gpus=1.0)),
        (WorkersConfig(cpus_per_actor=16.0), {"CPU": 64.0, "GPU": 8.0}, Slots(num_actors=4, cpus=16.0, gpus=1.0)),
        (WorkersConfig(gpus_per_actor=0.5), {"CPU": 64.0, "GPU": 2.0}, Slots(num_actors=4, cpus=1.0, gpus=0.5)),
        (WorkersConfig(gpus_per_actor=0.0), {"CPU": 4.0, "GPU": 2.0}, Slots(num_actors=2, cpus=1.0, gpus=0.0)),
        (WorkersConfig(num_actors=12), {"CPU": 4.0}, Slots(num_actors=12, cpus=1.0, gpus=0.0)),
    ],
)
def test_one_actor_per_gpu_or_two_on_cpu_slots(
    workers: WorkersConfig, resources: dict[str, float], slots: Slots
) -> None:
    assert plan_slots(workers, resources) == slots


def test_a_cluster_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="too few for one actor"):
        plan_slots(WorkersConfig(cpus_per_actor=8.0), {"CPU": 4.0, "GPU": 1.0})
