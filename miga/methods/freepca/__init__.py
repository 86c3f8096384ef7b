"""FreePCA: of global attention the principal components that look most like local attention's."""

from miga.methods.freepca.settings import METHOD

__all__ = ["METHOD"]
