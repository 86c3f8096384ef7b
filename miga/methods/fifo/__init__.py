"""FIFO-Diffusion, the baseline: a diagonal queue."""

from miga.methods.base import Method
from miga.methods.fifo.fifo import FifoState, begin
from miga.methods.fifo.settings import PROFILES, FifoSettings

METHOD = Method(name="fifo", settings=FifoSettings, state=FifoState, begin=begin, profiles=PROFILES)
