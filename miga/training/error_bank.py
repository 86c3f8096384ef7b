"""The bank of a model's own errors: lists of a bounded length, one for each stretch of time steps.

Source: Stable Video Infinity, error replay memory. Upstream keeps two banks (errors of the clean latent, errors of the
noise), which hold the same residual twice; here both can be had from one (`Banks.of_residuals`). Which sample a full
grid drops may differ then: of residuals other ones are nearest than of errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import torch

from miga.errors import ConfigError

Replacement: TypeAlias = Literal["l2", "fifo", "random"]
REPLACEMENTS: Final[tuple[Replacement, ...]] = ("l2", "fifo", "random")
HIGHEST_TIMESTEP: Final = 999.0
"""Time steps are clamped to it before their grid is looked up (upstream's own)."""


class Chance(Protocol):
    """Where random numbers come from: a seeded generator, or numbers that were noted."""

    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high]."""
        ...

    def choice(self, count: int) -> int:
        """One of 0 ... count - 1: which stored sample."""
        ...

    def first_latent(self, count: int) -> int:
        """One of 0 ... count - 1: where in time a condition's error begins."""
        ...


@dataclass(frozen=True)
class Stored:
    """One sample of a bank.

    Attributes:
        error: of any shape.
        sigma: noise level that it was made at.
    """

    error: torch.Tensor
    sigma: float


