"""MIGA: long videos from short-clip video models, without training (arXiv 2605.18233)."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["LongVideo", "LongVideoPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline on first use: most commands need no torch."""
    if name in ("LongVideo", "LongVideoPipeline"):
        from miga import long_video

        return getattr(long_video, name)
    raise AttributeError(f"module 'miga' has no attribute {name!r}")
