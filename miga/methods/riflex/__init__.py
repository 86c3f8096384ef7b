"""RIFLEx: one rotary frequency of time is lowered, so that a video does not repeat itself."""

from miga.methods.riflex.settings import METHOD

__all__ = ["METHOD"]