class ErrorBank:
    """Errors by grid: a grid is the anchor time step that is nearest.

    Args:
        anchors: time steps of the grids, 0 ... 1000; those of inference.
        capacity: samples of a grid at most.
        replacement: what a sample takes the place of once its grid is full: "l2" of the stored one that is nearest to
            it, "fifo" of the oldest, "random" of any.
        max_bytes: of all samples together at most; None for no such bound.
        dtype: that samples are kept in; None: as they come.

    Raises:
        ConfigError: if a value cannot be.
    """

    def __init__(
        self,
        anchors: Sequence[float] | torch.Tensor,
        capacity: int,
        replacement: Replacement = "l2",
        *,
        max_bytes: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.anchors = torch.as_tensor(anchors, dtype=torch.float32).flatten()
        if not len(self.anchors):
            raise ConfigError("a bank of errors has no grids", "give it the time steps of inference")
        if capacity < 1:
            raise ConfigError(f"a bank of errors holds {capacity} samples of a grid", "it must be 1 or more")
        if replacement not in REPLACEMENTS:
            raise ConfigError(f"replacement {replacement!r} is unknown", f"it is one of {', '.join(REPLACEMENTS)}")
        self.capacity, self.replacement, self.max_bytes, self.dtype = capacity, replacement, max_bytes, dtype
        self._grids: list[list[Stored]] = [[] for _ in range(len(self.anchors))]

    @property
    def num_grids(self) -> int:
        """Grids of it."""
        return len(self._grids)

    @property
    def sizes(self) -> list[int]:
        """Samples of each grid."""
        return [len(samples) for samples in self._grids]

    @property
    def num_bytes(self) -> int:
        """Of all samples."""
        return sum(stored.error.nbytes for samples in self._grids for stored in samples)

    def grid_of(self, timestep: float) -> int:
        """The grid of a time step, 0 ... 1000."""
        clamped = min(max(float(timestep), 0.0), HIGHEST_TIMESTEP)
        return int((self.anchors - clamped).abs().argmin())

    def samples(self, grid: int) -> Sequence[Stored]:
        """Those of a grid, slot by slot."""
        return tuple(self._grids[grid])

    def all_samples(self) -> Sequence[Stored]:
        """Those of all grids, grid by grid."""
        return tuple(stored for samples in self._grids for stored in samples)

    def add(self, grid: int, error: torch.Tensor, sigma: float, chance: Chance | None = None) -> None:
        """Stores a copy of a sample on the CPU; of a full grid another one goes.

        Args:
            grid: where to.
            error: of the shape of all others.
            sigma: noise level that it was made at.
            chance: which one goes, where that is left to chance.

        Raises:
            ConfigError: if not even one sample a grid has room in `max_bytes`.
        """
        kept = error.detach().to("cpu", self.dtype or error.dtype, copy=True)
        samples, stored = self._grids[grid], Stored(kept, float(sigma))
        if len(samples) < self._room(kept.nbytes):
            samples.append(stored)
        elif self.replacement == "fifo":
            del samples[0]
            samples.append(stored)
        elif self.replacement == "random":
            assert chance is not None, "who leaves it to chance says where that comes from"
            samples[chance.choice(len(samples))] = stored
        else:
            samples[self._nearest(samples, kept)] = stored

    def rms(self) -> list[float]:
        """Root mean square of each grid's samples; 0 of an empty one. To be logged beside what is injected."""
        means = [[float(stored.error.float().square().mean()) for stored in samples] for samples in self._grids]
        return [(sum(each) / len(each)) ** 0.5 if each else 0.0 for each in means]

    def state(self) -> dict[str, torch.Tensor]:
        """All it holds, by name: `GRID.SLOT.error` and `GRID.SLOT.sigma` (float64)."""
        found: dict[str, torch.Tensor] = {}
        for grid, samples in enumerate(self._grids):
            for slot, stored in enumerate(samples):
                found[f"{grid}.{slot}.error"] = stored.error
                found[f"{grid}.{slot}.sigma"] = torch.tensor(stored.sigma, dtype=torch.float64)
        return found

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of all it holds by what `state` gave.

        Raises:
            ValueError: if it is no such state, or one of a bank with fewer grids or more room.
        """
        slots = sorted({tuple(map(int, name.split(".")[:2])) for name in state})
        grids: list[list[Stored]] = [[] for _ in range(self.num_grids)]
        for grid, slot in slots:
            if not 0 <= grid < self.num_grids or slot != len(grids[grid]) or slot >= self.capacity:
                raise ValueError(f"sample {slot} of grid {grid} has no place in this bank of errors")
            error, sigma = (state.get(f"{grid}.{slot}.{name}") for name in ("error", "sigma"))
            if error is None or sigma is None:
                raise ValueError(f"sample {slot} of grid {grid} is not whole")
            grids[grid].append(Stored(error.detach().cpu().clone(), float(sigma)))
        self._grids = grids

    def _room(self, sample_bytes: int) -> int:
        if self.max_bytes is None:
            return self.capacity
        room = self.max_bytes // (sample_bytes * self.num_grids)
        if room < 1:
            raise ConfigError(
                f"a bank of {self.max_bytes} bytes has no room for one error of {sample_bytes} bytes in each of "
                f"{self.num_grids} grids",
                f"give it {sample_bytes * self.num_grids} bytes or more, or fewer grids",
            )
        return min(self.capacity, room)

    @staticmethod
    def _nearest(samples: Sequence[Stored], error: torch.Tensor) -> int:
        """The slot of least L2 distance, the first of equals. One at a time: a stack of all would double the bank."""
        squares = [float((stored.error.float() - error.float()).square().sum()) for stored in samples]
        return min(range(len(squares)), key=squares.__getitem__)


class Banks:
    """What errors are drawn from: of the noise, and of the clean latent (also for the condition).

    Args:
        noise, clean: two banks; the same one twice if it holds residuals.
        holds_residuals: whether samples are residuals r = v^ - v, of which errors are made when they are drawn.
    """

    def __init__(self, noise: ErrorBank, clean: ErrorBank, *, holds_residuals: bool) -> None:
        self.noise, self.clean, self.holds_residuals = noise, clean, holds_residuals

    @classmethod
    def of_errors(cls, anchors: Sequence[float] | torch.Tensor, capacity: int, **settings: Any) -> Banks:
        """Two banks, as upstream has them; `settings` are those of `ErrorBank`."""
        return cls(
            ErrorBank(anchors, capacity, **settings), ErrorBank(anchors, capacity, **settings), holds_residuals=False
        )

    @classmethod
    def of_residuals(cls, anchors: Sequence[float] | torch.Tensor, capacity: int, **settings: Any) -> Banks:
        """One bank, of half the memory; `settings` are those of `ErrorBank`."""
        bank = ErrorBank(anchors, capacity, **settings)
        return cls(bank, bank, holds_residuals=True)

    def grid_of(self, timestep: float) -> int:
        """See `ErrorBank.grid_of`."""
        return self.clean.grid_of(timestep)

    def noise_error(self, stored: Stored) -> torch.Tensor:
        """What a sample of `noise` stands for: (1 - s) r."""
        return (1.0 - stored.sigma) * stored.error.float() if self.holds_residuals else stored.error

    def clean_error(self, stored: Stored) -> torch.Tensor:
        """What a sample of `clean` stands for: -s r."""
        return -stored.sigma * stored.error.float() if self.holds_residuals else stored.error

    def store(self, residual: torch.Tensor, sigma: float, timestep: float, chance: Chance | None = None) -> None:
        """Stores what a forward pass erred by.

        Args:
            residual: v^ - v.
            sigma: noise level of the input.
            timestep: the same, 0 ... 1000.
            chance: see `ErrorBank.add`.
        """
        grid = self.grid_of(timestep)
        if self.holds_residuals:
            self.clean.add(grid, residual, sigma, chance)
            return
        self.noise.add(grid, (1.0 - sigma) * residual, sigma, chance)
        self.clean.add(grid, -sigma * residual, sigma, chance)

    def state(self) -> dict[str, torch.Tensor]:
        """All they hold, by name."""
        banks = {"clean": self.clean} if self.holds_residuals else {"clean": self.clean, "noise": self.noise}
        return {f"{name}.{key}": tensor for name, bank in banks.items() for key, tensor in bank.state().items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of all they hold by what `state` gave.

        Raises:
            ValueError: see `ErrorBank.load_state`.
        """
        banks = {"clean": self.clean} if self.holds_residuals else {"clean": self.clean, "noise": self.noise}
        if unknown := sorted({name.split(".")[0] for name in state} - set(banks)):
            raise ValueError(f"there is no bank of {unknown[0]!r} errors here")
        for name, bank in banks.items():
            prefix = f"{name}."
            bank.load_state({key.removeprefix(prefix): part for key, part in state.items() if key.startswith(prefix)})
