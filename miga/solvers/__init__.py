"""Solvers with one clock per latent, and how to name them."""

from __future__ import annotations

from typing import Final

from miga.queue import History
from miga.schedule import NoiseSchedule
from miga.solvers.base import Solver
from miga.solvers.ddim import DDIMSolver
from miga.solvers.euler import EulerSolver
from miga.solvers.renoise import RenoiseSolver
from miga.solvers.unipc import UniPCSolver

__all__ = [
    "SOLVERS",
    "DDIMSolver",
    "EulerSolver",
    "History",
    "RenoiseSolver",
    "Solver",
    "UniPCSolver",
    "make_solver",
]

SOLVERS: Final[dict[str, str]] = {
    "unipc": "UniPC of order 2, deterministic; Wan's own sampler",
    "ddim": "DDIM, from deterministic (eta 0) to ancestral (eta 1); VideoCrafter2's own sampler",
    "euler": "Euler's step of the probability flow, order 1, deterministic",
    "renoise": "predict the clean latent and noise it afresh; for step-distilled models",
}
"""Every name that `make_solver` knows, and what it is."""


def make_solver(name: str, schedule: NoiseSchedule, eta: float = 0.0) -> Solver:
    """The solver of that name.

    Args:
        name: one of `SOLVERS`.
        schedule: the levels to step through.
        eta: of "ddim", 0 to 1; the others have none, and take 0 only.

    Raises:
        ValueError: for an unknown name, an eta that is out of range or that the solver does not have, or a schedule
            that it cannot step through.
    """
    if name == "ddim":
        return DDIMSolver(schedule, eta)
    makers: dict[str, type[UniPCSolver] | type[EulerSolver] | type[RenoiseSolver]] = {
        "unipc": UniPCSolver,
        "euler": EulerSolver,
        "renoise": RenoiseSolver,
    }
    if name not in makers:
        raise ValueError(f"unknown solver {name!r}: it must be one of {', '.join(SOLVERS)}")
    if eta != 0.0:
        raise ValueError(f"eta = {eta!r} has no meaning for solver {name!r}: only 'ddim' reads it, set it to 0")
    return makers[name](schedule)
