"""What both training stages share: seeded steps, a moving average of the weights, and a state that resumes exactly."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from miga.errors import OutputError

SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule: linear warm-up, then cosine decay to a hundredth."""

    num_steps: int
    learning_rate: float
    num_warmup_steps: int = 200

    def at(self, step: int) -> float:
        """Learning rate of a 0-based step."""
        warmup = min(1.0, (step + 1) / self.num_warmup_steps)
        progress = min(1.0, step / self.num_steps)
        return self.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether it multiplies matrices in bfloat16 by itself: processors without AVX-512 take forty times as long."""
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def autocast(device: torch.device | str) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 where that is faster, on a GPU or with AMX; else as the weights are."""
    kind = torch.device(device).type
    is_faster = kind != "cpu" or torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.autocast(kind, dtype=torch.bfloat16) if is_faster else nullcontext()


def save_whole(value: object, file: Path) -> None:
    """Writes a file for `torch.load`, whole or not at all."""
    temporary = file.with_suffix(".tmp")
    torch.save(value, temporary)
    os.replace(temporary, file)


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives: made once, and read from `file` from then on, tensors on the CPU."""
    if not file.exists():
        save_whole(make(), file)
    return _read(file)


def _read(file: Path) -> Any:
    """What `save_whole` wrote.

    Raises:
        OutputError: if the file is damaged, or is no such file.
    """
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise OutputError(
            f"{str(file)!r} cannot be read: it is damaged, or no file of a training",
            "delete it and run the same command again: what it held is made anew",
        ) from error


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """The random numbers of one step: the same whether training was interrupted before it or not."""
    return np.random.default_rng([seed, *stage.encode(), step])


def train(
    stage: str,
    model: nn.Module,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    schedule: Schedule,
    state_file: Path,
    *,
    weight_decay: float = 0.0,
    ema_decay: float = 0.999,
    muon: bool = False,
    factors: Mapping[str, float] | None = None,
    stop_at: int | None = None,
) -> nn.Module:
    """Trains `model` in place and leaves the moving average of its weights in it.

    Args:
        stage: name for the progress bar.
        model: the module; its parameters and buffers are what is saved.
        loss_of: step -> (loss, figures to show); everything random in it must come from the step number.
        schedule: steps and learning rate.
        state_file: where weights, averages, optimiser and step are kept; training goes on from it if it exists.
        weight_decay: of every optimiser.
        ema_decay: decay of the moving average, shortened at the start.
        stop_at: stop after so many steps of the schedule, to be resumed; None for all.
        muon: whether matrices inside `blocks` are trained by Muon, the rest by AdamW; else AdamW trains all, as it does
            where bfloat16 is slow: torch's Muon computes in nothing else.
        factors: of the learning rate, by the module of `model` that a parameter is in; 1 for the others.

    Returns:
        `model`, holding the averaged weights.
    """
    training = _Training(model, _optimizers(model, schedule.learning_rate, weight_decay, muon, factors or {}))
    first_step = training.load(state_file) if state_file.exists() else 0
    last_step = schedule.num_steps if stop_at is None else stop_at
    saved_s = time.monotonic()
    shown: dict[str, float] = {}
    with tqdm(total=schedule.num_steps, initial=first_step, desc=stage, mininterval=5.0) as bar:
        for step in range(first_step, last_step):
            loss, figures = loss_of(step)
            training.step(loss, schedule.at(step), min(ema_decay, (step + 1) / (step + 10)))
            shown = {name: 0.98 * shown.get(name, value) + 0.02 * value for name, value in figures.items()}
            bar.update()
            bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                training.save(state_file, step + 1)
                saved_s = time.monotonic()
    training.save(state_file, last_step)
    training.use_averages()
    return model


class _Training:
    """Weights, their moving averages, optimisers and the time spent: what a training goes on from."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.model = model
        self.optimizers = optimizers
        self.parameters = list(model.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self._elapsed_s = 0.0
        self._started_s = time.monotonic()

    def step(self, loss: torch.Tensor, learning_rate: float, ema_decay: float) -> None:
        """One step of the optimisers, then one of the moving averages."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("factor", 1.0)
            optimizer.step()
        with torch.no_grad():
            weights = [parameter.detach() for parameter in self.parameters]
            torch._foreach_lerp_(self.averages, weights, 1.0 - ema_decay)

    def use_averages(self) -> None:
        """Puts the averages in place of the weights."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                parameter.copy_(average)

    def save(self, file: Path, step: int) -> None:
        """Whole or not at all; `step` is the next one to take."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "averages": self.averages,
            "step": step,
            "elapsed_s": self._elapsed_s + time.monotonic() - self._started_s,
        }
        save_whole(state, file)

    def load(self, file: Path) -> int:
        """What `save` wrote; returns the next step to take.

        Raises:
            OutputError: if the file is damaged, is of another network, or of a machine with other optimisers.
        """
        state = _read(file)
        try:
            self.model.load_state_dict(state["model"])
            saved_optimizers = state["optimizers"]
        except (RuntimeError, KeyError, TypeError) as error:
            raise OutputError(
                f"{str(file)!r} is no state of this network: it is of another model, or of another training",
                "take another --work-dir, or delete the file to begin anew",
            ) from error
        if len(saved_optimizers) != len(self.optimizers):
            raise OutputError(
                f"{str(file)!r} was written where bfloat16 is fast, or slow, and this machine is the other: its "
                "optimiser cannot be gone on with",
                "go on where it was begun, or take another --work-dir",
            )
        for optimizer, saved in zip(self.optimizers, saved_optimizers, strict=True):
            optimizer.load_state_dict(saved)
        self.averages = [average.to(self.parameters[0].device) for average in state["averages"]]
        self._elapsed_s = state["elapsed_s"]
        step: int = state["step"]
        return step


def _optimizers(
    model: nn.Module, learning_rate: float, weight_decay: float, muon: bool, factors: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    muon = muon and computes_bfloat16(named[0][1].device)
    matrices: dict[float, list[nn.Parameter]] = defaultdict(list)
    others: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        is_matrix = muon and parameter.ndim == 2 and "blocks." in name
        (matrices if is_matrix else others)[factors.get(name.partition(".")[0], 1.0)].append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(_groups(others), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                _groups(matrices), lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def _groups(by_factor: Mapping[float, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
