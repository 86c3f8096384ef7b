"""Doing nothing: a whole video in one window, longer than the network was trained on. The honest baseline."""

from miga.methods.direct.settings import METHOD

__all__ = ["METHOD"]
