"""FreeLong: of global attention the slow parts, of local attention the quick ones."""

from miga.methods.freelong.settings import METHOD

__all__ = ["METHOD"]
