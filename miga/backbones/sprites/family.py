"""The embedded model as a family: one name, for a Wan model that comes with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from miga.backbones.base import BackboneSpec
from miga.backbones.wan.family import WanFamily

NAME: Final = "sprites"
CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""A folder in diffusers' layout, with all that a downloaded model has."""


class SpritesFamily(WanFamily):
    """See `Family`. In all else it is Wan's: its spec says so, and published settings are Wan's in proportion."""

    name: ClassVar[str] = NAME
    random_models: ClassVar[tuple[str, ...]] = ()

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        """None: it is read from its folder."""
        return {}

    def knows(self, model: str) -> bool:
        """See `Family.knows`: its one name, whatever folder may be called so."""
        return model == NAME

    def recognises(self, place: Path, model: str) -> bool:
        """See `Family.recognises`."""
        return False

    def is_on_hub(self, model: str) -> bool:
        """See `Family.is_on_hub`."""
        return False

    def place(self, model: str) -> str:
        """See `FolderFamily.place`."""
        return str(CHECKPOINT)


FAMILY: Final = SpritesFamily()
