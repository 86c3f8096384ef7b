"""FreeNoise: noise that comes back in another order, attention by windows, two prompts by motion injection."""

from miga.methods.freenoise.settings import METHOD

__all__ = ["METHOD"]
