"""A process of a training: an actor that holds the network, and takes steps when it is told to.

`torch.distributed` is formed by the first one's address: NCCL between GPUs, gloo else. All of them die together: the
driver ends the group, forms another, and goes on from the last state.
"""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import ray
import torch
import torch.distributed

from miga.backbones.wan.training import WanVelocity, load_transformer, model_folder, prepare
from miga.errors import OutputError
from miga.training.encoded import EncodedClips
from miga.training.group import Alone, Distributed, Group
from miga.training.lora import write_lora
from miga.training.state import read_part, write_part
from miga.training.trainer import Trainer, TrainingSettings

PATIENCE: Final = timedelta(minutes=30)
"""How long a process waits for another one's message."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What all processes of a training are told.

    Attributes:
        model, revision: that is trained.
        part: folder of its transformer.
        clips: folder of the encoded clips.
        states: folder of the states.
        device: "cuda" or "cpu".
        dtype: of weights that do not learn.
        autocast: what matrix products are computed in where all weights learn; empty: in the weights' own type.
        num_threads: of a process.
        rank, alpha: of a LoRA; rank None: all weights learn.
        checkpointing: whether blocks are computed anew for the gradient.
        holds: see `Trainer`.
        settings: of the training itself.
        measure_every: steps after which a clip is sampled, to measure what is handed over; 0: never.
        measure_steps: Euler steps of that clip.
    """

    model: str
    revision: str | None
    part: str
    clips: str
    states: str
    device: str
    dtype: str
    autocast: str
    num_threads: int
    rank: int | None
    alpha: float
    checkpointing: bool
    holds: bool
    settings: TrainingSettings
    measure_every: int
    measure_steps: int


class TrainingProcess:
    """One of them.

    Args:
        job: see there.
        number: which one, from 0 on.
        count: how many.
    """

    def __init__(self, job: TrainingJob, number: int, count: int) -> None:
        torch.set_num_threads(job.num_threads)
        self._job, self._number, self._count = job, number, count
        self._device = torch.device(job.device)

    def address(self) -> str:
        """Where the others find this one."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{host}:{probe.getsockname()[1]}"

    def begin(self, address: str, step: int | None) -> int:
        """Joins the others, loads what is trained, and goes on from a state; the next step.

        Raises:
            ModelError: if the model cannot be loaded.
            OutputError: if the state cannot be.
        """
        job = self._job
        group: Group = Alone()
        if self._count > 1:
            if address.startswith("127."):  # gloo asks the host's name for its own address
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            torch.distributed.init_process_group(
                "nccl" if self._device.type == "cuda" else "gloo",
                init_method=f"tcp://{address}",
                rank=self._number,
                world_size=self._count,
                timeout=PATIENCE,
            )
            assert torch.distributed.group.WORLD is not None
            group = Distributed(torch.distributed.group.WORLD)
        self._network: Any = load_transformer(
            job.model, job.revision, job.part, self._device, getattr(torch, job.dtype)
        )
        self._layers = prepare(
            self._network,
            rank=job.rank,
            alpha=job.alpha,
            seed=job.settings.seed,
            checkpointing=job.checkpointing,
            holds=job.holds,
        )
        self._trainer = Trainer(
            self._network,
            WanVelocity(self._network, getattr(torch, job.autocast) if job.autocast else None),
            EncodedClips(Path(job.clips)),
            job.settings,
            self._device,
            group,
            holds=job.holds,
        )
        if step is not None:
            try:
                self._trainer.load_state(*read_part(Path(job.states), step, self._number))
            except ValueError as error:
                raise OutputError(
                    f"the state of step {step} is of another training: {error}", "begin in another folder"
                ) from None
        return self._trainer.step

    def advance(self, until: int) -> list[dict[str, Any]]:
        """Takes steps until that one is the next; the figures of each."""
        figures = []
        while self._trainer.step < until:
            step = self._trainer.step
            found: dict[str, Any] = {"step": step, **self._trainer.advance()}
            if self._job.measure_every and step % self._job.measure_every == 0:
                found |= self._trainer.measured_hand_over(self._job.measure_steps)
            figures.append(found)
        figures[-1] |= self._trainer.bank_figures()
        return figures

    def save(self) -> None:
        """Writes what the next steps go on from."""
        is_first = self._number == 0
        shared = self._trainer.state() if is_first else None
        write_part(Path(self._job.states), self._trainer.step, self._number, self._trainer.banks.state(), shared)

    def write_result(self, out: str, name: str) -> str:
        """Writes what was trained: a LoRA's file, or a model's folder; where it is."""
        if self._layers:
            file = Path(out) / f"{name}.safetensors"
            write_lora(file, self._layers, self._job.alpha)
            return str(file)
        folder, unfinished = Path(out) / name, Path(out) / f".{name}"
        for place in (unfinished, folder):
            shutil.rmtree(place, ignore_errors=True)
        source = model_folder(self._job.model, self._job.revision, ("*/*",))
        shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns(self._job.part))
        self._network.save_pretrained(unfinished / self._job.part)
        os.replace(unfinished, folder)
        return str(folder)
