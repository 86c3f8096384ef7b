"""Solvers with one clock per latent."""

from miga.solvers.base import History, Solver
from miga.solvers.unipc import UniPCSolver

__all__ = ["History", "Solver", "UniPCSolver"]
